"""One session with the operations that the service calls: cells, kernel, checkpoints, log.

``SessionRuntime`` connects a session's kernel, log and machine. This module adds the operations that clients request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelsvc.errors import Conflict, KernelDead, KernelsvcError, NotFound, QuotaExceeded, SessionClosed
from kernelsvc.kernels.port import ForkResult, Kernel, SaveResult, StartRequest
from kernelsvc.kernels.read_budget import ReadPauses
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits, Usage
from kernelsvc.model.network.ports import PortState
from kernelsvc.model.objects import CellInfo, CellOutline, CellRequest, CellView, Checkpoint, SessionInfo, SessionState
from kernelsvc.model.stimuli import (
    Answer,
    BeginProgram,
    Close,
    DecideCells,
    Hold,
    Interrupt,
    ProgramBegun,
    Restart,
    Submit,
    Tick,
)
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.protocol.kernel_messages import KernelRequest
from kernelsvc.sandbox.watchdog import LimitExceeded
from kernelsvc.session.kernel_requests import new_id
from kernelsvc.session.ports import LogReader
from kernelsvc.session.runtime import SessionRuntime
from kernelsvc.session.session_info import describe


class Session(SessionRuntime):
    """One session. Only ``service`` creates and calls it."""

    # -- properties --------------------------------------------------------------------

    @property
    def principal(self) -> str:
        """The name of the session's owner."""
        return self.spec.principal

    @property
    def limits(self) -> Limits:
        """The session's limits."""
        return self.spec.limits

    @property
    def hibernated(self) -> bool:
        """Whether the variables are on disk and there is no kernel."""
        return self.machine.hibernated

    @property
    def running(self) -> str | None:
        """The id of the running cell, or None."""
        run = self.machine.running
        return run.id if run is not None else None

    @property
    def unfinished(self) -> str | None:
        """The id of the oldest cell that runs or waits, or None."""
        return next(iter(self.machine.queue), None)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory of cells that run or wait, and of requests that the kernel has not confirmed."""
        return self.machine.waiting_bytes + (0 if self.kernel is None else self.kernel.kept_bytes)

    @property
    def approvals_pending(self) -> int:
        """Calls of clients' functions that wait for a person."""
        return len(self.machine.calls.pending()) if self.machine.calls.open else 0

    @property
    def lease(self) -> ev.Leased | None:
        """The last lease that the owner set, or None."""
        return self.machine.lease

    @property
    def leased_until(self) -> float:
        """When the lease ends, in monotonic seconds."""
        return self.machine.leased_until

    @property
    def lifetime_began(self) -> float:
        """When its lifetime began: at its start, or at the end of the last pause. Monotonic seconds."""
        return self.machine.started_at if self.machine.unpaused_at is None else self.machine.unpaused_at

    @property
    def last_seq(self) -> int:
        """The position of the last event."""
        return self.log.last_seq

    @property
    def ports(self) -> Mapping[int, PortState]:
        """The ports that the owner shared or closed."""
        return self.machine.ports

    def touch(self) -> None:
        """Note a use of the session that is no event, so that it is not idle."""
        self.machine.touch(self._loop.time())

    def kernels(self) -> set[str]:
        """Return the ids of all processes that this session needs: the kernel and its checkpoints."""
        return set() if self.hibernated else {self.spec.kernel, *self.machine.checkpoint_kernels.values()}

    def view(self, usage: Usage) -> SessionInfo:
        """Return the session as the API shows it."""
        return describe(self.spec, self.machine, usage, self.log.last_seq, self.info, self.sandbox)

    # -- life ------------------------------------------------------------------------

    async def start(self, *, copy: bool = False, load: bool = False) -> None:
        """Start the first kernel and write the first event. Cancelling it ends the kernel.

        Args:
            copy: resume the fork of another session's kernel that was made for this session.
            load: load the saved variables into the new kernel, for an isolated branch.

        Raises:
            KernelsvcError: no kernel could be started. The log has no entry.
        """
        if not copy:
            self._withdraw(self.spec)  # an isolated branch has the mounts of its parent, from some time ago
        await self.lifecycle.start(copy=copy, load=load)

    async def adopt(self) -> None:
        """Connect to the kernel that an earlier server started, or replace it if it has ended. Safe to cancel.

        Raises:
            KernelsvcError: the kernel runs and does not answer, or the kernel host does not answer. Try again.
            OSError: the log is not writable. Try again.
        """
        if self.state in (SessionState.CLOSED, SessionState.DEAD) or self.kernel is not None:
            return
        try:
            await self.lifecycle.adopt()
            self.tool_calls.adopted()
        finally:
            self._timer.schedule()  # also if the kernel can't be reached, because its cell has a deadline

    async def close(self, reason: str, by: str = "") -> None:
        """End the session and its kernel. Safe to cancel: the session ends all the same."""
        if self.state is not SessionState.CLOSED:
            self.require_writable()
            self.handle(Close(reason, by))
        await self.closed.wait()

    # -- requests of clients ----------------------------------------------------------------

    def submit(
        self, requests: Sequence[CellRequest], *, principal: str = "", client: object | None = None
    ) -> list[str]:
        """Accept cells, all or none, and return their ids. They are in the journal when this returns.

        Args:
            requests: the cells, in order.
            principal: who sends them, for the journal.
            client: the connection whose end interrupts cells with ``on_disconnect="interrupt"``. See
                ``client_disconnected``.

        Raises:
            SessionClosed, KernelDead, CellExists, QuotaExceeded, AtCapacity: no cell was accepted.
        """
        self.require_writable()
        if self.log_full and any(r.cell not in self.machine.cells for r in requests):
            raise QuotaExceeded(
                f"The log has {self.log.size} bytes and may have {self.machine.policy.max_log_bytes} (max_log_bytes). "
                "Branch the session, or create another one. This one's log stays readable.",
                limit="max_log_bytes",
            )
        ids = tuple(request.cell or new_id("c") for request in requests)
        try:
            self.handle(Submit(tuple(requests), ids, principal))
        except OSError:
            # The append failed and wrote nothing, so the client may send the cells again when there is space.
            self.require_writable()
            raise
        for request, cell in zip(requests, ids, strict=True):
            if client is not None and request.on_disconnect == "interrupt":
                self._clients.setdefault(client, set()).add(cell)
        return list(ids)

    async def wait(self, cell: str) -> None:
        """Wait until the end of the cell is in the journal. Safe to cancel: the cell continues to run."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.when_finished(cell, lambda: None if waiter.done() else waiter.set_result(None))
        await waiter

    def when_finished(self, cell: str, call: Callable[[], object]) -> None:
        """Call ``call`` once when the end of the cell is in the journal, now if it is there. ``call`` must not raise.

        Raises:
            NotFound: there is no such cell.
        """
        if cell not in self.machine.cells:
            raise NotFound(f"There is no cell {cell!r} in this session. List its cells.")
        self.journal.when_finished(cell, call)

    def client_disconnected(self, client: object) -> None:
        """Interrupt or cancel the cells of a client that has disconnected, if they were sent with that option."""
        cells, running = self._clients.pop(client, set()), self.running
        with contextlib.suppress(KernelsvcError, OSError):
            waiting = [c for c in (*self.machine.queue, *self.machine.held) if c in cells and c != running]
            why = "Its client left before it began."
            self.record(*(ev.CellFinished(cell=each, reason=ev.Reason.CANCELLED, message=why) for each in waiting))
            if running in cells:
                self.handle(Interrupt(why="client gone"))

    def interrupt(self, why: str = "requested", by: str = "") -> None:
        """Interrupt the running cell. Do nothing if no cell runs.

        Raises:
            SessionClosed, KernelDead: the session has no kernel.
        """
        self.require_writable()
        self.handle(Interrupt(why=why, by=by))

    def hold(self, wanted: Hold) -> None:
        """Hold cells back until a person decides, or let go.

        Raises:
            SessionClosed: the session has ended.
        """
        self.require_writable()
        self.handle(wanted)

    def hold_as(self, other: Session) -> None:
        """Hold this session's cells back as another session does. Do nothing if that is not held."""
        if (hold := other.machine.hold) is not None:
            self.hold(Hold(hold.mode, hold.seconds, hold.then, hold.by))

    def decide_cells(self, decision: DecideCells) -> None:
        """Approve or refuse held cells, all or none.

        Raises:
            Conflict: one of them is not held.
        """
        self.require_writable()
        self.handle(decision)

    def restart(self) -> None:
        """Replace the kernel by one with empty variables, and cancel running and waiting cells."""
        self.require_writable()
        self.handle(Restart())

    def give_input(self, cell: str, text: str, by: str = "") -> None:
        """Answer the running cell's ``input()``.

        Raises:
            Conflict: the cell does not wait for input, or the kernel is not connected yet.
        """
        self.require_writable()
        if self.machine.running is not None and self.kernel is None:
            raise Conflict("The kernel of this session is not connected yet. Try again in a moment.")
        self.handle(Answer(cell, text, by))

    @contextlib.contextmanager
    def starting_program(self) -> Iterator[None]:
        """Return a context manager that prevents hibernation while a program starts, before its event is in the log."""
        number = next(self._program_numbers)
        self.handle(BeginProgram(number))
        try:
            yield
        finally:
            self.handle(ProgramBegun(number))

    async def request(self, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0) -> dict[str, Any]:
        """Send the kernel a request other than a cell, and return its reply's content. Safe to cancel.

        The kernel replies between cells. ``timeout`` is in seconds.

        Raises:
            KernelDead, SessionClosed, Timeout: no reply.
        """
        return await self.kernel_requests.request(self._require_kernel(), msg_type, content, timeout)

    async def send_comm(self, message: KernelRequest) -> None:
        """Send the kernel a message that has no reply (comms), and wait until it is handled. Safe to cancel.

        Events that the message causes have its ``msg_id`` as their ``request``.

        Raises:
            Conflict: ``msg_id`` is in use.
            QuotaExceeded: too many messages wait for the kernel.
            KernelDead, SessionClosed: there is no kernel.
        """
        kernel = self._require_kernel()
        self.require_writable()
        if message.msg_id in self.machine.cells:
            raise Conflict(f"A cell has the id {message.msg_id!r} already. Give each message its own id.")
        await self.kernel_requests.send(kernel, message)

    def _require_kernel(self) -> Kernel:
        if self.state is SessionState.CLOSED:
            raise SessionClosed()
        if self.kernel is None:
            raise KernelDead(
                "The session is hibernated and has no kernel. Run a cell to resume it." if self.hibernated else None
            )
        return self.kernel

    # -- the log ------------------------------------------------------------------------------

    def cell(self, cell: str) -> CellInfo:
        """Return a cell, folded from the log.

        Raises:
            NotFound: no such cell.
        """
        return self.views.cell(cell)

    def cells(self, offset: int, limit: int) -> list[CellInfo]:
        """Return a page of cells. See ``CellViews.cells``."""
        return self.views.cells(offset, limit)

    def outline(self, offset: int, limit: int) -> list[CellOutline]:
        """Return one line about each of some cells. See ``CellViews.outline``."""
        return self.views.outline(offset, limit)

    def cell_ids(self) -> list[str]:
        """Return the ids of all cells, in the order in which they were accepted."""
        return [*self.machine.cells]

    async def output(self, cell: str, name: str, offset: int, limit: int) -> dict[str, Any]:
        """Return a page of a cell's output. See ``CellViews.output``."""
        return await self.views.output(cell, name, offset, limit)

    async def view_cell(self, cell: str | None, request: ViewRequest) -> CellView:
        """Return a cell as a language model reads it. See ``CellViews.view``."""
        return await self.views.view(cell, request)

    def reader(self, after: int) -> LogReader:
        """Return a cursor that starts after entry ``after`` of the log.

        Raises:
            CursorUnknown: the log has no such position.
        """
        return self.log.reader(after)

    def lines(self, first: int, last: int) -> Iterable[bytes]:
        """Return entries ``first`` to ``last`` of the log, inclusive."""
        return self.log.lines(first, last)

    def position_after(self, cell: str | None) -> int:
        """Return the position of a cell's last entry in the log, or 1 if there is no such cell."""
        record = self.machine.cells.get(cell or "")
        return record.last_seq if record is not None else 1

    # -- checkpoints, hibernation ---------------------------------------------------------------

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether the session keeps automatic checkpoints."""
        return self.checkpoints.wanted

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints, oldest first."""
        return [*self.machine.checkpoints.values()]

    def find_checkpoint(self, which: str) -> Checkpoint:
        """Return the checkpoint with this id or name.

        Raises:
            NotFound: no checkpoint has it.
        """
        return self.checkpoints.find(which)

    async def make_checkpoint(self, name: str | None = None, by: str = "") -> Checkpoint:
        """Fork the kernel after all operations sent so far. See ``Checkpoints.make``."""
        await self.ensure_running()
        return await self.checkpoints.make(name, by=by)

    async def drop_checkpoint(self, which: str, by: str = "") -> None:
        """Drop a checkpoint by id or name. See ``Checkpoints.drop``."""
        await self.checkpoints.drop(which, by)

    async def rollback(self, to: str | None = None, *, replay: bool = True, by: str = "") -> None:
        """Return to an earlier state of the variables. See ``KernelLifecycle.rollback``."""
        await self.lifecycle.rollback(to, replay=replay, by=by)

    async def hibernate(self) -> None:
        """Save the variables to disk and end the kernel. See ``KernelLifecycle.hibernate``."""
        if self.machine.calls.open:
            raise Conflict("Calls of clients' functions are open. Wait for them, or interrupt the code that made them.")
        await self.lifecycle.hibernate()

    async def hibernate_if_due(self) -> None:
        """Hibernate a session that was paused, unless a cell or program runs, and wait until its kernel has ended.

        A failure is on record. Cancelling it does not cancel the hibernation.
        """
        self.handle(Tick())
        if self._hibernating is not None:
            await asyncio.wait({self._hibernating})

    async def ensure_running(self) -> None:
        """Resume a hibernated session, or wait until a kernel is attached. Safe to cancel."""
        await self.lifecycle.ensure_running()

    # -- branches -------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """The session's directory as its kernel sees it.

        Raises:
            KernelDead: there is no kernel now.
        """
        if self.kernel is None:
            raise KernelDead()
        return Path(self.kernel.home)

    async def fork_branches(
        self, copies: Sequence[StartRequest], spares: Sequence[StartRequest], *, at: str | None, force: bool
    ) -> tuple[list[str], list[asyncio.Task[ForkResult]]]:
        """Fork kernels for other sessions. See ``Checkpoints.fork_branches``."""
        return await self.checkpoints.fork_branches(copies, spares, at=at, force=force)

    async def save_variables(self, fd: int) -> SaveResult:
        """Write the variables into a file between two cells. See ``KernelLifecycle.save_variables``."""
        return await self.lifecycle.save_variables(fd)

    def adopt_first_checkpoint(self, spare: asyncio.Future[ForkResult]) -> None:
        """Use a fork made together with this branch as its first checkpoint."""
        self.spawn(self.checkpoints.adopt_first(self.spec.spare, spare))

    async def restrict_writes(self) -> list[str]:
        """Forbid the kernel to write into its branches' directories. See ``Checkpoints.restrict_writes``."""
        return await self.checkpoints.restrict_writes()

    async def discard_kernel(self, kernel: str) -> None:
        """End a forked kernel that no session has resumed."""
        await self.launcher.discard(kernel)

    # -- limits ---------------------------------------------------------------------------------

    def on_watchdog(self, breaches: Sequence[LimitExceeded]) -> None:
        """Act on the limits that the watchdog found exceeded in its last check."""
        self.limit_enforcer.on_watchdog(breaches)

    def on_cgroup_event(self, limit: str) -> None:
        """Record that Linux enforced a limit of the session's cgroup."""
        self.limit_enforcer.on_cgroup_event(limit)

    def on_read_pauses(self, pauses: ReadPauses) -> None:
        """Record that the server reads the kernel with pauses."""
        self.limit_enforcer.on_read_pauses(pauses)

    def on_kernel_stopped(self) -> None:
        """End a kernel that was stopped by SIGSTOP in the middle of a cell."""
        self.limit_enforcer.on_kernel_stopped()
