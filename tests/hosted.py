"""A kernel host of one's own, and forked kernels under it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from waiting import wait_until

from kernelsvc.host.client import HostClient, HostGone
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.kernels.forked.kernel import ForkedKernel
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.port import KernelMessage, Output, StartRequest, StreamText
from kernelsvc.linux import procfs
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest

_numbers = itertools.count(1)


@dataclass
class Recorder:
    """A sink that keeps what it got."""

    got: list[Output] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    refusing: bool = False

    def deliver(self, batch: Sequence[Output]) -> None:
        if self.refusing:
            raise OSError(28, "No space left on device")
        assert not self.exits, "delivered after the end"
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    @property
    def frame(self) -> int:
        return max((o.frame for o in self.got if o.frame is not None), default=0)

    def text(self, parent: str | None = None) -> str:
        return "".join(o.text for o in self.got if isinstance(o, StreamText) and parent in (None, o.parent))

    def idle(self, parent: str) -> bool:
        return any(
            isinstance(o, KernelMessage)
            and o.parent == parent
            and (o.msg_type == "execute_reply" or o.content.get("execution_state") == "idle")
            for o in self.got
        )


@dataclass
class Running:
    """A kernel and what it said."""

    kernel: ForkedKernel
    sink: Recorder
    request: StartRequest

    @property
    def pid(self) -> int:
        return self.kernel.info.pid

    def send(self, code: str) -> str:
        cell = f"m{next(_numbers)}"
        self.kernel.execute(ExecuteRequest(cell, code))
        return cell

    async def run(self, code: str) -> str:
        """Run a cell and return what it printed."""
        cell = self.send(code)
        await wait_until(lambda: self.sink.idle(cell) or self.sink.exits, what=f"the end of {code!r}", deadline=30)
        assert not self.sink.exits, self.sink.exits
        return self.sink.text(cell)

    async def exit(self, deadline: float = 15.0) -> Exit:
        await wait_until(lambda: self.sink.exits, what="the kernel's end", deadline=deadline)
        return self.sink.exits[0]


class Bench:
    """A runtime directory, and a server's connection to its host."""

    def __init__(self, root: Path, policy: str = "off", **settings: Any) -> None:
        self.runtime = root
        template = ForkServerSettings(**settings.pop("template", {}))
        given = {"runtime_dir": str(root), "sandbox": policy, "templates": {"python3": template}} | settings
        self.settings: HostSettings = msgspec.convert(given, HostSettings, from_attributes=True)
        self.client = HostClient(self.settings)
        self.launcher = ForkedLauncher(self.client, root)

    def request(self, **fields: Any) -> StartRequest:
        number = next(_numbers)
        workdir = self.runtime / f"w{number}"
        workdir.mkdir(mode=0o755)
        given: dict[str, Any] = {"session": f"s{number}", "kernel": f"k{number}", "template": "python3"}
        return StartRequest(**given | {"workdir": str(workdir), "limits": Limits()} | fields)

    async def start(self, **fields: Any) -> Running:
        request, sink = self.request(**fields), Recorder()
        return Running(await self.launcher.start(request, sink), sink, request)

    async def adopt(self, of: Running) -> Running | None:
        """As the next server would find it."""
        sink = Recorder()
        kernel = await self.launcher.adopt(of.request, sink, last_frame=of.sink.frame)
        return Running(kernel, sink, of.request) if kernel else None

    async def wake(self, request: StartRequest) -> Running:
        sink = Recorder()
        return Running(await self.launcher.resume_copy(request, sink), sink, request)

    # -- the host as seen from outside --------------------------------------------------------

    async def hello(self) -> dict[str, Any]:
        said, _ = await self.client.request("hello", version=1)
        return said

    async def host(self) -> psutil.Process:
        return psutil.Process((await self.hello())["pid"])

    async def another(self, than: int) -> None:
        """Wait until a host with another pid answers."""

        async def there() -> bool:
            try:
                return bool((await self.hello())["pid"] != than)
            except HostGone:
                return False

        await wait_until(there, what="the next host")

    async def kernels(self) -> dict[str, int]:
        """What the host says it runs: pids by kernel."""
        said, _ = await self.client.request("list")
        return {one["kernel"]: one["pid"] for one in said["kernels"]}

    async def template(self) -> psutil.Process:
        """The template's process: the host's child that is no kernel's init."""
        inits = {about.parent for pid in (await self.kernels()).values() if (about := procfs.stat(pid))}
        (found,) = [child for child in (await self.host()).children() if child.pid not in inits]
        return found

    def left(self) -> set[str]:
        """Names in the runtime directory that belong to kernels."""
        return {path.name for path in self.runtime.iterdir() if path.suffix in (".k", ".i", ".json", ".tmp")}


@contextlib.asynccontextmanager
async def bench(policy: str = "off", **settings: Any) -> AsyncIterator[Bench]:
    """A host that ends, with all that it runs, at the end."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o711)
        made = Bench(Path(directory), policy, **settings)
        await made.client.start()
        try:
            yield made
        finally:
            await made.client.shutdown(end_kernels=True)
            await made.client.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


async def gone(*pids: int, deadline: float = 10.0) -> None:
    """Wait until these processes are no more."""

    def alive() -> list[int]:
        found = [pid for pid in pids if (about := procfs.stat(pid)) is not None and about.state != "Z"]
        return found

    await wait_until(lambda: not alive(), what=f"the end of {pids}", deadline=deadline)


def python_with(directory: Path, source: str) -> Path:
    """An interpreter that also finds a module ``extra`` of this source."""
    (directory / "extra.py").write_text(source)
    path = directory / "python"
    path.write_text(f'#!/bin/sh\nexport PYTHONPATH={directory}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
