"""Which sessions can move to another node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from kernelsvc.errors import Conflict
from kernelsvc.model.hash_chain import Head
from kernelsvc.service.loading.moves import Moves, families
from kernelsvc.settings import Settings
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore

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


@pytest.mark.parametrize("template", ["python3", "polars", "other"])
async def test_a_node_takes_sessions_of_its_environments(tmp_path: Path, template: str) -> None:
    settings = Settings(data_dir=tmp_path)
    store = EnvironmentStore(tmp_path)
    store.write(EnvironmentRecord(name="polars", python="/usr/bin/python3"))
    stage, taken = tmp_path / "stage", []
    (stage / "sessions" / "s-1").mkdir(parents=True)
    (stage / "sessions" / "s-1" / "session.json").write_text(json.dumps({"template": template}))
    directories, registry = mock.Mock(sessions=tmp_path / "sessions"), mock.Mock()
    directories.take_in.side_effect = lambda _, heads: taken.extend(heads) or []
    registry.open_sessions.return_value = []
    moves = Moves(settings, directories, registry, mock.Mock())
    if template == "other":
        with pytest.raises(Conflict, match="no template 'other'"):
            moves._admit(stage, {"s-1": Head()})
    else:
        moves._admit(stage, {"s-1": Head()})
    assert taken == ([] if template == "other" else ["s-1"])
