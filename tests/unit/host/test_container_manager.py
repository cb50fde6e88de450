"""Sandboxes as a kernel host keeps them: real inits with a sleeping child for a kernel, no template and no server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from waiting import wait_until

from kernelsvc.errors import Conflict, Internal, KernelDead, NotFound
from kernelsvc.guest.confine import init, linux
from kernelsvc.host.container import Container, ContainerProcess, ContainerRecord
from kernelsvc.host.container_manager import ContainerManager
from kernelsvc.host.protocol import RegisterCopyRequest
from kernelsvc.linux import procfs
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox.manager import SandboxManager


class Cradle:
    """A nursery, and what it said."""

    def __init__(self, runtime: Path, adoption_seconds: float = 60.0) -> None:
        self.runtime = runtime
        self.sandbox = SandboxManager(policy="off", runtime_dir=str(runtime))
        self.ended: list[str] = []
        self.manager = ContainerManager(runtime, self.sandbox, adoption_seconds, self._exited, self._own)

    def _exited(self, container: Container, process: ContainerProcess) -> None:
        self.ended.append(process.kernel)

    @staticmethod
    def _own() -> set[int]:
        """All children of this process: other tests' too, which must be left alone."""
        return set(procfs.children(os.getpid()))

    def record(self, kernel: str) -> ContainerRecord:
        workdir = self.runtime / f"w-{kernel}"
        workdir.mkdir()
        allocation = self.sandbox.prepare(kernel, workdir=str(workdir), limits=Limits(), python=sys.executable)
        slim = msgspec.structs.replace(allocation, plan={})
        return ContainerRecord(kernel=kernel, session=f"s-{kernel}", kind="forked", allocation=slim, home=str(workdir))

    async def create(self, kernel: str, *, fail: str = "") -> Container:
        def launch(host_end: socket.socket, guest_end: socket.socket, control_socket: socket.socket) -> None:
            if os.fork() == 0:
                _be_a_sandbox(guest_end, control_socket, fail)

        with self.manager.reserve_id(kernel):
            return await self.manager.create(self.record(kernel), launch, listens=False)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.runtime.iterdir() if path.suffix in (".i", ".json"))


def _be_a_sandbox(channel: socket.socket, control_socket: socket.socket, fail: str) -> None:
    try:
        os.setsid()
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        linux.close_others({0, 1, 2, channel.fileno(), control_socket.fileno()})
        if fail == "silent":
            os._exit(1)
        if fail:
            raise ValueError(fail)
        guard = init.Init(channel, control_socket, {"namespaces": [], "guard_init": False}, grace=60.0)
        kernel = os.fork()
        if kernel:
            guard.run(kernel)
        os.setsid()
        while True:
            signal.pause()
    except BaseException as error:
        init.fail(channel, error)


@pytest.fixture
async def cradle(short_tmp: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cradle]:
    runtime = short_tmp / f"n{abs(hash(request.node.name)) % 10_000}"
    runtime.mkdir()
    made = Cradle(runtime)
    yield made
    await made.manager.end_all()
    made.sandbox.close()
    init.ended_children()


async def test_a_sandbox_is_made_found_and_ended(cradle: Cradle) -> None:
    container = await cradle.create("k1")
    found, process = cradle.manager.find("k1")
    assert found is container
    assert procfs.stat(process.pid)
    assert cradle.left() == ["k1.i", "k1.json"]
    exit = await cradle.manager.end("k1")
    assert exit is not None
    assert exit.signal == signal.SIGKILL
    assert cradle.left() == []
    assert await cradle.manager.end("k1") is None
    with pytest.raises(NotFound):
        cradle.manager.find("k1")


async def test_an_id_is_taken_once_also_while_it_is_being_made(cradle: Cradle) -> None:
    making = asyncio.ensure_future(cradle.create("k1"))
    await asyncio.sleep(0)
    with pytest.raises(Conflict):
        await cradle.create("k1")
    await making
    with pytest.raises(Conflict):
        await cradle.create("k1")


async def test_an_end_reaches_what_is_being_made(cradle: Cradle) -> None:
    making = asyncio.ensure_future(cradle.create("k1"))
    await asyncio.sleep(0)
    await cradle.manager.end("k1")
    with pytest.raises(asyncio.CancelledError):
        await making
    assert cradle.left() == []
    assert cradle.manager.containers == {}


@pytest.mark.parametrize(("fail", "words"), [("no room", "no room"), ("silent", "ended before it was ready")])
async def test_one_that_can_t_be_made_leaves_nothing(cradle: Cradle, fail: str, words: str) -> None:
    with pytest.raises(Internal, match=words):
        await cradle.create("k1", fail=fail)
    assert cradle.left() == []
    assert (await cradle.create("k2")).processes


async def test_what_no_server_holds_ends_and_what_one_holds_does_not(short_tmp: Path) -> None:
    runtime = short_tmp / "orphans"
    runtime.mkdir()
    cradle = Cradle(runtime, adoption_seconds=0.1)
    held, adopted, _ = [await cradle.create(f"k{n}") for n in range(3)]
    cradle.manager.check_orphans({"k0"})
    cradle.manager.cancel_grace(adopted)
    await wait_until(lambda: cradle.ended)
    await wait_until(lambda: set(cradle.manager.containers) == {"k0", "k1"})
    assert cradle.ended == ["k2"]
    await asyncio.sleep(0.2)  # long enough for the others, had they been forgotten
    assert cradle.manager.find("k0")[0] is held
    await cradle.manager.end_all()
    assert cradle.left() == []
    cradle.sandbox.close()
    init.ended_children()


async def test_the_next_host_takes_over_what_it_can_and_ends_the_rest(cradle: Cradle) -> None:
    for number in range(3):
        await cradle.create(f"k{number}")
    pids = {kernel: container.processes[kernel].pid for kernel, container in cradle.manager.containers.items()}
    (cradle.runtime / "k1.json").write_text("{")
    (cradle.runtime / "k2.json").unlink()
    (cradle.runtime / "k3.json").write_bytes(msgspec.json.encode(cradle.record("k3")))
    after = Cradle(cradle.runtime)
    await after.manager.recover()
    assert set(after.manager.containers) == {"k0"}
    assert after.manager.find("k0")[1].pid == pids["k0"]
    assert after.left() == ["k0.i", "k0.json"]
    await wait_until(lambda: not any(_alive(pids[kernel]) for kernel in ("k1", "k2")))
    assert _alive(pids["k0"])
    await after.manager.end_all()
    assert not _alive(pids["k0"])


def copy(kernel: str, original: str) -> RegisterCopyRequest:
    return RegisterCopyRequest(kernel=kernel, original=original)


def _alive(pid: int) -> bool:
    about = procfs.stat(pid)
    return about is not None and about.state != "Z"


async def test_a_copy_is_one_of_the_sandbox_s_own_processes(cradle: Cradle) -> None:
    container = await cradle.create("k1")
    own = os.pidfd_open(container.processes["k1"].pid)
    other = os.pidfd_open(os.getpid())
    with pytest.raises(KernelDead):
        cradle.manager.register_copy(copy("k2", "k1"), other)
    with pytest.raises(NotFound):
        cradle.manager.register_copy(copy("k2", "k9"), other)
    with pytest.raises(Conflict):
        cradle.manager.register_copy(copy("k1", "k1"), other)
    os.close(other)
    cradle.manager.register_copy(copy("k2", "k1"), own)
    assert set(cradle.manager.containers) == {"k1", "k2"}
    assert cradle.manager.find("k2")[1].home == container.record.home
