"""Answers to a model: defects that earlier answers had, one row each, and output that harms a reader."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from served import Served

from kernelsvc.integrations import Tools
from kernelsvc.model.view.estimate import estimate

BUDGET = 3000


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


@pytest.fixture(scope="module")
def tools(served: Served) -> Iterator[Tools]:
    with Tools(served.url, served.token, session="answers") as made:
        yield made
        made.call("sessions", {"close": "answers"})


def answer(tools: Tools, code: str, **more: object) -> str:
    return tools.call("run_code", {"code": code, **more}).text


_GROUP = """
import asyncio
async def bad():
    raise ValueError("part 2")
async def go():
    async with asyncio.TaskGroup() as group:
        group.create_task(bad())
"""
_WIDE = "import pandas as pd; pd.DataFrame([range(13)] * 9, columns=[f'column_{k}' for k in range(13)])"
_CHART = "display({'text/html': '<script>/** plotly.js v3 */' + 'x' * 100_000, 'application/vnd.plotly.v1+json': "
_CHART += "{'data': [{'type': 'bar', 'x': ['a'], 'y': [4]}], 'layout': {'title': {'text': 'Sales'}}}}, raw=True)"


@pytest.mark.parametrize(
    ("cells", "has", "lacks"),
    [
        pytest.param(["1 / 0", f"{_GROUP}\nawait go()"], ["ValueError: part 2", "await go()"], ["1 / 0"], id="group"),
        pytest.param(["for k in range(9000): print(k * k)"], ["[cut: read_output"], ["GET ", "http"], id="no-route"),
        pytest.param(["exit()", "print('still here')"], ["still here"], ["kernel_died"], id="exit"),
        pytest.param(["len?"], ["Signature", "number of items"], ["no output"], id="question-mark"),
        pytest.param([_WIDE], ["column_6", "column_12"], ["..."], id="all-columns"),
        pytest.param(
            ["from IPython.display import Markdown, HTML; display(Markdown('# Tides'), HTML('<b>high</b>'))"],
            ["# Tides", "high"],
            ["object"],
            id="rich-text",
        ),
        pytest.param([_CHART], ["Sales", "bar a 4"], ["plotly.js", "xxx"], id="plotly"),
        pytest.param(
            ["import ctypes; ctypes.string_at(0)"],
            ["SIGSEGV|Segmentation fault"],
            ["Extension modules", "Current thread 0x"],
            id="crash",
        ),
        pytest.param(
            ["def f(n):\n    return f(n + 1)\nf(0)"], ["RecursionError", "repeats"], ["stack_data"], id="recursion"
        ),
        pytest.param(["!echo $PIP_RETRIES $PIP_PROGRESS_BAR"], ["0 off"], [], id="pip-without-network"),
        pytest.param(
            ["import sys; sys.exit(4)"], ["SystemExit: 4"], ["UserWarning", "exception has occurred"], id="status"
        ),
    ],
)
def test_what_an_answer_says(tools: Tools, cells: list[str], has: list[str], lacks: list[str]) -> None:
    found = [answer(tools, code) for code in cells][-1]
    assert [each for each in has if not re.search(re.escape(each) if "|" not in each else each, found)] == [], found
    assert [each for each in lacks if each in found] == [], found
    assert estimate(found) <= 1.4 * BUDGET


def test_a_time_limit_is_named_once_and_waiting_repeats_nothing(tools: Tools) -> None:
    found = answer(tools, "import time\nwhile True: time.sleep(.01)", seconds=0.3)
    assert len(re.findall("0.3 s|timeout", found)) <= 2, found
    first = answer(tools, "for k in range(3): print('step', k, flush=True)", wait_seconds=30)
    assert "step 2" in first
    number = int(re.findall(r"\[(\d+)", first)[-1])
    assert "step" in tools.call("wait", {"cell": number}).text


_REPR = "class R:\n    calls = 0\n    def __repr__(self):\n        R.calls += 1\n        {}\n"
_HARMFUL = {
    "a line of 20 MB": "print('x' * 20_000_000)",
    "a million lines": "print('\\n'.join(map(str, range(1_000_000))))",
    "binary": "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4000); sys.stdout.flush()",
    "lone surrogates": "print('\\ud800 \\udfff' * 3000)",
    "escape sequences": "print('\\x1b[31m\\x1b[2J\\x1b]0;t\\x07\\x1b[500A' * 5000 + 'seen')",
    "a repr that raises": _REPR.format("raise RuntimeError('no repr')") + "[R()]",
    "a repr that is long": _REPR.format("return 'r' * 2_000_000") + "R()",
    "a repr that lies": _REPR.format("return 7") + "R.__name__ = 'DataFrame'; R.__module__ = 'pandas'; R()",
    "ten thousand columns": "import numpy as np, pandas as pd; pd.DataFrame(np.zeros((20, 10_000)))",
    "nan and infinity": "pd.DataFrame({'a': [float('nan'), float('inf'), -float('inf')] * 400, 'b': [None] * 1200})",
    "an object that changes": "import threading\nd = {k: k for k in range(5000)}\nstop = threading.Event()\n"
    "def change():\n    while not stop.is_set():\n        d.pop(next(iter(d)), None); d[object()] = 1\n"
    "t = threading.Thread(target=change); t.start()\nfrom IPython.display import display\n"
    "for _ in range(5):\n    try: display(d)\n    except RuntimeError: pass\nstop.set(); t.join()",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", _HARMFUL)
def test_harmful_output_has_a_short_answer(tools: Tools, kind: str) -> None:
    found = answer(tools, _HARMFUL[kind])
    assert estimate(found) <= 1.4 * BUDGET
    assert re.search(r"\[\d+[ \]]", found.splitlines()[-1]), found[-300:]
    found.encode()
    assert "\x1b" not in found
    if "class R" in _HARMFUL[kind]:
        # IPython asks for it once. The form for a model does not ask again.
        assert answer(tools, "R.calls").startswith(("1\n", "0\n"))


def test_a_repr_that_hangs_ends_with_the_cells_time(tools: Tools) -> None:
    found = answer(tools, _REPR.format("while True: pass") + "R()", seconds=0.5)
    assert "timeout" in found
    assert answer(tools, "R.calls").startswith("1\n")
