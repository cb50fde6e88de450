"""The calls of one session's code to functions of clients: messages of the kernel in, results out.

The machine decides (``model.tool_calls.ledger``). This part reads the kernel's messages, which are not trusted, carries
out the machine's effects, and asks an ``OfferPort`` which functions there are and who carries them out.

Arguments and results stay in the log, and are read from it when they are needed again. Values that the log must not
contain stay in memory, until the call has ended. After a restart the kernel sends them again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kernelsvc.kernels.port import KernelMessage
from kernelsvc.model import events as ev
from kernelsvc.model.machine import Machine
from kernelsvc.model.stimuli import CallAbandoned, CancelCall, DeliverResult, DispatchCall, Stimulus, ToolRequested
from kernelsvc.model.tool_calls import offers
from kernelsvc.model.tool_calls.ledger import OpenCall, waiting_calls
from kernelsvc.model.tool_calls.offers import Approval, Offer
from kernelsvc.model.tool_calls.reuse import call_key, recorded_ends
from kernelsvc.protocol.kernel_messages import KernelRequest
from kernelsvc.session.call_records import CallReader, calls_without_values
from kernelsvc.session.ports import Log, SessionPort

#: Largest arguments of a call as JSON, in bytes. The kernel has the same limit.
MAX_ARGUMENT_BYTES = 1024 * 1024
#: Bytes that may wait for a kernel that does not read, before results wait in the log, and seconds between attempts.
MAX_UNSENT, LATE_SECONDS = 8 * 1024 * 1024, 0.05
MAX_NAME = 256
#: Cells whose calls get recorded results, and that are known at the same time.
MAX_REUSES = 16
#: Questions of a kernel about functions that wait for an answer, names in one, and characters of each text.
MAX_QUESTIONS, MAX_NAMES, MAX_QUERY = 1000, 200, 400
#: Takes the answer to such a question.
Answer = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class ResolvedTool:
    """The meaning of a name for a session at this moment.

    Attributes:
        offer: the function. None if the call is refused.
        provider: the client that carries it out. Empty if none is connected.
        refusal: why the call is refused.
        approval: when a person must decide.
        redact: JSON pointers of the arguments that no log may contain.
        forbidden: whether a filter of the session or the cell is the cause of the refusal.
    """

    offer: Offer | None
    provider: str = ""
    refusal: str = ""
    forbidden: bool = False
    approval: Approval = "never"
    redact: tuple[str, ...] = ()


class OfferPort(Protocol):
    """The functions of all clients. The service implements it."""

    def resolve(self, session: str, name: str, cells: Sequence[str | None]) -> ResolvedTool:
        """Return the meaning of a name, or of an identifier in code.

        Args:
            session: the session's id.
            name: from the kernel.
            cells: the cell that calls, and others whose requests may forbid the call.
        """

    def describe(self, session: str, question: dict[str, Any], answer: Answer) -> None:
        """Answer code that looks at functions, perhaps in a later turn of the event loop.

        Args:
            session: the session's id.
            question: not trusted, and limited in size.
            answer: called with the answer.
        """

    def dispatch(self, session: str, call: OpenCall, arguments: Any) -> None:
        """Give a call to its provider, now or when there is room."""

    def cancel(self, session: str, call: str, why: str) -> None:
        """Inform the provider that a call's result is not awaited any more."""

    def resume(self, session: str, calls: Iterable[OpenCall]) -> None:
        """Wait for the providers of calls that an earlier server dispatched."""


class NoOffers:
    """An ``OfferPort`` without functions."""

    def resolve(self, session: str, name: str, cells: Sequence[str | None]) -> ResolvedTool:
        """See ``OfferPort``."""
        return ResolvedTool(None, refusal="No client offers functions to this session.")

    def describe(self, session: str, question: dict[str, Any], answer: Answer) -> None:
        """See ``OfferPort``."""
        answer({"tools": [], "total": 0})

    def dispatch(self, session: str, call: OpenCall, arguments: Any) -> None:
        """Do nothing: every call was refused."""

    def cancel(self, session: str, call: str, why: str) -> None:
        """Do nothing: no call was dispatched."""

    def resume(self, session: str, calls: Iterable[OpenCall]) -> None:
        """Do nothing: no call was dispatched."""


class ToolCalls:
    """The calls of one session. Called from the server's event loop.

    Args:
        session: applies decisions, and has the kernel.
        machine: decides, and is only read here.
        log: has the arguments and results.
        port: the functions of all clients.
    """

    def __init__(self, session: SessionPort, id: str, machine: Machine, log: Log, port: OfferPort) -> None:
        self._session = session
        self._id = id
        self._machine = machine
        self._log = log
        self._port = port
        self._arrived: tuple[str, Any] = ("", None)  # the arguments of the call that is being decided about
        self._secrets: dict[str, Any] = {}  # arguments that the log does not have, by call
        self._asked: set[str] = set()  # calls whose arguments the kernel was asked for again
        self._late: OrderedDict[str, DeliverResult | None] = OrderedDict()  # results that wait for the kernel
        self._described = False
        self._questions = 0  # that are not answered yet
        # For each cell with ``reuse_calls``: the recorded ends that its calls have not got yet.
        self._reused: dict[str, dict[bytes, deque[ev.ToolReturned]]] = {}

    # -- from the kernel ---------------------------------------------------------------

    def stimulus(self, message: KernelMessage, kernel: str) -> Stimulus | None:
        """Return the stimulus that a message of the kernel is, or handle it and return None.

        Args:
            message: on the channel ``tools``.
            kernel: the id of the kernel that sent it.
        """
        content, kind = message.content, message.msg_type
        call = content.get("call")
        if kind == "tools_waiting":
            # The wire's own message has no number. A kernel's must not make the server read its log again and again.
            if message.frame is None:
                self._redeliver(waiting_calls(content.get("calls")))
        elif not isinstance(call, str) or len(call) > MAX_NAME:
            return None
        elif kind == "tool_call":
            return self._requested(message, call, kernel)
        elif kind == "tool_cancel":
            return CallAbandoned(call, message.frame)
        elif kind == "tool_describe":
            self._describe(call, content)
        elif kind == "tool_arguments":
            self._take_arguments(call, content.get("arguments"))
        return None

    def _describe(self, call: str, content: dict[str, Any]) -> None:
        if self._questions >= MAX_QUESTIONS:
            return  # the kernel's own code waits for one answer at a time in each thread
        self._described = True
        self._questions += 1
        names = content.get("names")
        question = {
            "names": [_short(each) for each in names[:MAX_NAMES]] if isinstance(names, list) else None,
            "query": _short(content.get("query")),
            "limit": content.get("limit"),
            "detail": _short(content.get("detail")),
        }
        self._port.describe(self._id, question, lambda answer: self._answer_question(call, answer))

    def _answer_question(self, call: str, answer: dict[str, Any]) -> None:
        self._questions -= 1
        kernel = self._session.kernel
        if kernel is None or kernel.unsent_bytes > MAX_UNSENT:
            return  # it does not read
        self._send("tool_described", {**answer, "call": call}, f"d_{call}")

    def _requested(self, message: KernelMessage, call: str, kernel: str) -> Stimulus | None:
        name, arguments = message.content.get("name"), message.content.get("arguments")
        if not (isinstance(name, str) and 0 < len(name) <= MAX_NAME and isinstance(arguments, dict)):
            return None
        size = len(msgspec.json.encode(arguments))
        if size > MAX_ARGUMENT_BYTES or not self._machine.calls.is_next(call, kernel):
            return None
        running = self._machine.running
        cell = message.parent if self._machine.has_begun(message.parent) else running.id if running else None
        # The kernel says which cell calls, and is not trusted: the running cell's request holds, too.
        found = self._port.resolve(self._id, name, (cell, running.id if running else None))
        shown, redacted = offers.redact(arguments, found.redact)
        if redacted:
            self._secrets[call] = arguments
        self._arrived = call, arguments
        tool = found.offer.tool if found.offer is not None else name
        return ToolRequested(
            call,
            tool,
            shown,
            tuple(redacted),
            size,
            cell,
            found.offer,
            found.provider,
            found.refusal,
            found.approval,
            parent_call=self._parent_call(cell),
            frame=message.frame,
            cell_runs=running is not None and running.id == cell,
            recorded=None if redacted or found.forbidden else self._reusable(cell, tool, shown),
        )

    def _parent_call(self, cell: str | None) -> str | None:
        request = self._machine.calls.requests.get(cell or "")
        return request.within if request is not None and isinstance(request.within, str) else None

    def _reusable(self, cell: str | None, tool: str, arguments: Any) -> ev.ToolReturned | None:
        """Return the recorded end that a call of a cell with ``reuse_calls`` gets, or None: it is carried out."""
        request = self._machine.calls.requests.get(cell or "")
        if cell is None or request is None or not isinstance(request.reuse_calls, str):
            return None
        if cell not in self._reused:
            self._reused[cell] = self._recorded_ends(request.reuse_calls, cell)
            # Older cells lose theirs and keep their key. Without it, threads of two cells could make each call read
            # the log again.
            for each in [each for each, left in self._reused.items() if left][:-MAX_REUSES]:
                self._reused[each] = {}
        found = self._reused[cell].get(call_key(tool, arguments))
        end = self._entry(found.popleft().seq) if found else None
        return end if isinstance(end, ev.ToolReturned) else None

    def _recorded_ends(self, source: str, cell: str) -> dict[bytes, deque[ev.ToolReturned]]:
        of_cell = self._machine.calls.of_cell
        earlier = of_cell.get(source)
        if earlier is None or not earlier.reusable:
            return {}
        used = of_cell.get(cell)
        entries = sorted({*earlier.entries, *(used.entries if used is not None else ())})
        return recorded_ends(calls_without_values(self._log, entries), source, cell)

    def _take_arguments(self, call: str, arguments: Any) -> None:
        """Take arguments again. They must be those that the log has, apart from the parts that it leaves out."""
        open_call = self._machine.calls.open.get(call)
        if call not in self._asked or open_call is None or not isinstance(arguments, dict):
            return
        called = self._entry(open_call.seq)
        if not isinstance(called, ev.ToolCalled) or len(msgspec.json.encode(arguments)) > MAX_ARGUMENT_BYTES:
            return
        if offers.redact(arguments, called.redacted)[0] == called.arguments:
            self._asked.discard(call)
            self._secrets[call] = arguments
            self._dispatch(open_call)

    # -- effects -----------------------------------------------------------------------

    def perform(self, effect: DispatchCall | DeliverResult | CancelCall) -> None:
        """Carry out an effect of the machine."""
        match effect:
            case DispatchCall():
                call = self._machine.calls.open.get(effect.call)
                if call is not None:
                    self._dispatch(call)
            case DeliverResult():
                self._forget(effect.returned.call)
                self._deliver(effect)
            case CancelCall():
                self._forget(effect.call)
                self._port.cancel(self._id, effect.call, effect.why)

    def _forget(self, call: str) -> None:
        self._secrets.pop(call, None)
        self._asked.discard(call)

    def _dispatch(self, call: OpenCall) -> None:
        arrived, self._arrived = self._arrived, ("", None)
        if arrived[0] == call.id:
            arguments = arrived[1]
        elif call.id in self._secrets:
            arguments = self._secrets[call.id]
        elif call.redacted:
            self._asked.add(call.id)
            self._send("tool_again", {"call": call.id}, f"a_{call.id}")
            return
        else:
            called = self._entry(call.seq)
            arguments = called.arguments if isinstance(called, ev.ToolCalled) else {}
        self._port.dispatch(self._id, call, arguments)

    def redispatch(self, call: str) -> None:
        """Give a call to a provider again that never got it."""
        open_call = self._machine.calls.open.get(call)
        if open_call is not None and not open_call.pending:
            self._dispatch(open_call)

    def _deliver(self, effect: DeliverResult) -> None:
        kernel = self._session.kernel
        if kernel is None or kernel.unsent_bytes > MAX_UNSENT or self._late:
            self._wait(effect)
            return
        end = effect.returned
        content = {"call": end.call, "status": end.status, "value": effect.value, "error": end.error, "form": end.form}
        self._send("tool_result", content, f"t_{end.call}")

    def _wait(self, effect: DeliverResult) -> None:
        if not self._late:
            asyncio.get_running_loop().call_later(LATE_SECONDS, self._deliver_late)
        secret = effect.returned.value != effect.value
        self._late[effect.returned.call] = effect if secret else None

    def _deliver_late(self) -> None:
        """Deliver results that waited until the kernel had read the earlier ones."""
        waiting, self._late = self._late, OrderedDict()
        if self._session.kernel is None:
            return  # the next kernel says for which calls it waits
        for call, effect in waiting.items():
            if (found := effect or self._recorded(call)) is not None:
                self._deliver(found)

    def _recorded(self, call: str) -> DeliverResult | None:
        known = self._machine.calls.ended.get(call)
        end = self._entry(known[1]) if known is not None else None
        if not isinstance(end, ev.ToolReturned):
            return None
        if isinstance(end.value, dict) and end.value.keys() == {"$redacted"}:
            lost = {"type": "lost", "message": "The server restarted, and no log may contain the result."}
            end = msgspec.structs.replace(end, status="lost", value=None, error=lost)
        return DeliverResult(end, end.value)

    def _redeliver(self, waiting: list[str]) -> None:
        """Send the results that the kernel waits for and that are in the log already."""
        for call in waiting:
            if call not in self._machine.calls.open and (found := self._recorded(call)) is not None:
                self._deliver(found)

    def _send(self, kind: str, content: dict[str, Any], msg_id: str) -> None:
        kernel = self._session.kernel
        if kernel is not None:
            kernel.send(KernelRequest(kind, content, msg_id, "tools"))

    # -- from the service -----------------------------------------------------------------

    def adopted(self) -> None:
        """Continue the calls that an earlier server dispatched."""
        calls = [call for call in self._machine.calls.open.values() if not call.pending]
        if calls:
            self._port.resume(self._id, calls)

    def changed(self) -> None:
        """Tell a kernel that has looked at functions that others may be called now."""
        if self._described:
            self._described = False
            self._send("tools_changed", {}, "tools_changed")

    # -- reading -----------------------------------------------------------------------------

    def _entry(self, seq: int) -> ev.Event | None:
        return next((ev.decode(line) for line in self._log.lines(seq, seq)), None)

    def reader(self) -> CallReader:
        """Return a reader of the calls up to now, for another thread."""
        ledger = self._machine.calls
        return CallReader(self._id, self._log, ledger.entries, ledger.open)


def _short(value: object) -> str:
    return value[:MAX_QUERY] if isinstance(value, str) else ""
