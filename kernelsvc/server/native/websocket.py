"""``/v1/ws``: JSON-RPC 2.0, many sessions on one connection.

Each request is a task. Tasks begin in the order in which their frames arrived, and
the service accepts a cell before its first await, so cells run in the order of
submission. Replies are sent as they become ready. An ``execute`` that waits for its
cell, which is the most common request, is started without a task and answered by a
callback: a task would cost more than the rest of the request.

An ``Attachment`` sends the events of one session: a cursor in its log (``Subscription``). The log reports that it has
more, and the attachment reads it when frames are about to be sent. There is no queue of events: for a client that does
not read, nothing is read from the log, and the events wait on disk. It guarantees two things about order:

* The reply to ``session.attach`` (or ``create``) is sent before the first event.
* The events of a cell are sent before the reply to the ``execute`` that ran it,
  if this connection is attached to the session.

Frames are written to the stream as bytes with kernelsvc's own framing (RFC 6455,
no compression): Tornado's ``write_message`` costs a task per message, and 100,000
printed lines would cost 100,000 tasks. ``ws.socket_stream`` joins the frames of one
turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import UnsetType
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from kernelsvc.errors import BadRequest, Internal, KernelsvcError, QuotaExceeded, Recovering
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.objects import CellInfo
from kernelsvc.protocol import jsonrpc, method_params
from kernelsvc.server import auth
from kernelsvc.server.connections import LimitedConnection
from kernelsvc.server.handler import BaseHandler, ServerContext, as_error, invoke
from kernelsvc.server.ws.protocol import HELD_FROM, FastWebSocketProtocol
from kernelsvc.server.ws.socket_stream import LARGE_FRAME, MAX_BACKLOG, FrameSource, SendQueue
from kernelsvc.telemetry import operator_log

if TYPE_CHECKING:
    from kernelsvc.service.api import Subscription

log = logging.getLogger(__name__)

#: Unsent bytes beyond which nothing more is read from a log.
CHUNK_BYTES = MAX_BACKLOG
#: Bytes of unsent replies beyond which the client's next request is not read.
UNSENT_BYTES = 4 * 1024 * 1024
#: Most requests of one connection that start in one turn of the event loop.
MAX_STARTS_PER_TURN = 4
MAX_ATTACHMENTS = 10_000
#: Seconds that the events of a cell's start wait for its output or its end. Most cells have finished by then.
LINGER = 0.002
#: Prefixes of these events' lines.
_BEGINNINGS = (b'{"type":"cell_queued"', b'{"type":"cell_started"')
_END = b'{"type":"cell_finished"'
#: Seconds that the reply to a call's result waits for the next call, to be sent in one write. Nothing waits for it.
RETURN_LINGER = 0.002


class ConnectionGone(Exception):
    """The connection is closed."""


class EventConnection(Protocol):
    """The part of a connection that its attachments use."""

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """Ask ``source`` for frames within ``linger`` seconds, or in this turn of the event loop."""

    def collect(self) -> None:
        """Queue the frames that the scheduled sources have now."""

    def has_pending_reply(self, session: str) -> bool:
        """Whether a reply waits for a cell of this session to finish."""


class Attachment:
    """One session's log on one connection. See the module's docstring."""

    def __init__(self, session: str, subscription: Subscription, after: int, connection: EventConnection) -> None:
        self.session = session
        self.sent = after
        self.ended = False
        self._subscription = subscription
        self._connection = connection
        self._waiting: list[tuple[int, Callable[[], object]]] = []

    def start(self) -> None:
        """Begin to send events. Called after the reply that announced them."""
        if not self.ended:
            self._subscription.on_lines(self._on_lines)
            self._connection.schedule(self)

    def stop(self) -> None:
        """Send nothing more."""
        self.ended = True
        self._subscription.close()
        self._release()

    def when_sent(self, seq: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` when all events up to ``seq`` are sent or the attachment has ended, at the latest."""
        if not self.ended and self.sent < seq:
            self._connection.collect()
        if self.ended or self.sent >= seq:
            callback()
        else:
            self._waiting.append((seq, callback))

    async def reached(self, seq: int) -> None:
        """Wait until all events up to ``seq`` are sent or the attachment has ended. Safe to cancel."""
        future = asyncio.get_running_loop().create_future()
        self.when_sent(seq, lambda: None if future.done() else future.set_result(None))
        await future

    def _on_lines(self, line: bytes) -> None:
        # The reply to the cell follows in this turn of the loop and is sent in the same write.
        followed = line.startswith(_BEGINNINGS) or (
            line.startswith(_END) and self._connection.has_pending_reply(self.session)
        )
        self._connection.schedule(self, LINGER if followed else 0.0)

    def take(self) -> Sequence[bytes]:
        """See ``FrameSource``."""
        if self.ended:
            return ()
        try:
            lines = self._subscription.next_nowait()
        except Exception as error:
            self.stop()
            return (self._detached_frame(error),)
        if not lines and self._subscription.exhausted:
            self.stop()
        if lines and max(map(len, lines)) >= LARGE_FRAME:
            return [piece for line in lines for piece in _event_pieces(line)]
        return [b"".join(map(jsonrpc.event_frame, lines))] if lines else ()

    def on_queued(self) -> None:
        """See ``FrameSource``."""
        self.sent = self._subscription.last_seq
        self._release()

    def _detached_frame(self, error: Exception) -> bytes:
        """Encode the frame that ends this session's events, with the cause."""
        if not isinstance(error, KernelsvcError):
            log.error(
                "Session %s: reading its events failed. Its client is detached",
                self.session,
                exc_info=error,
                extra={"action": "pump_failed", "session": self.session},
            )
        return jsonrpc.text_frame(jsonrpc.encode_detached(self.session, as_error(error)))

    def _release(self) -> None:
        if not self._waiting:
            return
        ready = [callback for seq, callback in self._waiting if self.ended or seq <= self.sent]
        self._waiting = [] if self.ended else [pair for pair in self._waiting if pair[0] > self.sent]
        for callback in ready:
            callback()


def _event_pieces(line: bytes) -> Sequence[bytes]:
    return (jsonrpc.event_frame(line),) if len(line) < LARGE_FRAME else jsonrpc.event_pieces(line)


class ApiSocket(BaseHandler, WebSocketHandler):
    """The handler of one WebSocket connection."""

    query_token = True
    #: See ``FastWebSocketProtocol``.
    text_as_bytes = True
    transport = "websocket"
    route = "/v1/ws"

    def initialize(self, context: ServerContext, **more: Any) -> None:
        """Tornado's hook."""
        super().initialize(context, **more)
        self._attachments: dict[str, Attachment] = {}
        self._requests = OwnedTasks()
        self._not_started = 0
        self._pending_replies: Counter[str] = Counter()
        # Counted, because to add up tasks and pending replies for each request would cost more than to decode it.
        self._unanswered = 0
        self._unsent = 0
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._last_received = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._send_queue = SendQueue(self._write_to_stream, self._on_bytes_sent)

    # --- opening and closing -------------------------------------------------------------

    async def prepare(self) -> None:
        """Tornado's hook: check origin and token before the upgrade."""
        await self.admit_request()
        if "upgrade" not in self.request.headers.get("Connection", "").lower():
            raise BadRequest("This route accepts only WebSocket connections. Connect with a WebSocket client.")

    def check_origin(self, origin: str) -> bool:
        """Tornado's hook. ``authenticate_request`` has checked it."""
        return True

    def token(self) -> str | None:
        """Return the token of the request, which a page in a browser sends as a subprotocol."""
        return super().token() or auth.subprotocol_bearer(self.request.headers.get("Sec-WebSocket-Protocol"))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Tornado's hook: never repeat the subprotocol that holds the token."""
        return auth.SUBPROTOCOL if auth.SUBPROTOCOL in subprotocols else None

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Tornado's hook: use ``FastWebSocketProtocol``."""
        protocol = super().get_websocket_protocol()
        if isinstance(protocol, WebSocketProtocol13):
            return FastWebSocketProtocol(
                self, self.flush_queue, self.on_read, params=protocol.params, text_as_bytes=self.text_as_bytes
            )
        return None

    def on_read(self) -> None:
        """Called after the messages of each read."""

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook: the WebSocket is open."""
        # Without this, Nagle and delayed acknowledgement cost 40 ms per cell.
        self.set_nodelay(True)
        self.context.sockets.add(self)
        self.context.metrics.connections.labels("websocket").inc()
        self._schedule_ping()
        if self.context.stopping:
            self.close(1001, "the server stops")

    def on_close(self) -> None:
        """Tornado's hook: the WebSocket is closed, by either side."""
        if self in self.context.sockets:
            self.context.sockets.discard(self)
            self.context.metrics.connections.labels("websocket").dec()
        if self._timer is not None:
            self._timer.cancel()
        for attachment in list(self._attachments.values()):
            attachment.stop()
        self._attachments.clear()
        self._requests.cancel()
        self._may_read.set()
        self.context.service.client_gone(self)

    # --- is anybody there? ------------------------------------------------------------------

    def _schedule_ping(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.context.settings.ping_seconds, self._ping_or_close)

    def _ping_or_close(self) -> None:
        """Ping a silent client, and close one that stays silent. A client that takes bytes is alive."""
        silent = time.monotonic() - self._last_received
        if silent > self.context.settings.ping_timeout_seconds:
            self._abort_stream()
            return
        try:
            self.ping()
        except WebSocketClosedError:
            return
        self._schedule_ping()

    def _abort_stream(self) -> None:
        connection = self.ws_connection
        stream = getattr(connection, "stream", None)
        if stream is not None:
            stream.close()

    def on_pong(self, data: bytes) -> None:
        """Tornado's hook: the client is alive."""
        self._last_received = time.monotonic()

    def on_ping(self, data: bytes) -> None:
        """Tornado's hook: the client is alive."""
        self._last_received = time.monotonic()

    # --- sending ------------------------------------------------------------------------------

    async def send_raw(self, frames: bytes, linger: float = 0.0) -> None:
        """Queue whole frames after all earlier ones. Waits while the queue is long.

        Cancelling stops the wait, not the writing: frames are never cut.

        Args:
            frames: One or more whole frames.
            linger: Seconds that they may wait, to be sent together with others.

        Raises:
            ConnectionGone: The connection is closed.
        """
        self.queue_raw(frames, linger)
        await self.wait_for_room()

    def queue_raw(self, frames: bytes, linger: float = 0.0) -> None:
        """Queue whole frames after all earlier ones.

        Raises:
            ConnectionGone: The connection is closed.
        """
        if self.ws_connection is None or self.ws_connection.is_closing() or self._send_queue.closed:
            raise ConnectionGone
        self._send_queue.put(frames, linger)

    async def wait_for_room(self) -> None:
        """Wait while the queue is long. Safe to cancel.

        Raises:
            ConnectionGone: The connection is closed.
        """
        if self._send_queue.backlog >= CHUNK_BYTES:
            await self._send_queue.drained()
            if self._send_queue.closed:
                raise ConnectionGone

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """Ask ``source`` for frames within ``linger`` seconds. See ``SendQueue.schedule``."""
        self._send_queue.schedule(source, linger)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification in this turn of the loop. Does nothing on a closed connection."""
        if self.ws_connection is not None and not self.ws_connection.is_closing() and not self._send_queue.closed:
            self._send_queue.send_first(jsonrpc.text_frame(jsonrpc.encode_notification(method, params)))

    def collect(self) -> None:
        """Queue the frames that the scheduled sources have now, before a frame that must follow them."""
        self._send_queue.collect()

    def _write_to_stream(self, data: bytes) -> asyncio.Future[None]:
        stream = getattr(self.ws_connection, "stream", None)
        if stream is None or self.ws_connection is None or self.ws_connection.is_closing():
            raise StreamClosedError
        written: asyncio.Future[None] = stream.write(data)
        return written

    def flush_queue(self) -> None:
        """Send all queued frames, before bytes that do not pass through the queue."""
        self._send_queue.flush()

    def _on_bytes_sent(self) -> None:
        """Note that the client took bytes, so it is alive."""
        self._last_received = time.monotonic()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close after all queued frames."""
        self.flush_queue()
        super().close(code, reason)

    async def _reply(self, payload: bytes) -> None:
        self._unsent += len(payload)
        self._may_read.clear()
        try:
            await self.send_raw(jsonrpc.text_frame(payload))
        finally:
            self._unsent -= len(payload)
            if self._unsent <= UNSENT_BYTES:
                self._may_read.set()

    # --- requests -------------------------------------------------------------------------------

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Tornado's hook: a whole frame arrived. The next one is read when the returned future is done."""
        self._last_received = time.monotonic()
        try:
            request = jsonrpc.decode(message, self.context.request_limits)
        except jsonrpc.RequestRefused as refused:
            return self._refuse(refused)
        if self._unanswered >= self.context.settings.max_requests:
            busy = QuotaExceeded(
                f"{self._unanswered} requests are unanswered on this connection. Wait for some of the replies first."
            )
            return self._send_error(request.id, busy)
        self._unanswered += 1
        if not self._not_started and request.method.name == "session.execute" and request.params.wait == "finished":
            self._run_cell(request)
            return self._send_queue.drained() if self._send_queue.backlog > UNSENT_BYTES else None
        if not self._not_started and request.method.name == "tool.return":
            self._take_result(request)
            return self._send_queue.drained() if self._send_queue.backlog > UNSENT_BYTES else None
        self._start_task(request, len(message))
        return (
            self._wait_until_sent()
            if self._unsent > UNSENT_BYTES or len(self._requests) > MAX_STARTS_PER_TURN
            else None
        )

    def _start_task(self, request: jsonrpc.Request, size: int = 0) -> None:
        self._not_started += 1
        self.count_until_done(self._requests.start(self._serve(request), name=request.method.name), size)

    def count_until_done(self, task: asyncio.Future[None], size: int) -> None:
        """Count a large message in memory until its request has ended."""
        limited: LimitedConnection | None = getattr(self.ws_connection, "limited", None)
        if size > HELD_FROM and limited is not None:
            limited.serve(size)
            task.add_done_callback(lambda _, counted=limited: counted.serve(-size))  # type: ignore[misc]

    async def _wait_until_sent(self) -> None:
        """Delay the next request of a client that does not read its replies, so that they don't fill memory."""
        await asyncio.sleep(0)  # lets the accepted requests start
        await self._may_read.wait()

    async def _refuse(self, refused: jsonrpc.RequestRefused) -> None:
        self.context.metrics.request(self.transport, "refused", refused.error.code, 0.0)
        try:
            await self._reply(jsonrpc.encode_error(refused.id, refused.error, refused.code))
        except ConnectionGone:
            return
        if refused.code == jsonrpc.PARSE_ERROR and "UTF-8" in refused.error.message:
            # RFC 6455, section 8.1: an endpoint must fail a connection whose text isn't UTF-8.
            self.close(1007, "not UTF-8")

    def _run_cell(self, request: jsonrpc.Request) -> None:
        """Start a cell whose reply is sent when it has finished."""
        began = time.perf_counter()
        session_id: str = request.params.session

        def on_finished(read: Callable[[], CellInfo]) -> None:
            self._forget_pending_reply(session_id)
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

        self._pending_replies[session_id] += 1
        try:
            # The parameters of ``session.execute`` are a ``CellRequest``.
            self.context.service.execute_then(self.who, session_id, request.params, on_finished, client=self)
        except Recovering:
            self._forget_pending_reply(session_id)
            self._start_task(request)
        except Exception as error:
            self._forget_pending_reply(session_id)
            self._answer_cell(request, began, b"", error)

    def _take_result(self, request: jsonrpc.Request) -> None:
        """Take the result of a call without a task: code in a session waits for it."""
        began = time.perf_counter()
        try:
            auth.require_scope(self.who, request.method.scope)
            args, kwargs = request.method.arguments(request.params)
            self.context.service.offers.answer(self.who, *args, **kwargs)
            payload = b"" if isinstance(request.id, UnsetType) else jsonrpc.encode_result(request.id, None)
        except Recovering:
            self._start_task(request)
            return
        except Exception as error:
            self._answer_cell(request, began, b"", error, linger=RETURN_LINGER)
        else:
            self._answer_cell(request, began, payload, None, linger=RETURN_LINGER)

    def _forget_pending_reply(self, session: str) -> None:
        """Count one pending reply fewer for a session."""
        self._pending_replies[session] -= 1
        if not self._pending_replies[session]:
            del self._pending_replies[session]

    def has_pending_reply(self, session: str) -> bool:
        """Return whether a reply waits for a cell of this session to finish."""
        return session in self._pending_replies

    def _answer_cell(
        self,
        request: jsonrpc.Request,
        began: float,
        payload: bytes,
        error: Exception | None = None,
        linger: float = 0.0,
    ) -> None:
        """Reply to a request, unless it is a notification."""
        self._unanswered -= 1
        known = None if error is None else self._as_known_error(error, request)
        code = "ok" if known is None else known.code
        self.context.metrics.request(self.transport, request.method.name, code, time.perf_counter() - began)
        if code != "ok":
            self._note_refusal(request, code)
        if not isinstance(request.id, UnsetType):
            payload = jsonrpc.encode_error(request.id, known) if known is not None else payload
            if linger or self._pending_replies:  # another frame may be sent in the same write
                self._send_queue.put(jsonrpc.text_frame(payload), linger)
            else:
                self._send_queue.send(jsonrpc.text_frame(payload))

    def _note_refusal(self, request: jsonrpc.Request, code: str) -> None:
        session = getattr(request.params, "session", None)
        operator_log.refused(code, request.method.name, self.who.name, session)

    async def _serve(self, request: jsonrpc.Request) -> None:
        began = time.perf_counter()
        code = "ok"
        # An offer for all sessions has no session.
        await self.context.service.ensure_loaded(getattr(request.params, "session", None) or "")
        self._not_started -= 1
        after: Callable[[], None] | None = None
        try:
            value, after = await self._perform(request)
            payload = None if isinstance(request.id, UnsetType) else jsonrpc.encode_result(request.id, value)
        except Exception as error:
            # The error holds this frame. A variable with the error would make garbage of both, with the request.
            code, payload = self._encode_error(error, request)
        self.context.metrics.request(self.transport, request.method.name, code, time.perf_counter() - began)
        if code != "ok":
            self._note_refusal(request, code)
        try:
            if payload is not None:
                await self._reply(payload)
            if after is not None:
                after()
        except ConnectionGone:
            return
        finally:
            self._unanswered -= 1

    async def _send_error(self, id: Any, error: KernelsvcError) -> None:
        if not isinstance(id, UnsetType):
            try:
                await self._reply(jsonrpc.encode_error(id, error))
            except ConnectionGone:
                return

    def _as_known_error(self, error: Exception, request: jsonrpc.Request) -> KernelsvcError:
        if not isinstance(error, KernelsvcError):
            extra = {"action": "request_failed", "method": request.method.name}
            log.error("%s failed", request.method.name, exc_info=error, extra=extra)
            return Internal()
        return error

    def _encode_error(self, error: Exception, request: jsonrpc.Request) -> tuple[str, bytes | None]:
        known = self._as_known_error(error, request)
        return known.code, None if isinstance(request.id, UnsetType) else jsonrpc.encode_error(request.id, known)

    async def _perform(self, request: jsonrpc.Request) -> tuple[Any, Callable[[], None] | None]:
        """Return the result, and a function to call after it was sent."""
        name, params = request.method.name, request.params
        if name == "session.attach":
            auth.require_scope(self.who, request.method.scope)
            last = self.context.service.get(self.who, params.session).last_seq
            attachment = self._attach(params.session, params.after)
            return method_params.Attached(session=params.session, last_seq=last), attachment.start
        if name == "session.detach":
            self._detach(params.session)
            return None, None
        value = await invoke(self.context, self.who, request.method, params, self)
        if name == "session.create" and params.attach and value.id not in self._attachments:
            return value, self._attach(value.id, 0).start
        if name in ("session.execute", "session.batch") and params.wait == "finished":
            await self._wait_for_events(params.session, value if isinstance(value, list) else [value])
        return value, None

    def _attach(self, session: str, after: int) -> Attachment:
        if len(self._attachments) >= MAX_ATTACHMENTS:
            raise QuotaExceeded(f"This connection is attached to {MAX_ATTACHMENTS} sessions. Open another one.")
        subscription = self.context.service.attach(self.who, session, after=after)
        self._detach(session)
        attachment = self._attachments[session] = Attachment(session, subscription, after, self)
        return attachment

    def _detach(self, session: str) -> None:
        if attachment := self._attachments.pop(session, None):
            attachment.stop()

    async def _wait_for_events(self, session: str, cells: list[CellInfo]) -> None:
        """Wait until the events of these cells are sent, if this connection is attached to the session."""
        if (attachment := self._attachments.get(session)) and cells:
            await attachment.reached(max(cell.seq.last for cell in cells))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: refuse an upgrade with an error of the common format."""
        if status_code == HTTPStatus.UPGRADE_REQUIRED:
            kwargs["exc_info"] = (
                BadRequest,
                BadRequest("Only WebSocket version 13 is supported. Connect with it."),
                None,
            )
        super().write_error(status_code, **kwargs)
