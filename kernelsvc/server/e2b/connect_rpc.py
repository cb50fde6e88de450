"""Base of the handlers of Connect calls: unary responses and streams.

A stream reports a failure in its last envelope, because its HTTP status was sent before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

import msgspec

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError
from kernelsvc.protocol import connect
from kernelsvc.server.e2b.handler import SandboxHandler, connect_code
from kernelsvc.server.handler import ClientGone, as_error

#: Seconds of silence after which a stream sends a keepalive, unless its client asks for another time.
KEEPALIVE_SECONDS = 50.0


class AlreadyExists(Conflict):
    """The file or directory to make exists. Connect has an error code for that."""


class RpcHandler(SandboxHandler):
    """Base of the calls: decodes a message, writes messages."""

    connect_codes: ClassVar[bool] = True

    def shape(self, raised: BaseException, known: KernelsvcError, status: int) -> dict[str, Any]:
        """Return the body of an error response, with a Connect error code."""
        said = super().shape(raised, known, status)
        return said | {"code": "already_exists"} if isinstance(raised, AlreadyExists) else said

    def message(self, kind: type[Any]) -> Any:
        """Decode the request's message: the body of a unary call, or a stream's first envelope.

        Raises:
            BadRequest: It is invalid.
        """
        # Only the first message counts. A body of 64 MiB has room for 12 million empty ones.
        asked = next(iter(connect.take(bytearray(self.body()), 1)), {}) if self._is_stream() else self.json_body()
        try:
            return msgspec.convert(asked, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(f"The message can't be read: {error}.") from None

    def _is_stream(self) -> bool:
        return self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == connect.STREAM

    async def stream(self, work: Coroutine[Any, Any, None]) -> None:
        """Respond with a stream that ``work`` writes by ``send_message``, and write its end.

        ``Connect-Timeout-Ms`` limits its time. ``work`` is cancelled when the client disconnects.
        """
        self.set_header("Content-Type", connect.STREAM)
        try:
            await self.while_connected(self._timed(work))
        except ClientGone:
            raise
        except TimeoutError:
            self.write(connect.end("deadline_exceeded", "The call took longer than its timeout."))
        except Exception as failed:
            # The error holds this frame. A variable with the error would make garbage of both, with the body.
            self._write_failure(failed)
        else:
            self.write(connect.end())

    def _write_failure(self, failed: Exception) -> None:
        known = as_error(failed)
        self.log_exception(type(failed), failed, failed.__traceback__)
        self.write(connect.end(connect_code(known.http_status), known.message))

    async def _timed(self, work: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(connect.seconds(self.request.headers.get("Connect-Timeout-Ms"), 0.001)):
            await work

    async def send_message(self, message: dict[str, Any]) -> None:
        """Write a message of a stream at the client's speed."""
        self.write(connect.envelope(message))
        await self.flush()

    def pause(self) -> float:
        """Return the seconds of silence after which a stream sends a keepalive."""
        return connect.seconds(self.request.headers.get("Keepalive-Ping-Interval")) or KEEPALIVE_SECONDS
