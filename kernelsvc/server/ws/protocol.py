"""The WebSocket protocol (RFC 6455) of a connection: a pure parser of frames, and Tornado's protocol over it.

Most requests are one small frame that arrives in one piece. It is parsed in one
step, and copied once, to unmask it. A large frame stays in the pieces in which
it arrives until it is complete, so that its cost is proportional to its size.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from tornado.iostream import IOStream, StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

from kernelsvc.protocol import jsonrpc
from kernelsvc.server.connections import LimitedConnection, connection_of
from kernelsvc.server.ws.socket_stream import SocketStream, take_over

log = logging.getLogger(__name__)

CONTINUATION, TEXT = 0x0, 0x1
#: Bits of a frame's first byte (RFC 6455, section 5.2): the final frame of its message, reserved bits, control opcodes.
FIN, RESERVED, CONTROL = 0x80, 0x70, 0x08
_UNUSUAL = RESERVED | CONTROL
#: Most bytes of a control frame's content (section 5.5).
CONTROL_BYTES = 125
#: Bytes of an incomplete message from which on it counts (``server.connections``). Most messages have fewer.
HELD_FROM = 64 * 1024
#: Most frames of one connection in one turn of the event loop, so that other connections get their share.
MAX_FRAMES_PER_TURN = 64


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

    @property
    def held(self) -> int:
        """The bytes in memory of frames and messages that are not complete."""
        return self._have + (0 if self._message is None else len(self._message))

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
        if end == len(data) or end > HELD_FROM:  # else an idle connection would keep its last message in memory
            self._data, self._at = data[end:], 0
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


class FastWebSocketProtocol(WebSocketProtocol13):
    """Tornado's protocol with kernelsvc's reader and parser. It reports why it closes.

    Args:
        handler: The handler of the connection.
        flush: Sends the frames that the handler has queued, before a close frame.
        on_read: Called after the messages of each read.
        params: See Tornado.
        text_as_bytes: Whether the handler gets text as bytes, so that invalid UTF-8 gets an error before the close.

    Attributes:
        limited: The connection that its messages are counted for.
    """

    def __init__(
        self,
        handler: WebSocketHandler,
        flush: Callable[[], None],
        on_read: Callable[[], None],
        *,
        params: Any,
        text_as_bytes: bool = True,
    ) -> None:
        super().__init__(handler, mask_outgoing=False, params=params)
        self._flush = flush
        self._on_read = on_read
        self._text_as_bytes = text_as_bytes
        self.limited: LimitedConnection | None = None

    async def _receive_frame_loop(self) -> None:
        """Tornado's hook: the connection is open. Returns when it has ended."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.limited = connection = connection_of(self.stream)
            taken, early = await take_over(self.stream)
            self._frame_parser = FrameParser(self.max_message_size)
            if connection is None:
                self._socket_stream = SocketStream(taken, self._on_data, self._on_closed)
            else:
                self._socket_stream = SocketStream(
                    taken, self._on_data, self._on_closed, connection.release, connection.note_unsent
                )
                connection.restore(self._socket_stream)
            self.stream = cast("IOStream", self._socket_stream)
            self._on_data(early)
            if not self._socket_stream.closed():
                await self._ended
        except StreamClosedError:
            pass
        finally:
            self._abort()
            # This object is part of cycles, so that it outlives the connection by minutes.
            self._frame_parser = FrameParser(0)
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    def _on_closed(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _on_data(self, data: bytes) -> None:
        if data:
            self._frame_parser.feed(data)
        try:
            try:
                self._handle_frames()
            finally:
                self._on_read()
            held = self._frame_parser.held
            if self.limited is not None and (held > HELD_FROM or self.limited.held):
                self.limited.hold(held)
        except MessageTooBig:
            self.close(1009, "message too big")
            self._abort()
        except (ProtocolViolation, ValueError) as error:  # ValueError: Tornado decodes the reason of a close frame
            log.debug("Closed a WebSocket: %s", error)
            self._abort()
        except Exception:  # a bug with one frame must end only its own connection
            log.exception("A WebSocket's frame failed. The connection is closed", extra={"action": "frame_failed"})
            self._abort()

    def _handle_frames(self) -> None:
        """Handle the frames that have arrived, in order. Read on when all are handled."""
        for _ in range(MAX_FRAMES_PER_TURN):
            frame = self._frame_parser.next()
            if frame is None:
                self._socket_stream.listen()
                return
            if self.limited is not None and self.limited.held:
                self.limited.hold(self._frame_parser.held)  # the handler counts a message that it keeps
            handled = self._handle_message(*frame)
            if self.client_terminated:
                return
            if handled is not None and not handled.done():
                self._socket_stream.pause()
                handled.add_done_callback(self._resume)
                return
        self._socket_stream.pause()  # other connections get their turn
        asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self, handled: object = None) -> None:
        if not self.client_terminated:
            self._on_data(b"")

    def _handle_message(self, opcode: int, data: bytes) -> asyncio.Future[None] | None:
        if self._text_as_bytes and opcode == 0x1 and not self.client_terminated and not self._frame_compressed:
            self._message_bytes_in += len(data)
            return self._run_callback(self.handler.on_message, data)
        return super()._handle_message(opcode, data)

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Send the error of a message that is too large before the close frame."""
        if code == 1009 and not self.server_terminated:
            bound = self.max_message_size
            error = jsonrpc.encode_error(
                None, jsonrpc.too_large("The frame", bound + 1, bound), jsonrpc.INVALID_REQUEST
            )
            self._flush()
            self.stream.write(jsonrpc.text_frame(error))
        super().close(code, reason)

    @property
    def max_message_size(self) -> int:
        """The configured limit, in bytes."""
        return self.params.max_message_size
