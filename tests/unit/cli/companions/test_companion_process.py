"""The environment and the locks of the processes beside a server."""

from __future__ import annotations

import argparse
import asyncio
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from kernelsvc import settings as conf
from kernelsvc.cli.backup import lock
from kernelsvc.cli.companions import bridge_process, companion_process, traces
from kernelsvc.cli.companions.companion_process import is_holder, locked, server_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import Conflict

SETTINGS = """
[secrets.a]
hosts = ["a.test"]
env = "SECRET_A"
[secrets.b]
hosts = ["b.test"]
file = "/nonexistent"
[models.m]
url = "http://127.0.0.1:1/v1"
key_env = "MODEL_KEY"
[tools.mcp.shop]
command = ["shop"]
[telemetry]
endpoint = "http://127.0.0.1:1"
"""
HIDDEN = ("SECRET_A", "MODEL_KEY", "KERNELSVC_TOKEN", "KERNELSVC_CLUSTER_KEY")


@pytest.mark.parametrize("kind", ["bridge", "exporter"])
async def test_no_secret_of_the_server_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name in (*HIDDEN, "OTHER"):
        monkeypatch.setenv(name, f"value-of-{name}")
    config = tmp_path / "kernelsvc.toml"
    config.write_text(SETTINGS)
    settings = conf.load({"config": str(config), "data_dir": str(tmp_path), "runtime_dir": str(tmp_path)}, {})
    process = bridge_process.prepare(settings)[1] if kind == "bridge" else traces.prepare(settings, {})
    shown = tmp_path / "shown.json"
    program = f"import json, os, pathlib; pathlib.Path({str(shown)!r}).write_text(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(process, "_command", [sys.executable, "-c", program])
    started, start = [], asyncio.create_subprocess_exec

    async def starting(*command: str, **more: Any) -> Any:
        started.append(await start(*command, **more))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starting)
    running = asyncio.create_task(process.keep_running("http://server"))
    await wait_until(lambda: started)
    await started[0].wait()
    running.cancel()
    env = json.loads(shown.read_text())
    assert (env["OTHER"], env["KERNELSVC_URL"]) == ("value-of-OTHER", "http://server")
    assert not [name for name in HIDDEN if f"value-of-{name}" in env.values()]


@pytest.mark.parametrize("name", ["server.lock", "workers.lock"])
def test_the_server_of_a_data_directory_is_found_by_its_lock(tmp_path: Path, name: str) -> None:
    """The parent of several workers serves it, too: its key must not be removed."""
    assert server_of(tmp_path) is None
    with locked(tmp_path / name):
        assert server_of(tmp_path) == os.getpid()
        assert is_holder(os.getpid(), tmp_path)
        assert not is_holder(os.getppid(), tmp_path)
        with pytest.raises(Conflict, match="A server uses"):
            lock(argparse.Namespace(data_dir=str(tmp_path)), Terminal(io.StringIO(), io.StringIO()))
    assert server_of(tmp_path) is None


def test_a_directory_whose_key_was_removed_has_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel host with open files keeps the names readable after 'kernelsvc lock', but no file can be opened.
    def locked(path: Path) -> int | None:
        raise OSError(errno.ENOKEY, "Required key not available", str(path))

    (tmp_path / "server.lock").touch()
    monkeypatch.setattr(companion_process, "holder", locked)
    assert server_of(tmp_path) is None
