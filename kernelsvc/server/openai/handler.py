"""Base of the handlers of OpenAI's API: its errors, its lists, and forms with one file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from kernelsvc.answers.answers import Answers
from kernelsvc.answers.event_log import EventLog
from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.model.answers.values import ModelFault
from kernelsvc.protocol.anthropic import error_json
from kernelsvc.protocol.jupyter import check_json
from kernelsvc.protocol.multipart import Form, Part, PartEnd, boundary_of
from kernelsvc.protocol.openai.lists import page_of, whole_number
from kernelsvc.server.handler import ApiHandler, as_error
from kernelsvc.server.native.sse import start_stream

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
#: OpenAI's codes for errors of this server.
_CODES = {"unauthenticated": "invalid_api_key", "quota_exceeded": "rate_limit_exceeded"}
KEEPALIVE = b": keepalive\n\n"


class FaultError(KernelsvcError):
    """The model's server did not answer."""

    def __init__(self, fault: ModelFault) -> None:
        super().__init__(fault.message, openai_code=fault.code)
        self.model_fault = fault


class OpenAiHandler(ApiHandler):
    """Base of the handlers of OpenAI's API."""

    transport = "openai"
    route = "/v1/responses"
    answers: Answers

    def json_body(self) -> Any:
        """Decode the body.

        Raises:
            BadRequest: It is not JSON.
        """
        body = self.body()
        check_json(body)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadRequest("The body is not JSON.") from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: write an error in OpenAI's format, which its clients raise."""
        info = kwargs.get("exc_info")
        raised = info[1] if info else BadRequest()
        error = as_error(raised)
        self._code = error.code
        status = raised.model_fault.http_status if isinstance(raised, FaultError) else error.http_status
        if not isinstance(raised, KernelsvcError):
            status = status_code
        self.set_status(status)
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if isinstance(raised, FaultError) and raised.model_fault.retry_after:
            self.set_header("Retry-After", raised.model_fault.retry_after)
        elif status in (429, 503):
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(self.error_body(status, error)))

    @property
    def for_anthropic(self) -> bool:
        """Whether the client is one of Anthropic's API, which always sends this header."""
        return "anthropic-version" in self.request.headers

    def token(self) -> str | None:
        """Return the token that the request carries. Anthropic's clients have a header of their own for it."""
        return super().token() or self.request.headers.get("X-Api-Key")

    def error_body(self, status: int, error: KernelsvcError) -> dict[str, Any]:
        """Return an error in the format of the client's API."""
        if self.for_anthropic:
            return {"type": "error", "error": error_json(status, error.message)}
        about = {
            "message": error.message,
            "type": _KINDS.get(status, "server_error"),
            "param": error.details.get("param"),
            "code": error.details.get("openai_code") or _CODES.get(error.code),
        }
        return {"error": about}

    def number(self, name: str, default: str, most: int) -> int:
        """Return a number of the query.

        Raises:
            BadRequest: It is none, or larger than ``most``.
        """
        return whole_number(name, self.get_query_argument(name, default), most)

    def flag(self, name: str) -> bool:
        """Return a boolean of the query."""
        return self.get_query_argument(name, "").lower() in ("true", "1")

    def list_of(self, items: list[dict[str, Any]], *, limit: int = 20, order: str = "desc") -> dict[str, Any]:
        """Return a page of a list by ``limit``, ``order`` and ``after`` of the query. The items have the newest first.

        Args:
            items: All items.
            limit: Most items of a page, if the query does not say it.
            order: ``asc`` or ``desc``, if the query does not say it.

        Raises:
            BadRequest: A value of the query is not valid.
        """
        return page_of(items, self.asked_page(limit, order))

    def asked_page(self, limit: int = 20, order: str = "desc") -> dict[str, str]:
        """Return ``limit``, ``order`` and ``after`` of the query, or these defaults."""
        defaults = {"limit": str(limit), "order": order, "after": ""}
        return {name: self.get_query_argument(name, value) for name, value in defaults.items()}

    async def answer_page(self, page: dict[str, Any]) -> None:
        """Write a page whose items may be large. A thread encodes them, because the encoder takes 2 ms for a MB."""

        def encoded() -> list[msgspec.Raw]:
            return [msgspec.Raw(msgspec.json.encode(each)) for each in page["data"]]

        self.answer({**page, "data": await asyncio.to_thread(encoded)})

    def form(self) -> tuple[dict[str, str], str | None, bytes]:
        """Return the fields of a form, and the name and content of its file.

        Raises:
            BadRequest: The body is not a form.
        """
        boundary = boundary_of(self.request.headers.get("Content-Type", ""))
        if boundary is None:
            raise BadRequest("Send a form (multipart/form-data) with the field 'file'.", param="file")
        fields: dict[str, str] = {}
        filename: str | None = None
        part: Part | None = None
        pieces: list[bytes] = []
        content = b""
        for piece in Form(boundary).feed(self.body()):
            if isinstance(piece, Part):
                part, pieces = piece, []
            elif isinstance(piece, PartEnd) and part is not None:
                if part.name == "file":
                    filename, content = part.filename or "file", b"".join(pieces)
                else:
                    fields[part.name] = b"".join(pieces).decode("utf-8", "replace")
            elif isinstance(piece, bytes):
                pieces.append(piece)
        return fields, filename, content

    def send_bytes(self, data: bytes) -> None:
        """Send a file's content, which no browser shows as a page."""
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", "attachment")
        self.write(data)

    async def send_file(self, session: str, path: bytes) -> None:
        """Send the content of a session's file, in pieces."""
        reader = await self.context.service.files.open(self.who, session, path)
        try:
            offset = 0
            while piece := await reader.read(offset, 256 * 1024):
                self.send_bytes(piece)
                await self.flush()
                offset += len(piece)
        finally:
            reader.close()

    async def batches(self, log: EventLog, after: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield events as they come. During a silence, yield an empty list. Safe to cancel."""
        silence = self.context.settings.keepalive_seconds
        loop = asyncio.get_running_loop()
        number, last = after, loop.time()
        timer: asyncio.TimerHandle

        def wake() -> None:
            # One timer for the stream, because one for each event costs more than the event's encoding.
            nonlocal timer, last
            if (left := last + silence - loop.time()) <= 0:
                log.wake()
                last, left = loop.time(), silence
            timer = loop.call_later(left, wake)

        timer = loop.call_later(silence, wake)
        try:
            while (found := await log.after(number)) is not None:
                if found:
                    number = found[-1].get("sequence_number", number + len(found) - 1) + 1
                last = loop.time()
                yield found
        finally:
            timer.cancel()

    async def send_events(self, frames: bytes) -> None:
        """Send bytes of an event stream."""
        if not self._headers_written:
            start_stream(self)
        self.write(frames)
        await self.flush()
