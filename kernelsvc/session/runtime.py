"""The runtime of a session: it decides on each stimulus, then journals, commits and carries out the decision.

The path of one cell::

    submit -> machine.decide -> journal (contains the code) -> machine.commit -> kernel.execute
    kernel -> deliver(batch) -> KernelOutput -> journal -> readers
    reply  -> machine.decide -> journal, synced -> waiters

All of this runs in the server's event loop. There is no ``await`` between a decision, its journal entry and its commit,
so no lock is needed. Effects that take time (to start or end a kernel) run as tasks of the session, and each such task
ends with another stimulus.

The parts use the runtime by ``ports.SessionPort``, and may read the machine. ``KernelOutput`` turns the kernel's
messages into events. ``LimitEnforcer`` acts on limits, ``Checkpoints`` forks the kernel, ``KernelLifecycle`` replaces
one kernel by another, and ``JournalWriter`` writes the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from msgspec import UnsetType

from kernelsvc.errors import KernelsvcError, SessionClosed
from kernelsvc.kernels.port import Kernel, Launcher, Output, StartRequest
from kernelsvc.model import events as ev
from kernelsvc.model.checkpoint_policy import CheckpointBudget
from kernelsvc.model.events import Event, KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.hash_chain import seconds_of
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import CellState, SessionState
from kernelsvc.model.state import Policy
from kernelsvc.model.stimuli import (
    CancelCall,
    Decision,
    DeliverResult,
    DispatchCall,
    Effect,
    EndKernel,
    Hibernate,
    InterruptKernel,
    JournalReplayed,
    KernelExited,
    KernelReady,
    KillKernel,
    RecordEvents,
    ResumeSaved,
    SendAnswer,
    SendCell,
    StartKernel,
    Stimulus,
    Tick,
    WakeCheckpoint,
)
from kernelsvc.model.tracing.context import CellTrace, child, environment
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest, request_metadata
from kernelsvc.session.cell_views import CellViews
from kernelsvc.session.checkpoints import Checkpoints
from kernelsvc.session.journal_writer import RECOVER_SECONDS, JournalWriter
from kernelsvc.session.kernel_lifecycle import KernelLifecycle
from kernelsvc.session.kernel_output import KernelOutput
from kernelsvc.session.kernel_requests import KernelRequests, OperationQueue, new_kernel_id
from kernelsvc.session.limit_enforcer import LimitEnforcer
from kernelsvc.session.ports import Log, launcher_or_closed
from kernelsvc.session.spec import SessionSpec, start_request_of
from kernelsvc.session.tool_calls import NoOffers, OfferPort, ToolCalls

log = logging.getLogger(__name__)

#: Events that start a clock of the machine. A replay needs their times.
_TIMED = (ev.SessionStarted, ev.CellStarted, ev.Interrupted, ev.Leased, ev.ToolCalled, ev.ToolDecided)

#: Seconds between the interrupts of a cell that ignores them.
INTERRUPT_SECONDS = 1.0

Observer = Callable[[Any, Sequence[Event]], None]


class DeadlineTimer:
    """A timer that calls ``fire`` at the next deadline.

    Args:
        next_deadline: returns the deadline in the event loop's time (seconds), or None.
        fire: handles the deadlines that have passed. If it raises OSError because the journal is not writable, the
            timer calls it again ``RECOVER_SECONDS`` later.
    """

    def __init__(self, next_deadline: Callable[[], float | None], fire: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._next_deadline = next_deadline
        self._fire = fire
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._not_before = 0.0

    def schedule(self) -> None:
        """Set the timer if the deadline has become earlier. A later deadline takes effect when the timer fires."""
        at = self._next_deadline()
        if at is None:
            return
        at = max(at, self._not_before)
        if self._timer is not None and self._at <= at:
            return
        self.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._due)

    def cancel(self) -> None:
        """Stop the timer until the next ``schedule``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        try:
            self._fire()
        except OSError:  # without a delay the passed deadline would fire in each iteration of the loop
            self._not_before = self._loop.time() + RECOVER_SECONDS
        self.schedule()


class SessionRuntime:
    """The runtime of one session. See the module's docstring.

    Args:
        spec: the session's specification.
        journal: its log.
        launcher: starts its kernels. None for a session that has ended and can only be read.
        policy: limits and times for the machine.
        sync: see ``JournalWriter``.
        observer: called with the session and the events that were appended.
        versions: versions of software, for the ``session_started`` event.
        checkpoints: number of automatic checkpoints for undo. 0 for no automatic checkpoints, so that a crash loses
            the variables.
        checkpoint_max_bytes: largest kernel that gets automatic checkpoints, in bytes. None for no limit.
        account: the server's budget for checkpoints.
        sign: makes the event that signs the complete journal.
        saved: path of the file for the variables of a hibernated session. None if the session can't hibernate.
        offers: functions of clients that code may call. None for none.
    """

    def __init__(
        self,
        spec: SessionSpec,
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
        offers: OfferPort | None = None,
        withdraw: Callable[[SessionSpec], None] = lambda spec: None,
    ) -> None:
        self._withdraw = withdraw
        self._loop = asyncio.get_running_loop()
        self.spec = spec
        self.log = journal
        self.launcher = launcher_or_closed(launcher)
        self.machine = machine = Machine(policy, self._loop.time())
        if Machine.validate or log.isEnabledFor(logging.DEBUG):
            machine.keep_story()
        self.kernel: Kernel | None = None
        self.sandbox = SandboxReport()
        self.journal = JournalWriter(
            spec.id, journal, sync=sync, finished=self._has_finished, recovered=self._journal_recovered
        )
        self.operations = OperationQueue()
        self.views = CellViews(spec.id, journal, machine, spec.limits.output_bytes)
        self.limit_enforcer = LimitEnforcer(self, machine, spec.limits)
        budget = account or CheckpointBudget(1, self._loop.time())
        self.checkpoints = Checkpoints(
            self, machine, spec, self.launcher, self.operations, self.views, checkpoints, checkpoint_max_bytes, budget
        )
        self.lifecycle = KernelLifecycle(
            self, machine, spec, self.launcher, self.checkpoints, self.operations, saved, versions or {}
        )
        self.kernel_requests = KernelRequests(self.operations)
        self.tool_calls = ToolCalls(self, spec.id, machine, journal, offers or NoOffers())
        self.kernel_output = KernelOutput(self, machine, self.kernel_requests, self.tool_calls)
        self._observer = observer
        self._unobserved: list[Event] = []
        self._sign = sign
        self._timer = DeadlineTimer(self._next_deadline, lambda: self.handle(Tick()))
        self._tasks: set[asyncio.Task[None]] = set()
        self._resuming = False  # the kernel died in a cell, and a checkpoint is being resumed
        self._hibernating: asyncio.Task[None] | None = None  # the last hibernation that a ``Tick`` began
        # By client: ids of the cells to interrupt or cancel when it disconnects.
        self._clients: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._program_numbers = itertools.count(-1, -1)  # below 0: differ from pids
        self.closed = asyncio.Event()
        #: Why the journal of a session that was read back could not be replayed. Empty if it could.
        self.unreadable = ""

    @property
    def id(self) -> str:
        """The session's id."""
        return self.spec.id

    @property
    def state(self) -> SessionState:
        """The session's state."""
        return self.machine.state

    @property
    def info(self) -> KernelInfo | None:
        """The kernel's process, or None without a kernel."""
        return self.kernel.info if self.kernel else None

    @property
    def log_full(self) -> bool:
        """Whether the log has reached its limit. See ``ports``."""
        bound = self.machine.policy.max_log_bytes
        return bound is not None and self.log.size >= bound

    # -- the kernel in use (ports.SessionPort) -------------------------------------------

    def attach_kernel(self, kernel: Kernel, event: Event) -> None:
        """Send cells to this kernel from now on. See ``ports``."""
        self.kernel, self.sandbox = kernel, kernel.sandbox
        self.spec.use_kernel(kernel.info.id or self.spec.kernel)
        self.kernel_output.new_kernel()
        self.handle(KernelReady(event, ordered=kernel.ordered))
        self.kernel_output.flush_early()

    def release_kernel(self, why: KernelsvcError) -> Kernel | None:
        """Stop sending to the current kernel and return it. See ``ports``."""
        kernel, self.kernel = self.kernel, None
        self.kernel_requests.fail(why)
        return kernel

    def next_start_request(self) -> StartRequest:
        """Return the start request for this session's next fresh kernel. See ``ports``."""
        self.spec.use_kernel(new_kernel_id())
        self._withdraw(self.spec)
        return start_request_of(self.spec)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task of this session, and log its failure."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("session %s: a background task failed", self.id, exc_info=task.exception())

    # -- decisions ----------------------------------------------------------------------

    def handle(self, stimulus: Stimulus) -> Decision:
        """Decide, journal, commit and carry out. See ``ports``."""
        now = self._loop.time()
        decision = self.machine.decide(stimulus, now)
        self.apply(decision, now)
        self.flush()
        return decision

    def apply(self, decision: Decision, now: float) -> None:
        """Journal, then commit, then carry out. See ``ports``."""
        events = decision.events
        if events:
            self.journal.append(events)
        machine = self.machine
        # The commit removes the request of a cell that ends.
        ran = machine.queue.get(machine.running.id) if machine.running is not None else None
        machine.commit(decision, now)
        copied = (
            ran is not None
            and self._has_finished(str(ran.cell))
            and self.checkpoints.make_after_cell(ran.checkpoint, now)
        )
        story = machine.story
        if story is not None and log.isEnabledFor(logging.DEBUG):
            log.debug("session %s: transition %s", self.id, story.last())
        sends = [effect for effect in decision.effects if isinstance(effect, SendCell)]
        try:
            for send in sends:  # first, so that the kernel works while the server does the rest
                self._perform(send)
        finally:
            if events:
                self._project(events, copied=copied)
        for effect in decision.effects:
            if not isinstance(effect, SendCell):
                self._perform(effect)

    def flush(self) -> None:
        """Pass the events appended since the last call to the observer, and set the timer."""
        events, self._unobserved = self._unobserved, []
        if events:
            self._observer(self, events)
        self._timer.schedule()

    def _project(self, events: Sequence[Event], *, copied: bool = False) -> None:
        ends = self.journal.sync_ends(events)
        for event in events:
            self.views.feed(event)
        self.journal.report(ends)  # before the observer, because a client waits for it
        self._unobserved += events
        last = events[-1]
        if isinstance(last, ev.CellFinished) and self.state is SessionState.IDLE:
            self.checkpoints.cell_ended(self._loop.time(), last.usage, copied=copied)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendCell():
                self.operations.put(self._send, effect.cell)
            case SendAnswer():
                self.operations.put(self._send_answer, effect)
            case InterruptKernel() if self.kernel and self.machine.running:
                self._interrupt_until_dead(self.machine.running.id)
            case KillKernel() if self.kernel:
                self.kernel.kill()
            case KillKernel():  # the kernel runs, but has not answered since the server started
                self.spawn(self.launcher.discard(self.spec.kernel))
            case StartKernel():
                self.spawn(self.lifecycle.replace(effect.why))
            case WakeCheckpoint():
                self.spawn(self.lifecycle.restore())
            case Hibernate():
                self._hibernating = self.spawn(self.lifecycle.hibernate_if_possible())
            case ResumeSaved():
                self.spawn(self.lifecycle.resume())
            case EndKernel():
                self.spawn(self._finish())
            case DispatchCall():
                self.journal.sync_before_cell()  # as for code: on disk before anybody acts on it
                self.tool_calls.perform(effect)
            case DeliverResult() | CancelCall():
                self.tool_calls.perform(effect)
            case _:
                pass

    def _interrupt_until_dead(self, cell: str) -> None:
        """Repeat the interrupt in the grace time: a signal just before a blocking C call takes effect after it."""
        run = self.machine.running
        if run is not None and run.id == cell and run.kill_at is not None and self.kernel is not None:
            self.kernel.interrupt(max(0.0, self._loop.time() - run.sent_at))
            self._loop.call_later(INTERRUPT_SECONDS, self._interrupt_until_dead, cell)

    def _send(self, cell: str) -> None:
        queued = self.machine.queue.get(cell)
        if queued is None:
            return
        self.journal.sync_before_cell()
        self.checkpoints.cell_sent(self._loop.time())
        if self.kernel:
            request = ExecuteRequest(
                cell,
                queued.code,
                silent=queued.silent,
                allow_stdin=queued.allow_stdin,
                store_history=queued.store_history and not queued.silent,
                user_expressions=queued.user_expressions,
                metadata=request_metadata(queued.metadata) if queued.metadata else {},
                changes=queued.changes,
                environ=None if isinstance(queued.trace, UnsetType) else self._trace_environment(cell, queued.trace),
            )
            self.kernel.execute(request)

    def _trace_environment(self, cell: str, trace: CellTrace) -> Mapping[str, str]:
        """Return the variables with which a cell's processes name the cell's span, or its caller's, as their parent."""
        return environment(child(trace, self.spec.id, cell) if self.machine.policy.spans else trace)

    def _send_answer(self, answer: SendAnswer) -> None:
        if self.kernel:
            content = {"value": answer.text, "status": "ok"}
            self.kernel.send(KernelRequest("input_reply", content, answer.msg_id, "stdin"))

    async def _finish(self) -> None:
        kernel = self.release_kernel(SessionClosed())
        self._timer.cancel()
        try:
            await self.checkpoints.discard_all()
            if kernel is not None:
                await kernel.end()
            else:  # no kernel at this moment, or not adopted yet
                await self.launcher.discard(self.spec.kernel)
        finally:
            if not self.closed.is_set():  # This runs again for a kernel that became ready after the session's close.
                if signed := self.journal.finish(self._sign):
                    self._observer(self, signed)
                self.journal.close()
                self.closed.set()

    def _has_finished(self, cell: str) -> bool:
        record = self.machine.cells.get(cell)
        return record is not None and record.state is CellState.FINISHED

    def _journal_recovered(self) -> None:
        if self.kernel:
            self.kernel.resume()

    # -- the kernel's output and end (kernels.port.Sink) ------------------------------------

    def deliver(self, batch: Sequence[Output]) -> None:
        """Journal a batch. See ``kernels.port``."""
        self.kernel_output.deliver(batch)

    def exited(self, exit: Exit) -> None:
        """Handle the end of the kernel, after a fork in progress, which may replace it. See ``kernels.port``."""
        if self.checkpoints.busy:
            self.spawn(self._exited_later(exit))
            return
        exit = self.limit_enforcer.explain(exit)
        restorable = bool(self.machine.checkpoint_kernels)
        if restorable and self.machine.running is not None:
            self._resuming = True
            self.spawn(self._exited_in_cell(exit))  # the end of the cell says whether its variables are kept
        else:
            self._kernel_exited(exit, restorable)

    def _next_deadline(self) -> float | None:
        # A cell whose kernel has died ends for this reason, also if its time is over meanwhile. A server that adopts
        # the session learns it a moment after it has read the log.
        unknown = self.kernel is None and self.machine.running is not None
        return None if self._resuming or unknown else self.machine.next_deadline()

    async def _exited_in_cell(self, exit: Exit) -> None:
        try:
            restorable = await self.lifecycle.resume_newest()
        finally:
            self._resuming = False
        self._kernel_exited(exit, restorable)

    def _kernel_exited(self, exit: Exit, restorable: bool) -> None:
        stimulus = KernelExited(str(exit.cause), exit.message, exit.signal, exit.exit_code, restorable)
        try:
            decision = self.handle(stimulus)
        except OSError:
            self.journal.retry(self._kernel_exited, exit, restorable)
            return
        if not any(isinstance(effect, WakeCheckpoint) for effect in decision.effects):
            self.spawn(self.lifecycle.end_resumed())

    async def _exited_later(self, exit: Exit) -> None:
        await self.checkpoints.wait_idle()
        self.exited(exit)

    def require_writable(self) -> None:
        """Raise AtCapacity if the journal is not writable. See ``ports``."""
        self.journal.require_writable()

    def record(self, *events: Event) -> None:
        """Journal events that need no decision. See ``ports``."""
        if self.state is SessionState.CLOSED:
            raise SessionClosed()
        self.require_writable()
        self.handle(RecordEvents(events))

    def try_record(self, event: Event) -> None:
        """Journal an event, or drop it if that is not possible. See ``ports``."""
        with contextlib.suppress(KernelsvcError, OSError):
            self.record(event)

    @property
    def _between_kernels(self) -> bool:
        return self._resuming or self.state in (SessionState.STARTING, SessionState.RESTORING)

    async def settled(self) -> None:
        """Wait until no kernel is being started, saved or resumed. Safe to cancel."""
        while self._between_kernels and self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def rebuild(self, events: Iterable[Event]) -> None:
        """Replay a journal into the machine after a restart of the server. Lifetimes continue from recorded times."""
        now, wall = self._loop.time(), time.time()
        for event in events:
            moment = now
            if isinstance(event, _TIMED):
                moment = min(now, now - wall + seconds_of(event.at, wall))
            self.machine.evolve(event, moment)
            started = getattr(event, "kernel", None)
            if isinstance(started, KernelInfo) and started.id:
                self.spec.use_kernel(started.id)
            if isinstance(event, ev.SessionStarted):
                self.sandbox = event.sandbox
        self.machine.commit(self.machine.decide(JournalReplayed(), now), now)

    def mark_unreadable(self, why: str) -> None:
        """Record why the journal could not be replayed."""
        self.unreadable = why

    def detach(self) -> None:
        """Disconnect from the kernel without ending it: the server stops, and the next server continues the session."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self.kernel:
            self.kernel.detach()
            self.kernel = None
        self.journal.close()
