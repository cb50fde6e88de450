"""``kernelsvc nodes`` and ``drain``."""

from __future__ import annotations

import argparse
import fcntl
import io
import subprocess
from pathlib import Path

import pytest

from kernelsvc.cli.cluster import nodes
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client.address import parse
from kernelsvc.client.http import Rest
from kernelsvc.errors import BadRequest, Conflict, NotFound


def test_the_table_names_states_and_what_is_wrong() -> None:
    node = {
        "node": "a1b2c3", "url": "http://h:1", "state": "unreachable", "version": "1.0", "sessions": 3,
        "max_sessions": 9, "promised_bytes": 2**21, "memory_bytes": 2**22, "warnings": ["its tokens are others"],
    }  # fmt: skip
    shown = nodes.lines({"nodes": [node], "refused": ["why"]})
    assert shown[0].split() == ["NODE", "STATE", "SESSIONS", "MEMORY", "PROMISED", "VERSION", "ADDRESS"]
    assert shown[1].split() == ["a1b2c3", "unreachable", "3", "/", "9", "2", "/", "4", "MiB", "1.0", "http://h:1"]
    assert shown[2].strip() == "! its tokens are others"
    assert shown[3] == "refused: why"
    assert "no node has joined. Start one with" in nodes.lines({"nodes": [], "refused": []})[1]


async def test_a_node_that_does_not_exist_is_named_and_a_server_without_nodes_is_no_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(self: Rest, verb: str, path: str) -> None:
        raise NotFound("There is no such route.", **({"node": "x"} if path == "/v1/nodes/x/drain" else {}))

    monkeypatch.setattr(Rest, "json", answer)
    for path, error in (("/v1/nodes/x/drain", NotFound), ("/v1/nodes", BadRequest)):
        with pytest.raises(error):
            await nodes._ask(Rest(parse("http://h:1"), connect_seconds=1.0, retry_seconds=0.0), "POST", path)


async def test_a_process_that_has_the_id_of_a_server_in_a_container_gets_no_signal(tmp_path: Path) -> None:
    """The lock's file has an id of the container's pid namespace. SIGUSR1 would end most processes."""
    args = argparse.Namespace(node=None, move=False, data_dir=str(tmp_path), config=None)
    terminal = Terminal(io.StringIO(), io.StringIO())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other, (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for pid in (other.pid, 2**22):  # the second is no process: pids are below it (proc_sys_kernel(5), pid_max)
            lock.seek(0)
            lock.write(f"{pid}")
            lock.flush()
            with pytest.raises(Conflict, match="is not among the processes here"):
                await nodes.drain(args, terminal)
        other.communicate()
    assert other.returncode == 0
