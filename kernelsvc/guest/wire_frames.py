"""Frames of the kernel wire as values: encoding, decoding, and the outbox of unacknowledged frames. No sockets.

``docs/reference/wire.md`` specifies the format.

The outbox stores every frame that the server has not acknowledged in blocks of bytes: a printed line costs its 50 bytes
and no object. CPython may run a signal handler between any two bytecodes, and a handler that raises (a user's alarm)
must not leave half a frame. So bytes past a block's ``end`` don't count, and the next ``put`` cuts them off.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

VERSION = 1
HELLO, MESSAGE, ACK, CONTROL, STREAM, REPLY = range(1, 7)
#: Bit of the first byte of a STREAM frame: it has bytes of a pipe, which the server decodes.
RAW = 4

HEADER = struct.Struct("<IBQ")
#: Largest payload in either direction, in bytes.
MAX_FRAME = 64 * 1024 * 1024
#: Most unacknowledged bytes that are stored. Past that, the writer blocks.
MAX_UNACKED = 8 * 1024 * 1024
#: Longest text of one STREAM frame, in bytes.
MAX_TEXT = 256 * 1024
#: Size of a block of frames, in bytes, before the next one begins. Blocks are freed as a whole.
RUN_BYTES = 64 * 1024

#: Limits of the JSON in a message.
MAX_DEPTH = 100
MAX_VALUES = 2_000_000
MAX_CONTAINERS, MAX_STRINGS = 250_000, 300_000

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
_pack = HEADER.pack
_HEADER_SIZE = HEADER.size


class WireError(Exception):
    """The server sent data that the wire's specification does not allow."""


class _Run:
    """Consecutive frames ``first`` to ``last`` in one block of memory, of which ``end`` bytes are valid."""

    __slots__ = ("data", "end", "first", "last", "next")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.data = bytearray()
        self.end = 0
        self.next: _Run | None = None

    def offset_after(self, number: int) -> int:
        """Return the offset of the frame after ``number``."""
        at = 0
        while at < self.end:
            length, _, found = HEADER.unpack_from(self.data, at)
            if found > number:
                break
            at += _HEADER_SIZE + length
        return at


class Outbox:
    """Numbered frames from the first unacknowledged one to the last, and how many bytes of them are sent.

    Attributes:
        last: Number of the newest frame, 0 before the first.
        total: Bytes that were ever put.
        clear: Whether the socket has taken all frames.
    """

    def __init__(self, limit: int = MAX_UNACKED) -> None:
        self.limit = limit
        self.last = 0
        self.total = 0
        self.clear = True
        self._freed = 0  # Bytes that were ever freed.
        self._head = self._tail = self._sending = _Run(1)
        self._offset = 0  # Unless clear: bytes of the block ``_sending`` that the socket has taken.

    @property
    def size(self) -> int:
        """Bytes stored."""
        return self.total - self._freed

    @property
    def first(self) -> int:
        """Number of the oldest stored frame, or ``last + 1`` if there is none."""
        return self._head.first

    def has_room(self, length: int) -> bool:
        """Whether a frame with this payload may be put. An empty outbox takes a frame above the limit."""
        return self.size + length + _HEADER_SIZE <= self.limit or not self.size

    def put(self, kind: int, payload: bytes, send: Callable[[bytes], int] | None = None) -> bool:
        """Add a frame. Call ``has_room`` first.

        A signal handler may raise in this method, which then adds nothing, or put frames of its own.

        Args:
            kind: The frame's kind.
            payload: Its content.
            send: A C function that gives bytes to the socket. It is called if the socket has taken all other frames.

        Returns:
            False if ``send`` failed. How much the socket took is not known then.
        """
        number = self.last + 1
        frame = _pack(len(payload), kind, number) + payload
        run = self._tail
        if run.end + len(frame) > RUN_BYTES and run.end:
            run = self._grow()
        try:
            data = run.data
            if len(data) > run.end:
                del data[run.end :]
            data += frame
        except BufferError:  # A traceback still holds a view of it.
            run = self._grow()
            data = run.data
            data += frame
        end, size, sent = len(data), len(frame), map(send, (frame,)) if send else None
        # No call from here on, not even of ``send``: CPython runs signal handlers at calls and backward jumps only.
        if self.last >= number:  # A signal handler has put frames meanwhile.
            return self.put(kind, payload, send)
        first = self.clear
        if first:
            self._sending, self._offset, self.clear = run, end - size, False
        run.last = self.last = number
        run.end = end
        self.total += size
        if first and sent is not None:
            try:
                (taken,) = sent
                self._offset += taken
                self.clear = taken == size
            except BlockingIOError:
                pass
            except (OSError, MemoryError):
                return False
        return True

    def _grow(self) -> _Run:
        run = _Run(self.last + 1)
        self._tail.next = run
        self._tail = run
        return run

    def ack(self, number: int) -> None:
        """Free the blocks whose frames are all acknowledged: the server has every frame up to ``number``."""
        while self._head.end and self._head.last <= number:
            following = self._head.next or self._grow()
            self._freed, self._head = self._freed + self._head.end, following

    def rewind(self, number: int) -> int:
        """Send again from the frame after ``number``. Return the number of the first frame to be sent."""
        self.ack(number)
        offset = self._head.offset_after(number)
        self._sending, self._offset, self.clear = self._head, offset, False
        return min(max(number + 1, self._head.first), self.last + 1)

    def unsent(self) -> memoryview | None:
        """Return the next bytes to send. Return None and set ``clear`` if all are sent.

        Release the view before ``put``.
        """
        if self.clear:
            return None
        while self._offset >= self._sending.end:
            following = self._sending.next
            if following is None:
                self.clear = True
                return None
            self._sending, self._offset = following, 0
        return memoryview(self._sending.data)[self._offset : self._sending.end]

    def mark_sent(self, count: int) -> None:
        """Record that the socket took ``count`` bytes of the last ``unsent``."""
        self._offset += count


# --- incoming frames -------------------------------------------------------------------


class Frame(NamedTuple):
    """One frame from the server."""

    kind: int
    number: int
    payload: bytes


def parse(data: bytearray) -> list[Frame]:
    """Remove all whole frames from the front of ``data`` and return them.

    Raises:
        WireError: A frame is larger than allowed.
    """
    frames = []
    at = 0
    while len(data) - at >= _HEADER_SIZE:
        length, kind, number = HEADER.unpack_from(data, at)
        if length > MAX_FRAME:
            raise WireError(f"a frame of {length} bytes is too large (at most {MAX_FRAME})")
        end = at + _HEADER_SIZE + length
        if len(data) < end:
            break
        frames.append(Frame(kind, number, bytes(data[at + _HEADER_SIZE : end])))
        at = end
    del data[:at]
    return frames


class WireRequest(NamedTuple):
    """A Jupyter message from the server. ``raw_header`` is the header's JSON as received."""

    channel: str
    header: dict[str, Any]
    raw_header: bytes
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: list[bytes]

    @property
    def msg_id(self) -> str:
        """The id that replies name as their parent."""
        return str(self.header["msg_id"])

    @property
    def msg_type(self) -> str:
        """The type of the request."""
        return str(self.header["msg_type"])

    def message(self) -> dict[str, Any]:
        """Return the message as a dictionary for ipykernel's handlers."""
        return {
            "header": self.header,
            "msg_id": self.msg_id,
            "msg_type": self.msg_type,
            "parent_header": {},
            "metadata": self.metadata,
            "content": self.content,
            "buffers": self.buffers,
        }


def parse_request(payload: bytes) -> WireRequest:
    """Parse the payload of a MESSAGE frame.

    Raises:
        WireError: It does not have the v1 framing, or its parts are not JSON objects.
    """
    try:
        (count,) = struct.unpack_from("<Q", payload)
        if not 6 <= count <= 2048:
            raise WireError(f"a message with {count} offsets")
        offsets = struct.unpack_from(f"<{count}Q", payload, 8)
        parts = [payload[a:b] for a, b in itertools.pairwise(offsets)]
        header, metadata, content = json.loads(parts[1]), json.loads(parts[3]), json.loads(parts[4])
        if not (isinstance(header, dict) and isinstance(metadata, dict) and isinstance(content, dict)):
            raise WireError("a message whose parts are not JSON objects")
        if not (isinstance(header.get("msg_id"), str) and isinstance(header.get("msg_type"), str)):
            raise WireError("a message without msg_id or msg_type")
        return WireRequest(parts[0].decode(), header, parts[1], metadata, content, parts[5:])
    except (struct.error, ValueError, RecursionError) as error:
        raise WireError(f"a message that can't be read: {error}") from None


def join(channel: bytes, *parts: bytes) -> bytes:
    """Return the payload of a MESSAGE frame: parts that are JSON already, then buffers."""
    count = len(parts) + 2
    offset = 8 * (count + 1)
    offsets = [offset]
    for part in (channel, *parts):
        offset += len(part)
        offsets.append(offset)
    return b"".join((struct.pack(f"<{count + 1}Q", count, *offsets), channel, *parts))


def _shallow(part: bytes) -> bool:
    """Whether the text opens at most ``MAX_DEPTH`` brackets. A long text is searched, which is faster than counting."""
    if len(part) < 16 * 1024:
        return part.count(b"[") + part.count(b"{") <= MAX_DEPTH
    mark_unsent_ = MAX_DEPTH
    for bracket in (b"[", b"{"):
        at = part.find(bracket)
        while at >= 0:
            if mark_unsent_ == 0:
                return False
            mark_unsent_ -= 1
            at = part.find(bracket, at + 1)
    return True


def size_error(part: bytes) -> str | None:
    """Return why the server would refuse this JSON, or None. The limits are those of ``protocol.jupyter``."""
    if _shallow(part) and (len(part) <= MAX_VALUES or part.count(b",") <= MAX_VALUES - MAX_DEPTH):
        return None
    structure, strings = _STRING.subn(b"", part)
    containers = structure.count(b"[") + structure.count(b"{")
    for count, most, name in (
        (strings, MAX_STRINGS, "texts and keys"),
        (containers, MAX_CONTAINERS, "arrays and objects"),
        (containers + structure.count(b","), MAX_VALUES, "values"),
    ):
        if count > most:
            return f"it holds {count} {name} and at most {most} can be sent"
    depth = 0
    for byte in structure.translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH}"
    return None


def stream_prefix(name: str, parent: str, *, raw: bool = False) -> bytes:
    """Return the bytes before the text of a STREAM frame, or before bytes of the pipe (``raw``)."""
    wanted = parent.encode("utf-8", "replace")[:0xFFFF]
    return struct.pack("<BH", (1 if name == "stdout" else 2) | (RAW if raw else 0), len(wanted)) + wanted
