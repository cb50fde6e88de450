"""Checkpoints: forks of the kernel that wait, and how one is resumed.

``Kernel.fork`` makes a checkpoint between two cells and blocks the kernel for a few milliseconds. So the main question
is when to fork:

* The session requests an automatic checkpoint when a cell has ended, while the client reads the result. The client
  does not notice the fork if its next cell comes later than that. A crash then loses only the effects of the cell that
  crashed.
* A program that sends cell after cell would wait for every fork, and many such programs would keep the CPUs busy.
  ``model.checkpoint_policy`` decides when to fork for them. A crash returns to the last checkpoint, and the event names
  the last cell before it.

For rollbacks, the session keeps ``keep`` earlier states, in addition to the checkpoint of the current state that a
crash needs. Resuming uses a checkpoint up, because its process becomes the session's kernel. So the session forks the
resumed kernel again before its next cell, and a checkpoint's id differs from its kernel's id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import (
    CannotFork,
    Conflict,
    KernelDead,
    KernelsvcError,
    NotFound,
    NotSupported,
    SessionClosed,
    Timeout,
)
from kernelsvc.kernels.port import ForkResult, Kernel, Launcher, Output, Sink, StartRequest
from kernelsvc.model import events as ev
from kernelsvc.model.checkpoint_policy import CheckpointBudget, CheckpointSchedule
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import CellUsage
from kernelsvc.model.objects import Checkpoint, CheckpointMode, SessionState
from kernelsvc.model.state import MachineState
from kernelsvc.sandbox import branch_dirs
from kernelsvc.session.cell_views import CellViews
from kernelsvc.session.kernel_requests import OperationQueue, new_id, new_kernel_id
from kernelsvc.session.ports import SessionPort
from kernelsvc.session.replay import PastCell, longest
from kernelsvc.session.spec import SessionSpec, start_request_of

log = logging.getLogger(__name__)


#: Characters of code that a resumed kernel gets for its history.
MAX_HISTORY = 100_000


@dataclass(frozen=True)
class RollbackPlan:
    """How a rollback reaches its state.

    Attributes:
        target: the checkpoint to resume, or None for a fresh kernel.
        after: the last cell whose effects remain.
        undone: cells whose effects are gone afterwards.
        redone: undone cells whose effects are back afterwards.
        replay: cells to run again in the resumed kernel.
    """

    target: Checkpoint | None
    after: str | None
    undone: list[str]
    redone: list[str]
    replay: list[str]


class NullSink:
    """A sink for a kernel that is resumed only to be forked and runs no cell."""

    def deliver(self, batch: Sequence[Output]) -> None:
        """Drop the output: none is expected."""

    def exited(self, exit: Exit) -> None:
        """Do nothing: open fork requests fail by themselves."""


class Checkpoints:
    """The checkpoints of one session. The machine has the list of them and the kernel id of each.

    Args:
        session: records, and runs tasks.
        machine: is only read here.
        spec: the session's specification.
        launcher: resumes and ends processes.
        operations: keeps forks, cells and messages in order.
        views: the code of past cells, for a resumed kernel's history.
        keep: number of automatic checkpoints for undo, in addition to that of the current state. 0 for no automatic
            checkpoints.
        max_bytes: largest kernel that gets automatic checkpoints, in bytes of peak RSS. None for no limit.
        budget: the server's budget for forks, in CPU seconds.
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
        self._forks: set[asyncio.Future[None]] = set()
        self._names: set[str] = set()  # of checkpoints that are being made
        self._timer: asyncio.TimerHandle | None = None
        self._skipped_for: list[str] = []
        # Ids of checkpoint processes that became the session's kernel, or are about to. Dropping the checkpoint must
        # not end such a process.
        self._resumed: set[str] = set()

    # -- when ------------------------------------------------------------------------

    def cell_sent(self, now: float) -> None:
        """Record that a cell is sent at ``now`` (monotonic seconds), and cancel a scheduled checkpoint."""
        # Only automatic checkpoints depend on the pace of the cells.
        if self._keep > 0:
            self._budget.sent(self._spec.id, now)
            self._schedule.sent(now, self._budget.load(now))
        if self._timer is not None or self._reserved:
            self._cancel()

    def make_after_cell(self, mode: CheckpointMode | None, now: float) -> bool:
        """Fork the kernel now if a checkpoint is wanted after each cell. Call it before the next cell is sent.

        Args:
            mode: the cell's mode, or None for the session's.
            now: monotonic seconds.

        Returns:
            Whether it does.
        """
        kernel = self._session.kernel
        if (mode or self._spec.checkpoint) != "every" or kernel is None or not kernel.forkable:
            return False
        self._budget.reserve(now, self._schedule.cost)
        self._begin()
        return True

    def cell_ended(self, now: float, usage: CellUsage, *, copied: bool = False) -> None:
        """Decide about a checkpoint after a cell: fork now, schedule a fork, or skip it.

        Args:
            now: monotonic seconds.
            usage: resources that the cell used.
            copied: whether ``make_after_cell`` has forked the kernel.
        """
        if self._keep <= 0:
            return
        budget, schedule = self._budget, self._schedule
        cpu = None if usage.cpu_ms is None else usage.cpu_ms / 1000
        schedule.ended(now, usage.wall_ms / 1000, cpu, budget.load(now))
        kernel, rss = self._session.kernel, usage.peak_rss_bytes
        if copied or kernel is None or not kernel.forkable:
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
        self._session.spawn(self._operations.request(lambda: self._automatic(after)))

    async def wait_made(self) -> None:
        """Wait until the forks of this moment exist or have failed. Safe to cancel."""
        if self._forks:
            await asyncio.wait(self._forks)

    async def wait_idle(self) -> None:
        """Wait until no fork is requested or in progress. Safe to cancel."""
        while self.busy:
            await self.wait_made()
            await asyncio.sleep(0)

    @property
    def busy(self) -> bool:
        """Whether a fork is requested or in progress."""
        return self._operations.request_waits or bool(self._forks)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._budget.refund(self._reserved)
        self._reserved = 0.0

    async def _automatic(self, after: str | None) -> None:
        try:
            await self._fork(new_id("p"), None, True, after)
        except (KernelDead, SessionClosed) as error:
            log.info("session %s: made no automatic checkpoint: %s", self._spec.id, error.message)
        except KernelsvcError as error:
            self.record_skipped(error)

    def record_skipped(self, error: KernelsvcError) -> None:
        """Record that no copy of the kernel was made, with the reasons of the error."""
        reasons = error.details.get("reasons")
        self._skip([str(reason) for reason in reasons] if isinstance(reasons, list) and reasons else [error.message])

    def _skip(self, why: list[str]) -> None:
        """Record why there is no checkpoint, unless the last skip had the same reasons."""
        if why != self._skipped_for and self._machine.state is not SessionState.CLOSED:
            self._skipped_for = why
            self._session.try_record(ev.CheckpointSkipped(why=why))

    # -- making ---------------------------------------------------------------------------

    async def make(self, name: str | None = None, *, force: bool = False, by: str = "") -> Checkpoint:
        """Fork the kernel after all operations sent so far, and return the checkpoint.

        Args:
            name: unique in the session, or None.
            force: fork although the fork loses resources.
            by: the name of the principal who requests it.

        Raises:
            CannotFork, NotSupported, KernelDead, Timeout: the kernel was not forked.
            Conflict: another checkpoint has the name.
        """
        if name is not None and (self.named(name) or name in self._names):
            raise Conflict(f"There is a checkpoint named {name!r}. Drop it or choose another name.")
        machine = self._machine
        after = machine.running.id if machine.running else machine.variables_after
        names = {name} if name is not None else set()
        self._names |= names
        try:
            return await self._operations.request(lambda: self._fork(new_id("p"), name, False, after, force, by))
        except (CannotFork, Timeout) as error:
            self.record_skipped(error)
            raise
        finally:
            self._names -= names

    async def _fork(
        self, checkpoint: str, name: str | None, auto: bool, after: str | None, force: bool = False, by: str = ""
    ) -> Checkpoint:
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forks.add(made)
        try:
            return await self._fork_and_record(checkpoint, name, auto, after, force, by)
        finally:
            self._forks.discard(made)
            made.set_result(None)

    async def _fork_and_record(
        self, checkpoint: str, name: str | None, auto: bool, after: str | None, force: bool, by: str
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
        self._schedule.saved(forked.cpu_ms / 1000)
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
            by=by,
        )
        try:
            self._session.record(made)
        except BaseException:  # closed meanwhile, or the disk is full: no event names the fork
            await asyncio.shield(self._launcher.discard(request.kernel))
            raise
        known = self._machine.checkpoints[checkpoint]
        await self._thin()
        return known

    async def _thin(self) -> None:
        """Drop automatic checkpoints above ``keep``, except the newest and one that is being resumed."""
        machine = self._machine
        automatic = sorted((c for c in machine.checkpoints.values() if c.auto), key=lambda c: c.seq)
        for old in automatic[: -(self._keep + 1)]:  # oldest fork first: one that was resumed was forked again
            if machine.kernel_of(old.id) not in self._resumed:
                await self._drop(old.id, "replaced by a newer one")

    async def drop(self, which: str, by: str = "") -> None:
        """Drop a checkpoint by id or name, which the principal ``by`` requests.

        Raises:
            NotFound: no checkpoint has this id or name.
        """
        await self._drop(self.find(which).id, "requested", by)

    async def _drop(self, checkpoint: str, why: str, by: str = "") -> None:
        kernel = self._machine.kernel_of(checkpoint)
        self._session.record(ev.CheckpointDropped(checkpoint=checkpoint, why=why, by=by))
        if kernel is not None and kernel not in self._resumed:
            await self._launcher.discard(kernel)

    async def discard_all(self, copies: Collection[str] | None = None) -> None:
        """End all checkpoint processes without an event, because the session or its kernel has ended.

        Args:
            copies: their kernel ids. None for those of the machine's checkpoints.
        """
        self._cancel()
        if copies is None:
            copies = self._machine.kernels_of_checkpoints()
        await asyncio.gather(*(self._launcher.discard(kernel) for kernel in copies))

    # -- finding ------------------------------------------------------------------------------

    def named(self, name: str) -> Checkpoint | None:
        """Return the checkpoint with this name, or None."""
        return next((c for c in self._machine.checkpoints.values() if c.name == name), None)

    def find(self, which: str) -> Checkpoint:
        """Return the checkpoint with this id or name.

        Raises:
            NotFound: no checkpoint has it.
        """
        found = self._machine.checkpoints.get(which) or self.named(which)
        if found is None:
            raise NotFound(f"There is no checkpoint {which!r}. List the session's checkpoints.")
        return found

    def plan_rollback(self, to: str | None) -> RollbackPlan:
        """Return how a rollback reaches a state.

        Args:
            to: a checkpoint's id or name, or a cell's id for the state before that cell. None for the last cell.

        Raises:
            NotFound: no such checkpoint or cell, or neither a checkpoint nor a fresh kernel leads to the state.
        """
        machine = self._machine
        if to is not None and (to in machine.checkpoints or self.named(to)):
            target = self.find(to)
            undone, redone = machine.rollback_effect(target.id, target.after_cell)
            return RollbackPlan(target, target.after_cell, undone, redone, [])
        standing = machine.effective_since(None)
        wanted = to or machine.variables_after
        if wanted not in standing:
            if to is None:
                raise NotFound("No cell has finished since the kernel started, so there is nothing to roll back.")
            raise NotFound(
                f"There is no checkpoint {to!r} and no finished cell of this id. "
                f"Existing checkpoints: {self._described()}."
            )
        position = standing.index(wanted)
        after = standing[position - 1] if position else None
        for kept in range(position, -1, -1):
            found, start = self._leading_to(standing, kept)
            if found:
                return RollbackPlan(start, after, standing[position:], [], standing[kept:position])
        raise NotFound(
            f"The state before cell {wanted} has no checkpoint any more, and none before it. "
            f"Existing checkpoints: {self._described()}."
        )

    def _leading_to(self, standing: list[str], kept: int) -> tuple[bool, Checkpoint | None]:
        """Return whether a checkpoint or a fresh kernel (None) has the effects of exactly the first ``kept`` cells."""
        machine, after = self._machine, standing[kept - 1] if kept else None
        for found in sorted(machine.checkpoints.values(), key=lambda c: c.seq, reverse=True):
            if found.after_cell == after and machine.rollback_effect(found.id, after) == (standing[kept:], []):
                return True, found
        return kept == 0 and machine.started_empty, None

    def _described(self) -> str:
        kept = self._machine.checkpoints.values()
        return ", ".join(f"{c.name or c.id} (after {c.after_cell})" for c in kept) or "none"

    def past_cells(self, ids: Sequence[str]) -> list[PastCell]:
        """Return these cells for a replay."""
        limit = self._spec.limits.cell_seconds
        found = []
        for view in map(self._views.cell, ids):
            seconds = longest(limit, view.usage.wall_ms)
            silent = view.execution_count is None
            found.append(PastCell(view.id, view.code, view.reason is ev.Reason.OK, silent, seconds))
        return found

    def newest(self, besides: Collection[str] = ()) -> Checkpoint | None:
        """Return the newest checkpoint whose id is not in ``besides``, or None."""
        kept = [c for c in self._machine.checkpoints.values() if c.id not in besides]
        return max(kept, key=lambda c: c.seq, default=None)

    async def fork_branches(
        self, copies: Sequence[StartRequest], spares: Sequence[StartRequest], *, at: str | None, force: bool
    ) -> tuple[list[str], list[asyncio.Task[ForkResult]]]:
        """Fork kernels that other sessions will resume, all from the same state.

        Args:
            copies: one request for each branch. Its ``kernel`` is the id of the fork.
            spares: one more request for each branch, for its first checkpoint. The call does not wait for these forks.
            at: a checkpoint's id or name. None for the state after all operations sent so far.
            force: fork although the forks lose resources.

        Returns:
            Warnings (resources that both processes use, or that the forks lost), and the tasks that make the spares.

        Raises:
            CannotFork, KernelDead, NotFound, Timeout: a fork failed. The others were ended.
        """
        source = await self._branching_kernel(at)
        live = source is self._session.kernel

        def fork(request: StartRequest, mode: Literal["checkpoint", "branch"]) -> asyncio.Task[ForkResult]:
            def begin() -> Coroutine[Any, Any, ForkResult]:
                return source.fork(request, mode=mode, force=force)

            return asyncio.create_task(self._operations.request(begin) if live else begin())

        # All places are taken now, before any later cell, so that all forks are of the same state.
        forking = [fork(request, "branch") for request in copies]
        extra = [fork(request, "checkpoint") for request in spares]
        if not live:
            self._session.spawn(self._end_after(source, [*forking, *extra]))
        made = await asyncio.gather(*forking, return_exceptions=True)
        failed = [one for one in made if isinstance(one, BaseException)]
        if failed:
            if isinstance(failed[0], CannotFork | Timeout):
                self.record_skipped(failed[0])
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
        """Use the fork made together with this branch as its first checkpoint.

        Args:
            kernel: the id of the fork.
            spare: ends when the fork exists or has failed.
        """
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
        """Forbid the kernel to write into the directories of the session's branches.

        A kernel that was forked before these directories existed may still write there. A rollback or a restore can
        resume such a kernel.

        Returns:
            Warnings for the client if the kernel can still write there, else an empty list.
        """
        kernel = kernel or self._session.kernel
        depth = branch_dirs.branch_count(Path(self._spec.workdir))
        if kernel is None or not kernel.forkable or not depth:
            return []
        paths = [kernel.home, str(branch_dirs.later_branches_dir(Path(kernel.home), depth))]
        if kernel is self._session.kernel:
            why = await self._operations.request(lambda: kernel.restrict_writes(paths))
        else:  # not attached yet, so no other operation is sent to it
            why = await kernel.restrict_writes(paths)
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
        return await self.resume_again(self.find(at), NullSink())

    async def resume_again(self, checkpoint: Checkpoint, sink: Sink) -> Kernel:
        """Resume a checkpoint, and fork the kernel at once to replace the checkpoint.

        Args:
            checkpoint: the one to resume.
            sink: receives the kernel's output. The caller ends the kernel, or attaches it.

        Raises:
            KernelsvcError: the process could not be resumed or forked.
        """
        woken = await self.resume(checkpoint, sink)
        try:
            await self._fork_again(checkpoint, woken)
        except BaseException:
            await woken.end()
            raise
        return woken

    async def _fork_again(self, checkpoint: Checkpoint, woken: Kernel) -> None:
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

    # -- resuming -------------------------------------------------------------------------------

    async def resume(self, checkpoint: Checkpoint, sink: Sink | None = None) -> Kernel:
        """Resume the checkpoint's process and return it as a kernel. This uses it up until ``put_recreate``.

        Args:
            checkpoint: the one to resume.
            sink: receives the kernel's output. None for the session.

        Raises:
            KernelDead, Timeout: the process could not be resumed.
        """
        kernel = self._machine.kernel_of(checkpoint.id)
        if kernel is None:
            raise KernelDead(f"The checkpoint {checkpoint.id} is gone.")
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=kernel, home="")
        if sink is None:
            request = self._with_past(request, checkpoint.after_cell)
        # Forget processes that no checkpoint has any more.
        self._resumed &= set(self._machine.kernels_of_checkpoints())
        self._resumed.add(kernel)
        try:
            return await self._launcher.resume_copy(request, sink or self._session)
        except BaseException:
            self._resumed.discard(kernel)
            raise

    async def start_empty(self, sink: Sink) -> Kernel:
        """Start a kernel with an empty history, whose output goes to ``sink``.

        Raises:
            KernelsvcError: the kernel could not be started.
        """
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=new_kernel_id())
        return await self._launcher.start(request, sink)

    async def continue_history(self, kernel: Kernel, after: str | None) -> None:
        """Give a kernel the session's execution count, and the code of the cells after ``after``."""
        await kernel.continue_history(self._machine.execution_count, self._ran_since(after))

    async def start_fresh(self) -> Kernel:
        """Start a kernel for the state before the first cell, with the session's execution count. Keep the checkpoints.

        Raises:
            KernelsvcError: the kernel could not be started.
        """
        request = msgspec.structs.replace(start_request_of(self._spec), kernel=new_kernel_id())
        request = self._with_past(request, None)
        return await self._launcher.start(request, self._session)

    def _with_past(self, request: StartRequest, after: str | None) -> StartRequest:
        """Add the execution count and past code to the request, for a kernel that continues an existing session."""
        return msgspec.structs.replace(
            request, execution_count=self._machine.execution_count, ran=self._ran_since(after)
        )

    def _ran_since(self, cell: str | None) -> dict[int, str]:
        """Return code by execution count, for cells after ``cell``: at most the last ``MAX_HISTORY`` characters."""
        records = self._machine.cell_records()
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

    def put_recreate(self, checkpoint: Checkpoint | None, after: str | None = None) -> asyncio.Future[None]:
        """Fork the resumed kernel to replace the checkpoint that resuming has used up, before its next cell.

        Call this before ``attach_kernel``, which sends the cells that wait.

        Args:
            checkpoint: the one that was used up. None for another kernel, which gets an automatic checkpoint instead,
                so that a crash does not return to a later state.
            after: without ``checkpoint``: the last cell whose effects the kernel has.

        Returns:
            A future that ends when the fork exists or has failed.
        """
        self._cancel()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def recreate() -> None:
            try:
                await self._recreate(checkpoint, after)
            finally:
                if not done.done():
                    done.set_result(None)

        self._session.spawn(self._operations.request(recreate))
        return done

    async def _recreate(self, checkpoint: Checkpoint | None, after: str | None) -> None:
        if checkpoint is None:
            if self.wanted:
                await self._automatic(after)
            return
        if checkpoint.id not in self._machine.checkpoints:
            return  # dropped while it was being resumed
        try:
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
