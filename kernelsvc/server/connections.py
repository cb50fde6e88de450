"""Limits on open connections: how many, and how long one may take to send a request.

A connection costs a descriptor, and sessions need descriptors too. Connections
are *unauthenticated* until a request on them holds a good token or secret. As
with OpenSSH's MaxStartups, the unauthenticated ones are limited first: a full
server closes the oldest of them to accept a new connection, so that connections
that send nothing can't lock out clients that send a request. A reverse proxy or a
Unix socket is one peer address, therefore authenticated connections are limited
by principal and not by address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream

from kernelsvc.errors import AtCapacity
from kernelsvc.linux.acceptor import Acceptor
from kernelsvc.server.ws.socket_stream import SocketStream
from kernelsvc.settings import Settings

log = logging.getLogger(__name__)

#: Slowest accepted rate of a body, in bytes per second, while the server reads it.
MIN_BODY_RATE = 512
#: Seconds that the body of an authenticated request may pause.
BODY_PAUSE_SECONDS = 60.0
#: Seconds that an unauthenticated client may take to read a response.
ANSWER_SECONDS = 60.0
#: Age in seconds below which a connection is not closed for its address's limit: its request may still be on the way.
GRACE_SECONDS = 1.0
#: Most bytes of requests and WebSocket messages in memory, of all connections together.
MAX_HELD = 256 * 1024 * 1024
#: Most bytes of answers that clients have not taken yet, of all connections together. Fewer bytes of one connection are
#: no reason to close it.
MAX_UNSENT, SLOW_FROM = 256 * 1024 * 1024, 64 * 1024
#: Share of the process's descriptors for connections. The rest is for sessions, journals and kernels.
DESCRIPTOR_SHARE = 0.5


class Phase(Enum):
    """The input or output that a connection waits for."""

    HEAD = "a request's head"
    BODY = "a request's body"
    ANSWER = "the answer"
    RELAY = "a server in a session"


class LimitedConnection:
    """One accepted connection, from accept(2) until its descriptor is closed.

    Attributes:
        peer: The address that it is counted for.
        principal: Name of the principal that a request on it authenticated last. None before.
        token_sha256: Hash of the token from which the last request with any has its rights.
        phase: The input or output that it waits for.
        since: Start of the phase, on the event loop's clock.
        held: Bytes in memory of its request's body, or of its WebSocket messages that are incomplete or being served.
        unsent: Bytes of answers that the client has not taken yet.
        released: Whether its descriptor is closed, so that it is not counted.
    """

    def __init__(self, owner: ConnectionLimiter, peer: str) -> None:
        self._owner = owner
        self.held = self._incomplete = self._served = self.unsent = 0
        self.released = False
        self.peer = peer
        self.principal: str | None = None
        self.token_sha256: str | None = None
        self.opened = self.since = owner.now()
        self.phase = Phase.HEAD
        self.stream: IOStream | SocketStream | None = None
        # Time of the head's first byte. The first head counts from accept(2).
        self._head_since: float | None = self.opened
        self._credit = 0.0

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which no byte has arrived."""
        return self.phase is Phase.HEAD and self._head_since is None

    # -- what happens on it ------------------------------------------------------------

    def await_head(self, buffered: bool) -> None:
        """Begin to wait for a request's head.

        Args:
            buffered: Whether a part of it was read already, together with the request before.
        """
        self.hold(0)
        if self.phase is not Phase.HEAD:
            self.phase, self.since = Phase.HEAD, self._owner.now()
            self._head_since = self.since if buffered else None

    def await_body(self) -> None:
        """Begin to wait for the body: the head is complete."""
        self.phase, self.since = Phase.BODY, self._owner.now()
        self._credit = self._body_pause()

    def await_answer(self) -> None:
        """Begin to wait for the answer: the request is complete."""
        self.phase, self.since = Phase.ANSWER, self._owner.now()

    def await_relay(self) -> None:
        """Begin to pass on what another server sends. ``server.ports`` has the limits of its time."""
        self.phase, self.since = Phase.RELAY, self._owner.now()

    def received(self, size: int) -> None:
        """Note that ``size`` bytes have arrived."""
        if self.phase is Phase.HEAD and self._head_since is None:
            self._head_since = self._owner.now()
        elif self.phase is Phase.BODY:
            self._credit = min(self._body_pause(), self._credit + size / MIN_BODY_RATE)

    def hold(self, size: int) -> None:
        """Note that ``size`` bytes of a request or message are in memory. This may close a connection, also this."""
        if size != self._incomplete:
            self._incomplete = size
            self._owner.hold(self, size + self._served)

    def serve(self, more: int) -> None:
        """Note that WebSocket messages of ``more`` bytes are being served, or with a negative number not any more."""
        self._served += more
        self._owner.hold(self, self._incomplete + self._served)

    def note_unsent(self, size: int) -> None:
        """Note that the client has not taken ``size`` bytes of answers yet. This may close a connection, also this."""
        if size != self.unsent:
            self._owner.note_unsent(self, size)

    def claim(self, principal: str, token_sha256: str) -> None:
        """Count this connection for a principal, after a request on it showed a good token or secret.

        Raises:
            AtCapacity: The principal has as many connections as are allowed.
        """
        self._owner.claim(self, principal)
        self.end_with_token(token_sha256)
        self._credit = self._body_pause()  # an authenticated client may pause for longer

    def end_with_token(self, token_sha256: str) -> None:
        """Close this connection when a token ends from which its last request has its rights."""
        self.token_sha256 = token_sha256

    def restore(self, stream: SocketStream) -> None:
        """Count it again. Its descriptor was duplicated before it was closed, and this stream has the duplicate."""
        self.stream, self.released = stream, False
        self._owner.add(self)

    def release(self) -> None:
        """Stop counting it: its descriptor is closed. A request of it may still be served. Idempotent."""
        self.released = True
        self._owner.remove(self)

    def close(self, reason: str) -> None:
        """Close it from this side."""
        log.info("Closed a connection from %s: %s", self.peer, reason)
        if self.stream is not None:
            self.stream.close()

    # -- time --------------------------------------------------------------------------

    def _body_pause(self) -> float:
        head = self._owner.head_seconds
        return head if self.principal is None else max(head, BODY_PAUSE_SECONDS)

    def overdue(self, now: float, elapsed: float) -> str | None:
        """Return why it must be closed, or None. Called once in each sweep.

        Args:
            now: The event loop's time.
            elapsed: Seconds since the sweep before.
        """
        head = self._owner.head_seconds
        if self.phase is Phase.HEAD and self._head_since is not None and now - self._head_since > head:
            return f"the head of a request was not complete after {head:g} s"
        # While the server itself does not read, the client is not late.
        if self.phase is Phase.BODY and isinstance(self.stream, IOStream) and self.stream.reading():
            self._credit -= elapsed
            if self._credit <= 0:
                return f"the body of a request came with less than {MIN_BODY_RATE} bytes/s"
        if self.phase is Phase.ANSWER and self.principal is None and now - self.since > ANSWER_SECONDS:
            return f"the client did not read a response for {ANSWER_SECONDS:g} s"
        return None


class ConnectionLimiter:
    """The open connections of all listening sockets of one server. Used on the event loop only.

    Args:
        most: Most connections at the same time.
        per_peer: Most unauthenticated ones of one peer address.
        head_seconds: Time for the head of a request.
        void_tokens: Returns those of some tokens' hashes that are not valid any more.
    """

    def __init__(
        self,
        most: int,
        per_peer: int,
        head_seconds: float,
        void_tokens: Callable[[frozenset[str]], frozenset[str]] = lambda hashes: frozenset(),
    ) -> None:
        self._void_tokens = void_tokens
        self.most = most
        self.per_peer = min(per_peer, max(1, most // 2))
        self.per_principal = max(1, most // 2)
        self.head_seconds = head_seconds
        self.now = asyncio.get_running_loop().time
        self._unauthenticated: dict[str, dict[LimitedConnection, None]] = {}  # of each peer, the oldest first
        self._owned: dict[str, dict[LimitedConnection, None]] = {}  # of each principal
        self._count = self._held = self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last_sweep = self.now()

    @classmethod
    def of(cls, settings: Settings, void_tokens: Callable[[frozenset[str]], frozenset[str]]) -> ConnectionLimiter:
        """Make a limiter from the settings, within the process's limit of open files."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(1, min(settings.max_connections, int(descriptors * DESCRIPTOR_SHARE)))
        if most < settings.max_connections:
            log.info(
                "max_connections is reduced to %d: the process may open %d files (RLIMIT_NOFILE)", most, descriptors
            )
        return cls(most, settings.max_unauthenticated_connections, settings.request_head_seconds, void_tokens)

    def __len__(self) -> int:
        return self._count

    # -- coming and going ----------------------------------------------------------------

    def open(self, family: int, address: Any) -> LimitedConnection | None:
        """Count a new connection, and close another one if there are too many.

        Returns:
            None if it must be refused: all connections are authenticated and in use.
        """
        peer = peer_of(family, address)
        same = self._unauthenticated.get(peer, {})
        if len(same) >= self.per_peer:
            oldest = next(iter(same))
            if self.now() - oldest.opened >= GRACE_SECONDS:
                oldest.close(f"more than {self.per_peer} unauthenticated connections from one address")
        if self._count >= self.most:
            victim = self._victim()
            if victim is None:
                log.warning(
                    "Refused a connection from %s: all %d connections are in use (max_connections)", peer, self._count
                )
                return None
            victim.close(f"more than {self.most} connections are open")
        connection = LimitedConnection(self, peer)
        self.add(connection)
        return connection

    def _victim(self) -> LimitedConnection | None:
        """Return the connection to close for a new one: an unauthenticated one, else an idle one."""
        if self._unauthenticated:
            most = max(self._unauthenticated, key=lambda peer: len(self._unauthenticated[peer]))
            return next(iter(self._unauthenticated[most]))
        for owned in sorted(self._owned.values(), key=len, reverse=True):
            idle = [each for each in owned if each.idle]
            if idle:
                return min(idle, key=lambda each: each.since)
        return None

    def _table_of(self, connection: LimitedConnection) -> tuple[dict[str, dict[LimitedConnection, None]], str]:
        if connection.principal is None:
            return self._unauthenticated, connection.peer
        return self._owned, connection.principal

    def add(self, connection: LimitedConnection) -> None:
        """Count a connection."""
        table, name = self._table_of(connection)
        table.setdefault(name, {})[connection] = None
        self._count += 1

    def remove(self, connection: LimitedConnection) -> None:
        """Stop counting a connection. Idempotent."""
        table, name = self._table_of(connection)
        group = table.get(name, {})
        connection.hold(0)
        connection.note_unsent(0)
        if connection in group:
            del group[connection]
            self._count -= 1
            if not group:
                del table[name]

    def claim(self, connection: LimitedConnection, principal: str) -> None:
        """See ``LimitedConnection.claim``."""
        if connection.principal == principal or connection.released:
            return
        if len(self._owned.get(principal, {})) >= self.per_principal:
            raise AtCapacity(
                f"{principal!r} has {self.per_principal} connections open, which is the limit. Close some of them."
            )
        self.remove(connection)
        connection.principal = principal
        self.add(connection)

    def hold(self, connection: LimitedConnection, size: int) -> None:
        """See ``LimitedConnection.hold``. Above the limit, the principal that has most loses its largest request."""
        self._held += size - connection.held
        connection.held = size
        while self._held > MAX_HELD:
            groups = [*self._owned.values(), *self._unauthenticated.values()]
            most = max(groups, key=lambda group: sum(each.held for each in group), default={connection: None})
            # A request that is complete is being answered. It goes last.
            victim = max(most, key=lambda each: (each.held > 0, each.phase is not Phase.ANSWER, each.held))
            if not victim.held:
                return  # The connection that holds it is not counted any more, and will be gone.
            self._held -= victim.held
            victim.held = 0
            victim.close(f"requests of more than {MAX_HELD} bytes are in memory")

    def note_unsent(self, connection: LimitedConnection, size: int) -> None:
        """See ``LimitedConnection.note_unsent``. Above the limit, a connection of the principal with most is closed.

        Its largest answer over HTTP stays, because one answer may be larger than the limit. A client of a WebSocket can
        connect again and continue where it was.
        """
        grown = size > connection.unsent
        self._unsent += size - connection.unsent
        connection.unsent = size
        while grown and self._unsent > MAX_UNSENT:
            groups = [*self._owned.values(), *self._unauthenticated.values()]
            most = max(groups, key=lambda group: sum(each.unsent for each in group), default={connection: None})
            answers = (each for each in most if not isinstance(each.stream, SocketStream))
            largest = max(answers, key=lambda each: each.unsent, default=None)
            victim = max((each for each in most if each is not largest), key=lambda each: each.unsent, default=None)
            if victim is None or victim.unsent < SLOW_FROM:
                return
            self._unsent -= victim.unsent
            victim.unsent = 0
            # In the next turn of the loop: the stream may be in the middle of a write.
            reason = f"answers of more than {MAX_UNSENT} bytes wait for clients that do not read"
            asyncio.get_running_loop().call_soon(victim.close, reason)

    # -- the sweep -------------------------------------------------------------------------

    def start(self) -> None:
        """Start to close slow connections, and those of tokens that are not valid any more."""
        self._last_sweep = self.now()
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._sweep)

    def stop(self) -> None:
        """Stop closing connections."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _interval(self) -> float:
        return min(1.0, self.head_seconds / 4)

    def _sweep(self) -> None:
        now = self.now()
        # After a delay of the event loop, input that arrived in time is still unread.
        elapsed, self._last_sweep = min(now - self._last_sweep, 2 * self._interval), now
        found = [each for table in (self._unauthenticated, self._owned) for group in table.values() for each in group]
        for connection in found:
            if (reason := connection.overdue(now, elapsed)) is not None:
                connection.close(reason)
        void = self._void_tokens(frozenset(each.token_sha256 for each in found if each.token_sha256))
        for connection in found:
            if connection.token_sha256 in void:
                connection.close("its token is not valid any more")
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._sweep)


def peer_of(family: int, address: Any) -> str:
    """Return the address that a connection is counted for. For IPv6, its /64 network, which one host may own."""
    if family == socket.AF_UNIX:
        return "unix"
    host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address):
        return str(host.ipv4_mapped or ipaddress.ip_network((int(host) >> 64 << 64, 64)))
    return str(host)


class LimitedStream(IOStream):
    """Tornado's stream of an accepted socket, which reports its progress to a ``LimitedConnection``."""

    def __init__(self, accepted: socket.socket, connection: LimitedConnection, **more: Any) -> None:
        self.connection = connection
        super().__init__(accepted, **more)
        connection.stream = self

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Tornado's hook."""
        size = super().read_from_fd(buf)
        if size:
            self.connection.received(size)
        return size

    def _handle_write(self) -> None:
        """Tornado's hook: called at each write, and when the client has taken bytes."""
        super()._handle_write()
        self.connection.note_unsent(len(self._write_buffer or b""))

    def close_fd(self) -> None:
        """Tornado's hook."""
        super().close_fd()
        self.connection.release()

    def buffered(self) -> bool:
        """Return whether bytes were read from the socket that no request has consumed yet."""
        return bool(self._read_buffer_size)


def connection_of(stream: object) -> LimitedConnection | None:
    """Return the connection behind a stream. None if a ``LimitedServer`` did not accept it."""
    return stream.connection if isinstance(stream, LimitedStream) else None


class _PhaseDelegate(HTTPMessageDelegate):
    """A request's delegate, which reports the request's progress to the connection."""

    def __init__(self, delegate: HTTPMessageDelegate, connection: LimitedConnection) -> None:
        self._delegate, self._connection = delegate, connection

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._connection.await_body()
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._connection.await_answer()
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


class LimitedServer(HTTPServer):
    """Tornado's HTTP server with limited connections."""

    connections: ConnectionLimiter | None = None
    _handlers: dict[int, Callable[[], None]]

    def listen_within(self, connections: ConnectionLimiter, sockets: Sequence[socket.socket]) -> None:
        """Listen on these sockets within these limits, with an ``Acceptor`` in place of Tornado's handler."""
        self.connections = connections
        connections.start()
        for listener in sockets:
            self._sockets[listener.fileno()] = listener
            self._handlers[listener.fileno()] = Acceptor(listener, self._accepted).close

    def _accepted(self, accepted: socket.socket, address: Any) -> None:
        assert self.connections is not None
        connection = self.connections.open(accepted.family, address)
        if connection is None:
            accepted.close()
            return
        stream = LimitedStream(
            accepted, connection, max_buffer_size=self.max_buffer_size, read_chunk_size=self.read_chunk_size
        )
        self.handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Tornado's hook: a connection waits for its next request."""
        delegate = super().start_request(server_conn, request_conn)
        stream = getattr(request_conn, "stream", None)
        if not isinstance(stream, LimitedStream):
            return delegate
        stream.connection.await_head(stream.buffered())
        return _PhaseDelegate(delegate, stream.connection)
