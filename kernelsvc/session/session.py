"""One session: a kernel, a log and a machine, held together.

The way of one cell::

    submit ─> machine.decide ─> log.append (code is on record) ─> kernel.execute
    kernel ─> deliver(batch) ─> facts ─> log.append ─> readers wake
    reply ─> machine.decide ─> log.append + sync ─> waiters wake

Everything below runs in the server's event loop; nothing here awaits between a
decision, its journal entry and its commit, so no lock is needed. Effects that
take time (a new kernel, the end of one) run as tasks that the session owns and
whose end is a stimulus again.

What the kernel says is made into events by ``hearing``, caps are ``guard``'s, copies
of the kernel ``copies``', a new kernel after an old one ``succession``'s.

When the disk refuses, ``deliver`` raises, the kernel is not acknowledged and
soon blocks; the session takes no cells, tries to recover once a second, and
goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from kernelsvc.errors import AtCapacity, Conflict, KernelDead, KernelsvcError, NotFound, SessionClosed
from kernelsvc.kernels.port import Kernel, Launcher, Output, StartRequest
from kernelsvc.model import events as ev
from kernelsvc.model.checkpoint_policy import CheckpointBudget
from kernelsvc.model.events import Event, KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.hash_chain import seconds_of, timestamp
from kernelsvc.model.limits import Usage
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import CellRequest, CellState, SessionInfo, SessionState
from kernelsvc.model.state import Policy
from kernelsvc.model.stimuli import (
    Answer,
    BeginProgram,
    Close,
    Decision,
    DeliveryKnown,
    Effect,
    EndKernel,
    Hibernate,
    Interrupt,
    InterruptKernel,
    JournalReplayed,
    KernelExited,
    KernelReady,
    KillKernel,
    ProgramBegun,
    RecordEvents,
    Restart,
    Resume,
    ResumeSaved,
    SendAnswer,
    SendCell,
    StartKernel,
    Stimulus,
    Submit,
    Tick,
    WakeCheckpoint,
)
from kernelsvc.model.story import Story
from kernelsvc.session.cell_views import CellViews, Log
from kernelsvc.session.checkpoints import Checkpoints
from kernelsvc.session.ids import new_cell_id, new_id
from kernelsvc.session.kernel_lifecycle import KernelLifecycle
from kernelsvc.session.kernel_output import KernelOutput
from kernelsvc.session.kernel_requests import KernelRequests
from kernelsvc.session.limit_enforcer import LimitEnforcer
from kernelsvc.session.spec import SessionSpec, start_request_of

log = logging.getLogger(__name__)

#: Events whose moments the machine goes by.
_TIMED = (ev.SessionStarted, ev.CellStarted, ev.Interrupted, ev.Leased)

#: Events that are on disk before anybody is told.
_SYNCED = (ev.CellFinished, ev.SessionClosed, ev.SessionStarted)

#: Seconds between attempts to write again after the disk refused.
RECOVER_SECONDS = 1.0
#: Seconds between the interrupts of a cell that goes on.
STRIKE_SECONDS = 1.0


Observer = Callable[["Session", Sequence[Event]], None]


class Session:
    """See the module's docstring. Made by ``service``; called by nothing else."""

    def __init__(
        self,
        about: SessionSpec,
        journal: Log,
        launcher: Launcher | None,
        policy: Policy,
        *,
        sync: Literal["ack", "run", "off"] = "ack",
        observer: Observer = lambda _session, _events: None,
        versions: dict[str, str] | None = None,
        checkpoints: int = 0,
        checkpoint_max_bytes: int | None = None,
        account: CheckpointBudget | None = None,
        sign: Callable[[], Event] | None = None,
        saved: Path | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.about = about
        self.log = journal
        self._launcher = launcher
        self.machine = Machine(policy, self._loop.time())
        self.kernel: Kernel | None = None
        self.fault: OSError | None = None
        self.report = SandboxReport()
        self.reading = CellViews(about.id, journal, self.machine, about.limits.output_bytes)
        self.succession = KernelLifecycle(self, saved)
        self.guard = LimitEnforcer(self)
        self.copies = Checkpoints(
            self, checkpoints, checkpoint_max_bytes, account or CheckpointBudget(1, self._loop.time())
        )
        self._sync = sync
        self._observer = observer
        self._unobserved: list[Event] = []
        self._sign = sign
        self._versions = versions or {}
        self._waiters: dict[str, list[Callable[[], object]]] = {}
        self._questions = KernelRequests()
        self.hearing = KernelOutput(self, self._questions)
        self._clients: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts = itertools.count(1)
        self.closed = asyncio.Event()
        if Machine.validate or log.isEnabledFor(logging.DEBUG):
            self.machine.story = Story()

    # -- life ------------------------------------------------------------------------

    @property
    def launcher(self) -> Launcher:
        """Who starts this session's kernels; a closed session has none."""
        if self._launcher is None:
            raise SessionClosed()
        return self._launcher

    @property
    def id(self) -> str:
        """The session's id."""
        return self.about.id

    @property
    def state(self) -> SessionState:
        """Where the session is in its life."""
        return self.machine.state

    @property
    def hibernated(self) -> bool:
        """Whether the variables are on disk and there is no kernel."""
        return self.machine.hibernated

    @property
    def info(self) -> KernelInfo | None:
        """The kernel's process, while there is one."""
        return self.kernel.info if self.kernel else None

    def start_request(self) -> StartRequest:
        """What it takes to start this session's kernel."""
        return start_request_of(self.about)

    def kernels(self) -> set[str]:
        """Ids of every process that is this session's: the kernel and its copies."""
        return {self.about.kernel, *self.machine.copies.values()}

    async def start(self, *, copy: bool = False) -> None:
        """Start the first kernel and write the first event. Cancelling it ends the kernel.

        Args:
            copy: the kernel is a copy of another session's, already forked; wake it.

        Raises:
            KernelsvcError: no kernel could be started; nothing was written.
        """
        begin = self.launcher.resume_copy if copy else self.launcher.start
        kernel = await begin(self.start_request(), self)
        about = self.about
        first = ev.SessionStarted(
            principal=about.principal,
            template=about.template,
            name=about.name,
            labels=about.labels,
            limits=about.limits,
            env_names=sorted(about.env),
            kernel=kernel.info,
            sandbox=kernel.sandbox,
            versions=self._versions,
            parent=about.parent,
        )
        try:
            self.adopt_kernel(kernel, first)
        except OSError as error:
            await kernel.end()
            raise AtCapacity("The log can't be written; free disk space and try again.") from error

    def adopt_kernel(self, kernel: Kernel, event: Event) -> None:
        """This is the session's kernel from now on, and ``event`` says how it came to be."""
        self.kernel, self.report = kernel, kernel.sandbox
        self.hearing.new_kernel()
        self.handle(KernelReady(event, ordered=kernel.ordered))
        self.hearing.flush_early()

    def rebuild(self, events: Iterable[Event]) -> None:
        """Replay a journal into the machine, after a restart of the server. Clocks go on as if there had been none."""
        now, wall = self._loop.time(), time.time()
        for event in events:
            moment = now
            if isinstance(event, _TIMED):
                moment = min(now, now - wall + seconds_of(event.at, wall))
            self.machine.evolve(event, moment)
            started = getattr(event, "kernel", None)
            if isinstance(started, KernelInfo) and started.id:
                self.about.kernel = started.id
            if isinstance(event, ev.SessionStarted):
                self.report = event.sandbox
        self.machine.commit(self.machine.decide(JournalReplayed(), now), now)

    async def adopt(self) -> None:
        """Find the kernel that an earlier server started; start a new one if it is gone. Safe to cancel.

        Raises:
            KernelsvcError: it lives and does not answer now, or nobody could be asked; try again.
            OSError: the log can't be written; try again.
        """
        if self.state in (SessionState.CLOSED, SessionState.DEAD) or self.kernel is not None:
            return
        if self.machine.hibernated:
            if self.machine.queue:  # the earlier server ended before it had resumed the session for them
                self.handle(Resume())
            self.schedule_timer()
            return
        try:
            kernel = await self.launcher.adopt(self.start_request(), self, last_frame=self.machine.frame)
        except KernelsvcError:
            self.schedule_timer()  # its time is not stopped by its silence
            raise
        if kernel is None:
            self._kernel_gone(await self.launcher.how_ended(self.about.kernel))
        elif self._ended():  # meanwhile
            await kernel.end()
        else:
            self._resume(kernel)

    def _resume(self, kernel: Kernel) -> None:
        """Continue with a kernel that an earlier server started."""
        received = frozenset(cell for cell in self.machine.queue if kernel.has_received(cell))
        try:
            self.handle(DeliveryKnown(received, ordered=kernel.ordered))
            self.adopt_kernel(kernel, ev.SessionAdopted(kernel=kernel.info))
        except OSError:
            self.kernel = None
            kernel.detach()
            raise

    def _ended(self) -> bool:
        return self.state is SessionState.CLOSED

    def _kernel_gone(self, exit: Exit | None) -> None:
        """The kernel ended while no server watched, or before it was ready."""
        if self.state in (SessionState.STARTING, SessionState.RESTORING):
            again = self.succession
            self.spawn(again.restore() if self.machine.copies else again.replace("not found after a restart"))
        else:
            # A cell that the log calls queued may have been sent, and may have run: it must not run again.
            self.handle(DeliveryKnown(frozenset(self.machine.queue)))
            self.exited(exit or Exit(cause=Cause.LOST, message="The kernel ended, and nobody was there to see how"))

    def detach(self) -> None:
        """Let go of the kernel without ending it: the server stops, the session lives on."""
        self._cancel_timer()
        for task in self._tasks:
            task.cancel()
        if self.kernel:
            self.kernel.detach()
            self.kernel = None
        self.log.close()

    # -- decisions ----------------------------------------------------------------------

    def handle(self, stimulus: Stimulus) -> Decision:
        """Decide, journal, commit and carry out.

        Raises:
            KernelsvcError: an illegal move; nothing changed.
            OSError: it could not be written; nothing changed.
        """
        now = self._loop.time()
        outcome = self.machine.decide(stimulus, now)
        self.commit(outcome, now)
        return outcome

    def commit(self, outcome: Decision, now: float) -> None:
        """Journal, then commit, then carry out.

        Raises:
            OSError: it could not be written; nothing changed.
        """
        events = outcome.events
        if events:
            try:
                self.log.append(events)
            except OSError as error:
                self._failed(error)
                raise
        self.machine.commit(outcome, now)
        if log.isEnabledFor(logging.DEBUG) and self.machine.story is not None:
            log.debug("session %s: transition %s", self.id, self.machine.story.transitions[-1])
        sends = [effect for effect in outcome.effects if isinstance(effect, SendCell)]
        try:
            for send in sends:  # first: the kernel can work while we keep our books
                self._perform(send)
        finally:
            if events:
                self._project(events)
        for effect in outcome.effects:
            if not isinstance(effect, SendCell):
                self._perform(effect)
        if not self.hearing.busy:
            self.notify_observer()
            self.schedule_timer()

    def _project(self, events: Sequence[Event]) -> None:
        ended = [e for e in events if isinstance(e, _SYNCED)]
        if ended and self._sync != "off":
            self._sync_log()
        for event in events:
            self.reading.feed(event)
        for event in ended:
            if isinstance(event.cell, str):
                self._wake(event.cell)  # what is derived may come after the answer
        self._unobserved += events
        last = events[-1]
        if isinstance(last, ev.CellFinished) and self.state is SessionState.IDLE:
            self.copies.cell_ended(self._loop.time(), last.usage)

    def notify_observer(self) -> None:
        """Tell the observer what was appended since the last time; once for a whole batch of the kernel's."""
        events, self._unobserved = self._unobserved, []
        if events:
            self._observer(self, events)

    def _sync_log(self) -> None:
        try:
            self.log.sync()
        except OSError as error:
            self._failed(error)

    def _wake(self, cell: str) -> None:
        if self.fault is not None:
            return  # not durable yet; ``_recover`` wakes them
        for tell in self._waiters.pop(cell, ()):
            tell()

    # -- effects -------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendCell() if self.copies.starting:
                self._loop.call_soon(self._send, effect.cell)  # behind the request for a copy, so that it is of before
            case SendCell():
                self._send(effect.cell)
            case SendAnswer() if self.kernel:
                content = {"value": effect.text, "status": "ok"}
                self.kernel.send("stdin", "input_reply", content, msg_id=new_id("i"))
            case InterruptKernel() if self.kernel and self.machine.running:
                self._interrupt_until_dead(self.machine.running.id)
            case KillKernel() if self.kernel:
                self.kernel.kill()
            case KillKernel():  # it lives and did not answer since the server came back
                self.spawn(self.launcher.discard(self.about.kernel))
            case StartKernel():
                self.spawn(self.succession.replace(effect.why))
            case WakeCheckpoint():
                self.spawn(self.succession.restore())
            case Hibernate():
                self.spawn(self.succession.sleep_if_possible())
            case ResumeSaved():
                self.spawn(self.succession.resume())
            case EndKernel():
                self.spawn(self._finish())
            case _:
                pass

    def _interrupt_until_dead(self, cell: str) -> None:
        """Interrupt, and again while the grace lasts: a signal just before a blocking C call strikes only after it."""
        run = self.machine.running
        if run is not None and run.id == cell and run.kill_at is not None and self.kernel is not None:
            self.kernel.interrupt()
            self._loop.call_later(STRIKE_SECONDS, self._interrupt_until_dead, cell)

    def _send(self, cell: str) -> None:
        spec = self.machine.queue.get(cell)
        if spec is None:
            return
        if self._sync == "run":
            self._sync_log()
        self.copies.cell_sent(self._loop.time())
        if self.kernel:
            self.kernel.execute(
                cell,
                spec.code,
                silent=spec.silent,
                allow_stdin=spec.allow_stdin,
                store_history=spec.store_history and not spec.silent,
                user_expressions=spec.user_expressions,
            )

    def spawn(self, work: Awaitable[None]) -> None:
        """Run ``work`` as a task of this session; its failure is logged."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("session %s: a task failed", self.id, exc_info=task.exception())

    async def _finish(self) -> None:
        kernel, self.kernel = self.kernel, None
        self._cancel_timer()
        self.fail_requests(SessionClosed())
        try:
            await self.copies.discard_all()
            if kernel is not None:
                await kernel.end()
            else:  # between two kernels, or not adopted yet
                await self.launcher.discard(self.about.kernel)
        finally:
            self._sign_journal()
            for cell in list(self._waiters):
                self._wake(cell)
            self.log.close()
            self.closed.set()

    def _sign_journal(self) -> None:
        """Sign the head of a journal that is complete."""
        if self._sign is None:
            return
        try:
            signed = [self._sign()]
            self.log.append(signed)
            self.log.sync()
        except OSError as error:
            log.error("session %s: its journal could not be signed: %s", self.id, error)
            return
        self._observer(self, signed)

    def fail_requests(self, error: KernelsvcError) -> None:
        """Nobody will answer what the kernel was asked."""
        self._questions.fail(error)

    # -- time ----------------------------------------------------------------------------

    def schedule_timer(self) -> None:
        """Set the one timer to the earliest deadline; a later deadline is noticed when it fires."""
        at = self.machine.next_deadline()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.handle(Tick())
        except OSError:
            self._timer_at = self._loop.time() + RECOVER_SECONDS
            self._timer = self._loop.call_at(self._timer_at, self._tick)
        self.schedule_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the disk refuses -------------------------------------------------------------------

    def _failed(self, error: OSError) -> None:
        if self.fault is None:
            log.error("session %s: the journal can't be written: %s", self.id, error)
            self._loop.call_later(RECOVER_SECONDS, self._recover)
        self.fault = error

    def _recover(self) -> None:
        if self.state is SessionState.CLOSED and self.closed.is_set():
            return
        try:
            self.log.recover()
            self.log.sync()
        except OSError as error:
            self.fault = error
            self._loop.call_later(RECOVER_SECONDS, self._recover)
            return
        log.warning("session %s: the journal can be written again", self.id)
        self.fault = None
        for cell in list(self._waiters):
            record = self.machine.cells.get(cell)
            if record is not None and record.state is CellState.FINISHED:
                self._wake(cell)
        if self.kernel:
            self.kernel.resume()

    def require_writable_log(self) -> None:
        """Go on only if the log can be written.

        Raises:
            AtCapacity: it can't now.
        """
        if self.fault is not None:
            raise AtCapacity(
                f"The session's log can't be written ({self.fault.strerror}); free disk space, it goes on by itself.",
                disk=True,
            )

    # -- the kernel speaks (port.Sink) ----------------------------------------------------------

    def deliver(self, batch: Sequence[Output]) -> None:
        """Journal a batch; see ``port``."""
        self.hearing.deliver(batch)

    def exited(self, exit: Exit) -> None:
        """The kernel is gone; see ``port``. A copy that it was just making may be what brings it back: wait for it."""
        if self.copies.busy:
            self.spawn(self._exited_later(exit))
            return
        exit = self.guard.explain(exit)
        stimulus = KernelExited(str(exit.cause), exit.message, exit.signal, exit.exit_code, self._restorable())
        try:
            self.handle(stimulus)
        except OSError:
            self._loop.call_later(RECOVER_SECONDS, self.exited, exit)

    async def _exited_later(self, exit: Exit) -> None:
        while self.copies.busy:
            await self.copies.wait_made()
            await asyncio.sleep(0)
        self.exited(exit)

    def _restorable(self) -> bool:
        return bool(self.machine.copies)

    # -- what clients ask for ---------------------------------------------------------------------

    def submit(
        self, requests: Sequence[CellRequest], *, principal: str = "", client: object | None = None
    ) -> list[str]:
        """Accept cells, all or none, and return their ids. They are on record when this returns.

        Raises:
            SessionClosed, KernelDead, CellExists, QuotaExceeded, AtCapacity: nothing was accepted.
        """
        self.require_writable_log()
        ids = tuple(r.cell or new_cell_id() for r in requests)
        try:
            self.handle(Submit(tuple(requests), ids, principal))
        except OSError:
            self.require_writable_log()
            raise
        for request, cell in zip(requests, ids, strict=True):
            if client is not None and request.on_disconnect == "interrupt":
                self._clients.setdefault(client, set()).add(cell)
        return list(ids)

    async def wait(self, cell: str) -> None:
        """Wait until the cell has finished, on record. Safe to cancel: the cell goes on."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.when_finished(cell, lambda: None if waiter.done() else waiter.set_result(None))
        await waiter

    def when_finished(self, cell: str, tell: Callable[[], object]) -> None:
        """Have ``tell`` called, once, when the cell has finished, on record; now if it has. It raises nothing.

        Raises:
            NotFound: there is no such cell.
        """
        record = self.machine.cells.get(cell)
        if record is None:
            raise NotFound(f"There is no cell {cell!r} in this session.")
        if record.state is CellState.FINISHED and self.fault is None:
            tell()
        else:
            self._waiters.setdefault(cell, []).append(tell)

    def view(self, usage: Usage) -> SessionInfo:
        """The session as the API shows it."""
        about, machine = self.about, self.machine
        now, wall = self._loop.time(), time.time()
        expires = machine.expires_at()
        closed = self.state is SessionState.CLOSED
        return SessionInfo(
            id=about.id,
            name=about.name,
            template=about.template,
            state=self.state,
            created_at=about.created_at,
            last_activity_at=timestamp(wall - (now - machine.active)),
            expires_at=None if closed or expires is None else timestamp(wall + expires - now),
            principal=about.principal,
            labels=about.labels,
            limits=about.limits,
            usage=usage,
            last_seq=self.log.last_seq,
            execution_count=machine.execution_count,
            parent=about.parent,
            kernel=self.info,
            sandbox=self.report,
            checkpoints=list(machine.checkpoints.values()),
            queued=len(machine.queue) - (machine.running is not None),
            running=machine.running.id if machine.running else None,
            beside=about.beside,
            paused=machine.paused,
        )

    async def settled(self) -> None:
        """Wait until no kernel is being started or woken. Safe to cancel."""
        while self.state in (SessionState.STARTING, SessionState.RESTORING) and self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def client_disconnected(self, client: object) -> None:
        """Interrupt what this client wanted interrupted when it leaves; what has not begun never does."""
        cells = self._clients.pop(client, set())
        run = self.machine.running
        with contextlib.suppress(KernelsvcError, OSError):
            never = [cell for cell in self.machine.queue if cell in cells and (run is None or run.id != cell)]
            why = "Its client left before it began."
            self.record(*(ev.CellFinished(cell=each, reason=ev.Reason.CANCELLED, message=why) for each in never))
            if run is not None and run.id in cells:
                self.handle(Interrupt(why="client gone"))

    def interrupt(self, why: str = "requested") -> None:
        """Interrupt the running cell; nothing happens if none runs.

        Raises:
            SessionClosed, KernelDead: there is nothing to interrupt.
        """
        self.require_writable_log()
        self.handle(Interrupt(why=why))

    def restart(self) -> None:
        """A new kernel with empty variables; what ran or waited is cancelled."""
        self.require_writable_log()
        self.handle(Restart())

    def record(self, *events: Event) -> None:
        """Put events that change nothing but the record into the log.

        Raises:
            SessionClosed: the log is complete.
        """
        if self.state is SessionState.CLOSED:
            raise SessionClosed()
        self.require_writable_log()
        self.handle(RecordEvents(events))

    def try_record(self, event: Event) -> None:
        """Put an event into the log that nobody waits for; when the disk refuses, it is left out."""
        with contextlib.suppress(KernelsvcError, OSError):
            self.record(event)

    async def close(self, reason: str) -> None:
        """End the session and its kernel. Safe to cancel: it ends anyway."""
        if self.state is not SessionState.CLOSED:
            self.require_writable_log()
            self.handle(Close(reason))
        await self.closed.wait()

    def give_input(self, cell: str, text: str) -> None:
        """Answer the running cell's ``input()``.

        Raises:
            Conflict: the cell does not wait for input.
        """
        self.require_writable_log()
        if self.machine.running is not None and self.kernel is None:
            raise Conflict("The kernel of this session is not connected yet; try again in a moment.")
        self.handle(Answer(cell, text))

    @contextlib.contextmanager
    def starting_program(self) -> Iterator[None]:
        """Don't hibernate while a program starts: its start takes time, and its event comes at the end."""
        number = -next(self._starts)  # below 0, where no pid is
        self.handle(BeginProgram(number))
        try:
            yield
        finally:
            self.handle(ProgramBegun(number))

    async def request(self, msg_type: str, content: dict[str, Any], *, timeout: float = 10.0) -> dict[str, Any]:
        """Ask the kernel something that is not a cell; answered between cells. Safe to cancel.

        Raises:
            KernelDead, SessionClosed, Timeout: no answer.
        """
        return await self._questions.request(self._require_kernel(), msg_type, content, timeout)

    async def send_comm(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Give the kernel a message that has no answer (comms); returns when it was handled. Safe to cancel.

        What it causes is on record with ``request`` set to ``msg_id``.

        Raises:
            Conflict: ``msg_id`` is in use.
            QuotaExceeded: too many are under way.
            KernelDead, SessionClosed: nobody is there.
        """
        kernel = self._require_kernel()
        self.require_writable_log()
        if msg_id in self.machine.cells:
            raise Conflict(f"There is a cell {msg_id!r}; give each message an id of its own.")
        await self._questions.send(kernel, msg_type, content, msg_id=msg_id, metadata=metadata, buffers=buffers)

    def _require_kernel(self) -> Kernel:
        if self.state is SessionState.CLOSED:
            raise SessionClosed()
        if self.kernel is None:
            raise KernelDead(
                "The session is hibernated and has no kernel; run a cell to resume it." if self.hibernated else None
            )
        return self.kernel
