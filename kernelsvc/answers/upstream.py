"""One streamed chat completion of a model's server, over a connection that can be closed at any time.

Tornado's ``AsyncHTTPClient`` can't end a request that has begun. A model's server continues to generate until its
connection closes, so each request has a connection of its own here.
Tornado's ``HTTP1Connection`` wakes a task for each read, and for each chunk three times. One token is one read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from tornado.httputil import HTTPHeaders, HTTPInputError, parse_response_start_line

from kernelsvc.answers.answers_share import AnswersShare, LoopTurn
from kernelsvc.errors import TooLarge
from kernelsvc.model.answers.model_settings import ModelSettings
from kernelsvc.model.answers.values import ModelFault
from kernelsvc.protocol.http_chunks import ChunkDecoder
from kernelsvc.protocol.openai.chat_stream import fault_of
from kernelsvc.protocol.openai.responses_upstream import ResponsesChunks, to_responses_body
from kernelsvc.protocol.openai.sse_decoder import MAX_EVENT, SseDecoder

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
#: Most bytes of an error's body that are read, of a whole stream, of a head, and of one read: it may hold 350 tokens.
MAX_ERROR_BODY, MAX_STREAM, MAX_HEAD, READ_BYTES = 64 * 1024, 256 * 1024 * 1024, 64 * 1024, 16 * 1024
#: Most responses of class 1xx before the final one, which counts as one of them.
MAX_HEADS = 20


class UpstreamError(Exception):
    """The model's server did not answer. ``fault`` says why, without its address and key."""

    def __init__(self, fault: ModelFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


_UNREACHABLE = ModelFault(code="server_error", message="The model's server can't be reached.", repeatable=True)
_BROKEN = ModelFault(code="server_error", message="The model's server closed the connection before the end.")


class _Response:
    """The response of a model's server, as it arrives. It ends the connection.

    A reader that is slow slows the model's server down, because the connection's buffer is limited.

    Args:
        reader: The connection.
        turn: Begins with each read. It ends before the next one.

    Attributes:
        finished: Whether the body is complete.
    """

    def __init__(self, reader: asyncio.StreamReader, turn: LoopTurn) -> None:
        self._reader, self._turn = reader, turn
        self._chunks: ChunkDecoder | None = None
        self._left: int | None = None
        self._size = 0
        self.finished = False

    async def head(self) -> tuple[int, HTTPHeaders]:
        """Return the status and the headers.

        Raises:
            UpstreamError: There is no valid head.
        """
        try:
            for _ in range(MAX_HEADS):
                start, _, rest = (await self._lines()).partition("\n")
                status, headers = parse_response_start_line(start.rstrip("\r")).code, HTTPHeaders.parse(rest)
                # RFC 9110, section 15.2: a client must be able to parse responses of class 1xx before the final one.
                if status >= 200:
                    self._frame(headers)
                    return status, headers
        except (OSError, ValueError, HTTPInputError):
            pass
        raise UpstreamError(_UNREACHABLE)

    async def _lines(self) -> str:
        lines: list[bytes] = []
        size = 0
        while True:
            line = await self._reader.readline()
            size += len(line)
            if not line.endswith(b"\n") or size > MAX_HEAD:
                raise ValueError("the head has no end")
            if not line.rstrip(b"\r\n"):
                return b"".join(lines).decode("latin-1")
            lines.append(line)

    def _frame(self, headers: HTTPHeaders) -> None:
        """Note how the body ends. RFC 9112, section 6.3: Transfer-Encoding overrides Content-Length."""
        if "chunked" in headers.get("Transfer-Encoding", "").lower():
            self._chunks = ChunkDecoder()
        elif (length := headers.get("Content-Length")) is not None:
            if not length.isascii() or not length.isdigit():
                raise ValueError("the length is not a number")
            self._left = int(length)
            self.finished = self._left == 0

    async def next(self) -> bytes | None:
        """Return the bytes that have arrived, or wait for some. None is the end. Safe to cancel.

        Raises:
            TooLarge: The body exceeds its limit.
        """
        while not self.finished:
            self._turn.end()
            try:
                piece = await self._reader.read(READ_BYTES)
            except OSError:
                return None
            await self._turn.begin()
            if not piece:
                # RFC 9112, section 6.3: without a length the body ends with the connection.
                self.finished = self._chunks is None and self._left is None
                return None
            self._size += len(piece)
            if self._size > MAX_STREAM:
                raise TooLarge("The model's server sent an answer of more than 256 MiB.")
            if self._left is not None:
                piece = piece[: self._left]
                self._left -= len(piece)
                self.finished = self._left == 0
            elif self._chunks is not None:
                try:
                    piece = self._chunks.feed(piece)
                except ValueError:
                    return None
                self.finished = self._chunks.ended
            if piece:
                return piece
        return None


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

    async def events(
        self, body: dict[str, Any], *, whole: bool = False, turn: LoopTurn | None = None
    ) -> AsyncGenerator[list[str], None]:
        """Send a request, and yield the data of the events of each read. Closing the generator closes the connection.

        A server that can't be reached, or fails before its first event, is asked once more.

        Args:
            body: The request.
            whole: Whether the answer comes as one object instead of a stream.
            turn: Begins with each read. The caller ends it before it waits for anything else.

        Raises:
            UpstreamError: The server did not answer.
            TooLarge: It sent more than an answer can have.
        """
        turn = turn or LoopTurn(AnswersShare())
        for last in (False, True):
            begun = False
            try:
                async with contextlib.aclosing(self._ask(body, turn, whole=whole)) as found:
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

    async def _ask(self, body: dict[str, Any], turn: LoopTurn, *, whole: bool) -> AsyncGenerator[list[str], None]:
        body = to_responses_body(body) if self._responses else body
        body = {**body, "stream": not whole, **self._settings.extra}
        if self._with_usage and not whole and not self._responses:
            body["stream_options"] = {"include_usage": True}
        reader, writer = await self._connect()
        try:
            data = msgspec.json.encode(body)
            writer.write(self._head(len(data)) + data)
            response = _Response(reader, turn)
            status, headers = await response.head()
            if status != 200:
                raise UpstreamError(await self._refusal(response, status, headers))
            chunks = ResponsesChunks() if self._responses else None
            async for each in _decoded(response, headers):
                yield each if chunks is None else [chunk for data in each for chunk in chunks.feed(data)]
        finally:
            turn.end()
            # The end of the connection is what ends the generation. It must not wait for anything.
            writer.transport.abort()

    def _head(self, size: int) -> bytes:
        lines = [
            f"POST {self._path} HTTP/1.1", f"Host: {self._host_header}", "Content-Type: application/json",
            f"Content-Length: {size}", "Accept: text/event-stream", "Connection: close",
        ]  # fmt: skip
        if self._key:
            lines.append(f"Authorization: Bearer {self._key}")
        return "\r\n".join([*lines, "\r\n"]).encode()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        options = ssl.create_default_context() if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(
                    self._host, self._port, ssl=options, limit=MAX_HEAD, happy_eyeballs_delay=0.25
                )
        except (OSError, TimeoutError) as error:
            log.warning("The model's server %s:%d can't be reached: %s", self._host, self._port, type(error).__name__)
            # asyncio's race of addresses holds its errors in a cycle. Their tracebacks lead to the answer's frames,
            # which would be garbage with the whole request, for thousands of requests.
            linked: BaseException | None = error
            while linked is not None:
                linked.__traceback__ = None
                linked = linked.__context__
            raise UpstreamError(_UNREACHABLE) from None

    async def _refusal(self, response: _Response, status: int, headers: HTTPHeaders) -> ModelFault:
        text = b""
        while len(text) < MAX_ERROR_BODY and (piece := await response.next()) is not None:
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


async def _decoded(response: _Response, headers: HTTPHeaders) -> AsyncGenerator[list[str], None]:
    decoder = SseDecoder()
    # Joined once: a sum of bytes copies all earlier ones for each piece.
    whole, size = [], 0
    streams = "json" not in headers.get("Content-Type", "")
    while (piece := await response.next()) is not None:
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
    if not response.finished:
        raise UpstreamError(_BROKEN)
