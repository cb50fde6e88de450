"""Events of a cell as the lines of E2B's ``POST /execute``. Pure.

Each line is a JSON object. E2B's clients know ``number_of_executions``, ``stdout``,
``stderr``, ``result``, ``error``, ``keepalive`` and ``end_of_execution``, which
is always the last. They ignore unknown types, and kernelsvc adds some: ``cell``
comes first and names the cell, so that a client can read from the session's log
the output that it missed after a lost connection. ``display_update`` and ``clear_output``
let progress bars work. ``output_truncated`` reports output that the notebook will lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event, Reason

Line = dict[str, Any]

#: E2B's name for each MIME type. ``guest.e2b.charts`` makes the two last ones.
FORMATS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "application/vnd.e2b.data+json": "data",
    "application/vnd.e2b.chart+json": "chart",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
#: Formats that are text. A value of another type under these names would break clients.
#: The form of a value for models, which E2B's clients do not know.
_FOR_MODELS = "text/vnd.kernelsvc.model"
_TEXTS = frozenset({"text", "html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "javascript"})
#: Most characters of an incomplete line that is delayed.
MAX_HELD = 4096
#: Exception names for ends of a cell that are not exceptions. E2B's clients know only exceptions.
_ENDS = {
    Reason.INTERRUPTED: "KeyboardInterrupt",
    Reason.TIMEOUT: "CellTimeout",
    Reason.MEMORY: "CellOutOfMemory",
    Reason.KERNEL_DIED: "KernelDied",
    Reason.CANCELLED: "Cancelled",
    Reason.SESSION_CLOSED: "SandboxEnded",
    Reason.ERROR: "Error",
}

KEEPALIVE: Line = {"type": "keepalive"}


def result(data: Mapping[str, Any], *, main: bool) -> Line:
    """Convert a MIME bundle into E2B's formats.

    Args:
        data: The bundle.
        main: Whether it is the value of the cell's last expression.
    """
    line: Line = {"type": "result", "is_main_result": main}
    extra: dict[str, Any] = {}
    for mime, value in data.items():
        name = FORMATS.get(mime)
        if mime == _FOR_MODELS:
            continue
        if name is None:
            extra[mime] = value
        elif name not in _TEXTS or isinstance(value, str):
            line[name] = value
    line["text"] = unquoted(line.get("text"))
    if extra:
        line["extra"] = extra
    return line


def unquoted(text: str | None) -> str | None:
    """Remove the quotes of a string's ``repr``. E2B shows strings without them."""
    if text is not None and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


class ResultLines:
    """Converter of one cell's events into lines, in order.

    Text that ends within a line is delayed (``unfinished``) until the next event
    completes it, or until the caller asks for the ``rest``.

    Attributes:
        ended: Whether the last line was returned.
    """

    def __init__(self, cell: str) -> None:
        self._cell = cell
        self._traceback = ""
        self._name = ""
        self._held: Line | None = None
        self.ended = False

    @property
    def unfinished(self) -> bool:
        """Whether text is delayed."""
        return self._held is not None

    def rest(self) -> list[Line]:
        """Return the delayed text, if any."""
        held, self._held = self._held, None
        return [] if held is None else [held]

    def of(self, event: Event) -> list[Line]:
        """Return the lines for this event. Empty for an event of another cell."""
        if event.cell != self._cell or self.ended:
            return []
        if isinstance(event, ev.Stream):
            return self._text({"type": event.name, "text": event.text, "timestamp": event.at})
        said = self._said(event)
        return [*self.rest(), *said] if said else []

    def _text(self, line: Line) -> list[Line]:
        held = self.rest()
        if held and held[0]["type"] == line["type"]:
            line["text"] = held.pop()["text"] + line["text"]
        if line["text"].endswith("\n") or len(line["text"]) > MAX_HELD:
            return [*held, line]
        self._held = line
        return held

    def _said(self, event: Event) -> list[Line]:
        match event:
            case ev.CellStarted():
                return [{"type": "number_of_executions", "execution_count": event.execution_count}]
            case ev.Display():
                return [result(event.data, main=False)]
            case ev.Result():
                return [result(event.data, main=True)]
            case ev.DisplayUpdated():
                return [result(event.data, main=False) | {"type": "display_update", "display_id": event.display_id}]
            case ev.OutputCleared():
                return [{"type": "clear_output", "wait": event.wait}]
            case ev.OutputTruncated():
                return [{"type": "output_truncated", "kept": event.kept, "dropped": event.dropped}]
            case ev.Error():
                self._name, self._traceback = event.ename, "\n".join(event.traceback)
                return [_error(event.ename, event.evalue, self._traceback)]
            case ev.CellFinished():
                return self._finished(event)
            case _:
                return []

    def _finished(self, event: ev.CellFinished) -> list[Line]:
        self.ended = True
        end = {"type": "end_of_execution"}
        if event.reason is Reason.OK or (event.reason is Reason.ERROR and self._name):
            return [end]
        name = _ENDS[event.reason]
        if name == self._name and not event.message:
            return [end]
        # A client shows the last error. This one has the true cause, and the traceback of the code's position.
        return [_error(name, event.message or f"The cell ended: {event.reason}.", self._traceback), end]


def _error(name: str, value: str, traceback: str) -> Line:
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def first(session: str, cell: str) -> Line:
    """Return the line that names the cell."""
    return {"type": "cell", "session": session, "id": cell}


def encode(line: Line) -> bytes:
    """Encode a line for the response's body."""
    return msgspec.json.encode(line) + b"\n"
