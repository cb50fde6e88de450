"""A client's bytes, in whatever pieces they come, as WebSocket frames (RFC 6455, section 5). Pure.

One small frame in one piece, which is what nearly every request is, is looked at once
and copied where its mask is taken off. A large one is kept in the pieces in which
it came until it is whole, so that its cost grows with its size and no faster.
"""

from __future__ import annotations

from tornado.util import _websocket_mask

CONTINUATION, TEXT = 0x0, 0x1
#: The bits of a frame's first byte: the last of its message, an extension's, and that it is no data.
FIN, RESERVED, CONTROL = 0x80, 0x70, 0x08
_UNUSUAL = RESERVED | CONTROL
#: What a frame of control may carry (section 5.5).
CONTROL_BYTES = 125


class ProtocolViolation(Exception):
    """What came is not the protocol; the connection can only be cut (RFC 6455, section 7.1.7)."""


class MessageTooBig(Exception):
    """A message is over its limit."""


class FrameParser:
    """The frames of one connection, and the messages that some of them are parts of.

    Args:
        limit: bytes that a message may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 2
        self._data = b""
        self._at = 0
        self._message: bytearray | None = None
        self._opcode = 0

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self._at == len(self._data):
            self._data, self._at = data, 0
        else:
            self._pieces.append(data)
        self._have += len(data)

    def next(self) -> tuple[int, bytes] | None:
        """The next whole message or frame of control, as its opcode and content; None if more must be read first.

        Raises:
            Broken: a rule of the protocol was broken.
            TooLong: a message will be longer than the limit; told before it is read.
        """
        while (frame := self._frame()) is not None:
            first, payload = frame
            if first == FIN | TEXT and self._message is None:
                return TEXT, payload
            message = self._part_of_message(first, payload)
            if message is not None:
                return message
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        """The next whole frame's first byte and its content."""
        if self._have < self._need:
            return None
        if self._pieces:
            self._data, self._at = b"".join((self._data[self._at :], *self._pieces)), 0
            self._pieces.clear()
        data, at = self._data, self._at
        first, size, start = data[at], data[at + 1] & 0x7F, at + 2
        if first & _UNUSUAL:
            self._check_header(first, size)
        if size > CONTROL_BYTES:
            start += 2 if size == 126 else 8
            if self._have < start - at:
                self._need = start - at
                return None
            size = int.from_bytes(data[at + 2 : start], "big")
        if size > self._limit - (0 if self._message is None else len(self._message)):
            raise MessageTooBig
        masked = data[at + 1] & 0x80
        start += 4 if masked else 0
        end = start + size
        if self._have < end - at:
            self._need = end - at
            return None
        self._have -= end - at
        self._need, self._at = 2, end
        return first, _websocket_mask(data[start - 4 : start], data[start:end]) if masked else data[start:end]

    def _check_header(self, first: int, size: int) -> None:
        if first & RESERVED:
            raise ProtocolViolation("a frame of an extension that was not agreed on")
        if first & CONTROL and (size > CONTROL_BYTES or not first & FIN):
            raise ProtocolViolation("a frame of control that is too long, or in parts")

    def _part_of_message(self, first: int, payload: bytes) -> tuple[int, bytes] | None:
        """What is whole now: this frame, or the message that it completes."""
        opcode = first & 0x0F
        if opcode & CONTROL:
            return opcode, payload
        if opcode == CONTINUATION:
            if self._message is None:
                raise ProtocolViolation("a part of no message")
            self._message += payload
        elif self._message is not None:
            raise ProtocolViolation("a message within another")
        elif first & FIN:
            return opcode, payload
        else:
            self._message, self._opcode = bytearray(payload), opcode
        if not first & FIN:
            return None
        whole, self._message = bytes(self._message), None
        return self._opcode, whole
