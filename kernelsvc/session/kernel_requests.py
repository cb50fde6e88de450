"""What a kernel is asked or told besides running cells, and who waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from kernelsvc.errors import Conflict, KernelsvcError, QuotaExceeded, Timeout
from kernelsvc.kernels.port import Kernel, KernelMessage
from kernelsvc.model.kernel_messages import KernelRequest
from kernelsvc.protocol import kernel_events
from kernelsvc.session.ids import new_id
from kernelsvc.session.operation_queue import OperationQueue

#: Messages without an answer (comms) that one kernel may have before it has handled them.
MAX_TOLD = 1000


class KernelRequests:
    """The open questions of one session.

    Attributes:
        told: messages without an answer that the kernel has not handled yet, by ``msg_id``.
    """

    def __init__(self, operations: OperationQueue) -> None:
        self._operations = operations
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.told: dict[str, asyncio.Future[None]] = {}

    async def request(self, kernel: Kernel, msg_type: str, content: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait for its reply's content, ``timeout`` seconds at most. Safe to cancel.

        Raises:
            Timeout: no answer.
            KernelsvcError: what ``fail`` was given.
        """
        msg_id = new_id("r")
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[msg_id] = waiting
        try:
            self._operations.put(lambda: kernel.send(KernelRequest(msg_type, content, msg_id)))
            async with asyncio.timeout(timeout):
                return await waiting
        except TimeoutError:
            raise Timeout("The kernel did not answer in time; a cell may be running. Try again when it is idle.")
        finally:
            self._asked.pop(msg_id, None)

    async def send(self, kernel: Kernel, message: KernelRequest) -> None:
        """Send a message that has no reply and wait until the kernel is idle after it. Safe to cancel.

        Raises:
            Conflict: ``msg_id`` is in use.
            QuotaExceeded: too many are under way.
            KernelsvcError: what ``fail`` was given.
        """
        msg_id = message.msg_id
        if msg_id in self.told or msg_id in self._asked:
            raise Conflict(f"There is a message {msg_id!r} already; give each an id of its own.")
        if len(self.told) >= MAX_TOLD:
            raise QuotaExceeded(f"{MAX_TOLD} messages wait for the kernel; let it handle some first.")
        handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.told[msg_id] = handled
        try:
            self._operations.put(lambda: kernel.send(message))
            await handled
        finally:
            self.told.pop(msg_id, None)

    def on_message(self, message: KernelMessage) -> bool:
        """Take what the kernel says to a question; whether it was no more than that, and belongs in no log."""
        if told := self.told.get(message.parent):
            if kernel_events.is_idle(message.msg_type, message.content) and not told.done():
                told.set_result(None)
            return False
        asked = self._asked.get(message.parent)
        if asked is None:
            return False
        if message.channel == "shell" and message.msg_type.endswith("_reply") and not asked.done():
            asked.set_result(message.content)
        return True

    def fail(self, error: KernelsvcError) -> None:
        """Nobody will answer any more."""
        waiters: list[asyncio.Future[Any]] = [*self._asked.values(), *self.told.values()]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)
