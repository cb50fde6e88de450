"""Jupyter messages as ZMQ parts: decoding, encoding and ordering. Pure.

A hostile kernel may have written every message. A forged, oversized or truncated message, or one that is not JSON,
raises ``InvalidMessage`` and ends the kernel. Values that an honest kernel may send and a strict parser refuses (NaN,
lone surrogates, integers beyond 64 bits, all from values that a user printed) are repaired.

Two sockets have no order between them, so a reply can overtake outputs that were sent before it. ``ReplyOrdering``
holds the reply to an ``execute_request`` until the idle status of the same request has come, and the idle status
until the reply has come.
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
#: Maximum parts of one message, buffers included. ipywidgets sends about five.
MAX_PARTS = 512
#: Maximum routing parts before the delimiter. A PUB socket sends one topic.
MAX_ROUTING = 8
#: Maximum characters of an identifier or message type.
MAX_NAME = 512
#: Maximum characters that are merged into one ``StreamText``.
MAX_JOINED = 256 * 1024
#: Maximum requests whose replies are ordered at the same time. The server sends one cell at a time.
MAX_TRACKED = 256

_OBJECT = msgspec.json.Decoder(dict)
_INT_LOW, _INT_HIGH = -(1 << 63), (1 << 64) - 1


class InvalidMessage(Exception):
    """The kernel broke the protocol. The text says how."""


class HmacKey:
    """The key with which both sides sign messages."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        """Raises ``ValueError`` for a scheme other than ``hmac-<hash>``."""
        if not scheme.startswith("hmac-"):
            raise ValueError(f"unknown signature scheme {scheme!r}")
        self._mac = hmac.new(key, digestmod=scheme.removeprefix("hmac-"))

    def sign(self, parts: Iterable[bytes]) -> bytes:
        """Return the signature of header, parent header, metadata and content."""
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
    """Return a message as parts.

    Args:
        key: signs the message.
        session: the sender's session id.
        msg_type: type of the message.
        content: its content.
        msg_id: its id.
        parent: header of the request that it answers.
        metadata: its metadata.
        buffers: its binary buffers.
    """
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
    # ASCII, so that a lone surrogate in a cell's code becomes an escape instead of an error.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


# --- reading ---------------------------------------------------------------------------


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """A signed message.

    Attributes:
        routing: routing parts of the sender, with which a ROUTER socket answers.
        header: its header.
        parent: header of its request.
        metadata: its metadata.
        content: its content.
        buffers: its binary buffers.
    """

    routing: list[bytes]
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...]


def unpack(parts: Sequence[bytes], key: HmacKey) -> Packet:
    """Verify a message's signature and parse its JSON.

    Raises:
        InvalidMessage: it is forged, truncated, above the limits, or not JSON objects.
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
    """Return one message from a kernel.

    Raises:
        InvalidMessage: see ``unpack``, or its ids and type are no short texts.
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


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise InvalidMessage(f"a message whose {field} is not a short text")
    return value


def _object(raw: bytes) -> dict[str, Any]:
    try:
        check_json(raw)
    except BadRequest as error:
        raise InvalidMessage(f"a message above the limits: {error.message}") from None
    try:
        return cast("dict[str, Any]", _OBJECT.decode(raw))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _repaired_object(raw)


def _repaired_object(raw: bytes) -> dict[str, Any]:
    """Parse JSON that the strict parser refuses, slowly. ``null`` counts as an empty object."""
    try:
        value = json.loads(raw.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise InvalidMessage("a message that is not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidMessage("a message whose part is not a JSON object")
    return cast("dict[str, Any]", _repair(value))


def _repair(value: object) -> object:
    match value:
        case str():
            return value if value.isascii() else _without_surrogates(value)
        case dict():
            return {_without_surrogates(k): _repair(v) for k, v in value.items()}
        case list():
            return [_repair(v) for v in value]
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
    """Restores the order in which the kernel sent replies and outputs on different sockets."""

    def __init__(self) -> None:
        self._open: dict[str, list[KernelMessage | None]] = {}

    @property
    def open(self) -> list[str]:
        """Ids of execute requests that have not ended, oldest first."""
        return list(self._open)

    def track(self, msg_id: str) -> None:
        """Note that an ``execute_request`` was sent."""
        if len(self._open) < MAX_TRACKED:
            self._open[msg_id] = [None, None]

    def arrange(self, messages: Iterable[KernelMessage]) -> list[Output]:
        """Return the outputs that can be delivered now."""
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
        """Return whether the reply has come and only the idle status is missing."""
        waiting = self._open.get(msg_id)
        return waiting is not None and waiting[0] is not None

    def close(self, msg_id: str) -> list[KernelMessage]:
        """Stop waiting for a request. Return its reply or its idle status, whichever has come."""
        return [m for m in self._open.pop(msg_id, []) if m is not None]

    def flush(self) -> list[Output]:
        """Return every held message, when the kernel has ended."""
        return [m for msg_id in list(self._open) for m in self.close(msg_id)]


def _slot(message: KernelMessage) -> int | None:
    """Return 0 for the end of a request on shell, 1 for its end on iopub, else None."""
    if message.channel == "shell" and message.msg_type == "execute_reply":
        return 0
    idle = message.msg_type == "status" and message.content.get("execution_state") == "idle"
    return 1 if idle and message.channel == "iopub" else None


def _output(message: KernelMessage) -> Output:
    """Return a stream message as ``StreamText``, the form that forked kernels send."""
    content = message.content
    name, text = content.get("name"), content.get("text")
    is_text = message.msg_type == "stream" and message.channel == "iopub" and isinstance(text, str)
    if not is_text or name not in ("stdout", "stderr"):
        return message
    return StreamText(name=name, text=cast("str", text), parent=message.parent)


def merge_texts(batch: Iterable[Output]) -> list[Output]:
    """Return the output with consecutive texts of one stream and one cell merged."""
    out: list[Output] = []
    run: list[StreamText] = []
    size = 0
    for item in batch:
        continues = run and isinstance(item, StreamText) and (item.name, item.parent) == (run[0].name, run[0].parent)
        if not continues or size >= MAX_JOINED:
            out += _merged(run)
            run, size = [], 0
        if isinstance(item, StreamText):
            run.append(item)
            size += len(item.text)
        else:
            out.append(item)
    return out + _merged(run)


def _merged(run: list[StreamText]) -> list[Output]:
    if len(run) <= 1:
        return list(run)
    return [StreamText(name=run[0].name, text="".join(t.text for t in run), parent=run[0].parent)]
