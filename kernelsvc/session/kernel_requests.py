"""Requests to the kernel: their ids, their order, and the futures of the replies to those that are no cells.

The kernel carries out requests in the order in which it reads them. A plain call writes a cell or a message. A fork, or
another request whose answer the server awaits, is a coroutine, and it writes its request when it first runs, some
iterations of the event loop later. Operations behind it wait until its request is written, so that a fork has the state
before them. They don't wait for its answer.

Signals (interrupt, kill) have no place in this order. They strike the operation that runs.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kernelsvc.errors import Conflict, KernelsvcError, QuotaExceeded, Timeout
from kernelsvc.kernels.port import Kernel, KernelMessage
from kernelsvc.protocol import kernel_messages
from kernelsvc.protocol.kernel_messages import KernelRequest, RequestChannel

Result = TypeVar("Result")

#: Messages without a reply (comms) that may wait for one kernel to handle them.
MAX_UNHANDLED = 1000


def new_id(prefix: str) -> str:
    """Return a new id: the prefix and 64 random bits in hex, so that ids don't collide."""
    return f"{prefix}_{os.urandom(8).hex()}"


def new_session_id(node: str = "") -> str:
    """Return an id for a session. On a node of a cluster it names the node (``model.cluster.ids``)."""
    return f"s_{node}{os.urandom(8).hex()}"


def new_kernel_id() -> str:
    """Return an id for a kernel. It is short because a socket's path contains it (unix(7): 108 bytes)."""
    return new_id("k")


class OperationQueue:
    """A queue that begins the operations of one session in their order. Called from the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._unwritten = 0
        self._beginning = False

    @property
    def request_waits(self) -> bool:
        """Whether the queue has a request that is not written yet."""
        return self._unwritten > 0

    def put(self, operation: Callable[..., object], *args: Any) -> None:
        """Call ``operation(*args)`` after all earlier operations, or now if none waits."""
        if self._beginning or self._waiting:
            self._waiting.append((operation, args))
        else:
            operation(*args)

    def request(self, begin: Callable[[], Coroutine[Any, Any, Result]]) -> Coroutine[Any, Any, Result]:
        """Take the next place in the order, now, for a request whose answer is awaited.

        Args:
            begin: makes the coroutine that writes the request before its first ``await`` that waits.

        Returns:
            A coroutine with the result of ``begin()``. Await it, or make it a task, in this iteration of the event
            loop. If it is cancelled before its turn, nothing is written.
        """
        turn: asyncio.Future[None] = self._loop.create_future()
        self._unwritten += 1
        self.put(self._begin, turn)

        async def run() -> Result:
            await turn
            return await begin()

        return run()

    def _begin(self, turn: asyncio.Future[None]) -> None:
        self._beginning = True
        self._loop.call_soon(self._grant, turn)

    def _grant(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_result(None)
        # The event loop runs callbacks in order: first the step of the coroutine that awaits its turn, then this.
        self._loop.call_soon(self._begun)

    def _begun(self) -> None:
        self._beginning = False
        self._unwritten -= 1
        while self._waiting and not self._beginning:
            operation, args = self._waiting.popleft()
            operation(*args)


class KernelRequests:
    """The open requests of one session, other than cells: completion, inspection, comms.

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
            channel: RequestChannel = "control" if msg_type == "debug_request" else "shell"
            self._operations.put(kernel.send, KernelRequest(msg_type, content, msg_id, channel))
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
            if kernel_messages.is_idle(message.msg_type, message.content) and not handled.done():
                handled.set_result(None)
            return False
        asked = self._unanswered.get(message.parent)
        if asked is None or message.msg_type == "debug_event":  # Events of the debugger name any request.
            return False
        if message.channel in ("shell", "control") and message.msg_type.endswith("_reply") and not asked.done():
            asked.set_result(message.content)
        return True

    def fail(self, error: KernelsvcError) -> None:
        """Fail all open requests with ``error``, because their kernel has ended."""
        waiters: list[asyncio.Future[Any]] = [*self._unanswered.values(), *self.unhandled.values()]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)
