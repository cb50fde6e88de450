"""``/v1/ws``: JSON-RPC 2.0, many sessions on one connection.

Theory of operation. Each request is a task of its own; tasks begin in the order
in which their frames arrived, and the service accepts a cell before its first
await, so the order of submission is the order of execution. Answers come as
they are ready. A cell that is run and awaited, which is most of what is asked, is
begun at once and answered by a callback: a task for it would cost more than the
rest of the way.

Frames are written to the stream as bytes that we frame ourselves (RFC 6455,
no compression): Tornado's ``write_message`` costs a task per message, which
100,000 printed lines would pay 100,000 times. ``outlet`` joins those of one turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from msgspec import UnsetType
from tornado.iostream import IOStream, StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from kernelsvc.errors import BadRequest, Internal, KernelsvcError, QuotaExceeded, Recovering
from kernelsvc.model.objects import CellInfo
from kernelsvc.protocol import jsonrpc, methods
from kernelsvc.server import auth
from kernelsvc.server.connections import connection_of
from kernelsvc.server.handler import BaseHandler, ServerContext, invoke
from kernelsvc.server.native.attachment import Attachment
from kernelsvc.server.ws.frame_parser import FrameParser, ProtocolViolation, TooLong
from kernelsvc.server.ws.send_queue import ROOM, FrameSource, SendQueue
from kernelsvc.server.ws.socket_stream import SocketStream, take_over

log = logging.getLogger(__name__)

#: What may wait in the socket's buffer before more is read from a log.
CHUNK_BYTES = ROOM
#: Answers that may wait for a reader before its next request is looked at.
UNSENT_BYTES = 4 * 1024 * 1024
#: Frames of one connection that are handled in one turn of the event loop.
AT_ONCE_FRAMES = 64
#: Requests that begin in one turn of the event loop.
AT_ONCE = 4
MAX_ATTACHMENTS = 10_000


class Gone(Exception):
    """The other end is not there any more."""


class _Protocol(WebSocketProtocol13):
    """Tornado's protocol, which reads by ``line`` and ``frames``, leaves decoding to us and says why it closes."""

    async def _receive_frame_loop(self) -> None:
        """Tornado's hook: the connection is open; returns when it has ended."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            connection = connection_of(self.stream)
            taken, early = await take_over(self.stream)
            if connection is not None:
                connection.restore()
            self._frames = FrameParser(self.max_message_size)
            released = connection.release if connection is not None else lambda: None
            self._line = SocketStream(taken, self._hear, self._gone, released)
            self.stream = cast("IOStream", self._line)
            self._hear(early)
            if not self._line.closed():
                await self._over
        except StreamClosedError:
            pass
        finally:
            self._abort()
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    def _gone(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _hear(self, data: bytes) -> None:
        if data:
            self._frames.feed(data)
        try:
            self._take_frames()
        except TooLong:
            self.close(1009, "message too big")
            self._abort()
        except (ProtocolViolation, ValueError) as error:  # Tornado decodes the reason of a close
            log.debug("a WebSocket is cut: %s", error)
            self._abort()
        except Exception:  # a fault of ours with one frame: it costs its connection, and no other
            log.exception("a WebSocket's frame could not be handled", extra={"action": "frame_failed"})
            self._abort()

    def _take_frames(self) -> None:
        """Handle what has come, in order; reads on when there is nothing left that can be handled now."""
        for _ in range(AT_ONCE_FRAMES):
            frame = self._frames.next()
            if frame is None:
                self._line.listen()
                return
            handled = self._handle_message(*frame)
            if self.client_terminated:
                return
            if handled is not None and not handled.done():
                self._line.pause()
                handled.add_done_callback(self._go_on)
                return
        self._line.pause()  # others have a turn
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self, handled: object = None) -> None:
        if not self.client_terminated:
            self._hear(b"")

    def _handle_message(self, opcode: int, data: bytes) -> asyncio.Future[None] | None:
        """Hand text over as bytes: invalid UTF-8 then gets an answer instead of a dead line."""
        if opcode == 0x1 and not self.client_terminated and not self._frame_compressed:
            self._message_bytes_in += len(data)
            return self._run_callback(self.handler.on_message, data)
        return super()._handle_message(opcode, data)

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Before the close frame of a too large message, the error in the one shape."""
        if code == 1009 and not self.server_terminated:
            bound = self.max_message_size
            error = jsonrpc.encode_error(
                None, jsonrpc.too_large("The frame", bound + 1, bound), jsonrpc.INVALID_REQUEST
            )
            if isinstance(self.handler, ApiSocket):
                self.handler.send_waiting()
            self.stream.write(jsonrpc.text_frame(error))
        super().close(code, reason)

    @property
    def max_message_size(self) -> int:
        """The bound that was configured."""
        return self.params.max_message_size


class ApiSocket(BaseHandler, WebSocketHandler):
    """One connection."""

    query_token = True
    transport = "websocket"
    route = "/v1/ws"

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook."""
        super().initialize(context, **more)
        self._attachments: dict[str, Attachment] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._unbegun = 0
        self._awaited: Counter[str] = Counter()
        self._unsent = 0
        self._room = asyncio.Event()
        self._room.set()
        self._heard = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._outlet = SendQueue(self._give_stream, self._bytes_left)

    # --- opening and closing -------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: origin and token are checked before the upgrade."""
        self.authenticate_request()
        if "upgrade" not in self.request.headers.get("Connection", "").lower():
            raise BadRequest("This route speaks WebSocket only; connect with a WebSocket client.")

    def check_origin(self, origin: str) -> bool:
        """Tornado's hook; ``admit`` has done it."""
        return True

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Tornado's hook: ours in place of its own."""
        protocol = super().get_websocket_protocol()
        if isinstance(protocol, WebSocketProtocol13):
            return _Protocol(self, mask_outgoing=False, params=protocol.params)
        return None

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook: the socket is there."""
        # Without this, Nagle and delayed acknowledgement cost 40 ms per cell.
        self.set_nodelay(True)
        self.context.sockets.add(self)
        self.context.metrics.connections.labels("websocket").inc()
        self._arm()
        if self.context.stopping:
            self.close(1001, "the server stops")

    def on_close(self) -> None:
        """Tornado's hook: the other end left, or we did."""
        if self in self.context.sockets:
            self.context.sockets.discard(self)
            self.context.metrics.connections.labels("websocket").dec()
        if self._timer is not None:
            self._timer.cancel()
        for attachment in list(self._attachments.values()):
            attachment.stop()
        self._attachments.clear()
        for task in self._requests:
            task.cancel()
        self._room.set()
        self.context.service.client_gone(self)

    # --- is anybody there? ------------------------------------------------------------------

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.context.settings.ping_seconds, self._tick)

    def _tick(self) -> None:
        """Ping what is silent, give up on what stays silent. What takes our bytes, however slowly, is alive."""
        silent = time.monotonic() - self._heard
        if silent > self.context.settings.ping_timeout_seconds:
            self._cut()
            return
        try:
            self.ping()
        except WebSocketClosedError:
            return
        self._arm()

    def _cut(self) -> None:
        connection = self.ws_connection
        stream = getattr(connection, "stream", None)
        if stream is not None:
            stream.close()

    def on_pong(self, data: bytes) -> None:
        """Tornado's hook: somebody is there."""
        self._heard = time.monotonic()

    def on_ping(self, data: bytes) -> None:
        """Tornado's hook: so is this one."""
        self._heard = time.monotonic()

    # --- sending ------------------------------------------------------------------------------

    async def send_raw(self, frames: bytes, linger: float = 0.0) -> None:
        """Write whole frames, after all that were given before; waits while much has not left the process yet.

        Cancelling it stops the wait, not the writing: frames are never cut.

        Args:
            frames: one or more.
            linger: seconds that they may wait for others to go with.

        Raises:
            Gone: the connection is closed.
        """
        if self.ws_connection is None or self.ws_connection.is_closing() or self._outlet.closed:
            raise Gone
        self._outlet.put(frames, linger)
        if self._outlet.backlog >= CHUNK_BYTES:
            await self._outlet.drained()
            if self._outlet.closed:
                raise Gone

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """There is something to send, within ``linger`` seconds: see ``SendQueue.expect``."""
        self._outlet.schedule(source, linger)

    def collect(self) -> None:
        """Put what the sources have in its place, before something that is to come after it."""
        self._outlet.collect()

    def _give_stream(self, data: bytes) -> asyncio.Future[None]:
        stream = getattr(self.ws_connection, "stream", None)
        if stream is None or self.ws_connection is None or self.ws_connection.is_closing():
            raise StreamClosedError
        written: asyncio.Future[None] = stream.write(data)
        return written

    def send_waiting(self) -> None:
        """Send what waits, before something that goes another way."""
        self._outlet.flush()

    def _bytes_left(self) -> None:
        """The other end took bytes of ours, so somebody is there."""
        self._heard = time.monotonic()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close, after everything that was to be sent."""
        self.send_waiting()
        super().close(code, reason)

    async def _reply(self, payload: bytes) -> None:
        self._unsent += len(payload)
        self._room.clear()
        try:
            await self.send_raw(jsonrpc.text_frame(payload))
        finally:
            self._unsent -= len(payload)
            if self._unsent <= UNSENT_BYTES:
                self._room.set()

    # --- requests -------------------------------------------------------------------------------

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Tornado's hook: a whole frame. The next one is read when what this returns is done."""
        self._heard = time.monotonic()
        try:
            request = jsonrpc.decode(message, self.context.bounds)
        except jsonrpc.Refused as refused:
            return self._refuse(refused)
        under_way = len(self._requests) + self._awaited.total()
        if under_way >= self.context.settings.max_requests:
            busy = QuotaExceeded(f"{under_way} requests are under way on this connection; await some first.")
            return self._send_error(request.id, busy)
        if not self._unbegun and request.method.name == "session.execute" and request.params.wait == "finished":
            self._run_cell(request)
            return self._outlet.drained() if self._outlet.backlog > UNSENT_BYTES else None
        self._later(request)
        return self._wait_for_room() if self._unsent > UNSENT_BYTES or len(self._requests) > AT_ONCE else None

    def _later(self, request: jsonrpc.Request) -> None:
        self._unbegun += 1
        task = asyncio.create_task(self._serve(request), name=request.method.name)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _wait_for_room(self) -> None:
        """A client that asks and doesn't read waits for itself, not in our memory."""
        await asyncio.sleep(0)  # what was asked already begins
        await self._room.wait()

    async def _refuse(self, refused: jsonrpc.Refused) -> None:
        self.context.metrics.request(self.transport, "refused", refused.error.code, 0.0)
        try:
            await self._reply(jsonrpc.encode_error(refused.id, refused.error, refused.code))
        except Gone:
            return
        if refused.code == jsonrpc.PARSE_ERROR and "UTF-8" in refused.error.message:
            # RFC 6455, 8.1: an endpoint must fail a connection whose text isn't UTF-8.
            self.close(1007, "not UTF-8")

    def _run_cell(self, request: jsonrpc.Request) -> None:
        """Begin a cell, which is answered when it has finished."""
        began = time.perf_counter()
        awaited: str = request.params.session

        def told(read: Callable[[], CellInfo]) -> None:
            self._no_more(awaited)
            try:
                cell = read()
                payload = b"" if isinstance(request.id, UnsetType) else jsonrpc.encode_result(request.id, cell)
            except Exception as error:
                self._answer_cell(request, began, b"", error)
                return
            attachment = self._attachments.get(cell.session)
            if attachment is None:
                self._answer_cell(request, began, payload)
            else:
                attachment.when_sent(cell.seq.last, lambda: self._answer_cell(request, began, payload))

        self._awaited[awaited] += 1
        try:
            auth.require_scope(self.who, request.method.scope)
            (session, cell), _ = request.method.arguments(request.params)
            self.context.service.execute_then(self.who, session, cell, told, client=self)
        except Recovering:
            self._no_more(awaited)
            self._later(request)
        except Exception as error:
            self._no_more(awaited)
            self._answer_cell(request, began, b"", error)

    def _no_more(self, session: str) -> None:
        """One cell fewer is to be answered."""
        self._awaited[session] -= 1
        if not self._awaited[session]:
            del self._awaited[session]

    def has_pending_reply(self, session: str) -> bool:
        """Whether the end of a cell of this session may be what an answer waits for."""
        return session in self._awaited

    def _answer_cell(
        self, request: jsonrpc.Request, began: float, payload: bytes, error: Exception | None = None
    ) -> None:
        """Answer a request, if its connection is still there and wants an answer."""
        known = None if error is None else self._known(error, request)
        code = "ok" if known is None else known.code
        self.context.metrics.request(self.transport, request.method.name, code, time.perf_counter() - began)
        if not isinstance(request.id, UnsetType):
            payload = jsonrpc.encode_error(request.id, known) if known is not None else payload
            if self._awaited:  # another's answer may go with it
                self._outlet.put(jsonrpc.text_frame(payload))
            else:
                self._outlet.send(jsonrpc.text_frame(payload))

    async def _serve(self, request: jsonrpc.Request) -> None:
        began = time.perf_counter()
        code = "ok"
        await self.context.service.ensure_loaded(getattr(request.params, "session", ""))
        self._unbegun -= 1
        after: Callable[[], None] | None = None
        try:
            value, after = await self._perform(request)
            payload = None if isinstance(request.id, UnsetType) else jsonrpc.encode_result(request.id, value)
        except Exception as error:
            known = self._known(error, request)
            code = known.code
            payload = None if isinstance(request.id, UnsetType) else jsonrpc.encode_error(request.id, known)
        self.context.metrics.request(self.transport, request.method.name, code, time.perf_counter() - began)
        try:
            if payload is not None:
                await self._reply(payload)
            if after is not None:
                after()
        except Gone:
            return

    async def _send_error(self, id: Any, error: KernelsvcError) -> None:
        if not isinstance(id, UnsetType):
            try:
                await self._reply(jsonrpc.encode_error(id, error))
            except Gone:
                return

    def _known(self, error: Exception, request: jsonrpc.Request) -> KernelsvcError:
        if not isinstance(error, KernelsvcError):
            extra = {"action": "request_failed", "method": request.method.name}
            log.error("%s failed", request.method.name, exc_info=error, extra=extra)
            return Internal()
        return error

    async def _perform(self, request: jsonrpc.Request) -> tuple[Any, Callable[[], None] | None]:
        """The result, and what to do when it has been sent."""
        name, params = request.method.name, request.params
        if name == "session.attach":
            auth.require_scope(self.who, request.method.scope)
            last = self.context.service.get(self.who, params.session).last_seq
            attachment = self._attach(params.session, params.after)
            return methods.Attached(session=params.session, last_seq=last), attachment.start
        if name == "session.detach":
            self._detach(params.session)
            return None, None
        value = await invoke(self.context, self.who, request.method, params, self)
        if name == "session.create" and params.attach and value.id not in self._attachments:
            return value, self._attach(value.id, 0).start
        if name in ("session.execute", "session.batch") and params.wait == "finished":
            await self._told(params.session, value if isinstance(value, list) else [value])
        return value, None

    def _attach(self, session: str, after: int) -> Attachment:
        if len(self._attachments) >= MAX_ATTACHMENTS:
            raise QuotaExceeded(f"This connection is attached to {MAX_ATTACHMENTS} sessions; open another one.")
        subscription = self.context.service.attach(self.who, session, after=after)
        self._detach(session)
        attachment = self._attachments[session] = Attachment(session, subscription, after, self)
        return attachment

    def _detach(self, session: str) -> None:
        if attachment := self._attachments.pop(session, None):
            attachment.stop()

    async def _told(self, session: str, cells: list[CellInfo]) -> None:
        """Wait until this connection, if it is attached, has been sent the events of these cells."""
        if (attachment := self._attachments.get(session)) and cells:
            await attachment.reached(max(cell.seq.last for cell in cells))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A refused upgrade, in the one shape."""
        if status_code == HTTPStatus.UPGRADE_REQUIRED:
            kwargs["exc_info"] = (BadRequest, BadRequest("Only WebSocket version 13 is spoken here."), None)
        super().write_error(status_code, **kwargs)
