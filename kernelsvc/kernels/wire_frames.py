"""Frames from a kernel, checked and turned into what a session understands. Pure.

Every byte was written by what the user ran. Whatever the wire's description does
not allow ends in ``Violation``; the adapter then ends the kernel.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.kernels.port import Message, Output, Text
from kernelsvc.protocol import jupyter

VERSION = 1
HELLO, MESSAGE, ACK, CONTROL, STREAM, REPLY = range(1, 7)
HEADER = struct.Struct("<IBQ")
#: Longest text of one STREAM frame, and the longest id before it.
MAX_TEXT = 256 * 1024
MAX_STREAM = 3 + 0xFFFF + MAX_TEXT
#: Longest REPLY or WELCOME.
MAX_ANSWER = 1024 * 1024
MAX_ID = 1024

_LIMITS = {STREAM: MAX_STREAM, REPLY: MAX_ANSWER}
_unpack = HEADER.unpack_from
_SIZE = HEADER.size
_PREFIX = struct.Struct("<BH")


class Violation(Exception):
    """The kernel sent what it may not send."""


class Reply(msgspec.Struct, frozen=True):
    """The answer to a CONTROL request."""

    request: int
    body: dict[str, Any]


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


class Welcome(msgspec.Struct):
    """What a kernel says of itself. Nothing in it is trusted."""

    version: int
    kernel: str = ""
    session: str = ""
    pid: int = 0
    python: str = ""
    ipykernel: str = ""
    execution_count: int = 0
    workdir: str = ""
    seen: list[str] = []
    cell: str = ""
    busy: str | None = None


_header = msgspec.json.Decoder(_Header).decode
_welcome = msgspec.json.Decoder(Welcome).decode


class Parser:
    """Bytes in, outputs and replies out.

    Attributes:
        last: number of the last whole frame; the next must be one more.
    """

    def __init__(self, *, last: int = 0, max_frame: int = jupyter.MAX_BYTES) -> None:
        self.last = last
        self.max_frame = max_frame
        self.replies: list[Reply] = []
        self._data = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._data)

    def reset(self) -> None:
        """Another connection begins: half a frame of the old one is void."""
        self._data.clear()

    def feed(self, chunk: bytes) -> list[Output]:
        """What the bytes read so far make whole. Text frames of one kind in a row become one ``Text``.

        Raises:
            Violation: a frame that may not be. What came before it in this chunk is lost with it.
        """
        data = self._data
        data += chunk
        found: list[Output] = []
        pieces: list[bytearray] = []
        prefix = b""
        at, size, number = 0, len(data), self.last
        while size - at >= _SIZE:
            length, kind, numbered = _unpack(data, at)
            start = at + _SIZE
            end = start + length
            if end > size:
                self._check_length(kind, length)
                break
            if numbered != number + 1:
                raise Violation(f"frame {numbered} came after frame {number}")
            if kind == STREAM:
                text_at = start + 3 + int.from_bytes(data[start + 1 : start + 3], "little")
                if length > MAX_STREAM or text_at > end:
                    raise Violation(f"a text frame of {length} bytes")
                if data[start:text_at] != prefix:
                    if pieces:
                        found.append(_text(prefix, pieces, number))
                        pieces = []
                    prefix = bytes(data[start:text_at])
                pieces.append(data[text_at:end])
            else:
                if pieces:
                    found.append(_text(prefix, pieces, number))
                    pieces, prefix = [], b""
                self._check_length(kind, length)
                self._other(kind, numbered, _cut(data, start, end), found)
            number = numbered
            at = end
        if pieces:
            found.append(_text(prefix, pieces, number))
        del data[:at]
        self.last = number
        return found

    def _check_length(self, kind: int, length: int) -> None:
        limit = self.max_frame if kind == MESSAGE else _LIMITS.get(kind)
        if limit is None:
            raise Violation(f"a frame of kind {kind}")
        if length > limit:
            raise Violation(f"a frame of {length} bytes where {limit} are allowed")

    def _other(self, kind: int, number: int, payload: bytes, found: list[Output]) -> None:
        try:
            if kind == MESSAGE:
                found.append(message(payload, number))
            else:
                self.replies.append(_reply(payload))
        except BadRequest as error:
            raise Violation(error.message) from None


def _cut(data: bytearray, start: int, end: int) -> bytes:
    """A part as bytes, copied once."""
    with memoryview(data) as view:
        return bytes(view[start:end])


def _text(prefix: bytes, pieces: list[bytearray], number: int) -> Text:
    name: Literal["stdout", "stderr"] = "stderr" if prefix[0] == 2 else "stdout"
    text = b"".join(pieces).decode("utf-8", "replace")
    return Text(name=name, text=text, parent=prefix[3:].decode("utf-8", "replace")[:MAX_ID], frame=number)


def joined(one: list[Output], two: list[Output]) -> list[Output]:
    """Two batches as one; text that goes on over the seam is one text."""
    if not one or not two:
        return one + two
    last, first = one[-1], two[0]
    if isinstance(last, Text) and isinstance(first, Text) and (last.name, last.parent) == (first.name, first.parent):
        return [*one[:-1], msgspec.structs.replace(first, text=last.text + first.text), *two[1:]]
    return one + two


def message(payload: bytes, number: int | None) -> Message:
    """A MESSAGE frame's payload.

    Raises:
        BadRequest: it is not a Jupyter message within the bounds.
    """
    channel, parts = jupyter.split_v1(payload)
    try:
        header, parent = _header(parts[0]), _header(parts[1])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"a header that can't be read: {error}") from None
    metadata, content = jupyter.parse_json(parts[2]), jupyter.parse_json(parts[3])
    if not isinstance(metadata, dict) or not isinstance(content, dict):
        raise BadRequest("a message whose content is not a JSON object")
    if max(len(header.msg_id), len(header.msg_type), len(parent.msg_id)) > MAX_ID:
        raise BadRequest(f"an id longer than {MAX_ID}")
    return Message(
        channel=channel,
        msg_type=header.msg_type,
        parent=parent.msg_id,
        content=content,
        metadata=metadata,
        buffers=tuple(parts[4:]),
        msg_id=header.msg_id,
        frame=number,
    )


def _reply(payload: bytes) -> Reply:
    body = jupyter.parse_json(payload)
    if not isinstance(body, dict) or not isinstance(body.get("request"), int):
        raise BadRequest("a reply that names no request")
    return Reply(body.pop("request"), body)


def welcome(data: bytearray) -> tuple[Welcome, int] | None:
    """Take WELCOME and the number of the first frame that follows from the front of ``data``; None if not whole yet.

    Raises:
        Violation: it is something else.
    """
    if len(data) < _SIZE:
        return None
    length, kind, number = _unpack(data)
    if kind != HELLO or length > MAX_ANSWER or not 0 < number < 1 << 63:
        raise Violation("the first frame is not WELCOME")
    if len(data) < _SIZE + length:
        return None
    payload = bytes(data[_SIZE : _SIZE + length])
    del data[: _SIZE + length]
    try:
        said = _welcome(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Violation(f"a WELCOME that can't be read: {error}") from None
    if said.version != VERSION:
        raise Violation(f"version {said.version} of the wire; this server speaks {VERSION}")
    return said, number
