"""JSON-RPC over one WebSocket that reconnects by itself.

Theory of operation. One task, ``_stay_connected``, owns the socket. It connects, sends pending calls, attaches to the
sessions with readers, reads until the socket closes, and reconnects after growing pauses. It gives up when no server
has answered for ``retry_seconds``. Pending calls then fail with ``Unreachable``, and the next call starts the task
again.

A call is sent again on the next socket if its method is ``repeatable`` in ``protocol.methods``. Any other call that was
sent when the socket closed fails with ``ConnectionLost``. Only the session's state shows whether the server executed
it.

For each session with readers, ``_update_attachment`` attaches or detaches as its ``EventFeed`` demands, one request at
a time. An attach is sent only after the reply to the detach before it, so that no event of the older attachment can
belong to the newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.netutil import Resolver
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    WebSocketProtocol,
    websocket_connect,
)

from kernelsvc import errors
from kernelsvc.client.address import Address
from kernelsvc.client.event_feed import EventFeed, FeedReader, SequenceGap
from kernelsvc.client.http import UnixResolver, error_of
from kernelsvc.client.tool_provider import ToolProvider
from kernelsvc.client.values import ConnectionLost, Unreachable, event_of, unreachable
from kernelsvc.errors import KernelsvcError
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.protocol.methods import METHODS

#: The server's limit for a frame is 64 MiB, and a response may have several cells.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
#: Idle time after which the client pings, and time for the pong before it closes the connection.
PING_SECONDS = 20.0
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0

_encode = msgspec.json.Encoder().encode


class _Incoming(msgspec.Struct):
    """Any message from the server. Its parts are decoded when needed."""

    id: int | None = None
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


class _Detached(msgspec.Struct):
    session: str
    error: dict[str, Any]


_decode = msgspec.json.Decoder(_Incoming).decode


class _Call:
    """A request that waits for its response."""

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        self.method = method
        self.params = params
        known = METHODS.get(method)
        self.repeat = known is not None and known.repeatable
        self.sent = False
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class _SocketEnd(NamedTuple):
    """The end of one socket: when nothing more is read from it, and when it has closed."""

    of_reading: asyncio.Future[None]
    closed: asyncio.Event


def backoff(attempt: int, chance: float) -> float:
    """Return the time before the next connection attempt, in seconds.

    Args:
        attempt: 0 for the first attempt after a loss.
        chance: random number from 0 to 1, so that many clients do not reconnect at the same moment.
    """
    # At most 5 s, and half of the delay is random. The limit of the exponent avoids huge integers after many attempts.
    return float(min(5.0, 0.05 * 2 ** min(attempt, 10)) * (0.5 + 0.5 * chance))


def _close_abandoned(connected: asyncio.Future[WebSocketClientConnection]) -> None:
    """Close a connection whose caller was cancelled."""
    if not connected.cancelled() and connected.exception() is None:
        connected.result().close()


class RpcConnection:
    """A JSON-RPC connection: see the module's docstring. Use it on the event loop that created it."""

    def __init__(
        self,
        address: Address,
        *,
        connect_seconds: float,
        retry_seconds: float,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.reconnects = 0
        self._give_up_seconds = connect_seconds
        self._retry_seconds = retry_seconds
        self._on_state = on_state or (lambda state: None)
        self._resolver: Resolver | None = UnixResolver(address.uds) if address.uds else None
        self._socket: WebSocketClientConnection | None = None
        self._socket_closed = asyncio.Event()
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._feeds: dict[str, EventFeed] = {}
        self._updating: set[str] = set()
        self._readable: dict[FeedReader, asyncio.Event] = {}
        self._connection_task: asyncio.Task[None] | None = None
        self._tasks = OwnedTasks()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop
        #: Carries out calls of functions that this client offers. None if it offers none.
        self.provider: ToolProvider | None = None
        #: Its name for the server. Empty for a random one.
        self.provider_name = ""

    # --- calls ------------------------------------------------------------------

    async def call(self, method: str, params: dict[str, Any], *, timeout: float | None = None) -> Any:
        """Call a method and wait for its result, across reconnects.

        Safe to cancel: the result is dropped. The server still executes a call that it has accepted.

        Args:
            method: name of the method.
            params: parameters, as JSON values.
            timeout: maximum time to wait, in seconds. None waits without a limit.

        Raises:
            KernelsvcError: the server's error, ``Unreachable``, ``ConnectionLost`` or ``Timeout``.
        """
        request = _Call(method, params)
        number = self._next_id
        self._next_id += 1
        self._calls[number] = request
        try:
            self._ensure_connection_task()
            if self._socket is not None:
                await self._send(self._socket, number, request)
            if timeout is None:
                return await request.answer
            async with asyncio.timeout(timeout):
                return await request.answer
        except TimeoutError:
            raise errors.Timeout(f"No response to {method} within {timeout:g} s. Read the session's state.")
        finally:
            self._calls.pop(number, None)

    async def _send(self, socket: WebSocketClientConnection, number: int, request: _Call) -> None:
        message = _encode({"jsonrpc": "2.0", "id": number, "method": request.method, "params": request.params})
        # Set before the write: a write that fails halfway may have delivered the request.
        request.sent = True
        # If the socket is closed, _stay_connected notices it, and decides about this call.
        with contextlib.suppress(WebSocketClosedError):
            await socket.write_message(message.decode())

    # --- readers ------------------------------------------------------------------

    def follow(self, session: str, after: int, cell: str | None = None) -> FeedReader:
        """Return a reader of the session's events after a position. End it with ``unfollow``."""
        reader = FeedReader(after, cell)
        self._readable[reader] = asyncio.Event()
        self._feeds.setdefault(session, EventFeed(session)).readers.append(reader)
        self._ensure_connection_task()
        self._start_update(session)
        return reader

    async def read(self, session: str, reader: FeedReader) -> list[Any]:
        """Return the events since the last call, at least one. Return an empty list after the last event.

        Safe to cancel: no event is lost.

        Raises:
            KernelsvcError: the reason why the reader ended early.
        """
        readable = self._readable[reader]
        while not reader.waiting and not reader.done:
            readable.clear()
            await readable.wait()
        was_full = reader.full
        events = reader.drain()
        if was_full:
            self._start_update(session)
        if not events and reader.error is not None:
            raise reader.error
        return events

    def rewind(self, session: str, reader: FeedReader, after: int) -> None:
        """Move a reader back to an earlier position, before it has read any event."""
        reader.rewind(after)
        self._start_update(session)

    def unfollow(self, session: str, reader: FeedReader) -> None:
        """End a reader."""
        reader.done = True
        self._readable.pop(reader, None)
        feed = self._feeds.get(session)
        if feed is not None and reader in feed.readers:
            feed.readers.remove(reader)
            self._start_update(session)
            self._remove_if_unused(feed)

    def unfollow_threadsafe(self, session: str, reader: FeedReader) -> None:
        """``unfollow`` from any thread. The garbage collector can run a finalizer in any."""
        with contextlib.suppress(RuntimeError):  # The loop is closed, and all readers with it.
            self._loop.call_soon_threadsafe(self.unfollow, session, reader)

    def _start_update(self, session: str) -> None:
        if session in self._updating or self._socket is None or self._closed:
            return
        feed = self._feeds.get(session)
        if feed is None or feed.step() is None:
            return
        self._updating.add(session)
        self._tasks.start(self._update_attachment(feed), name=f"kernelsvc client: attach {session}")

    async def _update_attachment(self, feed: EventFeed) -> None:
        try:
            while self._socket is not None and (step := feed.step()) is not None:
                action, after = step
                if action == "attach":
                    # Before the request: the server may send events before its reply.
                    feed.attached(after)
                    await self.call("session.attach", {"session": feed.session, "after": after})
                else:
                    feed.lost()
                    await self.call("session.detach", {"session": feed.session})
        except (ConnectionLost, Unreachable):
            pass  # _on_socket_closed has marked the feed as detached. _serve attaches again on the next socket.
        except KernelsvcError as error:
            self._fail_readers(feed, error)
        finally:
            self._updating.discard(feed.session)
            self._remove_if_unused(feed)
        # The readers may have changed after the last step.
        self._start_update(feed.session)

    def _remove_if_unused(self, feed: EventFeed) -> None:
        if not feed.readers and not feed.live and feed.session not in self._updating:
            self._feeds.pop(feed.session, None)

    def _fail_readers(self, feed: EventFeed, error: KernelsvcError) -> None:
        feed.lost()
        for reader in feed.readers:
            reader.fail(error)
            self._notify(reader)

    def _notify(self, reader: FeedReader) -> None:
        if readable := self._readable.get(reader):
            readable.set()

    # --- the socket's life ----------------------------------------------------------

    def _ensure_connection_task(self) -> None:
        if self._closed:
            raise Unreachable("This client is closed. Create a new one.")
        self._loop = asyncio.get_running_loop()
        if self._connection_task is None or self._connection_task.done():
            work = self._stay_connected()
            self._connection_task = self._loop.create_task(work, name="kernelsvc client: connect")

    async def _stay_connected(self) -> None:
        try:
            while not self._closed and (self._calls or self._feeds or (self.provider and self.provider.active)):
                socket, end = await self._connect(self._give_up_seconds)
                self._give_up_seconds = self._retry_seconds
                try:
                    await self._serve(socket, end)
                finally:
                    self._on_socket_closed()
                _abort(socket)
                self.reconnects += 1
                self._report("lost")
        except KernelsvcError as error:
            self._give_up(error)
        except Exception as error:  # Without this, a caller would wait without end for a task that has ended.
            failure = Unreachable(f"The client can't connect to {self.address.shown}: {error}")
            failure.__cause__ = error
            self._give_up(failure)

    async def _connect(self, give_up_seconds: float) -> tuple[WebSocketClientConnection, _SocketEnd]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + give_up_seconds
        attempt = 0
        while True:
            try:
                return await self._connect_once()
            except (OSError, WebSocketError, HTTPClientError, TimeoutError) as error:
                # A refusal, such as a wrong token, is final, unless the error says that a retry may succeed.
                refused = await _refusal(error)
                pause = backoff(attempt, random.random())
                final = isinstance(error, ssl.SSLCertVerificationError) or (refused and not refused.retryable)
                if final or loop.time() + pause > deadline:
                    raise refused or unreachable(self.address.shown, error)
                attempt += 1
                await asyncio.sleep(pause)

    async def _connect_once(self) -> tuple[WebSocketClientConnection, _SocketEnd]:
        """Return a connection and its end."""
        end = _SocketEnd(asyncio.get_running_loop().create_future(), asyncio.Event())
        request = HTTPRequest(
            self.address.websocket,
            headers=self.address.headers(),
            connect_timeout=CONNECT_SECONDS,
            request_timeout=CONNECT_SECONDS,
        )
        connecting = asyncio.ensure_future(
            websocket_connect(
                request,
                # A queue of messages would cost another turn of the event loop for each.
                on_message_callback=partial(self._on_message, end),
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                max_message_size=MAX_MESSAGE_BYTES,
                resolver=self._resolver,
            )
        )
        try:
            # Tornado's own limits end where it has written the request: an error in between leaves its future pending.
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                return await asyncio.shield(connecting), end
        except (asyncio.CancelledError, TimeoutError):
            connecting.add_done_callback(_close_abandoned)  # Tornado can't cancel a connect
            raise

    async def _serve(self, socket: WebSocketClientConnection, end: _SocketEnd) -> None:
        """Send pending calls, attach to the sessions with readers, and read until the socket closes."""
        self._socket, self._socket_closed = socket, end.closed
        self._report("connected")
        for number, request in list(self._calls.items()):
            # While _send waits for the socket, other calls may end.
            if number in self._calls:
                await self._send(socket, number, request)
        for session in list(self._feeds):
            self._start_update(session)
        if self.provider is not None and self.reconnects:
            self.provider.connected()
        await end.of_reading

    def _on_message(self, end: _SocketEnd, message: str | bytes | None) -> None:
        """Handle a message, or the end of a socket (None). Nothing is read from a socket that has ended."""
        if message is None:
            end.closed.set()
        ended = end.of_reading
        if ended.done():
            return
        try:
            if message is not None:
                self._handle(message.encode() if isinstance(message, str) else message)
                return
        except (SequenceGap, msgspec.DecodeError):
            pass  # Connect again, and attach after the last event that was received.
        except Exception as error:
            ended.set_exception(error)
            return
        ended.set_result(None)

    def _handle(self, message: bytes) -> None:
        incoming = _decode(message)
        if incoming.method == "event":
            self._dispatch(bytes(incoming.params))
        elif incoming.method.startswith("tool."):
            if self.provider is not None:
                self.provider.notified(incoming.method, bytes(incoming.params))
        elif incoming.method == "detached":
            self._detached(msgspec.json.decode(incoming.params, type=_Detached))
        # The call of an unknown id was cancelled, or timed out.
        elif incoming.id is not None and (request := self._calls.get(incoming.id)) and not request.answer.done():
            if incoming.error is not None:
                request.answer.set_exception(_rpc_error(incoming.error))
            else:
                request.answer.set_result(msgspec.json.decode(incoming.result))

    def _dispatch(self, raw: bytes) -> None:
        event = event_of(raw)
        feed = self._feeds.get(event.session)
        # Events that the server sent before it handled the detach request.
        if feed is None:
            return
        for reader in feed.take(event, len(raw)):
            self._notify(reader)
            if reader.full:
                self._start_update(event.session)

    def _detached(self, notice: _Detached) -> None:
        """The server has stopped sending this session's events, because of an error."""
        if feed := self._feeds.get(notice.session):
            self._fail_readers(feed, errors.from_json(notice.error))

    def _on_socket_closed(self) -> None:
        """Mark all feeds as detached, and fail the sent calls that must not be sent twice."""
        self._socket = None
        for feed in self._feeds.values():
            feed.lost()
        for request in self._calls.values():
            if request.sent and not request.repeat and not request.answer.done():
                request.answer.set_exception(ConnectionLost(method=request.method))

    def _report(self, state: str) -> None:
        # An error of the caller's handler goes to the loop's exception handler, and does not end the connection.
        asyncio.get_running_loop().call_soon(self._on_state, state)

    def _give_up(self, error: KernelsvcError) -> None:
        if not self._closed:
            self._report("gone")
        for request in self._calls.values():
            if not request.answer.done():
                request.answer.set_exception(error)
        for feed in self._feeds.values():
            self._fail_readers(feed, error)
        self._feeds.clear()

    async def close(self) -> None:
        """Close the connection. Sessions stay open. Pending calls fail with ``Unreachable``."""
        if self._closed:
            return
        self._closed = True
        if self.provider is not None:
            await self.provider.close()
        socket = self._socket
        self._tasks.cancel()
        if self._connection_task is not None:
            self._connection_task.cancel()
            await asyncio.wait([self._connection_task])
        await self._tasks.wait()
        self._give_up(Unreachable("The client was closed before the call finished."))
        if socket is not None:
            await _close_gracefully(socket, self._socket_closed)


async def _close_gracefully(socket: WebSocketClientConnection, closed: asyncio.Event) -> None:
    """Send a close frame, wait a moment for the server's (RFC 6455, section 7.1.1), then close the socket."""
    protocol = socket.protocol
    socket.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await closed.wait()
    _close_stream(protocol)


def _abort(socket: WebSocketClientConnection) -> None:
    """Close the socket without the closing handshake: Tornado would wait for a close frame that nothing reads."""
    protocol = socket.protocol
    socket.close()
    _close_stream(protocol)


def _close_stream(protocol: WebSocketProtocol | None) -> None:
    if protocol is not None and protocol.stream is not None:
        protocol.stream.close()


def _rpc_error(error: dict[str, Any]) -> KernelsvcError:
    data = error.get("data")
    if isinstance(data, dict) and "code" in data:
        return errors.from_json(data)
    return errors.BadRequest(str(error.get("message") or "The server refused the request without a reason."))


async def _refusal(error: BaseException) -> KernelsvcError | None:
    """Return the error of an HTTP response that refused the WebSocket handshake, or None if there was no response."""
    # Tornado raises code 599 if there was no response: connection failed, or timeout.
    if isinstance(error, HTTPClientError) and error.code != 599:
        return error_of(error.code, error.response.body if error.response else b"")
    return None
