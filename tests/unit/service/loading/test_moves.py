"""Which sessions can move to another node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelsvc.service.loading.moves import families

DATA = Path("/data")


def about(owner: str, *binds: str) -> dict[str, Any]:
    return {"workdir": f"/data/sessions/{owner}/home/user", "binds": [{"source": each} for each in binds]}


@pytest.mark.parametrize(
    ("abouts", "awake", "found"),
    [
        ({"a": about("a"), "b": about("b")}, set(), [{"a"}, {"b"}]),
        ({"a": about("a"), "branch": about("a"), "c": about("c")}, set(), [{"a", "branch"}, {"c"}]),
        ({"a": about("a"), "branch": about("a"), "c": about("c")}, {"branch"}, [{"c"}]),
        ({"a": about("a", "/data/workspaces/x/files"), "c": about("c", "/mnt/shared")}, set(), [{"c"}]),
        ({"branch": about("gone")}, set(), []),
        ({"a": {}}, set(), []),
        ({"a": {"workdir": "/elsewhere"}}, set(), [{"a"}]),
    ],
)
def test_families(abouts: dict[str, dict[str, Any]], awake: set[str], found: list[set[str]]) -> None:
    assert [set(each) for each in families(abouts, DATA, awake)] == found
