"""What calls of the Connect protocol have in common: one answer, or a stream of them.

A stream that fails says so in its last envelope, for by then its status is sent.
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

#: Seconds of silence after which a stream says that it is alive, when its client asks for no other time.
KEEPALIVE_SECONDS = 50.0


class AlreadyExists(Conflict):
    """What was to be made exists: Connect has a word of its own for that."""


class RpcHandler(SandboxHandler):
    """Base of the calls: reads a message, writes messages."""

    connect_codes: ClassVar[bool] = True

    def shape(self, raised: BaseException, known: KernelsvcError, status: int) -> dict[str, Any]:
        """The body of an error's answer, with Connect's word for what went wrong."""
        said = super().shape(raised, known, status)
        return said | {"code": "already_exists"} if isinstance(raised, AlreadyExists) else said

    def message(self, kind: type[Any]) -> Any:
        """What is asked for, of a call or at the head of a stream.

        Raises:
            BadRequest: it can't be read.
        """
        asked = self.json_body() if not self._is_stream() else next(iter(connect.take(bytearray(self.body()))), {})
        try:
            return msgspec.convert(asked, kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(f"The message can't be read: {error}.") from None

    def _is_stream(self) -> bool:
        return self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == connect.STREAM

    async def stream(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer with a stream that ``work`` writes by ``put``, and end it, whatever happens.

        ``Connect-Timeout-Ms`` bounds it. The client's going cancels ``work``.
        """
        self.set_header("Content-Type", connect.STREAM)
        try:
            await self.while_connected(self._timed(work))
        except ClientGone:
            raise
        except TimeoutError:
            self.write(connect.end("deadline_exceeded", "The call took longer than its timeout."))
        except Exception as failed:
            known = as_error(failed)
            self.log_exception(type(failed), failed, failed.__traceback__)
            self.write(connect.end(connect_code(known.http_status), known.message))
        else:
            self.write(connect.end())

    async def _timed(self, work: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(connect.seconds(self.request.headers.get("Connect-Timeout-Ms"), 0.001)):
            await work

    async def send_message(self, message: dict[str, Any]) -> None:
        """Write a message of a stream at the client's pace."""
        self.write(connect.envelope(message))
        await self.flush()

    def pause(self) -> float:
        """Seconds of silence after which a stream says that it is alive."""
        return connect.seconds(self.request.headers.get("Keepalive-Ping-Interval")) or KEEPALIVE_SECONDS
