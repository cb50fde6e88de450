"""The state machine of a session: pure, without I/O.

Theory of operation
-------------------
``decide(stimulus, now)`` returns a ``Decision``: the events that have now happened and the effects to carry out. It
changes nothing, and raises a ``KernelsvcError`` for an illegal move. The session writes the events to the journal, then
calls ``commit(decision, now)``, then carries out the effects. Only ``commit`` changes the machine, so a failed write
changes neither machine nor journal.

The durable state follows from the events alone: ``evolve`` (``model.state``) over a journal's events rebuilds the
machine after a crash of the server. Volatile state changes by effects (``_mark``).

With an *ordered* kernel (``kernels.port``) a cell begins when it is sent, and ends on the kernel's reply. With any
other kernel it begins when the kernel reports that, and ends when both the reply and the idle status have arrived, in
either order. Both name the cell. So output that the kernel sent before them is in the log before the cell's end. The
kernel is not trusted: messages about a cell that does not run change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from msgspec import UNSET

from kernelsvc.errors import CellExists, Conflict, KernelDead, QuotaExceeded, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model import limit_causes
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.limits import CellUsage
from kernelsvc.model.objects import CellRequest, CellState, SessionState
from kernelsvc.model.state import (
    FLOOD,
    MAX_WAITING_BYTES,
    MachineState,
    Running,
    digest,
    output_size,
    size_of,
)
from kernelsvc.model.stimuli import (
    AbortSwitch,
    Answer,
    AnswerLost,
    AskAgain,
    AttachKernel,
    BeginProgram,
    BeginSwitch,
    CallAbandoned,
    CallAnswered,
    CallFailed,
    CallsDecided,
    CellBegan,
    CheckOutputLimit,
    Close,
    DecideCells,
    Decision,
    DeliveryKnown,
    Effect,
    EndKernel,
    Hibernate,
    Hold,
    Interrupt,
    InterruptKernel,
    JournalReplayed,
    KernelExited,
    KernelIdle,
    KernelReady,
    KernelReplied,
    KillKernel,
    MarkProgram,
    MarkSent,
    MarkUnsent,
    NoteIdle,
    NoteReply,
    PauseQueue,
    ProgramBegun,
    RecordEvents,
    ResetClocks,
    Restart,
    Resume,
    ResumeQueue,
    ResumeSaved,
    SendAnswer,
    SendCell,
    StartFailed,
    StartKernel,
    StateSaved,
    Stimulus,
    Submit,
    Tick,
    ToolRequested,
    WakeCheckpoint,
)
from kernelsvc.model.story import Story, Transition, check_invariants
from kernelsvc.model.tracing.context import trace_of

S = SessionState

#: Lifetime of a paused session in seconds. E2B keeps a paused sandbox for the same time.
PAUSED_SECONDS = 30 * 24 * 3600.0

#: What a cell says that fails by an unknown name after its kernel was restarted.
VARIABLES_LOST = "The kernel was restarted after earlier cells, and their variables are gone. Run those cells again."


class Machine(MachineState):
    """One session's state and decisions. See the module's docstring.

    Attributes:
        validate: check the invariants after each transition. Tests switch it on by ``KERNELSVC_VALIDATE=1``.
        story: the last transitions. None if they are not recorded.
    """

    validate: ClassVar[bool] = bool(os.environ.get("KERNELSVC_VALIDATE"))
    story: Story | None = None

    def keep_story(self) -> None:
        """Record the last transitions in ``story`` from now on."""
        self.story = Story()

    # -- decisions ---------------------------------------------------------------

    def decide(self, stimulus: Stimulus, now: float) -> Decision:
        """Return the events and effects that follow from ``stimulus``. Change nothing.

        Args:
            stimulus: the cause.
            now: monotonic seconds.

        Raises:
            SessionClosed, KernelDead, Conflict, CellExists, QuotaExceeded: an illegal move.
        """
        out = self._decide(stimulus, now)
        if self.calls.open:
            self.calls.follow(out, now)
        ordered = stimulus.ordered if isinstance(stimulus, KernelReady) else self.ordered
        if ordered and out.effects:
            self._begin(out)
        out.stimulus = stimulus
        return out

    def _begin(self, out: Decision) -> None:
        """Add a ``CellStarted`` for a cell that is about to be sent, unless the journal has one already."""
        for effect in out.effects:
            if isinstance(effect, SendCell):
                known = self.cells.get(effect.cell)
                if known is None or known.state is CellState.QUEUED:
                    count = self._count_of(effect.cell, out.events)
                    out.events.append(ev.CellStarted(cell=effect.cell, execution_count=count))

    def _count_of(self, cell: str, before: list[Event]) -> int | None:
        """Return the execution count that the kernel will give to a cell, or None for a silent cell.

        Args:
            cell: the cell that is sent next.
            before: events that are journaled first. They may include the cell's ``CellQueued``.
        """
        held = self.held.get(cell)
        count, spec = self.execution_count, self.queue.get(cell) if held is None else held.queued
        for event in before:
            if isinstance(event, ev.CellQueued):
                spec = event if event.cell == cell else spec
            elif isinstance(event, ev.CellFinished):
                count = count if event.execution_count is None else event.execution_count
            elif isinstance(event, ev.KernelRestarted):
                count = 0
        return None if spec is None or spec.silent else count + 1

    def _decide(self, stimulus: Stimulus, now: float) -> Decision:
        match stimulus:
            case Submit():
                return self._submit(stimulus)
            case CellBegan():
                return self._began(stimulus)
            case KernelReplied():
                return self._replied(stimulus, now)
            case KernelIdle():
                return self._went_idle(stimulus, now)
            case KernelExited():
                return self._exited(stimulus, now)
            case KernelReady():
                return self._ready(stimulus, now)
            case JournalReplayed():
                return Decision([], [ResetClocks()])
            case DeliveryKnown():
                return self._delivery_known(stimulus)
            case StartFailed():
                return self._start_failed(stimulus)
            case Answer():
                return self._answer(stimulus)
            case AnswerLost():
                return self._answer_lost()
            case BeginProgram():
                return Decision([], [MarkProgram(stimulus.number, over=False)])
            case ProgramBegun():
                return Decision([], [MarkProgram(stimulus.number, over=True)])
            case Resume():
                return Decision([], [ResumeSaved()] if self.hibernated else [])
            case Interrupt():
                return self._interrupt(stimulus, now)
            case Hold():
                return self._hold(stimulus)
            case DecideCells():
                return self._decide_held(stimulus)
            case Restart():
                return self._restart(stimulus)
            case BeginSwitch():
                self._require_idle("roll back")
                return Decision([], [PauseQueue()])
            case AbortSwitch():
                return self._abort_switch()
            case StateSaved():
                return self._state_saved(stimulus)
            case Close():
                return self._close(stimulus)
            case Tick():
                return self._tick(now)
            case CheckOutputLimit():
                return self._check_output_limit(now)
            case RecordEvents():
                return Decision(list(stimulus.events))
            case ToolRequested() | CallsDecided() | CallAnswered() | CallFailed() | CallAbandoned():
                if self.state is S.CLOSED:
                    raise SessionClosed()
                return self.calls.decide(stimulus, now)

    def _require_kernel(self) -> None:
        if self.state is S.CLOSED:
            raise SessionClosed()
        if self.state is S.DEAD:
            raise KernelDead()

    def _require_idle(self, wish: str) -> None:
        self._require_kernel()
        if self.running or self.queue or self.state is not S.IDLE:
            raise Conflict(
                f"The session is {self.state}. To {wish}, wait until its cells have finished or interrupt them."
            )

    def _submit(self, stimulus: Submit) -> Decision:
        if len(set(stimulus.ids)) != len(stimulus.ids):
            raise CellExists("Two cells of one batch have the same id. Choose another id for one of them.")
        fresh = []
        for request, cell in zip(stimulus.requests, stimulus.ids, strict=True):
            known = self.cells.get(cell)
            if known is None:
                fresh.append((cell, request))
            elif known.digest != digest(request.code):
                raise CellExists(cell=cell)
        if not fresh:
            return Decision()
        self._require_kernel()
        waiting = len(self.queue) + len(self.held)
        if waiting + len(fresh) > self.policy.max_queued:
            raise QuotaExceeded(
                f"{waiting} cells wait and at most {self.policy.max_queued} may. Wait until some finish.",
                queued=waiting,
                allowed=self.policy.max_queued,
            )
        queued = [self._queued(cell, request, stimulus.principal) for cell, request in fresh]
        if waiting and self.waiting_bytes + sum(map(size_of, queued)) > MAX_WAITING_BYTES:
            raise QuotaExceeded(
                f"The cells that wait have {self.waiting_bytes} bytes, and with these more than {MAX_WAITING_BYTES}. "
                "Wait until some finish."
            )
        events: list[Event] = [*queued]
        if self.hold is not None:
            return Decision([*events, *(ev.CellHeld(cell=cell) for cell, _ in fresh)])
        if self.hibernated:
            return Decision(events, [ResumeSaved()])
        idle = self.state is S.IDLE and not self.running and not self.queue
        return Decision(events, [SendCell(fresh[0][0])] if idle else [])

    def _hold(self, stimulus: Hold) -> Decision:
        if self.state is S.CLOSED:
            raise SessionClosed()
        held = ev.SessionHeld(mode=stimulus.mode, seconds=stimulus.seconds, then=stimulus.then, by=stimulus.by)
        if stimulus.mode == "off":
            if self.hold is None:
                return Decision()
            out = self._decide_cells([*self.held], "approve", None, stimulus.by)
            return Decision([*out.events, held], out.effects)  # last: a crash in between leaves no cell held for ever
        waiting = [ev.CellHeld(cell=cell) for cell in self.queue if not self._is_running(cell)]
        return Decision([held, *waiting])

    def _decide_held(self, stimulus: DecideCells) -> Decision:
        if self.state is S.CLOSED:
            raise SessionClosed()
        unknown = [cell for cell in stimulus.cells if cell not in self.held]
        if unknown:
            raise Conflict(
                f"Cell {unknown[0]!r} is not held. It is decided, or it never was held. Read the session's hold.cells."
            )
        return self._decide_cells(list(dict.fromkeys(stimulus.cells)), stimulus.decision, stimulus.reason, stimulus.by)

    def _decide_cells(
        self, cells: list[str], decision: Literal["approve", "refuse"], reason: str | None, by: str
    ) -> Decision:
        """Decide about cells that are held. The first approved one runs now if the kernel is free."""
        out = Decision()
        for cell in cells:
            out.events.append(ev.CellDecided(cell=cell, decision=decision, reason=reason, by=by))
            if decision == "refuse":
                who = f"Refused by {by}" if by else "Not decided in time"
                text = f"{who}: {reason}" if reason else f"{who}."
                out.events.append(ev.CellFinished(cell=cell, reason=Reason.CANCELLED, message=text))
        if decision == "approve" and cells:
            if self.hibernated:
                out.effects.append(ResumeSaved())
            elif self.state is S.IDLE and not self.running and not self.queue:
                out.effects.append(SendCell(cells[0]))
        return out

    def _held_until(self) -> float | None:
        """Return when the oldest held cell's time is over, in monotonic seconds. None if there is none."""
        first = next(iter(self.held.values()), None)
        return None if first is None or self.hold is None else first.since + self.hold.seconds

    def _queued(self, cell: str, request: CellRequest, principal: str) -> ev.CellQueued:
        ceiling = self.policy.cell_seconds
        wanted = request.timeout_seconds
        timeout = ceiling if wanted is None else wanted if ceiling is None else min(wanted, ceiling)
        return ev.CellQueued(
            cell=cell,
            code=request.code,
            timeout_seconds=timeout,
            on_error=request.on_error,
            on_disconnect=request.on_disconnect,
            silent=request.silent,
            allow_stdin=request.allow_stdin,
            store_history=request.store_history,
            user_expressions=request.user_expressions,
            metadata=request.metadata,
            principal=principal,
            checkpoint=request.checkpoint,
            changes=request.changes,
            tools=UNSET if request.tools is None else request.tools,
            reuse_calls=UNSET if request.reuse_calls is None else request.reuse_calls,
            within=UNSET if request.within is None else request.within,
            trace=UNSET if request.meta is None else trace_of(request.meta),
        )

    def _began(self, stimulus: CellBegan) -> Decision:
        if not self._is_running(stimulus.cell) or (self.running and self.running.began):
            return Decision()
        event = ev.CellStarted(cell=stimulus.cell, execution_count=stimulus.execution_count)
        if stimulus.frame is not None:
            event.frame = stimulus.frame
        return Decision([event])

    def _replied(self, stimulus: KernelReplied, now: float) -> Decision:
        run = self.running
        if run is None or run.id != stimulus.cell or run.reply is not None:
            return Decision()
        if run.idle or self.ordered:
            return self._finish_by_reply(stimulus, stimulus.frame, now)
        return Decision([], [NoteReply(stimulus)])

    def _went_idle(self, stimulus: KernelIdle, now: float) -> Decision:
        run = self.running
        if run is None or run.id != stimulus.cell or run.idle:
            return Decision()
        if run.reply is None:
            return Decision([], [NoteIdle()])
        return self._finish_by_reply(run.reply, stimulus.frame, now)

    def _finish_by_reply(self, reply: KernelReplied, frame: int | None, now: float) -> Decision:
        run = self.running
        assert run is not None
        events: list[Event] = [*reply.outputs]
        failed = reply.status == "error" and run.stop is None
        hit = limit_causes.of_reply(reply, self.policy.limits) if failed else None
        if hit is not None and hit.limit not in run.limits_reached:
            hit.cell = run.id
            events.append(hit)
        reason, message, kept = self._reason(reply, run, hit)
        if reply.status == "error" and run.cancels is None:
            events.append(
                ev.Error(
                    cell=run.id,
                    ename=reply.ename,
                    evalue=reply.evalue,
                    traceback=list(reply.traceback),
                    model=[*reply.model] or None,
                )
            )
        usage = self._usage(run, now, reply)
        finished = ev.CellFinished(
            cell=run.id,
            reason=reason,
            execution_count=reply.execution_count,
            usage=usage,
            message=message,
            variables_kept=kept,
            user_expressions=self._user_expressions(run.id, reply),
            changes=None if reply.changes is None else dict(reply.changes),
        )
        if frame is not None:
            finished.frame = frame
        return self._after(events, finished)

    def _user_expressions(self, cell: str, reply: KernelReplied) -> dict[str, Any]:
        """Return the values of those user expressions that the cell's request named."""
        queued = self.queue.get(cell)
        names = queued.user_expressions if queued else {}
        return {name: reply.expressions[name] for name in names if name in reply.expressions}

    def _reason(
        self, reply: KernelReplied, run: Running, hit: ev.LimitReached | None
    ) -> tuple[Reason, str | None, bool | None]:
        noticed = next(reversed(run.limits_reached.values()), None)
        if reply.status == "ok" and run.stop is not None and (cause := self._cause(run)):
            # A limit has ended the code, whatever has caught its exception.
            return run.stop, f"{cause}; the code caught the interrupt and ended, variables kept.", True
        if reply.status == "ok":
            return Reason.OK, noticed, None
        if reply.status != "error":
            return Reason.CANCELLED, "The kernel did not run the cell.", None
        if run.stop is not None:
            why = self._cause(run)
            return run.stop, f"{why}; interrupted, variables kept." if why else "Interrupted; variables kept.", True
        memory = reply.ename == "MemoryError" or (hit is not None and hit.limit == "memory_bytes")
        text = f"{hit.message}; variables kept." if hit is not None else noticed
        if memory:
            return Reason.MEMORY, f"{text or 'An allocation was refused; variables kept.'} Use less at once.", True
        if reply.ename == "NameError" and any(cell.lost for cell in self.cells.values()):
            # A model can't guess why a name that it has defined is unknown.
            text = f"{text} {VARIABLES_LOST}" if text else VARIABLES_LOST
        return Reason.ERROR, text, None

    def _cause(self, run: Running) -> str | None:
        """Return the limit for which a cell is stopped, with its value, or None if a client interrupted it."""
        if self.output_limit_reached:
            return self._output_limit_text()
        timeout = f"{self._timeout_text(run.id)} reached" if run.stop is Reason.TIMEOUT else None
        return run.limits_reached.get(run.why, timeout)

    def _timeout_text(self, cell: str) -> str:
        queued = self.queue.get(cell)
        seconds = queued.timeout_seconds if queued else self.policy.cell_seconds
        return f"cell_seconds: {seconds:g} s" if seconds else "cell_seconds"

    def _usage(self, run: Running, now: float, reply: KernelReplied | None = None) -> CellUsage:
        since = run.began_at if run.began else run.sent_at
        return CellUsage(
            wall_ms=round(max(0.0, now - since) * 1000, 3),
            cpu_ms=reply.cpu_ms if reply else None,
            peak_rss_bytes=reply.peak_rss_bytes if reply else None,
            output_bytes=run.output_bytes + sum(map(output_size, reply.outputs)) if reply else run.output_bytes,
        )

    def _after(self, before: list[Event], finished: ev.CellFinished) -> Decision:
        """End the running cell, cancel the cells that its failure cancels, and send the next."""
        run = self.running
        assert run is not None
        if run.dropped:
            kept = max(0, run.output_bytes - run.dropped)
            before.append(ev.OutputTruncated(cell=run.id, kept=kept, dropped=run.dropped))
        out = Decision([*before, finished])
        waiting = [c for c in self.queue if c != run.id]
        spec = self.queue.get(run.id)
        if finished.reason is not Reason.OK and spec is not None and spec.on_error == "stop":
            text = f"Cell {run.id} before it ended in {finished.reason}."
            # Do not cancel cells submitted after the failure was reported: their client knew of it.
            behind = self._behind(run.id)
            doomed = behind if run.cancels is None else [c for c in behind if c in run.cancels]
            out.events += [ev.CellFinished(cell=c, reason=Reason.CANCELLED, message=text) for c in doomed]
            waiting = [c for c in waiting if c not in doomed]
        if waiting and self.state is S.BUSY:
            out.effects.append(SendCell(waiting[0]))
        return out

    def _exited(self, stimulus: KernelExited, now: float) -> Decision:
        if self.state not in (S.IDLE, S.BUSY):
            return Decision()
        restorable = stimulus.restorable and bool(self.checkpoints)
        died = ev.KernelDied(
            cause=stimulus.cause, message=stimulus.message, signal=stimulus.signal, exit_code=stimulus.exit_code
        )
        next_: Effect = WakeCheckpoint() if restorable else StartKernel(f"died: {stimulus.message}")
        run = self.running
        hit = limit_causes.of_exit(stimulus, self.policy.limits)
        if hit is not None and run is not None:
            hit.cell = run.id
        out = Decision([died] if hit is None else [hit, died])
        if run is not None:
            kept = restorable
            reason, text = self._death_reason(stimulus, run, hit)
            fate = "variables are lost"
            if kept:
                newest = max(self.checkpoints.values(), key=lambda c: c.seq)
                fate = limit_causes.kept(self.rollback_effect(newest.id, newest.after_cell)[0])
            finished = ev.CellFinished(
                cell=run.id,
                reason=reason,
                usage=self._usage(run, now),
                message=f"{text}; {fate}.",
                variables_kept=kept,
            )
            ended = self._after([], finished)
            out.events += ended.events
        out.effects.append(next_)
        return out

    def _death_reason(self, stimulus: KernelExited, run: Running, hit: ev.LimitReached | None) -> tuple[Reason, str]:
        if hit is not None:
            return limit_causes.REASONS[hit.limit], hit.message
        if run.stop is not None:
            why = self._cause(run)
            if why and run.why in limit_causes.ENDED_AT_ONCE:
                return run.stop, f"{why}; the kernel was ended"
            return run.stop, f"{f'{why}; the' if why else 'The'} interrupt was ignored and the kernel killed"
        return Reason.KERNEL_DIED, stimulus.message

    def _ready(self, stimulus: KernelReady, now: float) -> Decision:
        if self.state is S.CLOSED:
            return Decision([], [EndKernel()])
        out = Decision([stimulus.event], [AttachKernel(stimulus.ordered)])
        waiting = next(iter(self.queue), None)
        run = self.running if isinstance(stimulus.event, ev.SessionAdopted) else None
        if run is not None and run.stop is not None:
            # The earlier server may have journaled the interrupt and ended before it sent the signal.
            out.effects.append(InterruptKernel(run.stop, now + self.policy.grace_seconds))
        elif run is None and waiting is not None:
            out.effects.append(SendCell(waiting))
        return out

    def _delivery_known(self, stimulus: DeliveryKnown) -> Decision:
        """Correct the running cell by the cells that the kernel has received.

        The journal is not enough: the earlier server may have ended between an entry and its effect.
        """
        out = Decision()
        run, pending = self.running, next(iter(self.queue), None)
        if run is not None and (stimulus.ordered or not run.began) and run.id not in stimulus.received:
            out.effects.append(MarkUnsent(run.id))
            run = None
        if run is None and pending is not None and pending in stimulus.received:
            out.effects.append(MarkSent(pending))
        return out

    def _answer(self, stimulus: Answer) -> Decision:
        waiting = self.waiting_for
        if waiting is None or waiting.cell != stimulus.cell:
            raise Conflict(f"Cell {stimulus.cell!r} does not wait for input. Wait for its input_requested event.")
        given = ev.InputGiven(cell=stimulus.cell, text=None if waiting.secret else stimulus.text, by=stimulus.by)
        return Decision([given], [SendAnswer(stimulus.cell, stimulus.text, waiting.answer_id)])

    def _answer_lost(self) -> Decision:
        """Send an answer from the journal, or ask the client again for one that the journal must not contain."""
        answered, run = self.answered, self.running
        if answered is None or run is None or answered.question.cell != run.id:
            return Decision()
        if answered.text is None:
            return Decision([], [AskAgain()])
        return Decision([], [SendAnswer(run.id, answered.text, answered.question.answer_id)])

    def _state_saved(self, stimulus: StateSaved) -> Decision:
        if self.state is not S.RESTORING:
            return Decision()
        return Decision([stimulus.event], [ResumeSaved()] if self.queue else [])

    def _abort_switch(self) -> Decision:
        if self.state is not S.RESTORING:
            return Decision()
        waiting = next(iter(self.queue), None)
        return Decision([], [ResumeQueue(), *([SendCell(waiting)] if waiting else [])])

    def _start_failed(self, stimulus: StartFailed) -> Decision:
        if self.state not in (S.STARTING, S.RESTORING):
            return Decision()
        out = Decision([ev.KernelDied(cause="start", message=stimulus.message)])
        out.events += [
            ev.CellFinished(cell=c, reason=Reason.KERNEL_DIED, message=stimulus.message, variables_kept=False)
            for c in (*self.queue, *self.held)
        ]
        return out

    def _interrupt(self, stimulus: Interrupt, now: float) -> Decision:
        self._require_kernel()
        run = self.running
        if run is None or run.stop is not None:
            return Decision()
        effect = InterruptKernel(stimulus.reason, now + self.policy.grace_seconds)
        return Decision([ev.Interrupted(cell=run.id, why=stimulus.why, by=stimulus.by)], [effect])

    def _restart(self, stimulus: Restart) -> Decision:
        if self.state is S.CLOSED:
            raise SessionClosed()
        out = self._cancel_all(Reason.CANCELLED, "The kernel was restarted.")
        out.effects.append(StartKernel(stimulus.why))
        return out

    def _cancel_all(self, reason: Reason, message: str) -> Decision:
        out = Decision()
        for cell in (*self.queue, *self.held):
            run = self.running if self._is_running(cell) else None
            usage = CellUsage(output_bytes=run.output_bytes) if run else CellUsage()
            out.events.append(ev.CellFinished(cell=cell, reason=reason, message=message, usage=usage))
        return out

    def _close(self, stimulus: Close) -> Decision:
        if self.state is S.CLOSED:
            return Decision()
        out = self._cancel_all(Reason.SESSION_CLOSED, f"The session was closed: {stimulus.reason}.")
        out.events.append(ev.SessionClosed(reason=stimulus.reason, by=stimulus.by))
        out.effects.append(EndKernel())
        return out

    # -- time ----------------------------------------------------------------------

    def _cell_deadline(self) -> float | None:
        run = self.running
        if run is None or run.stop is not None:
            return None
        spec = self.queue.get(run.id)
        # Time of people does not count.
        approvals = self.calls.approval_seconds(run.id) if self.calls.asked_people else 0.0
        if spec is None or spec.timeout_seconds is None or approvals is None:
            return None
        return (run.began_at if run.began else run.sent_at) + spec.timeout_seconds + approvals

    def _expiry(self) -> list[tuple[float, str]]:
        if self.lease is not None:
            return [(self.leased_until, "lifetime")]
        found = []
        if self.policy.lifetime_seconds is not None:
            found.append((self.started_at + self.policy.lifetime_seconds, "lifetime"))
        if self.policy.idle_seconds is not None and not self.queue and not self.held and not self.programs:
            found.append((self.last_activity + self.policy.idle_seconds, "idle"))
        return found

    def expires_at(self) -> float | None:
        """Return the time when the session ends without further activity, in monotonic seconds. None for never."""
        found = self._expiry()
        return min(found)[0] if found else None

    def _hibernates_at(self) -> float | None:
        """Return the time when the idle session hibernates, in monotonic seconds. None for never."""
        rest = self.policy.hibernate_seconds
        awake = self.state is S.IDLE and not (self.cannot_hibernate or self.queue or self.held or self.calls.open)
        if self.programs:
            rest = None  # they would end with the kernel
        elif self.paused:
            rest = 0.0
        return self.last_activity + rest if rest is not None and awake else None

    def next_deadline(self) -> float | None:
        """Return the time of the next ``Tick`` in monotonic seconds. None for never."""
        if self.state is S.CLOSED:
            return None
        kill = self.running.kill_at if self.running else None
        calls = self.calls.next_deadline() if self.calls.open else None
        found = (self._cell_deadline(), kill, self.expires_at(), self._hibernates_at(), calls, self._held_until())
        return min([at for at in found if at is not None], default=None)

    def _tick(self, now: float) -> Decision:
        if self.state is S.CLOSED:
            return Decision()
        run = self.running
        if run is not None and run.kill_at is not None and now >= run.kill_at:
            return Decision([], [KillKernel()])
        if self.calls.open and (late := self.calls.next_deadline()) is not None and now >= late:
            return self.calls.tick(now)
        if self.hold is not None and (until := self._held_until()) is not None and now >= until:
            return self._decide_cells([next(iter(self.held))], self.hold.then, None, "")
        deadline = self._cell_deadline()
        if run is not None and deadline is not None and now >= deadline:
            spec = self.queue[run.id]
            reached = ev.LimitReached(
                cell=run.id,
                limit="cell_seconds",
                value=round(now - (run.began_at if run.began else run.sent_at), 3),
                bound=spec.timeout_seconds,
                enforced_by="server",
                message=f"{self._timeout_text(run.id)} reached",
            )
            out = self._interrupt(Interrupt(why="timeout", reason=Reason.TIMEOUT), now)
            out.events.insert(0, reached)
            return out
        for at, why in self._expiry():
            if now >= at and self.lease is not None and self.lease.then == "pause" and not self.paused:
                return Decision([ev.Leased(seconds=PAUSED_SECONDS, paused=True)])
            if now >= at:
                return self._close(Close(why))
        rest = self._hibernates_at()
        return Decision([], [Hibernate()] if rest is not None and now >= rest else [])

    def _check_output_limit(self, now: float) -> Decision:
        """Interrupt a cell whose output is above the limit of the log. If no cell runs, end the kernel."""
        bound = self.policy.max_cell_output_bytes
        if bound is None or self.output_bytes <= bound or self.output_limit_reached or self.state is S.CLOSED:
            return Decision()
        run = self.running
        reached = ev.LimitReached(
            limit=FLOOD,
            value=self.output_bytes,
            bound=bound,
            enforced_by="server",
            message=f"{self._output_limit_text()}; " + ("the cell is interrupted" if run else "the kernel is ended"),
        )
        if run is None:
            return Decision([reached], [KillKernel()])
        reached.cell = run.id
        if run.stop is not None:  # the cell is already being ended
            return Decision([reached])
        out = self._interrupt(Interrupt(why=FLOOD), now)
        out.events.insert(0, reached)
        return out

    def _output_limit_text(self) -> str:
        return f"{FLOOD}: {self.policy.max_cell_output_bytes} bytes of output reached"

    # -- changes ---------------------------------------------------------------------

    def replay(self, transitions: Iterable[Transition]) -> None:
        """Repeat the transitions of a story. The same stimuli at the same times must lead to the same state.

        Args:
            transitions: from a story. The machine must be in the state before the first one.

        Raises:
            ValueError: a decision differs from the recorded one. The message names the transition.
        """
        for each in transitions:
            decision = self.decide(each.stimulus, each.at)
            types = [type(event) for event in decision.events]
            if types != [type(event) for event in each.events] or decision.effects != [*each.effects]:
                raise ValueError(
                    f"Transition {each} was replayed as events {decision.events}, effects {decision.effects}."
                )
            # Apply the recorded events, because the machine's state includes their positions in the log.
            self.commit(Decision([*each.events], decision.effects, each.stimulus), each.at)
            if self.state is not each.after:
                raise ValueError(f"Transition {each} was replayed and led to {self.state}.")

    def commit(self, decision: Decision, now: float) -> None:
        """Apply a decision whose events are in the journal."""
        before = self.state
        for event in decision.events:
            self.evolve(event, now)
        for effect in decision.effects:
            self._mark(effect, now)
        if self.story is not None:
            self.story.add(decision, now, before, self.state)
        if self.validate:
            check_invariants(self)

    def _mark(self, effect: Effect, now: float) -> None:
        run = self.running
        match effect:
            case SendCell():
                if not self._is_running(effect.cell):
                    self.running = Running(effect.cell, now)
                    self.output_bytes, self.output_limit_reached = 0, False
                self._move(S.BUSY)
            case MarkSent():
                self.running = Running(effect.cell, now)
                self._move(S.BUSY)
            case MarkUnsent():
                self.running = self.waiting_for = None
                self._move(S.IDLE)
            case AskAgain() if self.answered is not None:
                self.waiting_for, self.answered = self.answered.question, None
            case MarkProgram():
                (self.programs.discard if effect.over else self.programs.add)(effect.number)
            case ResetClocks():
                self.last_activity, self.programs = now, set()
                if run is not None and run.kill_at is not None:
                    run.kill_at = now + self.policy.grace_seconds
            case AttachKernel():
                self.ordered = effect.ordered
            case InterruptKernel() if run is not None:
                run.stop, run.kill_at = effect.reason, effect.kill_at
            case KillKernel() if run is not None:
                run.kill_at = None
            case NoteReply() if run is not None:
                run.reply = effect.reply
            case NoteIdle() if run is not None:
                run.idle = True
            case Hibernate():
                self.cannot_hibernate = True
            case ResumeSaved():
                self._move(S.RESTORING)
            case PauseQueue():
                self._move(S.RESTORING)
            case ResumeQueue():
                self._move(S.IDLE)
            case StartKernel():
                self.running = self.waiting_for = None
                self._move(S.STARTING)
            case WakeCheckpoint():
                self.running = self.waiting_for = None
                self._move(S.RESTORING)
            case _:
                pass
