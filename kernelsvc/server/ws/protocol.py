"""A parser of WebSocket frames (RFC 6455, section 5). Pure.

Most requests are one small frame that arrives in one piece. It is parsed in one
step, and copied once, to unmask it. A large frame stays in the pieces in which
it arrives until it is complete, so that its cost is proportional to its size.
"""

from __future__ import annotations

from tornado.util import _websocket_mask

CONTINUATION, TEXT = 0x0, 0x1
#: Bits of a frame's first byte (RFC 6455, section 5.2): the final frame of its message, reserved bits, control opcodes.
FIN, RESERVED, CONTROL = 0x80, 0x70, 0x08
_UNUSUAL = RESERVED | CONTROL
#: Most bytes of a control frame's content (section 5.5).
CONTROL_BYTES = 125


class ProtocolViolation(Exception):
    """The client broke the protocol. The connection can only be closed (RFC 6455, section 7.1.7)."""


class MessageTooBig(Exception):
    """A message is over the limit."""


class FrameParser:
    """The frames of one connection, joined into messages.

    Args:
        limit: Most bytes of a message.
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
        """Add bytes that were read."""
        if self._at == len(self._data):
            self._data, self._at = data, 0
        else:
            self._pieces.append(data)
        self._have += len(data)

    def next(self) -> tuple[int, bytes] | None:
        """Return the next whole message or control frame, as opcode and content. None: more bytes are needed.

        Raises:
            ProtocolViolation: The bytes break the protocol.
            MessageTooBig: A message will be longer than the limit. Raised before the message is read.
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
        """Return the first byte and the content of the next whole frame."""
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
            raise ProtocolViolation("a reserved bit is set, and no extension was negotiated (section 5.2)")
        if first & CONTROL and (size > CONTROL_BYTES or not first & FIN):
            raise ProtocolViolation("a control frame is fragmented or has more than 125 bytes (section 5.5)")

    def _part_of_message(self, first: int, payload: bytes) -> tuple[int, bytes] | None:
        """Return the message that is complete with this frame, if any."""
        opcode = first & 0x0F
        if opcode & CONTROL:
            return opcode, payload
        if opcode == CONTINUATION:
            if self._message is None:
                raise ProtocolViolation("a continuation frame without a message to continue (section 5.4)")
            self._message += payload
        elif self._message is not None:
            raise ProtocolViolation("a new message before the end of a fragmented one (section 5.4)")
        elif first & FIN:
            return opcode, payload
        else:
            self._message, self._opcode = bytearray(payload), opcode
        if not first & FIN:
            return None
        whole, self._message = bytes(self._message), None
        return self._opcode, whole
