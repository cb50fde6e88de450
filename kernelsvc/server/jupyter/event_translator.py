"""Translation of a session's events into Jupyter messages. Equal events give equal messages.

A message's id consists of the session, the event's number and a count. Its date
is the event's. Its parent header is the client's, from the cell's metadata. If a
socket reads an event twice, it sends the same message twice. A client that was
disconnected gets the messages that it would have got.

Text that was printed in several events of one batch becomes one message, as
ipykernel's own buffer does. A batch ends where a ping was sent. The numbers of
unanswered pings are stored, so that repeated batches end at the same events.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from msgspec import UnsetType
from msgspec.structs import replace

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event, Reason
from kernelsvc.model.objects import CellInfo
from kernelsvc.protocol import jupyter
from kernelsvc.protocol.jupyter import JupyterMessage
from kernelsvc.protocol.kernel_messages import KEPT, payload_of

VERSION = "5.4"
_FIELDS = ("msg_id", "msg_type", "username", "session", "date", "version")
_FIELD_LENGTH = 256
#: Headers in one socket's cache, and the longest code in characters. Others are read from the service.
_HEADERS, _SHORT_CODE = 64, 1024
#: Most bytes of a cell's payloads, and of its error, that each socket keeps until the cell's end.
MAX_KEPT = 256 * 1024

Header = dict[str, Any]
Content = dict[str, Any]


def kept_header(header: Mapping[str, Any]) -> Header:
    """Return the fields of a client's header that are stored: the protocol's, each limited in length."""
    return {name: header[name][:_FIELD_LENGTH] for name in _FIELDS if isinstance(header.get(name), str)}


def make(
    session: str, name: str, at: str, channel: str, msg_type: str, content: Content, parent: Header
) -> JupyterMessage:
    """Make a message from kernelsvc, with a header of the protocol's format."""
    header = {
        "msg_id": name,
        "msg_type": msg_type,
        "username": "kernelsvc",
        "session": session,
        "date": at,
        "version": VERSION,
    }
    return JupyterMessage(channel=channel, header=header, parent_header=parent, content=content)


def failure(ename: str, evalue: str, traceback: list[str] | None = None) -> Content:
    """Return the content of an error reply."""
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": traceback or [f"{ename}: {evalue}"]}


def _transient(display_id: str | None) -> Content:
    return {"display_id": display_id} if display_id is not None else {}


def output_of(event: Event) -> tuple[str, str, Content] | None:
    """Return channel, type and content of an output event. None for any other event."""
    match event:
        case ev.Stream():
            return "iopub", "stream", {"name": event.name, "text": event.text}
        case ev.Display() | ev.DisplayUpdated():
            kind = "display_data" if isinstance(event, ev.Display) else "update_display_data"
            shown = {"data": event.data, "metadata": event.metadata, "transient": _transient(event.display_id)}
            return "iopub", kind, shown
        case ev.Result():
            result = {"data": event.data, "metadata": event.metadata, "execution_count": event.execution_count}
            if event.display_id is not None:
                result["transient"] = _transient(event.display_id)
            return "iopub", "execute_result", result
        case ev.Error():
            return "iopub", "error", {"ename": event.ename, "evalue": event.evalue, "traceback": event.traceback}
        case ev.OutputCleared():
            return "iopub", "clear_output", {"wait": event.wait}
        case ev.Comm():
            return "iopub", event.msg_type, event.content
        case ev.DebugEvent():
            return "iopub", "debug_event", event.content
        case ev.InputRequested():
            return "stdin", "input_request", {"prompt": event.prompt, "password": event.password}
        case _:
            return None


def buffers_of(event: ev.Comm) -> tuple[bytes, ...]:
    """Decode a comm's buffers. A buffer that is not base64 (from a broken kernel) becomes empty."""
    found = []
    for each in event.buffers:
        try:
            found.append(base64.b64decode(each, validate=True))
        except binascii.Error:
            found.append(b"")
    return tuple(found)


def portions(lines: Iterable[bytes], most: int, breaks: Container[int]) -> Iterator[list[Event]]:
    """Split lines of the log into batches that are sent with one ping each.

    Args:
        lines: Entries of the journal, in order.
        most: Bytes of entries after which a batch ends.
        breaks: Numbers of the events at which batches ended when they were first sent.
    """
    portion: list[Event] = []
    size = 0
    for line in lines:
        portion.append(event := ev.decode(line))
        size += len(line)
        if size >= most or event.seq in breaks:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def joined(events: Iterable[Event]) -> Iterator[Event]:
    """Join consecutive text of one stream into one event, with the number of the first."""
    first: ev.Stream | None = None
    texts: list[str] = []
    for event in events:
        if type(event) is ev.Stream:
            if first and event.cell == first.cell and event.name == first.name and event.request == first.request:
                texts.append(event.text)
                continue
            if first:
                yield _whole(first, texts)
            first, texts = event, [event.text]
            continue
        if first:
            yield _whole(first, texts)
            first = None
        yield event
    if first:
        yield _whole(first, texts)


def _whole(first: ev.Stream, texts: list[str]) -> Event:
    return first if len(texts) == 1 else replace(first, text="".join(texts))


class EventTranslator:
    """Translator of one session's events into messages, in order, for one socket."""

    def __init__(self, session: str, look_up: Callable[[str], CellInfo]) -> None:
        self._session = session
        self._look_up = look_up
        self._cells: OrderedDict[str, tuple[Header, bool, str | None]] = OrderedDict()
        # None: it is too large to be kept.
        self._errors: dict[str, ev.Error | None] = {}
        #: When cells started, as text.
        self._started: dict[str, str] = {}
        #: Payloads of cells that run, and their size.
        self._payloads: dict[str, tuple[list[Content], int]] = {}

    def messages(self, event: Event) -> list[JupyterMessage]:
        """Return the Jupyter messages for this event. Empty for most events that are not output."""
        ends = isinstance(event, ev.CellFinished) and isinstance(event.cell, str)
        started = self._started.get(str(event.cell)) if ends else None
        parts = self._parts(event)
        parent = self._parent(event)
        out = [
            make(self._session, f"{self._session}_{event.seq}_{i}", event.at, channel, kind, content, parent)
            for i, (channel, kind, content) in enumerate(parts)
        ]
        if isinstance(event, ev.Comm):
            return [_with(message, event) for message in out]
        return [_with_start(message, started) for message in out] if started else out

    def _parent(self, event: Event) -> Header:
        if isinstance(event.cell, str):
            return self._cell(event.cell)[0]
        if not isinstance(event.request, UnsetType):
            return {"msg_id": event.request, "msg_type": "comm_msg", "session": "", "username": "", "version": VERSION}
        return {}

    def _cell(self, cell: str) -> tuple[Header, bool, str | None]:
        """Return header, silence and code of a cell's request. The code is None if it is long."""
        if cell not in self._cells:
            found = self._look_up(cell)
            self._keep(cell, found.metadata, False, found.code)
        return self._cells[cell]

    def _keep(self, cell: str, metadata: dict[str, Any], silent: bool, code: str) -> None:
        kept = metadata.get(KEPT)
        header = kept_header(kept["header"]) if isinstance(kept, dict) and isinstance(kept.get("header"), dict) else {}
        if not header:  # the cell came through another API
            header = {"msg_id": cell, "msg_type": "execute_request", "session": "", "username": "", "version": VERSION}
        silent = silent or (isinstance(kept, dict) and kept.get("silent") is True)
        self._cells[cell] = (header, silent, code if len(code) <= _SHORT_CODE else None)
        while len(self._cells) > _HEADERS:
            self._cells.popitem(last=False)

    def _parts(self, event: Event) -> list[tuple[str, str, Content]]:
        if isinstance(event, ev.Display) and self._keep_payload(event):
            return []
        output = output_of(event)
        if output is not None:
            # Only of a cell that runs: the kernel may name any cell, and this is kept until its end.
            if isinstance(event, ev.Error) and event.cell in self._started:
                self._errors[str(event.cell)] = event if len(ev.encode(event)) <= MAX_KEPT else None
            return [output]
        match event:
            case ev.CellQueued():
                if isinstance(event.cell, str):
                    self._keep(event.cell, event.metadata, event.silent, event.code)
                return []
            case ev.CellStarted() if isinstance(event.cell, str):
                return self._started_parts(event.cell, event)
            case ev.CellFinished() if isinstance(event.cell, str):
                return self._finished(event.cell, event)
            # Nothing for KernelDied: at "restarting" JupyterLab drops queued cells, and a checkpoint may restore all.
            case ev.KernelRestarted():
                return [("iopub", "status", {"execution_state": s}) for s in ("restarting", "starting", "idle")]
            case ev.KernelRestored() | ev.Woken() | ev.RolledBack():
                return [("iopub", "status", {"execution_state": "idle"})]
            case ev.SessionClosed():
                return [("iopub", "status", {"execution_state": "dead"})]
            case _:
                return []

    def _keep_payload(self, event: ev.Display) -> bool:
        """Keep a payload for the reply of its cell. Return False if it is none, or is shown as a display instead."""
        payload = payload_of(event)
        if payload is None or event.cell not in self._started:
            return False
        kept, size = self._payloads.get(str(event.cell), ([], 0))
        size += len(jupyter.encode_part(payload))
        if size > MAX_KEPT:
            return False
        self._payloads[str(event.cell)] = kept, size
        kept.append(payload)
        return True

    def _started_parts(self, cell: str, event: ev.CellStarted) -> list[tuple[str, str, Content]]:
        self._started[cell], count = event.at, event.execution_count
        _, silent, code = self._cell(cell)
        busy = ("iopub", "status", {"execution_state": "busy"})
        if silent:
            return [busy]
        code = self._look_up(cell).code if code is None else code
        return [busy, ("iopub", "execute_input", {"code": code, "execution_count": count})]

    def _finished(self, cell: str, event: ev.CellFinished) -> list[tuple[str, str, Content]]:
        error = self._error_of(cell, event)
        began = cell in self._started or event.execution_count is not None
        self._started.pop(cell, None)
        parts: list[tuple[str, str, Content]] = []
        if not began:
            parts.append(("iopub", "status", {"execution_state": "busy"}))
        if event.message and event.reason not in (Reason.OK, Reason.ERROR) and began:
            parts.append(("iopub", "stream", {"name": "stderr", "text": f"{event.message}\n"}))
        reply = reply_of(event, error, began)
        if cell in self._payloads:
            reply["payload"] = self._payloads.pop(cell)[0]
        if error is None and reply["status"] == "error":
            shown = {name: reply[name] for name in ("ename", "evalue", "traceback")}
            parts.append(("iopub", "error", shown))
        parts += [("shell", "execute_reply", reply), ("iopub", "status", {"execution_state": "idle"})]
        return parts

    def _error_of(self, cell: str, event: ev.CellFinished) -> ev.Error | None:
        """Return the error of a cell. It is read again if it was not kept, or sent before the client reconnected."""
        sent_before = cell not in self._started or cell in self._errors
        kept = self._errors.pop(cell, None)
        if kept is not None or not sent_before or event.reason is Reason.OK or event.execution_count is None:
            return kept
        found = self._look_up(cell).error
        return ev.Error(ename=found.ename, evalue=found.evalue, traceback=found.traceback) if found else None


def _with(message: JupyterMessage, event: ev.Comm) -> JupyterMessage:
    return JupyterMessage(
        channel=message.channel,
        header=message.header,
        parent_header=message.parent_header,
        metadata=event.metadata,
        content=message.content,
        buffers=buffers_of(event),
    )


def _with_start(message: JupyterMessage, started: str) -> JupyterMessage:
    """Add the time of the start to an ``execute_reply``, as ipykernel does. JupyterLab shows it."""
    if message.channel != "shell":
        return message
    return replace(message, metadata={"started": started, "status": message.content["status"]})


#: Exception names for ends of a cell that are not exceptions. Jupyter clients know only exceptions.
_NAMES = {
    Reason.INTERRUPTED: "KeyboardInterrupt",
    Reason.TIMEOUT: "CellTimeout",
    Reason.MEMORY: "CellOutOfMemory",
    Reason.KERNEL_DIED: "KernelDied",
    Reason.CANCELLED: "Cancelled",
    Reason.SESSION_CLOSED: "SessionClosed",
    Reason.ERROR: "Error",
}


def reply_of(event: ev.CellFinished, error: ev.Error | None, began: bool) -> Content:
    """Return the ``execute_reply`` of a cell that has ended."""
    count = {"execution_count": event.execution_count}
    if event.reason is Reason.OK:
        return {"status": "ok", **count, "user_expressions": event.user_expressions, "payload": []}
    if not began and event.reason is Reason.CANCELLED:
        return failure("Cancelled", event.message or "an earlier cell failed") | {"status": "aborted", **count}
    if error is not None:
        failed = failure(error.ename, error.evalue, error.traceback)
    else:
        failed = failure(_NAMES[event.reason], event.message or f"the cell ended: {event.reason}")
    return failed | count | {"user_expressions": {}, "payload": []}
