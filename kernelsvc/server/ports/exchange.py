"""One request to a server in a session, and its response or its WebSocket. Bytes pass in pieces, nothing is stored.

Each request has a connection of its own to the session's server, and is written again from its parsed form. So a
response that does not end where its headers say, or a request that two parsers read differently, can't become a part
of another exchange (request smuggling).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError

from kernelsvc.errors import PortUnreachable, Timeout, TooLarge
from kernelsvc.server.refusable_stream import RefusableStream

if TYPE_CHECKING:
    from kernelsvc.protocol.port_headers import Headers
    from kernelsvc.service.api import PortLink

#: Seconds for a session's server to begin its response.
HEAD_SECONDS = 120.0
#: Seconds without a byte in either direction after which an exchange ends.
IDLE_SECONDS = 300.0
#: Most bytes of a response's head, and of one read.
MAX_HEAD, CHUNK = 32 * 1024, 64 * 1024


class PortClient(Protocol):
    """The client's side of an exchange."""

    def begin_response(self, code: int, headers: Headers) -> Awaitable[None]:
        """Send the head of a response."""

    def pass_on(self, chunk: bytes) -> Awaitable[None]:
        """Send a piece of a response. Await the result before the next piece: the client has then taken this one."""

    def upgrade(self, headers: Headers) -> IOStream:
        """Send the head of an upgrade. Return the stream to the client, which carries a WebSocket from now on."""


class PortExchange(HTTPMessageDelegate):
    """See the module's docstring.

    Args:
        client: gets the response.
        connection: to the session's server.
        port: the port, for messages.
        most: most bytes of the request, of the response, and of a WebSocket's data.
    """

    def __init__(self, client: PortClient, connection: PortLink, port: int, most: int) -> None:
        self._client, self._connection, self._port, self._most = client, connection, port, most
        self._stream = RefusableStream(connection.socket, max_buffer_size=1024 * 1024, read_chunk_size=CHUNK)
        parameters = HTTP1ConnectionParameters(
            no_keep_alive=True, max_header_size=MAX_HEAD, max_body_size=most, chunk_size=CHUNK, decompress=False
        )
        self._http = HTTP1Connection(self._stream, True, parameters)
        self._wants_upgrade = self._is_head = False
        self._limit: asyncio.Timeout | None = None
        self._begun = self._complete = self._upgraded = False
        self._problem: Exception | None = None

    def send_head(self, method: str, path: str, headers: Headers, *, upgrade: bool) -> None:
        """Send the request's head."""
        self._wants_upgrade, self._is_head = upgrade, method == "HEAD"
        fields = HTTPHeaders()
        for name, value in headers:
            fields.add(name, value)
        # Tornado sends a body in chunks if the method may have one and no length is given. So the caller has given the
        # length 0 of an empty body.
        self._ignore(self._http.write_headers(RequestStartLine(method, path, "HTTP/1.1"), fields))

    async def send_body(self, chunk: bytes) -> None:
        """Send a piece of the body. If the session's server does not want it, discard it. Safe to cancel."""
        self._connection.count(received=len(chunk))
        if self._stream.closed():
            return
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._http.write(chunk)
        except StreamClosedError:
            return
        except TimeoutError:
            self._problem = Timeout(f"The server on port {self._port} reads no more of the request.")
            self._stream.close()

    @staticmethod
    def _ignore(written: Awaitable[None]) -> None:
        """Take no notice of a failed write: reading the response fails, too."""
        future = asyncio.ensure_future(written)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def respond(self) -> None:
        """Pass the response to the client, or relay a WebSocket until its end. Cancelling it ends the exchange.

        Raises:
            PortUnreachable: the session's server sent no HTTP. Nothing was sent to the client.
            Timeout: it sent nothing in time. Nothing was sent to the client.
            TooLarge: the response says that it is too long. Nothing was sent to the client.
            StreamClosedError: the client has disconnected, or the response broke off in the middle.
        """
        try:
            await self._respond()
        except (PortUnreachable, Timeout):
            self._connection.fail()
            raise

    async def _respond(self) -> None:
        try:
            self._http.finish()
            async with asyncio.timeout(HEAD_SECONDS) as self._limit:
                try:
                    await self._http.read_response(self)
                except StreamClosedError:
                    if self._begun:
                        raise
                if self._upgraded:
                    await self._relay()
                    return
        except TimeoutError:
            if self._begun:
                raise StreamClosedError from None
            raise Timeout(
                f"The server on port {self._port} sent no response for {HEAD_SECONDS:g} s. It may be busy or stopped.",
                port=self._port,
            ) from None
        if self._problem is not None:
            raise self._problem
        if not self._begun:
            raise PortUnreachable(
                f"The server on port {self._port} closed the connection, or sent something that is not HTTP. "
                "Use a server of the protocol HTTP/1.1.",
                port=self._port,
            )
        if not self._complete:
            raise StreamClosedError

    def close(self) -> None:
        """Close the connection to the session's server."""
        self._http.close()
        self._stream.close()
        self._connection.close()

    # -- the response ----------------------------------------------------------------------

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Tornado's hook: pass the head on."""
        assert isinstance(start_line, ResponseStartLine)
        code = start_line.code
        if self._problem is not None:
            return None
        if code == 101:
            self._upgrade(headers)
            return None
        if 100 <= code < 200:
            return None  # RFC 9110, section 15.2: a proxy may drop informational responses
        self._problem = self._check(code, headers)
        if self._problem is not None:
            self._stream.close()
            return None
        self._begun = True
        return self._client.begin_response(code, list(headers.get_all()))

    def _check(self, code: int, headers: HTTPHeaders) -> Exception | None:
        """Return the error of a head that can't pass. Two lengths would be read differently by two readers."""
        if not 200 <= code <= 599:
            return PortUnreachable(f"The server on port {self._port} sent the status {code}, which HTTP does not have.")
        lengths = headers.get_list("Content-Length")
        if not lengths:
            return None
        if len(lengths) > 1 or not lengths[0].isdecimal() or "Transfer-Encoding" in headers:
            return PortUnreachable(f"The server on port {self._port} sent a response with no clear length.")
        if int(lengths[0][:18]) > self._most and not self._is_head:
            return TooLarge(
                f"The response has {lengths[0][:18]} bytes, above {self._most} (port_bytes). Ask for a part of it."
            )
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Tornado's hook: pass a piece of the body on, as fast as the client reads."""
        # Tornado reads the body of a refused head, too, as far as it had arrived before the stream was closed. Without
        # the head, its bytes would be a page of this service's own origin.
        if not self._begun:
            return None
        self._note_progress()
        self._connection.count(sent=len(chunk))
        return self._client.pass_on(chunk)

    def finish(self) -> None:
        """Tornado's hook: the response is complete."""
        self._complete = self._begun

    def on_connection_close(self) -> None:
        """Tornado's hook: the response broke off."""

    def _note_progress(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + IDLE_SECONDS)

    # -- WebSockets ------------------------------------------------------------------------

    def _upgrade(self, headers: HTTPHeaders) -> None:
        if not self._wants_upgrade or headers.get("Upgrade", "").lower() != "websocket":
            # A client that has not asked would read the bytes that follow as a response.
            self._problem = PortUnreachable(f"The server on port {self._port} changed to a protocol nobody asked for.")
            self._stream.close()
            return
        self._begun = self._upgraded = True
        self._http.detach()
        self._headers = list(headers.get_all())

    async def _relay(self) -> None:
        client = self._client.upgrade(self._headers)
        pumps = [
            asyncio.ensure_future(self._pump(client, self._stream, received=True)),
            asyncio.ensure_future(self._pump(self._stream, client, received=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            client.close()

    async def _pump(self, source: IOStream, target: IOStream, *, received: bool) -> None:
        passed = 0
        try:
            while passed < self._most:
                data = await source.read_bytes(CHUNK, partial=True)
                passed += len(data)
                self._note_progress()
                self._connection.count(**{"received" if received else "sent": len(data)})
                await target.write(data)
        except StreamClosedError:
            return
