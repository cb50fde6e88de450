"""Checkpoints: forks of the kernel that wait, and their resumption.

``Kernel.fork`` makes one between two cells and holds the kernel up for a few milliseconds. So the moment matters more
than the way:

* An automatic checkpoint is requested when a cell has ended, while its client reads the result. A client that thinks
  for longer than a fork takes does not notice. A crash then costs exactly the cell that crashed.
* A program that sends cell after cell would wait for every fork, and many such programs would keep the machine busy.
  ``model.checkpoint_policy`` decides when to fork for them. A crash returns to the last checkpoint, and the event names
  the cell after which it was made.

For rollbacks, ``keep`` earlier states stay, in addition to the checkpoint of the present that a crash needs. Resuming
uses a checkpoint up, because its process becomes the session's kernel. So another fork of the same moment follows, and
a checkpoint's id differs from its kernel's id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from kernelsvc.errors import CannotFork, Conflict, KernelDead, KernelsvcError, NotFound, NotSupported
from kernelsvc.kernels.port import ForkResult, Kernel, Launcher, Output, Sink, StartRequest
from kernelsvc.model import events as ev
from kernelsvc.model.checkpoint_policy import CheckpointBudget, CheckpointSchedule
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import CellUsage
from kernelsvc.model.objects import Checkpoint, SessionState
from kernelsvc.model.state import MachineState
from kernelsvc.sandbox import branch_dirs
from kernelsvc.session.cell_views import CellViews
from kernelsvc.session.ids import new_id, new_kernel_id
from kernelsvc.session.operation_queue import OperationQueue
from kernelsvc.session.ports import SessionPort
from kernelsvc.session.spec import SessionSpec, start_request_of

log = logging.getLogger(__name__)


#: Characters of code that a resumed kernel gets for its history.
MAX_HISTORY = 100_000


class NullSink:
    """A sink for a kernel that is resumed only to be forked: it runs no cell."""

    def deliver(self, batch: Sequence[Output]) -> None:
        """Drop the output: none is expected."""

    def exited(self, exit: Exit) -> None:
        """Do nothing: open fork requests fail by themselves."""


class Checkpoints:
    """The checkpoints of one session. The log says which there are; the machine, which process is which.

    Args:
        session: records, and runs tasks.
        machine: is only read here.
        spec: what the session is.
        launcher: resumes and ends processes.
        operations: keeps forks, cells and messages in order.
        views: the code of past cells, for a resumed kernel's history.
        keep: automatic checkpoints kept for undo, besides that of the present; 0 for no automatic checkpoints.
        max_bytes: no automatic checkpoint of a kernel above this size.
        budget: the server's, in CPU seconds.
    """

    def __init__(
        self,
        session: SessionPort,
        machine: MachineState,
        spec: SessionSpec,
        launcher: Launcher,
        operations: OperationQueue,
        views: CellViews,
        keep: int,
        max_bytes: int | None,
        budget: CheckpointBudget,
    ) -> None:
        self._session = session
        self._machine = machine
        self._spec = spec
        self._launcher = launcher
        self._operations = operations
        self._views = views
        self._keep = keep
        self._max_bytes = max_bytes
        self._budget = budget
        self._schedule = CheckpointSchedule()
        self._reserved = 0.0
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._skipped_for: list[str] = []
        # Kernels that were checkpoints and are, or will be, the session's: not to be ended as checkpoints.
        self._resumed: set[str] = set()

    # -- when ------------------------------------------------------------------------

    def cell_sent(self, now: float) -> None:
        """Note that a cell is sent, and postpone a checkpoint that waits for its turn."""
        self._budget.sent(self._spec.id, now)
        self._schedule.sent(now, self._budget.load(now))
        self._cancel()

    def cell_ended(self, now: float, usage: CellUsage) -> None:
        """Make a checkpoint after a cell: now, later, or not at all."""
        budget, schedule = self._budget, self._schedule
        cpu = None if usage.cpu_ms is None else usage.cpu_ms / 1000
        schedule.ended(now, usage.wall_ms / 1000, cpu, budget.load(now))
        kernel, rss = self._session.kernel, usage.peak_rss_bytes
        if self._keep <= 0 or kernel is None or not kernel.forkable:
            return
        if self._max_bytes is not None and rss is not None and rss > self._max_bytes:
            self._skip([f"the kernel has {rss} bytes and copies are made up to {self._max_bytes}"])
        elif schedule.worth_it and budget.try_spend(now, schedule.cost):
            self._begin()
        else:
            self._after(schedule.idle_delay(budget.load(now)), self._take_turn)

    def _take_turn(self) -> None:
        """Make a checkpoint as soon as the budget covers its cost."""
        cost = self._reserved = self._schedule.cost
        self._after(self._budget.reserve(asyncio.get_running_loop().time(), cost), self._begin)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer = None
        if seconds:
            self._timer = asyncio.get_running_loop().call_later(seconds, act)
        else:
            act()

    def _begin(self) -> None:
        self._reserved = 0.0
        self._cancel()
        after = self._machine.variables_after
        self._operations.put_fork(lambda: self._session.spawn(self._automatic(after)))

    async def wait_made(self) -> None:
        """Wait until no fork is under way. Safe to cancel."""
        async with self._lock:
            return

    @property
    def busy(self) -> bool:
        """Whether a fork is requested or under way."""
        return self._operations.fork_waits or self._lock.locked()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._budget.refund(self._reserved)
        self._reserved = 0.0

    async def _automatic(self, after: str | None) -> None:
        try:
            async with self._lock:
                await self._fork(new_id("p"), None, True, after)
        except CannotFork as refused:
            self._skip([str(r) for r in refused.details.get("reasons", [])] or [refused.message])
        except KernelsvcError as error:
            log.info("session %s: made no automatic checkpoint: %s", self._spec.id, error.message)

    def _skip(self, why: list[str]) -> None:
        """Record why there is no checkpoint, once for the same reasons in a row."""
        if why != self._skipped_for and self._machine.state is not SessionState.CLOSED:
            self._skipped_for = why
            self._session.try_record(ev.CheckpointSkipped(why=why))

    # -- making ---------------------------------------------------------------------------

    async def make(self, name: str | None = None, *, force: bool = False) -> Checkpoint:
        """Fork the kernel as it is after everything sent so far, and return the checkpoint.

        Raises:
            CannotFork, NotSupported, KernelDead, Timeout: the kernel was not forked.
            Conflict: another checkpoint has the name.
        """
        if name is not None and self.named(name):
            raise Conflict(f"There is a checkpoint named {name!r}. Drop it or choose another name.")
        machine = self._machine
        after = machine.running.id if machine.running else machine.variables_after
        async with self._lock:
            return await self._fork(new_id("p"), name, False, after, force)

    async def _fork(
        self, checkpoint: str, name: str | None, auto: bool, after: str | None, force: bool = False
    ) -> Checkpoint:
        kernel = self._session.kernel
        if kernel is None:
            raise KernelDead()
        if not kernel.forkable:
            raise NotSupported()
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=new_kernel_id())
        forked = await kernel.fork(request, mode="checkpoint", force=force)
        if self._session.kernel is not kernel:
            await self._launcher.discard(request.kernel)
            raise KernelDead()
        self._schedule.saved(forked.cost_ms / 1000)
        self._skipped_for = []
        made = ev.CheckpointMade(
            checkpoint=checkpoint,
            kernel=request.kernel,
            name=name,
            auto=auto,
            after_cell=after,
            cost_ms=round(forked.cost_ms, 3),
            private_bytes=forked.private_bytes,
            warnings=forked.warnings,
        )
        try:
            self._session.record(made)
        except BaseException:  # closed in this moment, or the disk is full: nobody will ever name it
            await asyncio.shield(self._launcher.discard(request.kernel))
            raise
        known = self._machine.checkpoints[checkpoint]
        await self._thin()
        return known

    async def _thin(self) -> None:
        """Drop automatic checkpoints past ``keep``, except the newest and one that is being resumed."""
        machine = self._machine
        automatic = sorted((c for c in machine.checkpoints.values() if c.auto), key=lambda c: c.seq)
        for old in automatic[: -(self._keep + 1)]:  # by when it was made last: one that was woken is of the present
            if machine.checkpoint_kernels.get(old.id) not in self._resumed:
                await self._drop(old.id, "replaced by a newer one")

    async def drop(self, which: str) -> None:
        """Drop a checkpoint by id or name.

        Raises:
            NotFound: there is none.
        """
        await self._drop(self.find(which).id, "requested")

    async def _drop(self, checkpoint: str, why: str) -> None:
        kernel = self._machine.checkpoint_kernels.get(checkpoint)
        self._session.record(ev.CheckpointDropped(checkpoint=checkpoint, why=why))
        if kernel is not None and kernel not in self._resumed:
            await self._launcher.discard(kernel)

    async def discard_all(self) -> None:
        """End all checkpoints without an event: the session or its kernel has ended."""
        self._cancel()
        copies = list(self._machine.checkpoint_kernels.values())
        await asyncio.gather(*(self._launcher.discard(kernel) for kernel in copies))

    # -- finding ------------------------------------------------------------------------------

    def named(self, name: str) -> Checkpoint | None:
        """Return the checkpoint of that name, or None."""
        return next((c for c in self._machine.checkpoints.values() if c.name == name), None)

    def find(self, which: str) -> Checkpoint:
        """Return the checkpoint of that id or name.

        Raises:
            NotFound: there is none.
        """
        found = self._machine.checkpoints.get(which) or self.named(which)
        if found is None:
            raise NotFound(f"There is no checkpoint {which!r}. List the session's checkpoints.")
        return found

    def target_of(self, to: str | None) -> Checkpoint | None:
        """Return the checkpoint that a rollback resumes, or None for a fresh kernel.

        Args:
            to: a checkpoint's id or name, or a cell's id, None for the last cell. Of a cell: the state before it.

        Raises:
            NotFound: no such checkpoint, or that moment is not kept.
        """
        if to is not None and (to in self._machine.checkpoints or self.named(to)):
            return self.find(to)
        return self.before(to)

    def newest(self, besides: Collection[str] = ()) -> Checkpoint | None:
        """Return the checkpoint of the latest moment, except those in ``besides``, None if there is none."""
        kept = [c for c in self._machine.checkpoints.values() if c.id not in besides]
        return max(kept, key=lambda c: c.seq, default=None)

    def before(self, cell: str | None) -> Checkpoint | None:
        """Return the checkpoint of the state before a cell, by default before the last finished one.

        Returns:
            None for the state before the first cell if it has no checkpoint: any fresh kernel has that state.

        Raises:
            NotFound: no such cell, or no checkpoint of that moment.
        """
        machine = self._machine
        standing = machine.effective_since(None)
        wanted = cell or machine.variables_after
        if wanted not in standing:
            raise NotFound(f"There is no finished cell {wanted!r} to roll back. List the session's cells.")
        position = standing.index(wanted)
        previous = standing[position - 1] if position else None
        kept = [c for c in machine.checkpoints.values() if c.after_cell == previous]
        if not kept and previous is None and machine.started_empty:
            return None
        if not kept:
            names = (
                ", ".join(f"{c.name or c.id} (after {c.after_cell})" for c in machine.checkpoints.values()) or "none"
            )
            raise NotFound(f"The state before cell {wanted} has no checkpoint any more. Existing checkpoints: {names}.")
        return kept[-1]

    async def fork_branches(
        self, copies: Sequence[StartRequest], spares: Sequence[StartRequest], *, at: str | None, force: bool
    ) -> tuple[list[str], list[asyncio.Task[ForkResult]]]:
        """Fork kernels that other sessions will resume, all from one moment.

        Args:
            copies: one request each, named by its kernel.
            spares: one request more for each branch: its first checkpoint. The call does not wait for these forks.
            at: a checkpoint's id or name, or None for now, after everything sent so far.
            force: fork although something would be lost.

        Raises:
            CannotFork, KernelDead, NotFound, Timeout: no fork remains.

        Returns:
            Warnings (what runs on in both processes, or is lost), and the tasks that make the spares.
        """
        source = await self._branching_kernel(at)
        # All requests are with the kernel before any cell that comes later.
        forking = [asyncio.ensure_future(source.fork(request, mode="branch", force=force)) for request in copies]
        extra = [asyncio.ensure_future(source.fork(request, mode="checkpoint", force=force)) for request in spares]
        if source is not self._session.kernel:
            self._session.spawn(self._end_after(source, [*forking, *extra]))
        made = await asyncio.gather(*forking, return_exceptions=True)
        failed = [one for one in made if isinstance(one, BaseException)]
        if failed:
            await asyncio.gather(*extra, return_exceptions=True)
            asked = zip([*copies, *spares], [*forking, *extra], strict=True)
            there = [request.kernel for request, one in asked if one.exception() is None]
            await asyncio.gather(*(self._launcher.discard(kernel) for kernel in there))
            raise failed[0]
        return list(dict.fromkeys(w for one in made if isinstance(one, ForkResult) for w in one.warnings)), extra

    async def _end_after(self, source: Kernel, forking: Sequence[asyncio.Future[ForkResult]]) -> None:
        await asyncio.wait(forking)
        await source.end()

    @property
    def wanted(self) -> bool:
        """Whether this session keeps automatic checkpoints."""
        return self._keep > 0

    async def adopt_first(self, kernel: str, spare: asyncio.Future[ForkResult]) -> None:
        """Use the fork that was made together with this branch as its first checkpoint."""
        await asyncio.wait([spare])
        if spare.exception() is not None:
            return
        late = bool(self._machine.checkpoints) or self._machine.variables_after is not None
        if late or self._machine.state is SessionState.CLOSED:
            await self._launcher.discard(kernel)
            return
        made = ev.CheckpointMade(
            checkpoint=new_id("p"),
            kernel=kernel,
            auto=True,
            cost_ms=round(spare.result().cost_ms, 3),
            private_bytes=spare.result().private_bytes,
        )
        self._session.try_record(made)

    async def restrict_writes(self, kernel: Kernel | None = None) -> list[str]:
        """Take from the kernel the right to write where the session's branches have their directories.

        A kernel that was forked before these directories existed still has the right, and a rollback or a restore
        brings such a kernel back.

        Returns:
            Warnings for the model, if it could not be done.
        """
        kernel = kernel or self._session.kernel
        depth = branch_dirs.branch_count(Path(self._spec.workdir))
        if kernel is None or not kernel.forkable or not depth:
            return []
        why = await kernel.restrict_writes([kernel.home, str(branch_dirs.later_branches_dir(Path(kernel.home), depth))])
        return [f"The parent can still write into its branches' directories: {why}"] if why else []

    async def _branching_kernel(self, at: str | None) -> Kernel:
        """Return the kernel to fork from: the live one, or a checkpoint that is resumed for this purpose."""
        kernel = self._session.kernel
        if kernel is None:
            raise KernelDead()
        if not kernel.forkable:
            raise NotSupported()
        if at is None:
            return kernel
        checkpoint = self.find(at)
        woken = await self.resume(checkpoint, NullSink())
        again = msgspec.structs.replace(start_request_of(self._spec), kernel=new_kernel_id(), home="")
        forked = await woken.fork(again, mode="checkpoint", force=True)
        self._session.record(
            ev.CheckpointMade(
                checkpoint=checkpoint.id,
                kernel=again.kernel,
                name=checkpoint.name,
                auto=checkpoint.auto,
                after_cell=checkpoint.after_cell,
                cost_ms=round(forked.cost_ms, 3),
                private_bytes=forked.private_bytes,
            )
        )
        return woken

    # -- waking ---------------------------------------------------------------------------------

    async def resume(self, checkpoint: Checkpoint, sink: Sink | None = None) -> Kernel:
        """Return the checkpoint's process as a live kernel. This uses the checkpoint up until ``put_recreate``.

        Raises:
            KernelDead, Timeout: it could not be woken.
        """
        kernel = self._machine.checkpoint_kernels.get(checkpoint.id)
        if kernel is None:
            raise KernelDead(f"The checkpoint {checkpoint.id} is gone.")
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=kernel, home="")
        if sink is None:
            request = self._with_past(request, checkpoint.after_cell)
        self._resumed &= set(self._machine.checkpoint_kernels.values())  # the others are copies no more
        self._resumed.add(kernel)
        try:
            return await self._launcher.resume_copy(request, sink or self._session)
        except BaseException:
            self._resumed.discard(kernel)
            raise

    async def start_fresh(self) -> Kernel:
        """Start a kernel that continues the execution count, for the state before the first cell. Checkpoints stay.

        Raises:
            KernelsvcError: it could not be started.
        """
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=new_kernel_id())
        request = self._with_past(request, None)
        return await self._launcher.start(request, self._session)

    def _with_past(self, request: StartRequest, after: str | None) -> StartRequest:
        """Add execution count and past code for a kernel that continues an existing session."""
        return msgspec.structs.replace(
            request, execution_count=self._machine.execution_count, ran=self._ran_since(after)
        )

    def _ran_since(self, cell: str | None) -> dict[int, str]:
        """Return the code that ran after a cell, by execution count: the latest ``MAX_HISTORY`` characters of it."""
        records = list(self._machine.cells.values())
        first = next((n + 1 for n, record in enumerate(records) if record.id == cell), 0)
        ran: dict[int, str] = {}
        left = MAX_HISTORY
        for record in reversed(records[first:]):
            if record.execution_count is not None and record.execution_count not in ran:
                code = self._views.cell(record.id).code
                left -= len(code)
                if left < 0:
                    break
                ran[record.execution_count] = code
        return ran

    def put_recreate(self, checkpoint: Checkpoint | None) -> asyncio.Future[None]:
        """Fork again the checkpoint that resuming has used up, ahead of the cells that wait for the resumed kernel.

        Call it before the kernel is attached, which sends those cells.

        Args:
            checkpoint: None for a kernel that is no checkpoint's: a crash must not return to a later moment.

        Returns:
            A future that ends when the fork is there, or can't be.
        """
        self._cancel()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def recreate() -> None:
            try:
                await self._recreate(checkpoint)
            finally:
                if not done.done():
                    done.set_result(None)

        self._operations.put_fork(lambda: self._session.spawn(recreate()))
        return done

    async def _recreate(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            if self.wanted:
                await self._automatic(None)
            return
        if checkpoint.id not in self._machine.checkpoints:
            return  # dropped while it was being resumed
        try:
            async with self._lock:
                await self._fork(checkpoint.id, checkpoint.name, checkpoint.auto, checkpoint.after_cell)
        except KernelsvcError as error:
            log.info(
                "session %s: could not fork checkpoint %s again after its use: %s",
                self._spec.id,
                checkpoint.id,
                error.message,
            )
            if checkpoint.id in self._machine.checkpoints:
                self._session.try_record(ev.CheckpointDropped(checkpoint=checkpoint.id, why=error.message))
