"""Requests to the kernel other than cells (completion, inspection, comms), and the futures of their replies."""

from __future__ import annotations

import asyncio
from typing import Any

from kernelsvc.errors import Conflict, KernelsvcError, QuotaExceeded, Timeout
from kernelsvc.kernels.port import Kernel, KernelMessage
from kernelsvc.protocol import kernel_events
from kernelsvc.protocol.kernel_messages import KernelRequest
from kernelsvc.session.ids import new_id
from kernelsvc.session.operation_queue import OperationQueue

#: Messages without a reply (comms) that may wait for one kernel to handle them.
MAX_UNHANDLED = 1000


class KernelRequests:
    """The open requests of one session.

    Attributes:
        unhandled: messages without a reply that the kernel has not handled yet, by ``msg_id``.
    """

    def __init__(self, operations: OperationQueue) -> None:
        self._operations = operations
        self._unanswered: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.unhandled: dict[str, asyncio.Future[None]] = {}

    async def request(self, kernel: Kernel, msg_type: str, content: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and return its reply's content. Safe to cancel.

        Args:
            kernel: receives the request.
            msg_type: as in Jupyter's messaging protocol, for example ``complete_request``.
            content: the message's content.
            timeout: seconds to wait for the reply.

        Raises:
            Timeout: no reply in time.
            KernelsvcError: the kernel ended first. The error is the one passed to ``fail``.
        """
        msg_id = new_id("r")
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._unanswered[msg_id] = waiting
        try:
            self._operations.put(kernel.send, KernelRequest(msg_type, content, msg_id))
            async with asyncio.timeout(timeout):
                return await waiting
        except TimeoutError:
            raise Timeout("The kernel did not answer in time. A cell may be running. Try again when it is idle.")
        finally:
            self._unanswered.pop(msg_id, None)

    async def send(self, kernel: Kernel, message: KernelRequest) -> None:
        """Send a message that has no reply and wait until the kernel is idle after it. Safe to cancel.

        Raises:
            Conflict: ``msg_id`` is in use.
            QuotaExceeded: ``MAX_UNHANDLED`` messages wait for the kernel.
            KernelsvcError: the kernel ended first. The error is the one passed to ``fail``.
        """
        msg_id = message.msg_id
        if msg_id in self.unhandled or msg_id in self._unanswered:
            raise Conflict(f"A message with the id {msg_id!r} is open already. Give each message its own id.")
        if len(self.unhandled) >= MAX_UNHANDLED:
            raise QuotaExceeded(f"{MAX_UNHANDLED} messages wait for the kernel. Wait until it has handled some.")
        handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unhandled[msg_id] = handled
        try:
            self._operations.put(kernel.send, message)
            await handled
        finally:
            self.unhandled.pop(msg_id, None)

    def on_message(self, message: KernelMessage) -> bool:
        """Match a message to the open requests. Return True if it answers a request, so that it is not journaled."""
        if handled := self.unhandled.get(message.parent):
            if kernel_events.is_idle(message.msg_type, message.content) and not handled.done():
                handled.set_result(None)
            return False
        asked = self._unanswered.get(message.parent)
        if asked is None:
            return False
        if message.channel == "shell" and message.msg_type.endswith("_reply") and not asked.done():
            asked.set_result(message.content)
        return True

    def fail(self, error: KernelsvcError) -> None:
        """Fail all open requests with ``error``, because their kernel has ended."""
        waiters: list[asyncio.Future[Any]] = [*self._unanswered.values(), *self.unhandled.values()]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)
