"""Cold kernels in the care of the kernel host: what confinement shows them, and what the host's death changes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec
from waiting import wait_until

from kernelsvc.errors import TooLarge
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import HostSettings
from kernelsvc.kernels.port import KernelMessage, Output, StartRequest, StreamText
from kernelsvc.kernels.zmq.host_processes import MAX_ENV_BYTES, HostProcesses
from kernelsvc.kernels.zmq.kernel import ZmqKernel
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher, needs_tcp
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits
from kernelsvc.model.storage.mounts import Bind
from kernelsvc.protocol.kernel_messages import ExecuteRequest


@dataclass
class Sink:
    got: list[Output] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)

    def deliver(self, batch: Sequence[Output]) -> None:
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    def text(self) -> str:
        return "".join(o.text for o in self.got if isinstance(o, StreamText))


@dataclass
class Place:
    host: HostClient
    launcher: KernelspecLauncher
    runtime: Path
    workdir: Path
    sink: Sink = field(default_factory=Sink)

    def request(self, **more: Any) -> StartRequest:
        values: dict[str, Any] = {"kernel": f"k{uuid.uuid4().hex}", "session": "s", "limits": Limits()}
        return StartRequest(template="python3", workdir=str(self.workdir), **values | more)

    async def run(self, kernel: ZmqKernel, code: str) -> str:
        cell = uuid.uuid4().hex
        before = len(self.sink.text())
        kernel.execute(ExecuteRequest(cell, code))

        def ended() -> bool:
            replies = [o for o in self.sink.got if isinstance(o, KernelMessage) and o.msg_type == "execute_reply"]
            return any(o.parent == cell for o in replies) or bool(self.sink.exits)

        await wait_until(ended, what="the cell's end")
        return self.sink.text()[before:].strip()


@pytest.fixture
async def place(short_tmp: Path, tmp_path: Path) -> AsyncIterator[Place]:
    runtime = short_tmp / uuid.uuid4().hex[:6]
    settings = HostSettings(runtime_dir=str(runtime), templates={}, sandbox="best-effort")
    host = HostClient(settings)
    await host.start()
    yield Place(host, KernelspecLauncher(host, runtime), runtime, tmp_path)
    await host.shutdown(end_kernels=True)


async def test_it_is_confined_as_the_host_says(place: Place) -> None:
    (place.runtime / "secret").write_text("x")
    kernel = await place.launcher.start(place.request(env={"MINE": "1"}), place.sink)
    try:
        assert kernel.sandbox.policy == "best-effort"
        assert kernel.sandbox.isolation == place.host.sandbox.isolation
        if place.host.sandbox.isolation == "full":
            seen = await place.run(kernel, f"import os; print(os.path.exists({str(place.runtime / 'secret')!r}))")
            assert seen == "False"
            assert await place.run(kernel, "print(os.environ['HOME'], os.getcwd())") == "/home/user /home/user"
        assert await place.run(kernel, "import os; print(os.environ['MINE'])") == "1"
        await place.run(kernel, "open('made', 'w').close()")
        assert (place.workdir / "made").exists()
    finally:
        await kernel.end()
    assert not list(place.runtime.glob("c*"))


async def test_it_sees_the_mounts_of_its_session(place: Place) -> None:
    if place.host.sandbox.isolation != "full":
        pytest.skip(str(place.host.sandbox.not_enforced))
    with tempfile.TemporaryDirectory() as shown:  # not in tmp_path, which is the session's own
        os.chmod(shown, 0o755)
        Path(shown, "x").write_text("1")
        binds = [Bind(source=shown, target="/data/sales")]
        kernel = await place.launcher.start(place.request(binds=binds), place.sink)
        try:
            assert await place.run(kernel, "print(open('/data/sales/x').read())") == "1"
            assert "Read-only" in await place.run(
                kernel, "try: open('/data/sales/y', 'w')\nexcept OSError as e: print(e)"
            )
        finally:
            await kernel.end()


async def test_its_end_is_the_host_s_word(place: Place) -> None:
    kernel = await place.launcher.start(place.request(), place.sink)
    kernel.execute(ExecuteRequest("c", "import os; os._exit(7)"))
    await wait_until(lambda: place.sink.exits)
    assert (place.sink.exits[0].cause, place.sink.exits[0].exit_code) == (Cause.EXITED, 7)
    await kernel.end()


async def test_a_cancelled_start_leaves_nothing(place: Place) -> None:
    request = place.request()
    task = asyncio.ensure_future(place.launcher.start(request, place.sink))
    await wait_until(lambda: list(place.runtime.glob("c*")), what="a start under way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def gone() -> bool:
        said, _ = await place.host.request("list")
        return not said["kernels"] and not list(place.runtime.glob("k*"))

    await wait_until(gone, what="its end")


async def test_an_environment_that_is_too_large(place: Place) -> None:
    with pytest.raises(TooLarge, match="file"):
        await place.launcher.start(place.request(env={"A": "x" * MAX_ENV_BYTES}), place.sink)


async def test_a_kernel_does_not_notice_that_the_host_dies(place: Place) -> None:
    kernel = await place.launcher.start(place.request(), place.sink)
    said, _ = await place.host.request("hello", version=1)
    os.kill(int(said["pid"]), signal.SIGKILL)
    assert await place.run(kernel, "print('on')") == "on"

    async def found() -> bool:
        return await HostProcesses(place.host).find(kernel.info.id) is not None

    await wait_until(found, deadline=20, what="the next host, with the kernel")
    pid = kernel.info.pid
    await kernel.end()
    await wait_until(lambda: not psutil.pid_exists(pid), what="its end")


@pytest.mark.parametrize("network", ["none", "host"])
async def test_a_kernel_that_listens_on_tcp_is_reached_through_a_relay(place: Place, network: str) -> None:
    """Kernels for JavaScript can't listen on Unix sockets. In its own network a kernel's ports can't be reached."""
    spec = place.runtime / "specs" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    own = {"kernelsvc": {"transport": "tcp"}}
    spec.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "P", "language": "python", "metadata": own})
    )
    launcher = KernelspecLauncher(place.host, place.runtime, kernel_dirs=[str(spec.parent)])
    request = place.request(limits=Limits(network=network))
    kernel = await launcher.start(request, place.sink)
    ask = "import json, sys; print(json.load(open(sys.argv[2]))['transport'])"
    assert await place.run(kernel, ask) == "tcp"
    size = 3 << 20
    assert len(await place.run(kernel, f"print('x' * {size})")) == size
    children = "import psutil; print([p.name() for p in psutil.Process().children()])"
    assert await place.run(kernel, children) == "[]", "the relay is no child of the kernel"
    kernel.detach()
    again = await launcher.adopt(request, place.sink, last_frame=0)
    assert again is not None
    assert await place.run(again, "print(1 + 1)") == "2"
    await again.end()


@pytest.mark.parametrize(
    ("language", "metadata", "expected"),
    [
        ("python", {}, False),
        ("TypeScript", {}, True),
        ("javascript", {"kernelsvc": {"transport": "ipc"}}, False),
        ("ruby", {"kernelsvc": {"transport": "tcp"}}, True),
        ("ruby", {"kernelsvc": "tcp"}, False),
    ],
)
def test_a_kernelspec_says_how_its_kernel_listens(language: str, metadata: dict[str, Any], expected: bool) -> None:
    assert needs_tcp(KernelSpec(language=language, metadata=metadata)) is expected
