"""The check counts where an object reaches through another one, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "reach_through.py"
spec = importlib.util.spec_from_file_location("reach_through", SCRIPT)
assert spec is not None
assert spec.loader is not None
reach_through = importlib.util.module_from_spec(spec)
sys.modules["reach_through"] = reach_through
spec.loader.exec_module(reach_through)

MODULE = """
import os
from dataclasses import dataclass


@dataclass
class Spec:
    name: str


class Machine:
    present: int
    cells: dict[str, int]


class Session:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.machine = Machine()
        self.shared: dict[str, int] = {}
        self._private = 1


class Collaborator:
    def __init__(self, session: Session | None) -> None:
        self._session = session
        self.mine = 1

    def act(self, other: "Session", unknown) -> None:
        ACT
"""


def places(tmp_path: Path, line: str) -> list[tuple[str, str]]:
    (tmp_path / "module.py").write_text(MODULE.replace("ACT", line))
    return [(place.kind, place.text) for place in reach_through.places_of([tmp_path])]


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        ("self._session.machine.present", "second level", "self._session.machine.present"),
        ("other.machine.cells.values()", "second level", "other.machine.cells"),
        ("other.shared.pop('a')", "second level", "other.shared.pop"),
        ("s = self._session; s.machine.present", "second level", "s.machine.present"),
        ("other._private", "private", "other._private"),
        ("unknown._private()", "private", "unknown._private"),
        ("other.machine = None", "write", "other.machine"),
        ("self._session.kernel = None", "write", "self._session.kernel"),
        ("unknown.count += 1", "write", "unknown.count"),
        ("del other.machine", "write", "other.machine"),
    ],
)
def test_it_counts(tmp_path, line, kind, text):
    assert (kind, text) in places(tmp_path, line)


@pytest.mark.parametrize(
    "line",
    [
        "self.mine = 2",
        "self._session = None",
        "self._session.machine",
        "other.spec.name",  # a value's field
        "made = Machine(); made.present = 2",
        "os.path.join('a')",
        "os._exit(1)",
        "Session._private",
        "super()._act()",
        "other.__dict__",
    ],
)
def test_it_does_not_count(tmp_path, line):
    assert places(tmp_path, line) == []


def test_it_fails_above_the_allowed_number(tmp_path, capsys):
    (tmp_path / "module.py").write_text(MODULE.replace("ACT", "other.machine = other._private"))
    assert reach_through.main([str(tmp_path), "--at-most", "2"]) == 0
    assert reach_through.main([str(tmp_path), "--at-most", "1"]) == 1
    assert "module.py:30: write: other.machine" in capsys.readouterr().out
