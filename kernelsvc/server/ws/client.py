"""The client's end of a WebSocket between servers of one cluster, over TCP or a Unix socket."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from tornado.iostream import StreamClosedError

from kernelsvc.errors import BadRequest
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.ws.protocol import FIN, TEXT, FrameParser, MessageTooBig, ProtocolViolation
from kernelsvc.server.ws.socket_stream import MAX_BACKLOG, READ_BYTES, SendQueue, SocketStream

CLOSE, PING, PONG = 0x8, 0x9, 0xA
#: Seconds for a connection, and for the answer to the opening handshake.
CONNECT_SECONDS, HANDSHAKE_SECONDS = 2.0, 10.0
MAX_HEAD = 64 * 1024


class HandshakeRefused(Exception):
    """The server answered the handshake with another status than 101.

    Attributes:
        status: The HTTP status. 0: the answer is not HTTP.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered with the status {status}")
        self.status = status


def endpoint(url: str) -> str | tuple[str, int]:
    """Return the address of a URL: the path of a Unix socket, or host and port.

    Raises:
        BadRequest: It is neither ``http://HOST:PORT`` nor ``unix:/path``.
    """
    if url.startswith("unix:/"):
        return url.removeprefix("unix:")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
        raise BadRequest(f"{url!r} is no address of a server. Write http://HOST:PORT or unix:/path.")
    return host, port or 80


async def open_socket(url: str) -> socket.socket:
    """Connect to a server. Safe to cancel.

    Raises:
        OSError: The server does not accept within ``CONNECT_SECONDS``.
    """
    where = endpoint(url)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        if isinstance(where, str):
            return await _connect(loop, socket.AF_UNIX, where)
        error: OSError = OSError(f"{where[0]} has no address")
        for family, _, _, _, address in await loop.getaddrinfo(*where, type=socket.SOCK_STREAM):
            try:
                connected = await _connect(loop, family, address)
            except OSError as failed:
                error = failed
                continue
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        raise error


async def _connect(loop: asyncio.AbstractEventLoop, family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await loop.sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


class ClientSocket:
    """An open WebSocket. Used on the event loop.

    Args:
        connected: The socket, after the handshake.
        on_message: Called with each message. While it returns a future that is not done, nothing more is read.
        on_closed: Called once when the connection has ended, from either side.
        limit: Most bytes of a message.
        on_read: Called after the messages of each read.
    """

    def __init__(
        self,
        connected: socket.socket,
        on_message: Callable[[bytes], asyncio.Future[None] | None],
        on_closed: Callable[[], None],
        limit: int,
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_message = on_message
        self._on_read = on_read
        self._parser = FrameParser(limit)
        self._stream = SocketStream(connected, self._on_data, on_closed)
        self._queue = SendQueue(self._stream.write, lambda: None)

    def start(self, early: bytes) -> None:
        """Begin to read, after the bytes that came with the handshake."""
        self._stream.listen()
        if early:
            self._on_data(early)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._stream.closed()

    def send(self, message: bytes) -> None:
        """Send a text message.

        Raises:
            StreamClosedError: The connection has ended.
        """
        self.queue(message)
        self.flush()

    def queue(self, message: bytes) -> asyncio.Future[None] | None:
        """Queue a text message until the next ``flush``. Messages that are ready together leave in one write.

        Returns:
            A future that is done when more may be queued, or None.

        Raises:
            StreamClosedError: The connection has ended.
        """
        if self._stream.closed():
            raise StreamClosedError
        self._queue.hold(_frame(FIN | TEXT, message))
        return None if self._queue.backlog < MAX_BACKLOG else asyncio.ensure_future(self._queue.drained())

    def flush(self) -> None:
        """Send the queued messages."""
        self._queue.flush()

    def close(self) -> None:
        """Close the connection immediately. Idempotent."""
        self._stream.close()

    def _on_data(self, data: bytes) -> None:
        self._parser.feed(data)
        try:
            while not self._stream.closed() and (message := self._parser.next()) is not None:
                held = self._handle(*message)
                if held is not None and not held.done():
                    self._stream.pause()
                    held.add_done_callback(lambda done: self._resume())
                    return
        except (ProtocolViolation, MessageTooBig, StreamClosedError):
            self._stream.close()
        finally:
            self._on_read()

    def _resume(self) -> None:
        if not self._stream.closed():
            self._stream.listen()
            self._on_data(b"")

    def _handle(self, opcode: int, payload: bytes) -> asyncio.Future[None] | None:
        if opcode == PING:
            self._stream.write(_frame(FIN | PONG, payload))
        elif opcode == CLOSE:
            self._stream.close()
        elif opcode == TEXT:
            return self._on_message(payload)
        return None


def _frame(first: int, payload: bytes) -> bytes:
    """Return a client's frame. RFC 6455, section 5.3: it has a mask, which is zero here.

    Random masks keep pages in browsers from writing chosen bytes through a proxy. No page chooses this connection.
    """
    head = jsonrpc.frame_head(len(payload))
    return b"".join((bytes((first, head[1] | 0x80)), head[2:], b"\0\0\0\0", payload))


async def connect(
    url: str,
    path: str,
    headers: Iterable[tuple[str, str]],
    on_message: Callable[[bytes], asyncio.Future[None] | None],
    on_closed: Callable[[], None],
    limit: int,
    on_read: Callable[[], None] = lambda: None,
) -> ClientSocket:
    """Open a WebSocket. Safe to cancel.

    Args:
        url: ``http://HOST:PORT`` or ``unix:/path``.
        path: The request's path.
        headers: More headers of the request, perhaps with ``Host``.
        on_message: See ``ClientSocket``.
        on_closed: See ``ClientSocket``.
        limit: See ``ClientSocket``.
        on_read: See ``ClientSocket``.

    Raises:
        OSError, TimeoutError: The server can't be reached, or closes the connection.
        HandshakeRefused: It refuses.
    """
    connected = await open_socket(url)
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            early = await _shake_hands(connected, url, path, [*headers])
    except BaseException:
        connected.close()
        raise
    made = ClientSocket(connected, on_message, on_closed, limit, on_read)
    made.start(early)
    return made


async def _shake_hands(connected: socket.socket, url: str, path: str, headers: list[tuple[str, str]]) -> bytes:
    loop = asyncio.get_running_loop()
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", "localhost" if url.startswith("unix:") else urlsplit(url).netloc))
    key = base64.b64encode(os.urandom(16)).decode()
    opening = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    lines = [f"{name}: {value}" for name, value in (*headers, *opening, ("Sec-WebSocket-Key", key))]
    await loop.sock_sendall(connected, "\r\n".join((f"GET {path} HTTP/1.1", *lines, "", "")).encode("latin-1"))
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await loop.sock_recv(connected, READ_BYTES)
        if not piece or len(data) > MAX_HEAD:
            raise ConnectionResetError("the server closed the connection")
        data += piece
    head, _, early = data.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split(b" ")
    if len(words) < 2 or words[1] != b"101":
        raise HandshakeRefused(int(words[1]) if len(words) > 1 and words[1].isdigit() else 0)
    return early
