"""Spans that follow from the entries of a journal. Pure.

A cell is a span, and so are its calls of clients' functions, its connections through the egress proxy, and each program
beside the kernel. The same entries give the same spans with the same ids, in any process and at any time. So a span may
be sent again, and nothing has to be stored but a position in the journal.

Names follow OpenTelemetry's conventions: those for generative AI (``execute_tool``, version 0.1 of
semantic-conventions-genai), HTTP and processes. Names without a convention begin with ``kernelsvc.``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct, UnsetType

from kernelsvc.model import events as ev
from kernelsvc.model.tracing.context import own_trace, parse, span_id

#: Which content of a session spans may hold: none, the code and the arguments of calls, or also output and results.
Content = Literal["off", "code", "all"]
Value = str | bool | int | float
Attributes = dict[str, Value]

#: Most characters of one value. New Relic takes 4,095.
MAX_VALUE = 4000
#: Most events of one span. OpenTelemetry's SDKs have a limit of 128.
MAX_EVENTS = 64
#: Cells whose trace is known after their end, for connections that end later.
MAX_RECENT = 1024
#: Programs that run at the same time. The journal names each by its process id.
MAX_PROGRAMS = 1024
#: The name of the tool whose calls are a session's cells.
CELL_TOOL = "run_code"

#: The path of a request in the reason of a refusal. It has no space.
_PATH = re.compile(r" /[^ ]*")
#: Prefixes of lines that give no span. Their content may be large, and is not decoded.
_OUTPUT = tuple(
    b'{"type":"%b"' % name.encode()
    for name in ("display", "display_updated", "output_cleared", "comm", "debug_event", "output_truncated")
)
_TEXT = (b'{"type":"stream"', b'{"type":"result"')


class SpanEvent(Struct, frozen=True):
    """A moment within a span. ``at`` is in nanoseconds since the epoch."""

    at: int
    name: str
    attributes: Attributes = {}


class Span(Struct, kw_only=True):
    """One span. Times are in nanoseconds since the epoch.

    Attributes:
        state: ``tracestate`` of the caller.
        links: trace id and span id of related spans.
        error: why it failed. None if it did not.
        seq: position of the journal's entry that ends it.
        dropped_events: events beyond ``MAX_EVENTS``.
    """

    trace_id: bytes
    span_id: bytes
    parent: bytes = b""
    state: str = ""
    name: str
    kind: Literal["internal", "server", "client"] = "internal"
    start: int
    end: int
    attributes: Attributes = {}
    events: list[SpanEvent] = []
    links: list[tuple[bytes, bytes]] = []
    error: str | None = None
    seq: int
    dropped_events: int = 0

    def __post_init__(self) -> None:
        """No span ends before its start, also if the machine's clock was set back meanwhile: receivers refuse it."""
        self.end = max(self.start, self.end)


class _Context(Struct, frozen=True):
    """The trace of one cell."""

    trace_id: bytes
    state: str
    sampled: bool


class _HeadAndTail:
    """The head and the tail of a text that arrives in pieces."""

    def __init__(self) -> None:
        self._head = self._tail = ""
        self._size = 0

    def add(self, text: str) -> None:
        self._size += len(text)
        room = MAX_VALUE // 2 - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:])[-MAX_VALUE // 2 + 50 :]

    def text(self) -> str:
        dropped = self._size - len(self._head) - len(self._tail)
        return self._head + (f"\n[{dropped} characters left out]\n" if dropped else "") + self._tail


@dataclass
class _OpenCell:
    queued: ev.CellQueued
    context: _Context
    parent: bytes
    started: int | None = None
    ename: str = ""
    events: list[SpanEvent] = field(default_factory=list)
    dropped: int = 0
    links: list[tuple[bytes, bytes]] = field(default_factory=list)
    text: _HeadAndTail = field(default_factory=_HeadAndTail)


class SpanFold:
    """The spans of one session. Feed all entries of its journal, in order.

    Args:
        session: the session's id.
        content: which content spans may hold.
        sample: share of the traces without a caller that have spans, from 0 to 1. A caller's trace follows the caller.
    """

    def __init__(self, session: str, *, content: Content = "off", sample: float = 1.0) -> None:
        self._session, self._content, self._sample = session, content, sample
        self._about: Attributes = {}
        self._cells: dict[str, _OpenCell] = {}
        self._recent: OrderedDict[str, _Context] = OrderedDict()
        self._calls: dict[str, ev.ToolCalled] = {}
        self._programs: OrderedDict[int, ev.ProgramStarted] = OrderedDict()
        self._link: tuple[bytes, bytes] | None = None

    def feed_line(self, line: bytes) -> list[Span]:
        """Return the spans that end with a line of the journal. A line that this release can't read gives none."""
        if line.startswith(_OUTPUT) or (self._content != "all" and line.startswith(_TEXT)):
            return []
        try:
            return self.feed(ev.decode(line))
        except (msgspec.DecodeError, RecursionError):
            return []

    def feed(self, event: ev.Event) -> list[Span]:
        """Return the spans that end with an event."""
        match event:
            case ev.SessionStarted():
                self._start(event)
            case ev.CellQueued():
                self._queue(event)
            case ev.CellFinished():
                return self._finish(event)
            case ev.ToolCalled():
                kept = "" if self._content == "off" else _json(event.arguments)[:MAX_VALUE]
                self._calls[event.call] = msgspec.structs.replace(event, arguments=kept)
            case ev.ToolReturned():
                return self._returned(event)
            case ev.Egress():
                return self._connected(event)
            case ev.ProgramStarted():
                self._programs[event.program] = msgspec.structs.replace(event, argv=event.argv[:1])
                if len(self._programs) > MAX_PROGRAMS:
                    self._programs.popitem(last=False)
            case ev.ProgramEnded():
                return self._program_ended(event)
            case ev.RolledBack(after_cell=str(cell)):
                self._link = (self._context(cell).trace_id, span_id(self._session, cell))
            case _:
                self._note(event)
        return []

    # --- cells ---------------------------------------------------------------------------

    def _start(self, event: ev.SessionStarted) -> None:
        self._about = {
            "gen_ai.conversation.id": self._session,
            "session.id": self._session,
            "kernelsvc.template": event.template,
            "kernelsvc.language": event.kernel.language,
            "kernelsvc.isolation": event.sandbox.isolation,
        }
        parent = (event.parent or {}).get("session")
        if isinstance(parent, str):
            self._about["kernelsvc.parent_session"] = parent

    def _queue(self, event: ev.CellQueued) -> None:
        cell = str(event.cell or "")
        caller = None if isinstance(event.trace, UnsetType) else parse(event.trace.parent)
        if caller is None or isinstance(event.trace, UnsetType):
            context, parent = self._own(cell), b""
        else:
            state = "" if isinstance(event.trace.state, UnsetType) else event.trace.state
            context, parent = _Context(caller.trace_id, state, caller.sampled), caller.span_id
        self._recent[cell] = context
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        links = [self._link] if self._link is not None else []
        self._link = None
        # The code may be long, and is in memory for each cell that waits.
        code = "" if self._content == "off" else event.code[:MAX_VALUE]
        self._cells[cell] = _OpenCell(msgspec.structs.replace(event, code=code), context, parent, links=links)

    def _own(self, *names: str | int) -> _Context:
        """Return the context of a span without a caller. The id of the trace decides whether it is sampled."""
        trace = own_trace(self._session, *names)
        # As TraceIdRatioBased does: the last 8 bytes, so that other services that sample by id agree.
        sampled = int.from_bytes(trace[8:], "big") < self._sample * 2**64
        return _Context(trace, "", sampled)

    def _context(self, cell: str) -> _Context:
        return self._recent.get(cell) or self._own(cell)

    def _note(self, event: ev.Event) -> None:
        """Add an event to the cell's span."""
        cell = self._cells.get(str(event.cell or "")) if not isinstance(event.cell, UnsetType) else None
        if cell is None and isinstance(event, (ev.KernelDied, ev.KernelRestored, ev.LimitReached)):
            # These name no cell. They belong to the one that runs.
            cell = next((each for each in self._cells.values() if each.started is not None), None)
        if cell is None:
            return
        match event:
            case ev.CellStarted():
                cell.started = nanoseconds(event.at)
                self._add(cell, event, "started")
            case ev.Error():
                cell.ename = event.ename
            case ev.Stream():
                cell.text.add(event.text)
            case ev.Result():
                cell.text.add(str(event.data.get("text/plain", "")))
            case ev.InputRequested():
                self._add(cell, event, "input_requested", {"kernelsvc.password": event.password})
            case ev.Interrupted():
                self._add(cell, event, "interrupted", {"kernelsvc.why": event.why})
            case ev.LimitReached():
                self._add(cell, event, "limit_reached", {"kernelsvc.limit": event.limit})
            case ev.KernelDied():
                self._add(cell, event, "kernel_died", {"kernelsvc.cause": event.cause})
            case ev.KernelRestored():
                self._add(cell, event, "kernel_restored")
            case ev.EgressDenied():
                why = _PATH.sub("", event.why) if self._content == "off" else event.why
                denied = {"server.address": event.host, "kernelsvc.why": why, "kernelsvc.via": event.via}
                self._add(cell, event, "egress_denied", denied)
            case _:
                pass

    @staticmethod
    def _add(cell: _OpenCell, event: ev.Event, name: str, attributes: Mapping[str, Value] = {}) -> None:
        if len(cell.events) < MAX_EVENTS:
            cell.events.append(SpanEvent(nanoseconds(event.at), name, _cut(attributes)))
        else:
            cell.dropped += 1

    def _finish(self, event: ev.CellFinished) -> list[Span]:
        cell = self._cells.pop(str(event.cell or ""), None)
        if cell is None or not cell.context.sampled:
            return []
        queued, name, usage = cell.queued, str(event.cell), event.usage
        start = nanoseconds(queued.at)
        failed = event.reason is not ev.Reason.OK
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": CELL_TOOL,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": name,
            **self._about,
            "kernelsvc.reason": event.reason.value,
            "kernelsvc.execution_count": event.execution_count,
            "kernelsvc.queue_seconds": None if cell.started is None else (cell.started - start) / 1e9,
            "kernelsvc.cpu_seconds": None if usage.cpu_ms is None else usage.cpu_ms / 1000,
            "kernelsvc.peak_rss_bytes": usage.peak_rss_bytes,
            "kernelsvc.output_bytes": usage.output_bytes,
            "kernelsvc.variables_kept": event.variables_kept,
            "kernelsvc.seq.first": queued.seq,
            "kernelsvc.seq.last": event.seq,
            "error.type": _error_type(event.reason, cell.ename),
        }
        if self._content != "off":
            attributes["gen_ai.tool.call.arguments"] = _json({"code": queued.code})
        if self._content == "all":
            attributes["gen_ai.tool.call.result"] = cell.text.text()
        return [
            Span(
                trace_id=cell.context.trace_id,
                span_id=span_id(self._session, name),
                parent=cell.parent,
                state=cell.context.state,
                name=f"execute_tool {CELL_TOOL}",
                kind="server" if cell.parent else "internal",
                start=start,
                end=nanoseconds(event.at),
                attributes=_cut(attributes),
                events=cell.events,
                links=cell.links,
                error=event.reason.value if failed else None,
                seq=event.seq,
                dropped_events=cell.dropped,
            )
        ]

    # --- what a cell starts --------------------------------------------------------------

    def _returned(self, event: ev.ToolReturned) -> list[Span]:
        called = self._calls.pop(event.call, None)
        if called is None:
            return []
        failed = event.status != "ok"
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": called.tool,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": event.call,
            "kernelsvc.status": event.status,
            "kernelsvc.approval": called.approval,
            "kernelsvc.waited_seconds": event.waited_ms / 1000,
            "kernelsvc.provider_seconds": event.ms / 1000,
            "kernelsvc.argument_bytes": called.bytes,
            "kernelsvc.result_bytes": event.bytes,
            "error.type": str((event.error or {}).get("type") or event.status) if failed else None,
        }
        # The log has arguments and results without the parts that the offer redacts.
        if self._content != "off":
            attributes["gen_ai.tool.call.arguments"] = called.arguments
        if self._content == "all":
            attributes["gen_ai.tool.call.result"] = _json(event.value)
        return self._child(
            called.cell,
            ("call", event.call),
            seq=event.seq,
            name=f"execute_tool {called.tool}"[:MAX_VALUE],
            kind="client",
            start=nanoseconds(called.at),
            end=nanoseconds(event.at),
            attributes=attributes,
            error=event.status if failed else None,
        )

    def _connected(self, event: ev.Egress) -> list[Span]:
        method, status = (None if isinstance(each, UnsetType) else each for each in (event.method, event.status))
        failed = event.end.startswith("failed") or (isinstance(status, int) and status >= 400)
        end = nanoseconds(event.at)
        attributes: dict[str, Value | None] = {
            "server.address": event.host,
            "server.port": event.port,
            "network.peer.address": event.address or None,
            "http.request.method": method,
            "http.response.status_code": status,
            # A path may hold a secret, so it counts as content.
            "url.path": event.path if self._content != "off" and not isinstance(event.path, UnsetType) else None,
            "kernelsvc.rule": event.rule,
            "kernelsvc.sent_bytes": event.sent,
            "kernelsvc.received_bytes": event.received,
            "kernelsvc.end": event.end,
            "error.type": (str(status) if isinstance(status, int) and status >= 400 else "failed") if failed else None,
        }
        return self._child(
            event.cell,
            ("egress", event.seq),
            seq=event.seq,
            name=str(method) if method else "connect",
            kind="client",
            start=end - round(max(0.0, event.seconds) * 1e9),
            end=end,
            attributes=attributes,
            error=event.end if failed else None,
        )

    def _program_ended(self, event: ev.ProgramEnded) -> list[Span]:
        started = self._programs.pop(event.program, None)
        if started is None:
            return []
        # Arguments may hold secrets, and the path of the program is the user's.
        name = (started.argv[0] if started.argv else "").rpartition("/")[2]
        failed = event.exit_code != 0
        attributes: dict[str, Value | None] = {
            "process.executable.name": name,
            "process.exit.code": event.exit_code,
            "kernelsvc.output_bytes": event.output_bytes,
            "error.type": ("unknown" if event.exit_code is None else str(event.exit_code)) if failed else None,
        }
        return self._child(
            started.cell,
            ("program", started.seq),
            seq=event.seq,
            name=f"program {name}"[:MAX_VALUE],
            start=nanoseconds(started.at),
            end=nanoseconds(event.at),
            attributes=attributes,
            error="exit" if failed else None,
        )

    def _child(
        self,
        cell: str | UnsetType,
        names: tuple[str | int, ...],
        *,
        start: int,
        end: int,
        attributes: dict[str, Value | None],
        **more: Any,
    ) -> list[Span]:
        """Return the span of a part of a cell, or of a part of the session that no cell caused."""
        inside = not isinstance(cell, UnsetType)
        context = self._context(str(cell)) if inside else self._own(*names)
        if not context.sampled:
            return []
        about: dict[str, Value | None] = {
            name: self._about[name] for name in ("gen_ai.conversation.id", "session.id") if name in self._about
        }
        return [
            Span(
                trace_id=context.trace_id,
                span_id=span_id(self._session, *names),
                parent=span_id(self._session, str(cell)) if inside else b"",
                state=context.state,
                start=start,
                end=max(start, end),
                attributes=_cut({**attributes, **about}),
                **more,
            )
        ]


def nanoseconds(at: str) -> int:
    """Return the time of an event in nanoseconds since the epoch. 0 if it is none."""
    try:
        return round(datetime.fromisoformat(at).timestamp() * 1e6) * 1000
    except ValueError:
        return 0


def _error_type(reason: ev.Reason, ename: str) -> str | None:
    if reason is ev.Reason.OK:
        return None
    return ename if reason is ev.Reason.ERROR and ename else reason.value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _cut(attributes: Mapping[str, Value | None]) -> Attributes:
    """Leave out what is unknown, and shorten texts."""
    return {
        name: value[:MAX_VALUE] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }
