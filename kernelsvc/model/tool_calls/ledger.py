"""The calls of one session's code to functions of clients: state and decisions. Pure.

A call begins with ``tool_called``, perhaps waits for a person (``tool_decided``), and ends exactly once with
``tool_returned``. The open calls follow from these events alone, so a new server knows them. ``model.machine`` passes
stimuli about calls on to ``CallLedger.decide``, and has ``follow`` add the ends of calls that other decisions cause.

An approval does not count as time of the cell: a person may take an hour. Time of the provider counts.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event, Reason, ToolReturned
from kernelsvc.model.stimuli import (
    CallAbandoned,
    CallAnswered,
    CallFailed,
    CallsDecided,
    CancelCall,
    Decision,
    DeliverResult,
    DispatchCall,
    ToolRequested,
)
from kernelsvc.model.tool_calls.offers import CallStatus, OfferedTool, hidden, matches

CallStimulus = ToolRequested | CallsDecided | CallAnswered | CallFailed | CallAbandoned

#: Most open calls of one session. As many ids fit into the kernel's WELCOME.
MAX_OPEN = 1000
#: Ended calls whose status is kept, to tell a repeated answer from a late one.
MAX_ENDED = 1000
#: Most entries about the calls of a cell whose results another cell gets again, and bytes of arguments and results.
MAX_REUSED_ENTRIES, MAX_REUSED_BYTES = 20_000, 32 * 1024 * 1024
#: Events after which another kernel runs the session, or none.
_OTHER_KERNEL = (
    ev.KernelDied,
    ev.KernelRestarted,
    ev.KernelRestored,
    ev.RolledBack,
    ev.Hibernated,
    ev.Woken,
    ev.SessionStarted,
)
#: What a call ends with if the provider's answer was not awaited -> the message in the log and in code.
_MESSAGES: dict[CallStatus, str] = {
    "expired": "No decision about the call came in {seconds:g} s. It was not carried out.",
    "timeout": "The call took longer than its {seconds:g} s. It may have been carried out.",
    "cancelled": "The call was cancelled.",
}


@dataclass
class OpenCall:
    """A call without an end.

    Attributes:
        seq: position of its event in the log, which has its arguments.
        pending: whether a person must still decide.
        sent_at: when the provider could have it, in monotonic seconds. Not known while it is pending.
        awaited: whether the kernel still waits for it.
    """

    id: str
    tool: str
    cell: str | None
    seq: int
    provider: str
    pending: bool
    timeout_seconds: float
    approval_seconds: float
    called_at: float
    sent_at: float
    effects: str
    idempotent: bool
    redacted: bool
    redact_result: bool
    approval: str
    parent_call: str | None = None
    awaited: bool = True
    decided_by: str | None = None

    @property
    def deadline(self) -> float:
        """When it ends without an answer, in monotonic seconds."""
        return self.called_at + self.approval_seconds if self.pending else self.sent_at + self.timeout_seconds


@dataclass
class CellEntries:
    """The log's entries about the calls of one cell.

    Attributes:
        entries: their positions.
        size: bytes of the arguments, results and errors.
    """

    entries: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0

    @property
    def reusable(self) -> bool:
        """Whether another cell may repeat these calls. The event loop reads all of them."""
        return len(self.entries) <= MAX_REUSED_ENTRIES and self.size <= MAX_REUSED_BYTES


class _Deadlines:
    """The deadlines of open calls, the next one first. They follow from the calls, and are no state of their own."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Deadlines)

    __hash__ = None  # type: ignore[assignment]

    def add(self, call: OpenCall) -> None:
        """Note a call's deadline. Its earlier deadline does not count any more."""
        heapq.heappush(self._heap, (call.deadline, call.id))

    def next(self, calls: dict[str, OpenCall]) -> float | None:
        """Return the next deadline of the open calls."""
        while self._heap:
            at, id = self._heap[0]
            call = calls.get(id)
            if call is not None and call.deadline == at:
                return at
            heapq.heappop(self._heap)
        return None


class CallLedger:
    """The calls of one session.

    Attributes:
        open: calls without an end, by id, in the order in which code made them.
        ended: status and log position of the last ends, by call.
        asked_people: whether a call ever waited for a person.
        offered: the log's entries about the functions that may be called, by name.
        requests: requests of the cells that say something about calls, by cell.
        entries: positions of the log's entries about calls.
        of_cell: the entries about the calls of one cell, by cell.
    """

    def __init__(self) -> None:
        self.entries = array("Q")
        self.of_cell: dict[str | None, CellEntries] = {}
        self.open: dict[str, OpenCall] = {}
        self.ended: OrderedDict[str, tuple[CallStatus, int]] = OrderedDict()
        self.offered: dict[str, OfferedTool] = {}
        self.requests: dict[str, ev.CellQueued] = {}
        self.asked_people = False
        self._deadlines = _Deadlines()
        self._number = 0  # of the kernel's last call
        self._of_cell: Counter[tuple[str | None, str]] = Counter()
        self._of_session: Counter[str] = Counter()
        self._remembered: set[tuple[str, str | None]] = set()  # tool, cell or None for the session
        self._approval_began: dict[str, float] = {}  # cell -> since when a decision is awaited
        self._approval_took: dict[str, float] = {}  # cell -> seconds that decisions took

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallLedger) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    # -- reading -------------------------------------------------------------------

    def is_next(self, call: str, kernel: str) -> bool:
        """Return whether an id is one that this kernel may use now: its own, with a number that grows."""
        owner, _, number = call.rpartition(".")
        digits = number.isascii() and number.isdecimal() and len(number) <= 15
        return owner == kernel and digits and int(number) > self._number

    def pending(self) -> list[OpenCall]:
        """Return the calls that wait for a person."""
        return [call for call in self.open.values() if call.pending]

    def waits_for(self, cell: str) -> Literal["approval", "tool"] | None:
        """Return the cause of a cell's wait, or None if it has no open call."""
        calls = [call.pending for call in self.open.values() if call.cell == cell]
        return None if not calls else "approval" if any(calls) else "tool"

    def approval_seconds(self, cell: str) -> float | None:
        """Return how long a cell has waited for people, in seconds. None while it waits for one."""
        return None if cell in self._approval_began else self._approval_took.get(cell, 0.0)

    def next_deadline(self) -> float | None:
        """Return when the next call ends without an answer, in monotonic seconds. None for never."""
        return self._deadlines.next(self.open) if self.open else None

    # -- events --------------------------------------------------------------------

    def evolve(self, event: Event, now: float) -> None:
        """Apply one event of the log."""
        if isinstance(event, ev.ToolCalled | ev.ToolDecided | ev.ToolReturned):
            self.entries.append(event.seq)
            self._note_entry(event)
        match event:
            case ev.ToolCalled():
                self._evolve_called(event, now)
            case ev.CellQueued():
                self.requests[str(event.cell)] = event
            case ev.ToolsOffered():
                self.offered.update((tool.name, tool) for tool in event.tools)
                for name in event.withdrawn:
                    self.offered.pop(name, None)
            case ev.ToolDecided() if event.call in self.open:
                call = self.open[event.call]
                self._decided(call, now)
                call.sent_at, call.decided_by = now, event.by
                self._deadlines.add(call)
                if event.decision == "approved" and event.remembered is not None:
                    self._remembered.add((call.tool, call.cell if event.remembered == "cell" else None))
            case ev.ToolReturned() if event.call in self.open:
                call = self.open[event.call]
                self._decided(call, now)
                del self.open[event.call]
                self.ended[event.call] = event.status, event.seq
                if len(self.ended) > MAX_ENDED:
                    self.ended.popitem(last=False)
            case _ if isinstance(event, _OTHER_KERNEL):
                self._number = 0
                for call in self.open.values():
                    call.awaited = False
            case _:
                pass

    def _note_entry(self, event: ev.ToolCalled | ev.ToolDecided | ev.ToolReturned) -> None:
        if isinstance(event, ev.ToolCalled):
            cell = event.cell if isinstance(event.cell, str) else None
        else:
            known = self.open.get(event.call)
            cell = known.cell if known is not None else None
        noted = self.of_cell.setdefault(cell, CellEntries())
        noted.entries.append(event.seq)
        noted.size += getattr(event, "bytes", 0)
        if isinstance(event, ev.ToolReturned) and event.error is not None:
            noted.size += len(msgspec.json.encode(event.error))

    def _evolve_called(self, event: ev.ToolCalled, now: float) -> None:
        cell = event.cell if isinstance(event.cell, str) else None
        self._number = int(event.call.rpartition(".")[2])
        self._of_cell[cell, event.tool] += 1
        self._of_session[event.tool] += 1
        self.open[event.call] = call = OpenCall(
            event.call,
            event.tool,
            cell,
            event.seq,
            event.provider,
            pending=event.approval == "pending",
            timeout_seconds=event.deadline_seconds,
            approval_seconds=event.approval_seconds or 0.0,
            called_at=now,
            sent_at=now,
            effects=event.effects,
            idempotent=event.idempotent,
            redacted=bool(event.redacted),
            redact_result=event.redact_result,
            approval=event.approval,
            parent_call=event.parent_call,
        )
        self._deadlines.add(call)
        self.asked_people = self.asked_people or call.pending
        if call.pending and cell is not None:
            self._approval_began.setdefault(cell, now)

    def _decided(self, call: OpenCall, now: float) -> None:
        """Note that a call waits for no person any more."""
        if not call.pending:
            return
        call.pending = False
        cell = call.cell
        if cell is not None and not any(other.pending and other.cell == cell for other in self.open.values()):
            began = self._approval_began.pop(cell, now)
            self._approval_took[cell] = self._approval_took.get(cell, 0.0) + now - began

    # -- decisions -----------------------------------------------------------------

    def decide(self, stimulus: CallStimulus, now: float) -> Decision:
        """Return the decision about a stimulus about calls. Change nothing.

        Raises:
            NotFound: there is no such call.
            Conflict: the call has ended, or waits for no decision.
        """
        match stimulus:
            case ToolRequested():
                return self._requested(stimulus)
            case CallsDecided():
                return self._people_decided(stimulus, now)
            case CallAnswered():
                return self._answered(stimulus, now)
            case CallFailed():
                call = self.open.get(stimulus.call)
                return Decision() if call is None else self._end(call, stimulus.status, now, stimulus.message)
            case CallAbandoned():
                call = self.open.get(stimulus.call)
                if call is None:
                    return Decision()
                out = self._end(call, "cancelled", now, delivered=False)
                if stimulus.frame is not None:
                    out.events[0].frame = stimulus.frame
                return out

    def _requested(self, asked: ToolRequested) -> Decision:
        offer, cell = asked.offer, asked.cell
        if asked.recorded is not None:
            return self._reused(asked, asked.recorded)
        status, message = self._obstacle(asked)
        wanted = "never" if status is not None or offer is None else asked.approval
        kept = self._remembered
        remembered = (asked.tool, None) in kept or (asked.cell_runs and (asked.tool, cell) in kept)
        approval: Literal["none", "pending", "remembered"] = (
            "none" if wanted == "never" else "remembered" if remembered and wanted != "always" else "pending"
        )
        called = ev.ToolCalled(
            call=asked.call,
            tool=asked.tool,
            arguments=asked.arguments,
            redacted=[*asked.redacted],
            bytes=asked.size,
            provider=asked.provider,
            approval=approval,
            parent_call=asked.parent_call,
        )
        if offer is not None:
            called.deadline_seconds, called.effects = offer.timeout_seconds, offer.effects
            called.idempotent, called.redact_result = offer.idempotent, offer.redact_result
            called.approval_seconds = offer.approval_seconds if approval == "pending" else None
        if cell is not None:
            called.cell = cell
        if asked.frame is not None:
            called.frame = asked.frame
        if status is not None:
            returned = ToolReturned(
                call=asked.call, status=status, error={"type": status, "message": message}, delivered=True
            )
            returned.cell = called.cell
            return Decision([called, returned], [DeliverResult(returned)])
        return Decision([called], [] if approval == "pending" else [DispatchCall(asked.call)])

    def _reused(self, asked: ToolRequested, recorded: ToolReturned) -> Decision:
        """End a call with the result of an earlier one. The function does not run, so no approval is needed."""
        called = ev.ToolCalled(
            call=asked.call, tool=asked.tool, arguments=asked.arguments, bytes=asked.size, reused=recorded.call
        )
        if asked.offer is not None:
            called.effects = asked.offer.effects
        returned = ToolReturned(
            call=asked.call,
            status=recorded.status,
            value=recorded.value,
            bytes=recorded.bytes,
            error=recorded.error,
            form=recorded.form,
        )
        if asked.cell is not None:
            called.cell = returned.cell = asked.cell
        if asked.frame is not None:
            called.frame = asked.frame
        return Decision([called, returned], [DeliverResult(returned, recorded.value)])

    def permits(self, tool: str, cells: Iterable[str | None]) -> bool:
        """Return whether the requests of all of these cells allow a call of this function."""
        for cell in cells:
            request = self.requests.get(cell or "")
            wanted = UNSET if request is None else request.tools
            if wanted is False or (isinstance(wanted, list) and not matches(tool, wanted)):
                return False
        return True

    def _obstacle(self, asked: ToolRequested) -> tuple[CallStatus | None, str]:
        """Return why a call is not carried out, as a status with a message."""
        offer = asked.offer
        if offer is None:
            return "refused", asked.refusal
        if len(self.open) >= MAX_OPEN:
            return "limit", f"{MAX_OPEN} calls of this session are open. Wait for some of them first."
        for count, most, name in (
            (self._of_cell[asked.cell, asked.tool], offer.max_calls_per_cell, "max_calls_per_cell"),
            (self._of_session[asked.tool], offer.max_calls_per_session, "max_calls_per_session"),
        ):
            if most is not None and count >= most:
                return (
                    "limit",
                    f"{asked.tool} may be called {most} times ({name}). Use its earlier results.",
                )
        return None, ""

    def _people_decided(self, stimulus: CallsDecided, now: float) -> Decision:
        chosen = [self._pending_call(call) for call in dict.fromkeys(stimulus.calls)]
        out = Decision()
        remember = stimulus.remember if stimulus.approve else None
        if remember is not None:
            # One decision answers all calls of the same tool that wait already, for example those of a gather.
            tools = {(call.tool, call.cell if remember == "cell" else None) for call in chosen}
            chosen += [
                call
                for call in self.pending()
                if call not in chosen and (call.tool, call.cell if remember == "cell" else None) in tools
            ]
        for call in chosen:
            decided = ev.ToolDecided(
                call=call.id,
                decision="approved" if stimulus.approve else "denied",
                by=stimulus.by,
                reason=stimulus.reason,
                remembered=remember,
            )
            if call.cell is not None:
                decided.cell = call.cell
            out.events.append(decided)
            if stimulus.approve:
                out.effects.append(DispatchCall(call.id))
            else:
                text = f"{stimulus.by or 'A person'} denied the call"
                text += f": {stimulus.reason}" if stimulus.reason else ". It was not carried out."
                ended = self._end(call, "denied", now, text)
                out.events += ended.events
                out.effects += ended.effects
        return out

    def _pending_call(self, id: str) -> OpenCall:
        call = self.open.get(id)
        if call is None and id not in self.ended:
            raise NotFound(f"There is no open call {id[:200]!r}. List the session's calls.")
        if call is None or not call.pending:
            raise Conflict(f"The call {id!r} waits for no decision. List the pending calls.", call=id)
        return call

    def _answered(self, answer: CallAnswered, now: float) -> Decision:
        call = self.open.get(answer.call)
        if call is None:
            known = self.ended.get(answer.call)
            if known is None:
                raise NotFound(f"There is no open call {answer.call[:200]!r}. It may have ended long ago.")
            if known[0] in ("ok", "error"):
                return Decision()  # the same answer again: its reply was lost
            raise Conflict(f"The call {answer.call!r} has ended: {known[0]}. Its result is not used.", status=known[0])
        if call.pending:
            raise Conflict(f"The call {answer.call!r} still waits for a person. Do not carry it out.")
        returned = self._returned(call, answer.status, now, delivered=call.awaited)
        returned.bytes, returned.error, returned.form = answer.size, answer.error, answer.form
        returned.value = hidden(answer.value) if call.redact_result and answer.status == "ok" else answer.value
        return Decision([returned], [DeliverResult(returned, answer.value)] if call.awaited else [])

    def _returned(self, call: OpenCall, status: CallStatus, now: float, *, delivered: bool) -> ToolReturned:
        since = 0.0 if call.pending else max(0.0, now - call.sent_at)
        waited = (now if call.pending else call.sent_at) - call.called_at
        returned = ToolReturned(
            call=call.id,
            status=status,
            ms=round(since * 1000, 3),
            waited_ms=round(max(0.0, waited) * 1000, 3),
            delivered=delivered,
        )
        if call.cell is not None:
            returned.cell = call.cell
        return returned

    def _end(
        self, call: OpenCall, status: CallStatus, now: float, message: str = "", *, delivered: bool = True
    ) -> Decision:
        """End a call without an answer. Its provider is informed if it may be at work."""
        seconds = call.approval_seconds if call.pending else call.timeout_seconds
        text = message or _MESSAGES[status].format(seconds=seconds)
        returned = self._returned(call, status, now, delivered=delivered and call.awaited)
        returned.error = {"type": status, "message": text}
        out = Decision([returned])
        if returned.delivered:
            out.effects.append(DeliverResult(returned))
        if not call.pending and status not in ("denied", "unavailable", "lost"):
            out.effects.append(CancelCall(call.id, status))
        return out

    def tick(self, now: float) -> Decision:
        """Return the ends of the calls whose time is over."""
        out = Decision()
        for call in self.open.values():
            if now >= call.deadline:
                ended = self._end(call, "expired" if call.pending else "timeout", now)
                out.events += ended.events
                out.effects += ended.effects
        return out

    def follow(self, out: Decision, now: float) -> None:
        """Add to a decision the ends of calls that it causes: those of a cell that failed, and of a closed session.

        If the kernel has ended, its calls stay open for their answers, which are recorded and not delivered. A
        call that still waits for a person is not carried out any more.
        """
        ended: set[str] = set()
        events: list[Event] = []
        for event in out.events:
            calls = [call for call in self._ended_by(event) if call.id not in ended]
            for call in calls:
                ended.add(call.id)
                more = self._end(call, "cancelled", now, delivered=False)
                events += more.events
                out.effects += more.effects
            if isinstance(event, _OTHER_KERNEL):
                left = [call for call in self.open.values() if call.id not in ended and call.awaited]
                out.effects += [CancelCall(call.id, "the kernel has ended") for call in left]
            if isinstance(event, ToolReturned):
                ended.add(event.call)
            events.append(event)
        out.events = events

    def _ended_by(self, event: Event) -> Iterable[OpenCall]:
        match event:
            case ev.SessionClosed():
                return [*self.open.values()]
            case ev.CellFinished() if event.reason not in (Reason.OK, Reason.KERNEL_DIED):
                return [call for call in self.open.values() if call.cell == event.cell]
            case _ if isinstance(event, _OTHER_KERNEL):
                return self.pending()
            case _:
                return ()


def runs_of(numbers: Iterable[int], near: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last number of each run, in which a number is at most ``near`` above the one before.

    >>> [*runs_of([1, 2, 4, 9], 2)]
    [(1, 4), (9, 9)]
    """
    first = last = 0
    for number in numbers:
        if first and number - last > near:
            yield first, last
            first = number
        first, last = first or number, number
    if first:
        yield first, last


def waiting_calls(welcome: Any) -> list[str]:
    """Return the call ids of a kernel's message about the calls that it waits for. Nothing about it is trusted."""
    return [each for each in welcome[:MAX_OPEN] if isinstance(each, str)] if isinstance(welcome, list) else []
