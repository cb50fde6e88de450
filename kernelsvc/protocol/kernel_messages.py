"""Messages of a kernel: requests to it as values, and the conversion of its messages into events. Input is untrusted.

A kernel's JSON is well formed when it arrives here, but any field may be
missing or have any type. Fields that do not conform to the protocol are coerced
or dropped. Nothing raises. Source: the Jupyter messaging protocol 5.4.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model import limit_causes
from kernelsvc.model.events import Event
from kernelsvc.model.objects import MAX_EXPRESSIONS
from kernelsvc.model.stimuli import KernelReplied

#: Most lines of a logged traceback. Deep recursion makes thousands.
MAX_TRACEBACK_LINES = 500
#: Most bytes of JSON for the results of all expressions of a cell.
MAX_EXPRESSION_BYTES = 256 * 1024
#: Most payloads of a reply that are shown, and most characters of each.
MAX_PAYLOADS, MAX_PAYLOAD_LENGTH = 32, 4 << 20
#: Key of a display's metadata that says which payload it was (Jupyter messaging, "Payloads").
PAYLOAD = "payload"
#: Most lines of a traceback for language models, and most characters of all of them.
MAX_MODEL_LINES, MAX_MODEL_CHARACTERS = 200, 64 * 1024
#: Most descriptions of changes of one kind, and most characters of one.
MAX_CHANGES, MAX_CHANGE_CHARACTERS = 64, 400
_CHANGES = ("new", "changed", "gone", "files")
_encode = msgspec.json.Encoder().encode

#: The channels of Jupyter's messaging protocol that requests go by.
RequestChannel = Literal["shell", "control", "stdin", "tools"]
Content = Mapping[str, Any]
#: Key of a cell's metadata for what the Jupyter API keeps of the client's request: header, metadata.
KEPT = "jupyter"


class ExecuteRequest(msgspec.Struct, frozen=True):
    """One cell for the kernel: Jupyter's ``execute_request``.

    Attributes:
        msg_id: the cell's id.
        metadata: of the client's own ``execute_request``, for example JupyterLab's ``cellId``.
        changes: whether a forked kernel reports the changes of variables and files, and short tracebacks only.
        environ: environment variables that a forked kernel has only while it runs the cell.
    """

    msg_id: str
    code: str
    silent: bool = False
    allow_stdin: bool = False
    store_history: bool = True
    user_expressions: Mapping[str, str] = {}
    metadata: dict[str, Any] = {}
    changes: bool = False
    environ: Mapping[str, str] | None = None

    def content(self, *, stop_on_error: bool) -> dict[str, Any]:
        """Return the message's content.

        Args:
            stop_on_error: whether the kernel aborts requests that it has received behind a cell that fails.
        """
        return {
            "code": self.code,
            "silent": self.silent,
            "store_history": self.store_history,
            "user_expressions": dict(self.user_expressions),
            "allow_stdin": self.allow_stdin,
            "stop_on_error": stop_on_error,
        }


def request_metadata(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the client's ``execute_request``, which the Jupyter API keeps in its cell's metadata."""
    kept = cell.get(KEPT)
    found = kept.get("metadata") if isinstance(kept, dict) else None
    return found if isinstance(found, dict) else {}


class KernelRequest(msgspec.Struct, frozen=True):
    """Any other message for the kernel.

    Attributes:
        msg_id: replies name it as their parent.
        buffers: binary parts, which follow the JSON.
        session: the client's session id, for code in the kernel that reads the header of its request.
    """

    msg_type: str
    content: dict[str, Any]
    msg_id: str
    channel: RequestChannel = "shell"
    metadata: dict[str, Any] | None = None
    buffers: Sequence[bytes] = ()
    session: str = ""


def text(value: object, limit: int = 1 << 20) -> str:
    """Return ``value`` as text of at most ``limit`` characters."""
    if value is None:
        return ""
    return value[:limit] if isinstance(value, str) else str(value)[:limit]


def number(value: object) -> int | None:
    """Return ``value`` if it is an integer from 0 to 2**53, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None


def figure(value: object) -> float | None:
    """Return ``value`` if it is a finite number of 0 or more, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(cast("float", value)) if good else None


def mapping(value: object) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def lines(value: object) -> list[str]:
    """Return a traceback as a list of strings. A long one is cut in the middle."""
    if not value:
        return []
    found = [text(v) for v in value] if isinstance(value, list) else []
    if len(found) > MAX_TRACEBACK_LINES:
        half = MAX_TRACEBACK_LINES // 2
        found = [*found[:half], f"... {len(found) - 2 * half} lines ...", *found[-half:]]
    return found


def model_lines(value: object) -> tuple[str, ...]:
    """Return a traceback in the form for language models, limited in lines and characters. Other values give none."""
    if not isinstance(value, list):
        return ()
    room, found = MAX_MODEL_CHARACTERS, []
    for line in value[:MAX_MODEL_LINES]:
        if not isinstance(line, str) or room <= 0:
            break
        found.append(line[:room])
        room -= len(line)
    return tuple(found)


def changes(value: object) -> dict[str, list[str]] | None:
    """Return a cell's changes of variables and files, limited in number and length. None if the kernel sent none."""
    if not isinstance(value, dict):
        return None
    kinds = {kind: value[kind] for kind in _CHANGES if isinstance(value.get(kind), list)}
    return {
        kind: [text(each, MAX_CHANGE_CHARACTERS) for each in found[:MAX_CHANGES] if isinstance(each, str)]
        for kind, found in kinds.items()
    }


def bundle(value: object) -> dict[str, Any]:
    """Return a MIME bundle. Lists of strings (nbformat's multiline form) are joined."""
    out = {}
    for key, item in mapping(value).items():
        if isinstance(item, list) and not key.endswith("json") and all(isinstance(v, str) for v in item):
            item = "".join(item)
        out[key] = item
    return out


def _stream(content: Content) -> Event | None:
    name: Literal["stdout", "stderr"] = "stderr" if content.get("name") == "stderr" else "stdout"
    said = content.get("text")
    return ev.Stream(name=name, text=said) if isinstance(said, str) and said else None


def _display_id(content: Content) -> str | None:
    shown = mapping(content.get("transient")).get("display_id")
    return text(shown, 256) if shown is not None else None


def _display(content: Content) -> Event:
    return ev.Display(
        data=bundle(content.get("data")),
        metadata=mapping(content.get("metadata")),
        display_id=_display_id(content),
    )


def _display_update(content: Content) -> Event:
    return ev.DisplayUpdated(
        data=bundle(content.get("data")),
        metadata=mapping(content.get("metadata")),
        display_id=_display_id(content),
    )


def _result(content: Content) -> Event:
    return ev.Result(
        data=bundle(content.get("data")),
        metadata=mapping(content.get("metadata")),
        execution_count=number(content.get("execution_count")),
        display_id=_display_id(content),
    )


def _failure(content: Content) -> dict[str, Any]:
    return {
        "ename": text(content.get("ename"), 1024),
        "evalue": text(content.get("evalue")),
        "traceback": tuple(lines(content.get("traceback"))),
        "model": model_lines(content.get("model")),
    }


def _error(content: Content) -> Event:
    fields = _failure(content)
    return ev.Error(**{**fields, "traceback": [*fields["traceback"]], "model": [*fields["model"]] or None})


def _clear(content: Content) -> Event:
    return ev.OutputCleared(wait=content.get("wait") is True)


def _input(content: Content) -> Event:
    return ev.InputRequested(prompt=text(content.get("prompt"), 65536), password=content.get("password") is True)


_EVENTS: dict[str, Callable[[Content], Event | None]] = {
    "stream": _stream,
    "display_data": _display,
    "update_display_data": _display_update,
    "execute_result": _result,
    "error": _error,
    "clear_output": _clear,
    "input_request": _input,
}


def event_of(
    msg_type: str, content: Content, metadata: Content | None = None, buffers: Sequence[bytes] = ()
) -> Event | None:
    """Convert a message into an event without envelope. None if the message is not an event."""
    if msg_type in ("comm_open", "comm_msg", "comm_close"):
        return ev.Comm(
            msg_type=cast("Any", msg_type),
            content=dict(content),
            metadata=dict(metadata or {}),
            buffers=[base64.b64encode(b).decode() for b in buffers],
        )
    if msg_type == "debug_event":
        return ev.DebugEvent(content=dict(content))
    make = _EVENTS.get(msg_type)
    return make(content) if make else None


def is_idle(msg_type: str, content: Content) -> bool:
    """Return whether a message reports that its request is done."""
    return msg_type == "status" and content.get("execution_state") == "idle"


def expressions(value: object) -> dict[str, Any]:
    """Return the results of ``user_expressions``, limited in number and in total size."""
    if not value:
        return {}
    room, found = MAX_EXPRESSION_BYTES, {}
    for name, outcome in itertools.islice(mapping(value).items(), MAX_EXPRESSIONS):
        size = len(_encode(outcome))
        if isinstance(outcome, dict) and size <= room:
            room -= size
            found[name] = outcome
        else:
            why = f"{size} bytes; all expressions of a cell may give {MAX_EXPRESSION_BYTES} together"
            found[name] = {"status": "error", "ename": "TooLarge", "evalue": why, "traceback": []}
    return found


def shown_payloads(value: object) -> list[Event]:
    """Return the payloads of a reply that are meant to be read, as displays.

    ``page`` is text for a pager (``name?``, ``%prun``), ``set_next_input`` is code for the next cell (``%load``). Most
    clients have neither pager nor cell. ``payload_of`` reverts this for those that do.
    """
    events: list[Event] = []
    for item in itertools.islice(value if isinstance(value, list) else (), MAX_PAYLOADS):
        fields = mapping(item)
        kind = fields.get("source")
        if kind == "page":
            data, about = bundle(fields.get("data")), {"source": kind, "start": number(fields.get("start")) or 0}
        elif kind == "set_next_input":
            data = {"text/plain": text(fields.get("text"), MAX_PAYLOAD_LENGTH)}
            about = {"source": kind, "replace": fields.get("replace") is True}
        else:
            continue
        data = {mime: part for mime, part in data.items() if len(str(part)) <= MAX_PAYLOAD_LENGTH}
        if any(data.values()):
            events.append(ev.Display(data=data, metadata={"kernelsvc": {PAYLOAD: about}}))
    return events


def payload_of(shown: ev.Display) -> dict[str, Any] | None:
    """Return the payload that a display was made from, or None."""
    about = mapping(mapping(shown.metadata.get("kernelsvc")).get(PAYLOAD))
    match about.get("source"):
        case "page":
            return {"source": "page", "data": shown.data, "start": number(about.get("start")) or 0}
        case "set_next_input":
            return {
                "source": "set_next_input",
                "text": text(shown.data.get("text/plain"), MAX_PAYLOAD_LENGTH),
                "replace": about.get("replace") is True,
            }
        case _:
            return None


def reply_of(cell: str, content: Content, metadata: Content, frame: int | None) -> KernelReplied:
    """Convert an ``execute_reply`` into a stimulus. Usage is the kernel's claim and only displayed."""
    usage = mapping(metadata.get("kernelsvc"))
    status = content.get("status")
    strike = mapping(usage.get("struck")) if "struck" in usage else {}
    return KernelReplied(
        cell,
        status=status if status in ("ok", "error") else "aborted",
        execution_count=number(content.get("execution_count")),
        cpu_ms=figure(usage.get("cpu_ms")),
        peak_rss_bytes=number(usage.get("peak_rss_bytes")),
        frame=frame,
        expressions=expressions(content.get("user_expressions")),
        changes=changes(usage.get("changes")),
        struck=strike["limit"] if strike.get("limit") in limit_causes.GUEST_LIMITS else "",
        room=number(strike.get("bytes")),
        outputs=_payloads_in(cell, content) if content.get("payload") else (),
        **(_failure(content) if status == "error" else {}),
    )


def _payloads_in(cell: str, content: Content) -> tuple[Event, ...]:
    events = shown_payloads(content.get("payload"))
    for event in events:
        event.cell = cell
    return tuple(events)
