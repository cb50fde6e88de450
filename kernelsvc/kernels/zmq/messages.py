"""Jupyter messages as ZMQ parts: reading, writing and putting in order. Pure.

Everything that is read here was written by a hostile kernel. What is forged,
oversized, truncated or not JSON raises ``InvalidMessage`` and ends the kernel. What an
honest kernel may send though a strict reader refuses it (NaN, lone surrogates,
integers beyond 64 bits: all from values that a user printed) is mended instead.

Two sockets have no order between them, so a reply can overtake the outputs that
were sent before it. ``ReplyOrdering`` holds the reply to an ``execute_request`` until
the idle status of the same request has come, and idle until the reply has come.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.protocol.jupyter import check_json

Channel = Literal["shell", "control", "iopub", "stdin"]

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.4"
#: Parts of one message, buffers included. ipywidgets sends a handful.
MAX_PARTS = 512
#: Routing parts before the delimiter; a PUB socket has one topic.
MAX_ROUTING = 8
#: Longest identifier or message type.
MAX_NAME = 512
#: Characters of output that are joined into one ``StreamText``.
MAX_JOINED = 256 * 1024
#: Requests whose reply is put in order at the same time; the server sends one cell at a time.
MAX_TRACKED = 256

_OBJECT = msgspec.json.Decoder(dict)
_INT_LOW, _INT_HIGH = -(1 << 63), (1 << 64) - 1


class InvalidMessage(Exception):
    """The kernel broke the protocol; the text says how."""


class HmacKey:
    """The key that both sides of a connection sign with."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        """Raises ``ValueError`` for a scheme that is not ``hmac-<hash>``."""
        if not scheme.startswith("hmac-"):
            raise ValueError(f"unknown signature scheme {scheme!r}")
        self._mac = hmac.new(key, digestmod=scheme.removeprefix("hmac-"))

    def sign(self, parts: Iterable[bytes]) -> bytes:
        """The signature of header, parent, metadata and content."""
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()


# --- writing ---------------------------------------------------------------------------


def encode(
    key: HmacKey,
    session: str,
    msg_type: str,
    content: dict[str, Any],
    *,
    msg_id: str,
    parent: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    buffers: Sequence[bytes] = (),
) -> list[bytes]:
    """A message as parts, ready to send; ``parent`` is the header of what it answers."""
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "username": "kernelsvc",
        "session": session,
        "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "version": PROTOCOL_VERSION,
    }
    body = [_dump(header), _dump(parent or {}), _dump(metadata or {}), _dump(content)]
    return [DELIMITER, key.sign(body), *body, *buffers]


def _dump(value: dict[str, Any]) -> bytes:
    # ASCII, so that a lone surrogate in a cell's code travels as an escape instead of failing here.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


# --- reading ---------------------------------------------------------------------------


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it was signed. ``routing`` is who sent it, to whom a ROUTER socket answers."""

    routing: list[bytes]
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...]


def unpack(parts: Sequence[bytes], key: HmacKey) -> Packet:
    """Check a message's parts and read its JSON.

    Raises:
        Garbled: forged, truncated, too many parts, beyond the bounds, or not the JSON it should be.
    """
    if len(parts) > MAX_PARTS:
        raise InvalidMessage(f"a message of more than {MAX_PARTS} parts")
    try:
        start = parts.index(DELIMITER, 0, MAX_ROUTING + 1) + 1
    except ValueError:
        raise InvalidMessage("a message without its delimiter") from None
    if len(parts) < start + 5:
        raise InvalidMessage("a truncated message")
    body = parts[start + 1 : start + 5]
    if not hmac.compare_digest(key.sign(body), parts[start]):
        raise InvalidMessage("a message with a false signature")
    header, parent, metadata, content = (_object(part) for part in body)
    return Packet(
        routing=list(parts[: start - 1]),
        header=header,
        parent=parent,
        metadata=metadata,
        content=content,
        buffers=tuple(parts[start + 5 :]),
    )


def decode(channel: Channel, parts: Sequence[bytes], key: HmacKey) -> KernelMessage:
    """One message from a kernel.

    Raises:
        Garbled: see ``unpack``; or its ids and type are not short texts.
    """
    packet = unpack(parts, key)
    return KernelMessage(
        channel=channel,
        msg_type=_name(packet.header.get("msg_type"), "msg_type"),
        msg_id=_name(packet.header.get("msg_id"), "msg_id"),
        parent=_name(packet.parent.get("msg_id", ""), "parent's msg_id"),
        content=packet.content,
        metadata=packet.metadata,
        buffers=packet.buffers,
    )


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise InvalidMessage(f"a message whose {what} is not a short text")
    return value


def _object(raw: bytes) -> dict[str, Any]:
    try:
        check_json(raw)
    except BadRequest as error:
        raise InvalidMessage(f"a message beyond the bounds: {error.message}") from None
    try:
        return cast("dict[str, Any]", _OBJECT.decode(raw))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _mended_object(raw)


def _mended_object(raw: bytes) -> dict[str, Any]:
    """The slow way, for what the strict reader refuses; ``null`` counts as empty."""
    try:
        value = json.loads(raw.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise InvalidMessage("a message that is not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidMessage("a message whose part is not a JSON object")
    return cast("dict[str, Any]", _mend(value))


def _mend(value: object) -> object:
    match value:
        case str():
            return value if value.isascii() else _without_surrogates(value)
        case dict():
            return {_without_surrogates(k): _mend(v) for k, v in value.items()}
        case list():
            return [_mend(v) for v in value]
        case bool():
            return value
        case int():
            return value if _INT_LOW <= value <= _INT_HIGH else _finite(value)
        case float():
            return _finite(value)
        case _:
            return value


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- order -----------------------------------------------------------------------------


class ReplyOrdering:
    """Puts what the sockets brought into the order in which the kernel meant it."""

    def __init__(self) -> None:
        self._open: dict[str, list[KernelMessage | None]] = {}

    @property
    def open(self) -> list[str]:
        """Ids of execute requests that have not ended, oldest first."""
        return list(self._open)

    def sent(self, msg_id: str) -> None:
        """An ``execute_request`` was sent."""
        if len(self._open) < MAX_TRACKED:
            self._open[msg_id] = [None, None]

    def arrange(self, messages: Iterable[KernelMessage]) -> list[Output]:
        """What may be delivered now."""
        out: list[Output] = []
        for message in messages:
            slot = _slot(message)
            waiting = self._open.get(message.parent) if slot is not None else None
            if waiting is None or slot is None or waiting[slot] is not None:
                out.append(_output(message))
                continue
            waiting[slot] = message
            if None not in waiting:
                out += cast("list[KernelMessage]", self._open.pop(message.parent))
        return out

    def answered(self, msg_id: str) -> bool:
        """Whether the reply is here and only idle is missing."""
        waiting = self._open.get(msg_id)
        return waiting is not None and waiting[0] is not None

    def close(self, msg_id: str) -> list[KernelMessage]:
        """Stop waiting for this request and give what there is of its end."""
        return [m for m in self._open.pop(msg_id, []) if m is not None]

    def flush(self) -> list[Output]:
        """What was held; the kernel is gone and nothing else comes."""
        return [m for msg_id in list(self._open) for m in self.close(msg_id)]


def _slot(message: KernelMessage) -> int | None:
    """0 for the end of a request on shell, 1 for its end on iopub, None for all else."""
    if message.channel == "shell" and message.msg_type == "execute_reply":
        return 0
    idle = message.msg_type == "status" and message.content.get("execution_state") == "idle"
    return 1 if idle and message.channel == "iopub" else None


def _output(message: KernelMessage) -> Output:
    """A stream message as ``StreamText``, so that the session sees one shape whatever kernel it has."""
    content = message.content
    name, text = content.get("name"), content.get("text")
    is_text = message.msg_type == "stream" and message.channel == "iopub" and isinstance(text, str)
    if not is_text or name not in ("stdout", "stderr"):
        return message
    return StreamText(name=name, text=cast("str", text), parent=message.parent)


def joined(batch: Iterable[Output]) -> list[Output]:
    """The same output with neighbouring texts of one stream and one cell made one."""
    out: list[Output] = []
    run: list[StreamText] = []
    size = 0
    for item in batch:
        goes_on = run and isinstance(item, StreamText) and (item.name, item.parent) == (run[0].name, run[0].parent)
        if not goes_on or size >= MAX_JOINED:
            out += _one(run)
            run, size = [], 0
        if isinstance(item, StreamText):
            run.append(item)
            size += len(item.text)
        else:
            out.append(item)
    return out + _one(run)


def _one(run: list[StreamText]) -> list[Output]:
    if len(run) <= 1:
        return list(run)
    return [StreamText(name=run[0].name, text="".join(t.text for t in run), parent=run[0].parent)]
