"""Two commands on one environment."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from kernelsvc.cli import environments
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import Conflict, NotFound
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore


async def remove(data: Path) -> int:
    args = argparse.Namespace(action="remove", name="tools", data_dir=str(data), config=None, owner="")
    return await environments.main(args, Terminal(io.StringIO(), io.StringIO()))


async def test_an_environment_that_another_command_changes_is_not_removed(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path)
    store.write(EnvironmentRecord(name="tools", python="/usr/bin/python3"))
    with store.changing("tools"), pytest.raises(Conflict, match="Another command works on the environment"):
        await remove(tmp_path)
    assert "tools" in store.read_all()
    assert await remove(tmp_path) == 0
    assert not store.directory("tools").exists()
    with pytest.raises(NotFound):
        await remove(tmp_path)


def test_uv_is_found_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert environments.find_uv() is None
    uv = tmp_path / "uv"
    uv.touch(0o755)
    assert environments.find_uv() == str(uv)
