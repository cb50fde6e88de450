"""An exception as lines for a model: frames of cells, failing parts, values, chains, groups."""

from __future__ import annotations

import linecache
import sys
import types
from typing import Any

import pytest

from kernelsvc.guest.model_view import errors, where

CELLS: dict[str, int] = {}


def raised(code: str, **names: Any) -> BaseException:
    """Run code as a cell, and return its exception."""
    file = f"/tmp/ipykernel_1/{len(CELLS)}.py"
    CELLS[file] = len(CELLS) + 1
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    try:
        exec(compile(code, file, "exec"), {"__name__": "__main__", **names})
    except BaseException as error:
        return error
    raise AssertionError("the cell did not fail")


def shown(code: str, directory: str = "/nowhere", **names: Any) -> str:
    """Return the lines about a cell's exception, with its number replaced by N."""
    error = raised(code, **names)
    return "\n".join(errors.lines_of(error, errors.Places(CELLS.get, directory))).replace(f"Cell [{len(CELLS)}]", "N")


def test_the_frames_of_a_cell_with_the_part_that_failed_and_its_values() -> None:
    text = shown("def half(row):\n    return int(row['a']) / float(row['b'])\nx = 1; half({'a': 1, 'b': 'x'})\n")
    assert text.splitlines() == [
        "Traceback (most recent call last):",
        "  N, line 3",
        "    x = 1; half({'a': 1, 'b': 'x'})",
        "  N, line 2, in half",
        "    return int(row['a']) / float(row['b'])",
        "    here: float(row['b'])",
        "    where row = {'a': 1, 'b': 'x'}",
        "ValueError: could not convert string to float: 'x'",
    ]


@pytest.mark.parametrize(
    ("code", "needles", "absent"),
    [
        ("import json\njson.loads('nope')", ["  … 3 frames in json, the last one json/decoder.py:"], ["/lib/python"]),
        ("def f(n):\n    return f(n + 1)\nf(0)", ["[the frame above repeats "], ["here: f(n + 1)\n    here"]),
        ("def f(n):\n    return g(n)\ndef g(n):\n    return f(n)\nf(0)", ["[the 2 frames above repeat "], []),
        ("import sys\nsys.exit(3)", ["SystemExit: 3 (the cell ended here;"], ["Traceback"]),
        ("compile('for i in range(3)\\n', 'mod.py', 'exec')", ["mod.py, line 1", "^", "SyntaxError: expected ':'"], []),
        pytest.param(
            "class A:\n    balance = 1\nA().balanse",
            ["Did you mean: 'balance'?"],
            [],
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="traceback suggests names since Python 3.12"),
        ),
        ("assert False, 'x' * 5000", ["[… 3800 characters …]"], []),
        ("e = ValueError('a')\ne.add_note('see b')\nraise e", ["ValueError: a\nsee b"], []),
        ("raise ValueError(object())", ["<object object at 0x…>"], []),
        (
            "raise ImportError('no x in /opt/v/lib/python3.13/site-packages/p/a.py')",
            ["\nImportError: no x in p/a.py"],
            [],
        ),
        (
            "class E(Exception):\n    def __str__(self):\n        1 / 0\nraise E",
            ["E: <the exception's str() failed>"],
            [],
        ),
    ],
    ids=lambda value: value[:18] if isinstance(value, str) else "",
)
def test_kinds_of_exceptions(code: str, needles: list[str], absent: list[str]) -> None:
    text = shown(code)
    assert [needle for needle in needles if needle not in text] == [], text
    assert [needle for needle in absent if needle in text] == [], text


def test_a_chain_starts_with_the_oldest_and_repeats_nothing() -> None:
    load = (
        "def load():\n    try:\n        open('/missing')\n    except OSError as e:\n        raise KeyError(1) from e\n"
    )
    text = shown(load + "try:\n    load()\nexcept KeyError:\n    1 / 0\n")
    order = [
        "FileNotFoundError: ",
        "which was the cause of:",
        "KeyError: 1",
        "and while that was handled:",
        "ZeroD",
    ]
    assert sorted(order, key=text.index) == order
    # The cause has no frame of the user's that the next lacks, and the next repeats its message.
    text = shown("def f():\n    raise ValueError('why: a')\nf()", ValueError=_wrapping)
    assert "KeyError" not in text


def _wrapping(message: str) -> RuntimeError:
    error = RuntimeError(f"x: {message}")
    error.__cause__ = KeyError(message)
    return error


def test_the_members_of_a_group_have_their_own_frames() -> None:
    code = (
        "def bad(n):\n    raise ValueError(n)\nfound = []\nfor n in range(7):\n    try:\n        bad(n)\n"
        "    except ValueError as e:\n        found.append(e)\nraise ExceptionGroup('all', found)"
    )
    text = shown(code)
    assert "ExceptionGroup: all (7 sub-exceptions)" in text
    assert "  5 of 7:\n" in text
    assert "  6 of 7:" not in text
    assert "[… 2 more …]" in text
    assert "        where n = 3" in text


def test_frames_of_modules_in_the_working_directory_are_the_users(tmp_path: Any) -> None:
    file = tmp_path / "helpers.py"
    file.write_text("def read(doc):\n    return doc['items']\n")
    module = types.ModuleType("helpers")
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    text = shown("helpers.read({})", str(tmp_path), helpers=module)
    assert "  helpers.py, line 2, in read\n    return doc['items']\n    here: doc['items']\n" in text
    assert "… 1 frame in helpers, the last one " in shown("helpers.read({})", "/nowhere", helpers=module)


def test_frames_of_a_worker_process() -> None:
    from concurrent.futures.process import _RemoteTraceback  # type: ignore[attr-defined]

    cell = next(iter(CELLS), "/tmp/ipykernel_1/0.py")
    CELLS.setdefault(cell, 1)
    error = KeyError("b")
    error.__cause__ = _RemoteTraceback(
        f'Traceback (most recent call last):\n  File "/usr/lib/python3/pool.py", line 1, in run\n    x()\n'
        f"  File \"{cell}\", line 2, in job\n    return d[x]\nKeyError: 'b'\n"
    )
    lines = errors.lines_of(error, errors.Places(CELLS.get, "/nowhere"))
    assert lines[:4] == [
        "In the worker process:",
        f"  Cell [{CELLS[cell]}], line 2, in job",
        "    return d[x]",
        "which was the cause of:",
    ]


def test_a_hostile_exception_has_a_short_form() -> None:
    error = raised("def f(n):\n    " + "x = 1; " * 2000 + "f(n + 1)\nf(0)")
    lines = errors.lines_of(error, errors.Places(CELLS.get, "/nowhere"))
    assert sum(map(len, lines)) < errors.MAX_TEXT + 2 * errors.MAX_MESSAGE


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("api_key", "sk-123", "***"),
        ("row", {"password": "x", "user": "ada"}, "{'password': ***, 'user': 'ada'}"),
        ("items", list(range(100)), "list 100 items"),
        ("n", 3, "3"),
        ("f", len, ""),
        ("text", "x" * 300, "'" + "x" * 69 + "x'... 300…"),
    ],
)
def test_values_of_variables(name: str, value: Any, text: str) -> None:
    found = where.shown_value(name, value)
    assert found[:20] == text[:20]
    assert len(found) <= where.MAX_VALUE


def test_values_run_no_user_code() -> None:
    class Trap:
        def __repr__(self) -> str:
            raise SystemExit("repr")

        __str__ = __len__ = __iter__ = __bool__ = __eq__ = __hash__ = __repr__  # type: ignore[assignment]

    assert where.shown_value("trap", Trap()).endswith("Trap")
    assert where.shown_value("traps", [Trap()]).startswith("[")
