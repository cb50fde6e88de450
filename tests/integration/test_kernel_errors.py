"""What a forked kernel reports of an exception: the traceback for people, and lines for a model."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kernel_processes import Client

GROUP = (
    "import asyncio\nasync def bad(n):\n    raise ValueError(f'payload {n}')\n"
    "async def main():\n    async with asyncio.TaskGroup() as tasks:\n        tasks.create_task(bad(1))\n"
)


async def fail(k: Client, code: str, **options: Any) -> tuple[str, str]:
    """Run a cell that fails, and return its traceback and its lines for a model."""
    answer = await k.run(code, **options)
    (error,) = answer.messages("error")
    assert answer.stderr == ""
    assert answer.reply.content["traceback"] == error.content["traceback"]
    return "\n".join(error.content["traceback"]), "\n".join(error.content["model"])


@pytest.mark.parametrize(
    "code",
    [
        f"{GROUP}await main()",
        f"{GROUP}try:\n    await main()\nfinally:\n    1 / 0",
        "raise ExceptionGroup('g', [ValueError('payload 1')])",
    ],
)
@pytest.mark.parametrize("options", [{}, {"changes": True}])
async def test_an_exception_group_has_its_own_traceback(k: Client, code: str, options: dict[str, bool]) -> None:
    await k.run("{}['an earlier error']")
    traceback, model = await fail(k, code, **options)
    for text in (traceback, model):
        assert "earlier" not in text
        assert "payload 1" in text
        assert "ipykernel" not in text
    assert "kernelsvc" not in traceback
    assert model.startswith("Traceback (most recent call last):\n  Cell [")


@pytest.mark.parametrize("code", ["exec('1 / 0')", "eval('1 +')"])
async def test_code_without_a_file_has_no_source_of_ours(k: Client, code: str) -> None:
    for text in await fail(k, code):
        assert "Error" in text
        assert "sys.argv" not in text


async def test_a_recursion_is_folded_in_both_forms(k: Client) -> None:
    traceback, model = await fail(k, "def f(n):\n    return f(n + 1) + 1\nf(0)")
    assert "RecursionError" in traceback
    assert "frames between the first and the last are left out" in traceback
    assert len(traceback) < 40_000
    assert re.search(r"the frame above repeats 9\d\d more times", model)
    assert "where n = " in model


async def test_a_cell_of_a_model_has_one_form(k: Client) -> None:
    traceback, model = await fail(k, "x = 0\n1 / x", changes=True)
    assert traceback == model
    assert "where x = 0" in model
    traceback, model = await fail(k, "1 / x")
    assert traceback != model
