"""The state of a session, which follows from its events: a replay of the journal rebuilds it.

Only ``evolve`` applies an event, and the durable state follows from the events alone. Facts that no event contains
(whether the reply has arrived, when the grace time ends) are volatile. ``model.machine`` keeps them, and after a crash
of the server the kernel sends again all messages that were not acknowledged.

A new state needs a row in ``MOVES``. The diagram in ``docs/reference/states.md`` is drawn from that table.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from kernelsvc.errors import Conflict
from kernelsvc.model import events as ev
from kernelsvc.model import limit_causes
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.limits import Limits
from kernelsvc.model.network.ports import PortState
from kernelsvc.model.objects import CellRequest, CellState, Checkpoint, SessionState
from kernelsvc.model.outputs import length_of
from kernelsvc.model.stimuli import KernelReplied
from kernelsvc.model.tool_calls.ledger import CallLedger

S = SessionState

#: The allowed transitions: state -> next states. Read by the machine, the tests and the docs.
MOVES: dict[SessionState, frozenset[SessionState]] = {
    S.STARTING: frozenset({S.IDLE, S.DEAD, S.CLOSED}),
    S.IDLE: frozenset({S.BUSY, S.STARTING, S.RESTORING, S.DEAD, S.CLOSED}),
    S.BUSY: frozenset({S.IDLE, S.STARTING, S.RESTORING, S.DEAD, S.CLOSED}),
    S.RESTORING: frozenset({S.IDLE, S.HIBERNATED, S.PAUSED, S.STARTING, S.DEAD, S.CLOSED}),
    S.HIBERNATED: frozenset({S.PAUSED, S.RESTORING, S.STARTING, S.CLOSED}),
    S.PAUSED: frozenset({S.HIBERNATED, S.RESTORING, S.STARTING, S.CLOSED}),
    S.DEAD: frozenset({S.STARTING, S.RESTORING, S.CLOSED}),
    S.CLOSED: frozenset(),
}


#: States without a kernel, with the variables on disk.
SAVED_STATES = frozenset({S.HIBERNATED, S.PAUSED})
#: Name of the limit on one cell's output in the log.
FLOOD = "max_cell_output_bytes"
#: What a call counts against that limit besides its values, in bytes: about the size of its entry.
CALL_BYTES = 500
#: Most bytes of cells that wait in one session. A larger one is accepted if none waits.
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: Name of the limit on a session's log.
LOG_SIZE = "max_log_bytes"
#: ``why`` of an interrupt -> the cell's ``reason``. For all others the reason is ``interrupted``.
STOPS: dict[str, Reason] = {"timeout": Reason.TIMEOUT, **limit_causes.REASONS}


@dataclass
class CellRecord:
    """The machine's record of one cell. It has a constant size, because it stays for the session's lifetime."""

    id: str
    state: CellState
    first_seq: int
    last_seq: int
    digest: int
    reason: Reason | None = None
    execution_count: int | None = None
    ran: bool = False
    lost: bool = False  # its effects were lost with a kernel
    toggled_at: tuple[int, ...] = ()  # seq of each event that undid or redid it, in turn

    @property
    def undone(self) -> bool:
        """Whether its effects are undone now."""
        return len(self.toggled_at) % 2 == 1

    def effective_at(self, moment: int) -> bool:
        """Return whether its effects were in the variables after entry ``moment`` of the log, if it had run by then."""
        return self.ran and not self.lost and sum(seq <= moment for seq in self.toggled_at) % 2 == 0


@dataclass
class Running:
    """The cell that the kernel runs. Only its id is durable."""

    id: str
    sent_at: float
    began: bool = False
    began_at: float = 0.0
    reply: KernelReplied | None = None
    idle: bool = False
    stop: Reason | None = None
    why: str = ""
    kill_at: float | None = None
    cancels: tuple[str, ...] | None = None  # ids of the cells that waited when it reported its failure
    output_bytes: int = 0
    dropped: int = 0
    truncation_recorded: bool = False
    limits_reached: dict[str, str] = field(default_factory=dict)  # limit -> message


@dataclass(frozen=True)
class Waiting:
    """A request of the running cell that waits for a client's answer.

    It follows from the events alone, so a client can also answer after a restart of the server.

    Attributes:
        kind: the kind of answer. ``input``: a line of text for ``input()`` or ``getpass``.
        id: unique in the session: the position of the request's event in the log.
        cell: the cell that waits.
        secret: whether the journal must not contain the answer.
    """

    kind: Literal["input"]
    id: str
    cell: str
    secret: bool = False

    @property
    def answer_id(self) -> str:
        """The id of the message that carries the answer to the kernel. It is the same after a restart of the server."""
        return f"i_{self.id}"


@dataclass(frozen=True)
class HeldCell:
    """A cell that waits for a person. ``since``: in monotonic seconds."""

    queued: ev.CellQueued
    since: float


@dataclass(frozen=True)
class Answered:
    """The running cell's last question whose answer is in the journal. The kernel may not have received it.

    Attributes:
        question: the question.
        text: the answer. None if it was secret: no journal has it, and a restarted server must ask again.
    """

    question: Waiting
    text: str | None


@dataclass(frozen=True)
class Policy:
    """The limits and times that decisions need, in seconds, bytes and counts. None for no limit.

    Attributes:
        spans: whether cells have spans. Then a cell's span is the parent of those of the processes that it starts.
    """

    cell_seconds: float | None = 600.0
    idle_seconds: float | None = 3600.0
    lifetime_seconds: float | None = 24 * 3600.0
    grace_seconds: float = 1.5
    max_queued: int = 1000
    output_bytes: int | None = 1024 * 1024
    max_cell_output_bytes: int | None = None
    max_log_bytes: int | None = None
    hibernate_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    spans: bool = False


def digest(code: str) -> int:
    """Return a hash of a cell's code, to distinguish a retry from another cell with the same id."""
    return hash(("cell", code))


def size_of(queued: ev.CellQueued | CellRequest) -> int:
    """Return about how many bytes a waiting cell takes, without the constant part. The same cell has the same size."""
    size = len(queued.code)
    if queued.user_expressions:
        size += sum(len(name) + len(text) for name, text in queued.user_expressions.items())
    return size + len(msgspec.json.encode(queued.metadata)) if queued.metadata else size


class MachineState:
    """One session's state."""

    def __init__(self, policy: Policy, now: float = 0.0) -> None:
        self.policy = policy
        self.state = S.STARTING
        self.cells: dict[str, CellRecord] = {}
        self.queue: OrderedDict[str, ev.CellQueued] = OrderedDict()
        #: Of the cells in ``queue`` and ``held``, as ``size_of`` counts them.
        self.waiting_bytes = 0
        self.hold: ev.SessionHeld | None = None  # while new cells wait for a person
        self.held: OrderedDict[str, HeldCell] = OrderedDict()  # these are not in ``queue``
        self.running: Running | None = None
        self.waiting_for: Waiting | None = None
        self.answered: Answered | None = None
        self.checkpoints: OrderedDict[str, Checkpoint] = OrderedDict()
        self.execution_count = 0
        self.checkpoint_kernels: dict[str, str] = {}  # checkpoint -> kernel id of the parked process
        self._made_at: dict[str, int] = {}  # checkpoint -> seq of its first event
        self.last_finished: str | None = None
        self.last_limits_reached: frozenset[str] = frozenset()  # of the cell that ran last
        self.variables_after: str | None = None  # the last cell whose effects the variables have
        self.started_empty = True  # whether the variables were empty before the first effective cell
        self.started_at = now
        self.last_activity = now
        self.frame = 0
        self.output_bytes = 0  # output since the last cell began
        self.output_limit_reached = False
        self.close_reason: str | None = None
        self.programs: set[int] = set()  # pids; below 0 while one starts
        self.cannot_hibernate = False  # it was tried: no other attempt before the next cell
        self.lease: ev.Leased | None = None
        self.leased_until = now
        self.ordered = False  # whether the kernel is ordered (kernels.port), known when it is attached
        self.unpaused_at: float | None = None  # the end of the last pause
        self.calls = CallLedger()
        self.ports: dict[int, PortState] = {}  # those that the owner shared or closed

    def find_cell(self, cell: str) -> CellRecord | None:
        """Return the record of a cell, or None if the session has no such cell."""
        return self.cells.get(cell)

    def has_begun(self, cell: str) -> bool:
        """Return whether a cell was given to a kernel. Only such a cell can have output or calls."""
        record = self.cells.get(cell)
        return record is not None and (record.ran or record.state is CellState.RUNNING or self._is_running(cell))

    def cell_records(self) -> list[CellRecord]:
        """Return the records of all cells, in the order in which they were accepted."""
        return list(self.cells.values())

    def kernel_of(self, checkpoint: str) -> str | None:
        """Return the kernel id of a checkpoint's process, or None if there is none."""
        return self.checkpoint_kernels.get(checkpoint)

    def kernels_of_checkpoints(self) -> list[str]:
        """Return the kernel ids of all checkpoints' processes."""
        return list(self.checkpoint_kernels.values())

    @property
    def hibernated(self) -> bool:
        """Whether the variables are on disk and there is no kernel."""
        return self.state in SAVED_STATES

    @property
    def paused(self) -> bool:
        """Whether the session's owner has paused it by a lease."""
        return self.lease is not None and self.lease.paused

    def touch(self, now: float) -> None:
        """Note a use of the session that is no event, so that it is not idle. ``now``: in monotonic seconds."""
        self.last_activity = now

    def evolve(self, event: Event, now: float) -> None:
        """Apply one event of the journal. Applied to a whole journal, this rebuilds the machine.

        Args:
            event: is in the journal.
            now: when it happened, in monotonic seconds.
        """
        if event.frame and isinstance(event.frame, int):
            self.frame = max(self.frame, event.frame)
        match event:
            case ev.CellQueued():
                self._evolve_queued(event, now)
            case ev.CellStarted():
                self._evolve_started(event, now)
            case ev.CellFinished():
                self._evolve_finished(event, now)
            case ev.Stream() | ev.Display() | ev.DisplayUpdated() | ev.Result() | ev.Error():
                self._evolve_output(event)
            case ev.Interrupted() if self.running is not None and event.cell == self.running.id:
                self.running.stop, self.running.why = STOPS.get(event.why, Reason.INTERRUPTED), event.why
                self.running.kill_at = now + self.policy.grace_seconds
            case ev.LimitReached() if event.limit == FLOOD:
                self.output_limit_reached = True
            case ev.LimitReached() if self.running is not None and event.cell == self.running.id:
                self.running.limits_reached[event.limit] = event.message
            case ev.OutputTruncated() if self.running is not None:
                self.running.truncation_recorded = True
            case ev.SessionStarted() | ev.KernelRestarted() | ev.KernelRestored() | ev.RolledBack() | ev.Woken():
                self._evolve_kernel(event, now)
            case ev.SessionAdopted():
                self._move(S.BUSY if self.running else S.IDLE)
            case ev.ToolsOffered():
                self.calls.evolve(event, now)
            case ev.KernelDied():
                self.calls.evolve(event, now)
                self._evolve_died(event)
            case ev.InputRequested():
                self._evolve_input_requested(event)
            case ev.InputGiven() if self.waiting_for is not None and event.cell == self.waiting_for.cell:
                self.answered = Answered(self.waiting_for, event.text)
                self.waiting_for = None
            case ev.SessionClosed():
                self.close_reason = event.reason
                self.running = self.waiting_for = self.hold = None
                self.checkpoints.clear()
                self._move(S.CLOSED)
            case ev.SessionHeld():
                self.hold = event if event.mode == "ask" else None
            case ev.CellHeld() if isinstance(event.cell, str) and (event.cell in self.queue or event.cell in self.held):
                if event.cell in self.queue:
                    self.held[event.cell] = HeldCell(self.queue.pop(event.cell), now)
                self.cells[event.cell].last_seq = event.seq
            case ev.CellDecided() if isinstance(event.cell, str) and event.cell in self.held:
                if event.decision == "approve":  # the CellFinished of a refused one follows, but a crash may cut it off
                    self.queue[event.cell] = self.held.pop(event.cell).queued
                self.cells[event.cell].last_seq, self.last_activity = event.seq, now
            case ev.Leased():
                if self.paused and not event.paused:
                    self.unpaused_at = now
                self.lease, self.leased_until = event, now + event.seconds
                if self.hibernated:
                    self._move(S.PAUSED if event.paused else S.HIBERNATED)
            case ev.PortShared():
                before = self.ports.get(event.port, PortState())
                self.ports[event.port] = PortState(public=before.public or event.public, generation=before.generation)
            case ev.PortUnshared():
                before = self.ports.get(event.port, PortState())
                self.ports[event.port] = PortState(generation=before.generation + 1)
            case ev.ProgramStarted():
                self.programs.add(event.program)
            case ev.ProgramEnded():
                self.programs.discard(event.program)
                self.last_activity, self.cannot_hibernate = now, False
            case ev.Hibernated():
                self.calls.evolve(event, now)
                self._forget_checkpoints()
                if self.state is S.IDLE:  # in a replay: the start of saving has no event
                    self._move(S.RESTORING)
                self._move(S.PAUSED if self.paused else S.HIBERNATED)
            case ev.CheckpointMade():
                self.checkpoint_kernels[event.checkpoint] = event.kernel
                self._made_at.setdefault(event.checkpoint, event.seq)
                self.checkpoints[event.checkpoint] = Checkpoint(
                    id=event.checkpoint,
                    name=event.name,
                    auto=event.auto,
                    after_cell=event.after_cell,
                    seq=event.seq,
                    cost_ms=event.cost_ms,
                    private_bytes=event.private_bytes,
                    warnings=event.warnings,
                )
            case ev.CheckpointDropped():
                self.checkpoints.pop(event.checkpoint, None)
                self.checkpoint_kernels.pop(event.checkpoint, None)
                self._made_at.pop(event.checkpoint, None)
            case ev.ToolCalled() | ev.ToolDecided() | ev.ToolReturned():
                self.calls.evolve(event, now)
                if not isinstance(event, ev.ToolDecided):  # a flood of calls fills the log as output does
                    self.output_bytes += event.bytes + CALL_BYTES
                if isinstance(event.cell, str) and event.cell in self.cells:
                    self.cells[event.cell].last_seq = event.seq
            case _:
                pass

    def _behind(self, cell: str) -> list[str]:
        """Return the cells that follow this one: those of the queue, and held ones that came after it."""
        later = set(takewhile(lambda c: c != cell, reversed(self.cells))) if self.held else ()
        return [*(c for c in self.queue if c != cell), *(c for c in self.held if c in later)]

    def _is_running(self, cell: str) -> bool:
        return self.running is not None and self.running.id == cell

    def _move(self, state: SessionState) -> None:
        if state is not self.state:
            if state not in MOVES[self.state]:
                raise Conflict(f"A session can't go from {self.state} to {state}.")
            self.state = state

    def _evolve_queued(self, event: ev.CellQueued, now: float) -> None:
        assert isinstance(event.cell, str)
        self.last_activity = now
        self.cannot_hibernate = False
        self.waiting_bytes += size_of(event)
        if self.hold is None:
            self.queue[event.cell] = event
        else:  # its CellHeld follows, but a crash may cut it off
            self.held[event.cell] = HeldCell(event, now)
        if not (event.tools is event.reuse_calls is event.within is UNSET):
            self.calls.evolve(event, now)
        self.cells[event.cell] = CellRecord(event.cell, CellState.QUEUED, event.seq, event.seq, digest(event.code))

    def _evolve_started(self, event: ev.CellStarted, now: float) -> None:
        assert isinstance(event.cell, str)
        record = self.cells[event.cell]
        record.state, record.last_seq, record.execution_count = CellState.RUNNING, event.seq, event.execution_count
        spec = self.queue.get(event.cell)
        if event.execution_count is not None and (spec is None or spec.store_history):
            self.execution_count = event.execution_count
        if not self._is_running(event.cell):
            self.running = Running(event.cell, now)
            self.output_bytes, self.output_limit_reached = 0, False
        run = self.running
        assert run is not None
        run.began, run.began_at = True, now
        if self.state is S.IDLE:
            self._move(S.BUSY)

    def _evolve_finished(self, event: ev.CellFinished, now: float) -> None:
        assert isinstance(event.cell, str)
        self.last_activity = now
        record = self.cells[event.cell]
        record.state, record.last_seq, record.reason = CellState.FINISHED, event.seq, event.reason
        if event.execution_count is not None:
            record.execution_count = self.execution_count = event.execution_count
        held = self.held.pop(event.cell, None)
        queued = self.queue.pop(event.cell, None) if held is None else held.queued
        self.waiting_bytes -= 0 if queued is None else size_of(queued)
        self.last_finished = event.cell
        if self._is_running(event.cell):
            self.variables_after = event.cell
            record.ran = True
            self.last_limits_reached = frozenset(self.running.limits_reached) if self.running else frozenset()
            self.running = self.waiting_for = None
            if self.state is S.BUSY:
                self._move(S.IDLE)

    def _evolve_input_requested(self, event: ev.InputRequested) -> None:
        run = self.running
        # Ignore the request of a cell that has no CellStarted in the log: a replay would not know that it runs.
        if run is not None and run.id == event.cell and self.cells[run.id].state is CellState.RUNNING:
            self.waiting_for = Waiting("input", str(event.seq), run.id, secret=event.password)
            self.answered = None  # the kernel has it, because it has asked again

    def _evolve_output(self, event: Event) -> None:
        size = output_size(event)
        self.output_bytes += size  # whichever cell the output names: the kernel is not trusted
        if not isinstance(event.cell, str) or event.cell not in self.cells:
            return
        self.cells[event.cell].last_seq = event.seq
        run = self.running
        if run is None or run.id != event.cell:
            return
        if isinstance(event, ev.Error):
            run.cancels = tuple(self._behind(run.id)) if run.cancels is None else run.cancels
        run.output_bytes += size
        budget = self.policy.output_bytes
        if budget is not None and run.output_bytes > budget:
            run.dropped = run.output_bytes - budget

    def _evolve_kernel(self, event: Event, now: float) -> None:
        self.calls.evolve(event, now)
        self.frame = 0
        self.output_bytes, self.output_limit_reached = 0, False
        self.running = self.waiting_for = None
        self.last_activity = now
        if isinstance(event, ev.RolledBack | ev.KernelRestored):
            self.variables_after = event.after_cell
            turned = (
                (*event.undone, *event.redone)
                if isinstance(event, ev.RolledBack)
                else (cell for cells in self.rollback_effect(event.checkpoint, event.after_cell) for cell in cells)
            )
            for cell in turned:
                if cell in self.cells:
                    self.cells[cell].toggled_at += (event.seq,)
        if isinstance(event, ev.SessionStarted):
            self.started_at, self.started_empty = now, event.parent is None
        if isinstance(event, ev.KernelRestarted):
            for cell in self.effective_since(None):
                self.cells[cell].lost = True
            self.variables_after, self.started_empty = None, True
            self._forget_checkpoints()
            self.execution_count = 0
        # In a replay: the request of a restart and the start of a resume have no event.
        if self.state is S.DEAD:
            self._move(S.STARTING)
        self._leave_saved()
        self._move(S.IDLE)

    def _leave_saved(self) -> None:
        if self.hibernated:
            self._move(S.RESTORING)

    def effective_since(self, cell: str | None) -> list[str]:
        """Return the cells after ``cell`` whose effects are in the variables. For None, return all such cells."""
        ended = [r for r in self.cells.values() if r.ran and not (r.undone or r.lost)]
        after = next((i + 1 for i, r in enumerate(ended) if r.id == cell), 0)
        return [r.id for r in ended[after:]]

    def rollback_effect(self, checkpoint: str | None, after: str | None) -> tuple[list[str], list[str]]:
        """Return the cells that resuming a checkpoint undoes, and those that it redoes.

        Args:
            checkpoint: the checkpoint's id, or None for a fresh kernel.
            after: the last cell before the checkpoint.
        """
        moment = self._made_at.get(checkpoint or "")
        if moment is None:
            return self.effective_since(after), []
        then: list[str] = []
        for record in self.cells.values() if after is not None else ():
            if record.effective_at(moment):
                then.append(record.id)
            if record.id == after:
                break
        now = self.effective_since(None)
        return [cell for cell in now if cell not in set(then)], [cell for cell in then if cell not in set(now)]

    def _forget_checkpoints(self) -> None:
        self.checkpoints.clear()
        self._made_at.clear()
        self.checkpoint_kernels.clear()

    def _evolve_died(self, event: ev.KernelDied) -> None:
        # Keep the running cell: its own CellFinished follows and ends it.
        self._leave_saved()
        self._move(S.DEAD if event.cause == "start" else S.RESTORING if self.checkpoints else S.STARTING)


def output_size(event: Event) -> int:
    """Return how much of the output budget an event uses, in characters. 0 for events that are not output."""
    match event:
        case ev.Stream():
            return len(event.text)
        case ev.Display() | ev.DisplayUpdated() | ev.Result():
            return _bundle_size(event.data)
        case ev.Error():
            return sum(len(line) for line in event.traceback)
        case _:
            return 0


def _bundle_size(data: dict[str, Any]) -> int:
    return sum(map(length_of, data.values()))
