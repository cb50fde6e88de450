"""The same cells as real cells: through the kernel host, a template, a confined fork and IPython.

Also in the copies that such a session can become: a branch, and a checkpoint that was
resumed when the kernel it was made of had died. No copy may have a right that its
original had lost.

A session or a copy runs several cells, one after the other. Between two, the kernel must still have its working
directory and hold few descriptors, so that no cell is blocked only by what an earlier one left. With
``KERNELSVC_THOROUGH`` each cell has a session of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from attack.cell import Cell
from attack.cells import SHARED_ATTACKS, SHARED_HARMLESS
from kernelsvc.host.protocol import ForkServerSettings
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.launchers import HostSettings, Launchers
from kernelsvc.kernels.port import Kernel, KernelMessage, Output, StartRequest, StreamText
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest

CELL_SECONDS = 40.0
#: What a cell runs in: a fresh session, a branch of one, a checkpoint that replaced its dead original.
As = Literal["session", "branch", "resumed"]
#: Sessions side by side; each must not notice the others' attacks.
AT_ONCE = 2
#: Cells that one kernel runs. Cells that use up a limit, or end their kernel, have one of their own.
CELLS_OF_A_KERNEL = 16
#: Runs after a cell, and after each of several.
ALIVE = "assert 1 + 1 == 2"
UNCHANGED = "import os; assert os.getcwd() == C['inside'] and len(os.listdir('/proc/self/fd')) < 100"


@dataclass
class Listener:
    """A sink that waits for a cell's end, or the kernel's."""

    text: list[str] = field(default_factory=list)
    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    exit: Exit | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver(self, batch: Sequence[Output]) -> None:
        for output in batch:
            if isinstance(output, StreamText):
                self.text.append(output.text)
            elif isinstance(output, KernelMessage) and output.msg_type == "execute_reply":
                self.replies[output.parent] = output.content
        self.news.set()

    def exited(self, exit: Exit) -> None:
        self.exit = exit
        self.news.set()

    async def wait(self, msg_id: str) -> str:
        """Until that cell has ended: ``ok``, ``error``, or ``died``."""
        while msg_id not in self.replies and self.exit is None:
            self.news.clear()
            await self.news.wait()
        return str(self.replies[msg_id]["status"]) if msg_id in self.replies else "died"


async def begin(launcher: ForkedLauncher, request: StartRequest, as_: As) -> tuple[Kernel, Listener, Kernel | None]:
    """The kernel that an attack is to run in, its sink, and its parent where that lives on."""
    listener = Listener()
    kernel = await launcher.start(request, listener)
    if as_ == "session":
        return kernel, listener, None
    kernel.execute(ExecuteRequest("before", "kept = 41"))
    assert await listener.wait("before") == "ok"
    copied = Listener()
    if as_ == "resumed":
        copy = msgspec.structs.replace(request, kernel=f"{request.kernel}p")
        await kernel.fork(copy, mode="checkpoint")
        kernel.kill()
        await listener.wait("never")
        await kernel.end()
        return await launcher.resume_copy(copy, copied), copied, None
    return await launcher.resume_copy(await _branch(kernel, request), copied), copied, kernel


async def _branch(kernel: Kernel, request: StartRequest) -> StartRequest:
    """A branch as the service asks for one: a directory of its own beside its parent's."""
    name = f"{request.kernel}b"
    workdir = os.path.join(f"{request.workdir}.d", name)
    os.makedirs(workdir)
    owner = os.stat(request.workdir)
    for made in (os.path.dirname(workdir), workdir):
        os.chown(made, owner.st_uid, owner.st_gid)
    copy = msgspec.structs.replace(
        request,
        session=name,
        kernel=name,
        workdir=workdir,
        home=f"{kernel.home}.d/{name}",
        copy_from=kernel.home,
    )
    await kernel.fork(copy, mode="branch")
    return copy


def batches(cells: Sequence[Cell], as_: As) -> list[list[Cell]]:
    """The cells that share a session."""
    if as_ == "session" and os.environ.get("KERNELSVC_THOROUGH"):
        return [[cell] for cell in cells]
    shared = [[cell for cell in cells if cell in group] for group in (SHARED_ATTACKS, SHARED_HARMLESS)]
    together = [group[n : n + CELLS_OF_A_KERNEL] for group in shared for n in range(0, len(group), CELLS_OF_A_KERNEL)]
    return together + [[cell] for cell in cells if not any(cell in group for group in shared)]


async def run_batch(
    launcher: ForkedLauncher, request: StartRequest, cells: Sequence[Cell], facts: dict[str, Any], as_: As
) -> list[dict[str, Any]]:
    """The cells in a session of their own, one after the other."""
    kernel, listener, parent = await begin(launcher, request, as_)
    try:
        facts = {**facts, "inside": kernel.home, "copy": as_ != "session"}
        after = UNCHANGED if len(cells) > 1 else ALIVE
        return [await _run_cell(kernel, listener, cell, facts, after) for cell in cells]
    finally:
        await kernel.end()
        if parent is not None:
            await parent.end()


async def _run_cell(
    kernel: Kernel, listener: Listener, cell: Cell, facts: dict[str, Any], after: str
) -> dict[str, Any]:
    code, id = cell.source(facts), cell.name
    if facts["copy"]:
        code = f"assert kept == 41\n{code}"
    listener.text.clear()
    try:
        async with asyncio.timeout(CELL_SECONDS):
            kernel.execute(ExecuteRequest(id, code))
            status = await listener.wait(id)
            text = "".join(listener.text) + str(listener.replies.get(id, listener.exit))
            survived = await _survives(kernel, listener, f"after {id}", after)
    except TimeoutError:
        status, text, survived = "timeout", "".join(listener.text), False
    verdict = {"ok": "reached", "error": "blocked"}.get(status, status)
    if cell.survives and not survived:
        verdict = f"{verdict}, then the kernel was gone"
    isolation = kernel.sandbox.isolation
    return {"verdict": verdict, "text": text[-2000:], "isolation": isolation, "clean": True}


async def _survives(kernel: Kernel, listener: Listener, id: str, code: str) -> bool:
    if listener.exit is not None:
        return False
    kernel.execute(ExecuteRequest(id, code))
    return await listener.wait(id) == "ok"


async def run(
    cells: Sequence[Cell], facts: dict[str, Any], limits: Limits, run: str, work: str, hidden: str, as_: As
) -> dict[str, Any]:
    """All cells on one kernel host."""
    template = ForkServerSettings(python=sys.executable, preload=["numpy", "pandas", "matplotlib.pyplot"])
    settings = HostSettings(
        runtime_dir=run,
        templates={"t": template},
        sandbox="required",
        hidden=[hidden],
        hidden_files=[facts["concealed"]],
        limits=limits,
    )
    launchers = Launchers(settings)
    room = asyncio.Semaphore(AT_ONCE)
    await launchers.start()
    try:
        launcher = launchers.launcher("t")
        assert isinstance(launcher, ForkedLauncher)

        async def one(number: int, batch: list[Cell]) -> list[dict[str, Any]]:
            async with room:
                family = os.path.join(work, str(number))
                workdir = os.path.join(family, "user")
                os.makedirs(f"{workdir}.d")
                os.mkdir(workdir)
                name = f"s{number}"
                request = StartRequest(
                    session=name, kernel=name, template="t", workdir=workdir, limits=limits, family=family
                )
                results = await run_batch(launcher, request, batch, facts, as_)
                shutil.rmtree(family, ignore_errors=True)
                return results

        groups = batches(cells, as_)
        found = await asyncio.gather(*(one(number, group) for number, group in enumerate(groups)))
    finally:
        await launchers.stop(end_kernels=True)
    return {
        cell.name: result
        for group, results in zip(groups, found, strict=True)
        for cell, result in zip(group, results, strict=True)
    }
