"""One streamed chat completion of a model's server, over a connection that can be closed at any time.

Tornado's ``AsyncHTTPClient`` can't end a request that has begun. A model's server continues to generate until its
connection closes, so each request has a connection of its own here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from kernelsvc.errors import TooLarge
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.model.answers.values import ModelFault
from kernelsvc.protocol.openai.chat_stream import fault_of
from kernelsvc.protocol.openai.responses_upstream import ResponsesChunks, to_responses_body
from kernelsvc.protocol.openai.sse_decoder import MAX_EVENT, SseDecoder

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
#: Most bytes of an error's body that are read, of a whole stream, and of pieces that wait for the answer.
MAX_ERROR_BODY, MAX_STREAM, MAX_WAITING = 64 * 1024, 256 * 1024 * 1024, 16


class UpstreamError(Exception):
    """The model's server did not answer. ``fault`` says why, without its address and key."""

    def __init__(self, fault: ModelFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


_UNREACHABLE = ModelFault(code="server_error", message="The model's server can't be reached.", repeatable=True)
_BROKEN = ModelFault(code="server_error", message="The model's server closed the connection before the end.")


class _Body(HTTPMessageDelegate):
    """The response, as it arrives. A reader that is slow slows the model's server down."""

    def __init__(self) -> None:
        self.head: asyncio.Future[tuple[int, HTTPHeaders]] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING)
        self.finished = self._discarding = False

    def discard(self) -> None:
        """Drop the rest of the response, so that the task that reads it can end."""
        self._discarding = True
        while not self.pieces.empty():
            self.pieces.get_nowait()

    async def end(self) -> None:
        """Mark the end of the pieces."""
        if not self._discarding:
            await self.pieces.put(None)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, ResponseStartLine)
        # RFC 9110, section 15.2: a client must be able to parse responses of class 1xx before the final one.
        if not self.head.done() and start_line.code >= 200:
            self.head.set_result((start_line.code, headers))
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._discarding:
            return None
        try:
            self.pieces.put_nowait(chunk)
        except asyncio.QueueFull:
            return self.pieces.put(chunk)
        return None

    async def next(self) -> bytes | None:
        """Return the bytes that have arrived, or wait for some. None is the end."""
        piece = await self.pieces.get()
        while piece is not None and not self.pieces.empty():
            more = self.pieces.get_nowait()
            if more is None:
                self.pieces.put_nowait(None)
                break
            piece += more
        return piece

    def finish(self) -> None:
        self.finished = True


class ChatUpstream:
    """A model's server that speaks chat completions, or the Responses API, whose events come as the same chunks.

    Args:
        settings: Its address and habits.
        key: For its ``Authorization`` header. "" sends none.
    """

    def __init__(self, settings: ModelSettings, key: str) -> None:
        parts = urlsplit(settings.url)
        self._host, self._tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._responses = settings.api == "responses"
        path = "/responses" if self._responses else "/chat/completions"
        self._host_header, self._path = parts.netloc, parts.path.rstrip("/") + path
        self._settings, self._key = settings, key
        self._with_usage = True
        #: Which reasoning goes back, if the server has refused the setting's.
        self.reasoning: Literal["keep", "drop"] | None = None
        self._reading = OwnedTasks()

    async def events(self, body: dict[str, Any], *, whole: bool = False) -> AsyncGenerator[list[str], None]:
        """Send a request, and yield the data of the events of each read. Closing the generator closes the connection.

        A server that can't be reached, or fails before its first event, is asked once more.

        Args:
            body: The request.
            whole: Whether the answer comes as one object instead of a stream.

        Raises:
            UpstreamError: The server did not answer.
            TooLarge: It sent more than an answer can have.
        """
        for last in (False, True):
            begun = False
            try:
                async with contextlib.aclosing(self._ask(body, whole=whole)) as found:
                    async for data in found:
                        begun = True
                        yield data
                return
            except UpstreamError as error:
                again = self._without_usage(error.fault) or error.fault.repeatable
                if begun or last or not again:
                    raise

    def _without_usage(self, fault: ModelFault) -> bool:
        """Stop asking for the usage, if that was refused. Old servers do not know the field."""
        refused = self._with_usage and fault.http_status == 400 and "stream_options" in fault.message
        if refused:
            self._with_usage = False
        return refused

    async def _ask(self, body: dict[str, Any], *, whole: bool) -> AsyncGenerator[list[str], None]:
        body = to_responses_body(body) if self._responses else body
        body = {**body, "stream": not whole, **self._settings.extra}
        if self._with_usage and not whole and not self._responses:
            body["stream_options"] = {"include_usage": True}
        stream = await self._connect()
        stream.set_nodelay(True)
        delegate = _Body()
        parameters = HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=MAX_STREAM)
        connection = HTTP1Connection(stream, True, parameters)
        try:
            data = msgspec.json.encode(body)
            headers = HTTPHeaders({
                "Host": self._host_header, "Content-Type": "application/json", "Content-Length": str(len(data)),
                "Accept": "text/event-stream", "Connection": "close",
            })  # fmt: skip
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            try:
                await connection.write_headers(RequestStartLine("POST", self._path, ""), headers, data)
            except StreamClosedError:
                raise UpstreamError(_UNREACHABLE) from None
            self._reading.start(_read(connection, delegate))
            status, headers = await delegate.head
            if status != 200:
                raise UpstreamError(await self._refusal(delegate, status, headers))
            chunks = ResponsesChunks() if self._responses else None
            async for each in _decoded(delegate, headers):
                yield each if chunks is None else [chunk for data in each for chunk in chunks.feed(data)]
        finally:
            # close(2) of the socket is what ends the generation. It must not wait for anything.
            stream.close()
            delegate.discard()

    async def _connect(self) -> IOStream:
        options = ssl.create_default_context() if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await TCPClient().connect(self._host, self._port, ssl_options=options)
        except (OSError, StreamClosedError, TimeoutError) as error:
            log.warning("The model's server %s:%d can't be reached: %s", self._host, self._port, type(error).__name__)
            raise UpstreamError(_UNREACHABLE) from None

    async def _refusal(self, delegate: _Body, status: int, headers: HTTPHeaders) -> ModelFault:
        text = b""
        while len(text) < MAX_ERROR_BODY and (piece := await delegate.next()) is not None:
            text += piece
        shown = text.decode("utf-8", "replace")
        if self._key:
            shown = shown.replace(self._key, "...")
        error: Any = shown
        try:
            decoded = msgspec.json.decode(shown)
            error = decoded.get("error", decoded) if isinstance(decoded, dict) else shown
        except (msgspec.DecodeError, RecursionError):
            pass
        return fault_of(error, status, headers.get("Retry-After"))


async def _read(connection: HTTP1Connection, delegate: _Body) -> None:
    """Read the response to its end. The last piece is None."""
    try:
        await connection.read_response(delegate)
    except (StreamClosedError, RecursionError):
        pass  # The answer has closed the connection. Or the server sends 1xx without end, one stack frame each.
    finally:
        if not delegate.head.done():
            delegate.head.set_exception(UpstreamError(_UNREACHABLE))
            delegate.head.exception()  # an answer that was cancelled does not read it
        await delegate.end()


async def _decoded(delegate: _Body, headers: HTTPHeaders) -> AsyncGenerator[list[str], None]:
    decoder = SseDecoder()
    # Joined once: a sum of bytes copies all earlier ones for each piece.
    whole, size = [], 0
    streams = "json" not in headers.get("Content-Type", "")
    while (piece := await delegate.next()) is not None:
        if not streams:
            # A server without streams sends one object.
            whole.append(piece)
            size += len(piece)
            if size > MAX_EVENT:
                raise TooLarge("The model's server sent an answer of more than 16 MiB.")
            continue
        found = decoder.feed(piece)
        last = next((place for place, data in enumerate(found) if data.startswith("[DONE]")), None)
        if found:
            yield found if last is None else found[: last + 1]
        if last is not None:
            return
    if rest := decoder.end() if streams else [b"".join(whole).decode("utf-8", "replace")]:
        yield rest
    if not delegate.finished:
        raise UpstreamError(_BROKEN)
