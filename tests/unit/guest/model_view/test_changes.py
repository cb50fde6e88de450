"""The variables and files that a cell made, changed or removed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kernelsvc.guest.model_view import changes, where


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> changes.Changes:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)  # A hook can't be removed.
    return changes.Changes()


def run(found: changes.Changes, space: dict[str, Any], code: str, *, writes: bool = False) -> dict[str, list[str]]:
    found.begin(space, {"In": []})
    exec(code, space)
    if writes:
        found._audited("open", ("x", "w", changes.os.O_WRONLY))
    return found.end(space, {})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", {}),
        ("_x = 1; import json", {}),
        ("a = 3; f = lambda: 1", {"new": ["a: int = 3", "f: function"]}),
        ("n += 1.0", {"changed": ["n: float = 2.5"]}),
        ("del n; text = 'x'", {"changed": ["text: str = 'x'"], "gone": ["n"]}),
        ("items.append(1)", {"changed": ["items: list 2 items"]}),
        ("df['b'] = 2; del df['a']", {"changed": ["df: columns +b, -a"]}),
        ("df = df.iloc[:1]", {"changed": ["df: pandas.DataFrame 1 rows x 1 columns: 'a'"]}),
        ("grid = grid.astype('f4')", {"changed": ["grid: numpy.ndarray shape (2,), float32"]}),
        ("x = [n for n in range(3)]; n = n", {"new": ["x: list 3 items"]}),
    ],
)
def test_variables(found: changes.Changes, code: str, expected: dict[str, list[str]]) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    space = {"n": 1.5, "text": "y" * 50, "items": [1], "df": frame, "grid": np.zeros(2), "In": []}
    exec("pass", space)
    assert run(found, space, code) == expected


def test_many_names_are_limited(found: changes.Changes) -> None:
    assert len(run(found, {}, "globals().update({f'v{n}': n for n in range(5000)})")["new"]) == changes.MAX_NAMED


def test_files_are_compared_only_if_something_was_written(found: changes.Changes, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("x")
    (tmp_path / "report.md").write_text("x" * 10)
    code = (
        "import os, pathlib\nos.remove('old.txt')\npathlib.Path('report.md').write_text('y' * 2500)\n"
        "os.mkdir('out')\npathlib.Path('out/a.csv').write_text('1')"
    )
    assert run(found, {}, code, writes=True) == {"files": ["+out/a.csv (1 bytes)", "~report.md (2 kB)", "-old.txt"]}
    (tmp_path / "other").write_text("x")
    assert run(found, {}, "") == {}


def test_an_audit_hook_sees_writes_and_programs(found: changes.Changes) -> None:
    for event, details, writes in [
        ("open", ("a", "r", changes.os.O_RDONLY), False),
        ("open", ("a", "w", changes.os.O_WRONLY | changes.os.O_CREAT), True),
        ("os.rename", ("a", "b", -1, -1), True),
        ("subprocess.Popen", ("ls",), True),
        ("import", ("json",), False),
    ]:
        found.begin({}, {})
        found._audited(event, details)
        assert found._may_have_written is writes


def test_a_directory_with_too_many_files_is_left_out(
    found: changes.Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_ENTRIES", 3)
    assert run(found, {}, "[open(f'{n}', 'w').close() for n in range(5)]", writes=True) == {}


def test_no_method_of_a_metaclass_is_called(found: changes.Changes) -> None:
    code = """
called = []
class Meta(type):
    def __eq__(cls, other): called.append(1); return True
    def __hash__(cls): called.append(1); return hash(int)
class Mine(metaclass=Meta): pass
"""
    space: dict[str, Any] = {}
    exec(code, space)
    run(found, space, "mine = Mine(); n = 1")
    run(found, space, "n = Mine(); mine = 1")
    where.shown_value("n", [space["n"], space["Mine"]])
    assert space["called"] == []
