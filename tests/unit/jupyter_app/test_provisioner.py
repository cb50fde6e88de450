"""The provisioner under jupyter_client's own managers, over the scripted kernel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from waiting import wait_for, wait_until

from kernelsvc.errors import AtCapacity
from kernelsvc.jupyter_app.provisioner import ForkProvisioner, background, status_of
from kernelsvc.jupyter_app.user_host import Environment
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.kernels.port import Launcher, StartRequest
from kernelsvc.model.exit_status import Cause, Exit


class Host:
    """Gives the same fake launcher to all, as one kernel host does."""

    def __init__(self) -> None:
        self.launcher: FakeLauncher | None = None
        self.requests: list[StartRequest] = []
        self.refusal: Exception | None = None

    async def connect(self, environment: Environment) -> Launcher:
        if self.refusal is not None:
            raise self.refusal
        self.launcher = self.launcher or Remembering(self)
        return self.launcher


class Remembering(FakeLauncher):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    async def start(self, request: StartRequest, sink: Any) -> Any:
        self.host.requests.append(request)
        return await super().start(request, sink)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host()
    monkeypatch.setattr(ForkProvisioner, "connect", made.connect, raising=False)
    yield made
    background().launchers.clear()


def managed(kind: type[KernelManager], tmp: Path, **traits: Any) -> KernelManager:
    spec = tmp / "kernels" / "forked"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(json.dumps({"argv": ["kernelsvc"], "display_name": "F", "language": "x"}))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)])
    manager = kind(kernel_name="forked", kernel_spec_manager=specs, **traits)
    manager.provisioner = ForkProvisioner(parent=manager, kernel_id="k", kernel_spec=specs.get_kernel_spec("forked"))
    return manager


@pytest.fixture
async def manager(host: Host, tmp_path: Path) -> AsyncIterator[AsyncKernelManager]:
    made = managed(AsyncKernelManager, tmp_path)
    yield made
    if made.has_kernel:
        await made.shutdown_kernel(now=True)
    await made.cleanup_resources()
    made.context.destroy(linger=0)


async def test_a_kernel_starts_runs_and_ends_like_any_other(manager: AsyncKernelManager, host: Host) -> None:
    await manager.start_kernel(env={"MINE": "1", "JPY_PARENT_PID": "7"}, cwd="/tmp")
    (request,) = host.requests
    assert request.workdir == "/tmp"
    assert request.env == {"MINE": "1"}
    assert request.limits.memory_bytes is None
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=10)
    reply = await client.execute_interactive("print hello", timeout=10, output_hook=lambda _: None)
    assert reply["content"]["status"] == "ok"
    assert await manager.is_alive()
    await manager.shutdown_kernel()
    assert not await manager.is_alive()
    client.stop_channels()
    assert host.launcher is not None
    assert host.launcher.alive() == []


async def test_arguments_of_a_kernel_are_ignored_aloud(
    manager: AsyncKernelManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.provisioner.log.propagate = True
    await manager.start_kernel(extra_arguments=["--InteractiveShell.cache_size=11"])
    assert "--InteractiveShell.cache_size=11" in caplog.text
    assert "no effect" in caplog.text


async def test_an_interrupt_reaches_the_cell(manager: AsyncKernelManager, host: Host) -> None:
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=10)
    cell = asyncio.ensure_future(client.execute_interactive("print on\nwait ever", output_hook=lambda _: None))
    assert host.launcher is not None
    (process,) = host.launcher.processes.values()
    await wait_until(lambda: process.seen)
    await asyncio.sleep(0)
    await manager.interrupt_kernel()
    reply = await asyncio.wait_for(cell, 10)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    client.stop_channels()


async def test_a_restart_gives_another_kernel_at_the_same_address(manager: AsyncKernelManager, host: Host) -> None:
    await manager.start_kernel()
    before = manager.get_connection_info()
    await manager.restart_kernel(now=True)
    assert manager.get_connection_info() == before
    assert len(host.requests) == 2
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=10)
    client.stop_channels()


async def test_a_restart_works_while_a_process_holds_the_sockets_that_it_has_inherited(
    manager: AsyncKernelManager, host: Host
) -> None:
    await manager.start_kernel()
    ports = {getattr(manager, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}
    listening = [one for one in psutil.Process().net_connections() if one.laddr and one.laddr.port in ports]
    inherited = [one.fd for one in listening if one.status == psutil.CONN_LISTEN]
    assert len(inherited) >= len(ports)
    # As a process of multiprocessing's "fork", or of a pool of the application.
    child = await asyncio.create_subprocess_exec("sleep", "60", pass_fds=inherited)
    try:
        await manager.restart_kernel(now=True)
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=10)
        client.stop_channels()
    finally:
        child.kill()
        await child.wait()


async def test_a_death_is_seen(manager: AsyncKernelManager, host: Host) -> None:
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=10)
    client.execute("die 11")
    await wait_until(lambda: not_alive(manager))
    assert await manager.provisioner.wait() == -11
    client.stop_channels()


async def not_alive(manager: AsyncKernelManager) -> bool:
    return not await manager.is_alive()


async def test_a_host_that_can_t_be_reached_is_an_error_and_is_asked_again(
    manager: AsyncKernelManager, host: Host
) -> None:
    host.refusal = AtCapacity()
    with pytest.raises(AtCapacity):
        await manager.start_kernel()
    host.refusal = None
    again = manager.provisioner
    assert not again.has_process
    await again.launch_kernel([], env={})
    assert again.has_process


def test_the_blocking_manager_works_too(host: Host, tmp_path: Path) -> None:
    manager = managed(KernelManager, tmp_path, transport="ipc", ip=str(tmp_path / "s"))
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=10)
        reply = client.execute_interactive("print hello", timeout=10, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert host.launcher is not None
    wait_for(lambda: not host.launcher or not host.launcher.alive())
    manager.context.destroy(linger=0)


def test_an_end_as_a_status() -> None:
    assert status_of(Exit(cause=Cause.SIGNALLED, message="", signal=9)) == -9
    assert status_of(Exit(cause=Cause.EXITED, message="", exit_code=3)) == 3
    assert status_of(Exit(cause=Cause.LOST, message="")) == 0
