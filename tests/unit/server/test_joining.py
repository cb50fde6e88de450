"""A node's connections to its fronts, when names and connections fail."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fleet import KEY, Fleet
from waiting import wait_until

from kernelsvc.model.cluster.reports import NodeReport
from kernelsvc.server import joining


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """A front with one node, which looks its front up again and again."""
    monkeypatch.setattr(joining, "LOOKUP_SECONDS", 0.02)
    made = Fleet(tmp_path)
    await made.start(0)
    made.url = made.url.replace("127.0.0.1", "localhost")
    await made.add("000000")
    await made.joined(1)
    yield made
    await made.stop()


async def test_a_name_that_cant_be_looked_up_ends_no_connection(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    (member,) = fleet.front.members.known()
    before, failed = [*member.connections], []

    def fail(*given: Any, **more: Any) -> Any:
        failed.append(given)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", fail)
        await wait_until(lambda: len(failed) > 2, what="lookups fail")
    assert [*member.connections] == before
    assert not before[0].ws_connection.is_closing()


async def test_a_connection_whose_task_failed_is_made_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    report, failed = fleet.nodes[0].service.node_state(), []

    class State:
        def report(self) -> NodeReport:
            if not failed:
                failed.append("once")
                raise RuntimeError("a bug")
            return report.report()

    membership = joining.Membership([fleet.url], KEY, "abcdef", fleet.nodes[0].url, "", State(), lambda _targets: None)  # type: ignore[arg-type]
    before, fleet.nodes[0].joined = fleet.nodes[0].joined, None
    fleet.nodes[0].joined = asyncio.create_task(membership.run())
    try:
        await fleet.joined(2)
    finally:
        assert before is not None
        before.cancel()
    assert failed


@pytest.mark.parametrize(
    "options", [["--join=front:8888"], ["--join=http://f:1", "--advertise=10.0.0.1"]], ids=["front", "this node"]
)
def test_a_wrong_address_is_refused_before_the_server_starts(short_tmp: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "kernelsvc", "serve", f"--data-dir={short_tmp}/d", f"--runtime-dir={short_tmp}/r"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "is no address of a server. Write http://HOST:PORT" in ended.stderr
