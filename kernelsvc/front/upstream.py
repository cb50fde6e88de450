"""HTTP from a front to nodes: kept connections, one request at a time on each."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from kernelsvc.front.members import Member
from kernelsvc.server.refusable_stream import RefusableStream
from kernelsvc.server.ws.client import open_socket

#: Most idle connections to one node, and the seconds after which one is closed.
MAX_IDLE, IDLE_SECONDS = 128, 60.0
#: Largest head of a response, and the size of a piece, in bytes.
MAX_HEAD, PIECE_BYTES = 64 * 1024, 256 * 1024
#: Bodies are limited where they are kept, not where they pass.
UNLIMITED = 1 << 60
PARAMETERS = HTTP1ConnectionParameters(max_header_size=MAX_HEAD, max_body_size=UNLIMITED, chunk_size=PIECE_BYTES)

Body = Callable[[], AsyncIterator[bytes]]


class NotSent(Exception):
    """The node could not be reached, so nothing of the request was carried out."""


class NoAnswer(Exception):
    """The connection ended before the response's head. The node may have carried out the request."""


@dataclass
class Response:
    """A whole response.

    Attributes:
        status: HTTP status.
        headers: Its headers.
        body: Its body.
    """

    status: int = 0
    headers: HTTPHeaders = field(default_factory=HTTPHeaders)
    body: bytes = b""


class Collector(HTTPMessageDelegate):
    """Keeps a whole response."""

    def __init__(self) -> None:
        self.response = Response()
        self._pieces: list[bytes] = []

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        """Tornado's hook."""
        assert isinstance(start_line, ResponseStartLine)
        self.response.status, self.response.headers = start_line.code, headers

    def data_received(self, chunk: bytes) -> None:
        """Tornado's hook."""
        self._pieces.append(bytes(chunk))

    def finish(self) -> None:
        """Tornado's hook."""
        self.response.body = b"".join(self._pieces)


class WatchedResponse(HTTPMessageDelegate):
    """Passes a final response on, and notes how far it came.

    Args:
        inner: Gets the response.
        stream: The connection, which is closed when the client has disconnected.

    Attributes:
        began, whole: Whether its head, or all of it, was passed on.
        cancelled: Whether the exchange was cancelled meanwhile.
        keep: Whether the node keeps the connection.
    """

    def __init__(self, inner: HTTPMessageDelegate, stream: IOStream) -> None:
        self._inner, self._stream = inner, stream
        self.began = self.whole = self.cancelled = False
        self.keep = True

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Any:
        """Tornado's hook."""
        if isinstance(start_line, ResponseStartLine) and start_line.code < 200:
            return None
        self.began = True
        self.keep = headers.get("Connection", "").lower() != "close"
        return self._until_gone(self._inner.headers_received(start_line, headers))

    def data_received(self, chunk: bytes) -> Any:
        """Tornado's hook."""
        return self._until_gone(self._inner.data_received(chunk))

    def _until_gone(self, passed: Awaitable[None] | None) -> Awaitable[None] | None:
        return None if passed is None else self._wait(passed)

    async def _wait(self, passed: Awaitable[None]) -> None:
        """Wait until a piece is passed on, else close the connection.

        Tornado logs an exception of a delegate as a bug, also a cancellation. Here each means that the client has
        disconnected.
        """
        try:
            await passed
        except (StreamClosedError, asyncio.CancelledError) as error:
            self.cancelled = isinstance(error, asyncio.CancelledError)
            self._stream.close()

    def finish(self) -> None:
        """Tornado's hook."""
        self.whole = True
        self._inner.finish()


def stream_of(connected: socket.socket) -> RefusableStream:
    """Return the stream of a new connection to a node."""
    return RefusableStream(connected, max_buffer_size=16 * PIECE_BYTES, read_chunk_size=PIECE_BYTES)


class NodeHttp:
    """Connections to the nodes of a cluster."""

    def __init__(self) -> None:
        self._idle: dict[str, dict[RefusableStream, float]] = defaultdict(dict)

    async def fetch(
        self, member: Member, verb: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Response:
        """Send a request and return the whole response. Safe to cancel.

        Raises:
            NotSent: The node can't be reached.
            NoAnswer: It did not answer. It may have carried out the request.
        """
        collector = Collector()
        given = HTTPHeaders({"Host": "localhost", **(headers or {})})
        if body or verb in ("POST", "PUT"):
            given["Content-Length"] = str(len(body))

        async def whole() -> AsyncIterator[bytes]:
            if body:
                yield body

        await self.exchange(member, RequestStartLine(verb, path, "HTTP/1.1"), given, whole, collector)
        return collector.response

    async def exchange(
        self, member: Member, start: RequestStartLine, headers: HTTPHeaders, body: Body, delegate: HTTPMessageDelegate
    ) -> None:
        """Send a request, and pass the response to a delegate. Safe to cancel: the connection is closed.

        A request that only reads is sent again if a kept connection turns out to be closed.

        Args:
            member: The node.
            start: Method and path.
            headers: Without those of one hop. With ``Content-Length`` or ``Transfer-Encoding`` if there is a body.
            body: Returns the pieces of the body. Called again for a repeat.
            delegate: Gets the response.

        Raises:
            NotSent: The node can't be reached.
            NoAnswer: It did not answer. It may have carried out the request.
            StreamClosedError: The response ended in its middle.
        """
        while True:
            stream, reused = await self._connect(member)
            watched = WatchedResponse(delegate, stream)
            member.on_lost.add(stream.close)
            try:
                again = await self._exchange_on(stream, start, headers, body, watched)
            except BaseException:
                stream.close()
                raise
            finally:
                member.on_lost.discard(stream.close)
            if watched.cancelled:
                raise asyncio.CancelledError
            if watched.whole:
                if again and watched.keep and not stream.broken:
                    self._put_back(member.url, stream)
                else:
                    stream.close()
                return
            stream.close()
            if watched.began:
                raise StreamClosedError
            if not (reused and start.method in ("GET", "HEAD", "OPTIONS")):
                raise NoAnswer

    async def _exchange_on(
        self,
        stream: RefusableStream,
        start: RequestStartLine,
        headers: HTTPHeaders,
        body: Body,
        delegate: WatchedResponse,
    ) -> bool:
        connection = HTTP1Connection(stream, True, PARAMETERS)
        try:
            connection.write_headers(start, headers)
            async for piece in body():
                if stream.broken:
                    break
                await connection.write(piece)
            else:
                connection.finish()
        except StreamClosedError:
            pass  # the node may have refused the request before it has read all of the body
        try:
            return bool(await connection.read_response(delegate))
        except StreamClosedError:
            return False

    async def _connect(self, member: Member) -> tuple[RefusableStream, bool]:
        idle, now = self._idle[member.url], asyncio.get_running_loop().time()
        while idle:
            stream, since = idle.popitem()
            stream.set_close_callback(None)
            if not stream.closed() and now - since < IDLE_SECONDS:
                return stream, True
            stream.close()
        try:
            connected = await open_socket(member.url)
        except (OSError, TimeoutError) as error:
            raise NotSent(str(error)) from None
        return stream_of(connected), False

    def _put_back(self, url: str, stream: RefusableStream) -> None:
        idle = self._idle[url]
        if stream.closed() or len(idle) >= MAX_IDLE:
            stream.close()
            return

        # With a callback Tornado watches an idle stream, so a connection that the node closes is not used again.
        def forget() -> None:
            idle.pop(stream, None)

        stream.set_close_callback(forget)
        idle[stream] = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Close all idle connections."""
        for idle in self._idle.values():
            for stream in [*idle]:
                stream.set_close_callback(None)
                stream.close()
            idle.clear()
