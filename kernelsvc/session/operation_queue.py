"""The order of a session's operations on its kernel: cells, messages, forks and other requests.

The kernel carries out requests in the order in which it reads them. A plain call writes a cell or a message. A fork, or
another request whose answer the server awaits, is a coroutine, and it writes its request when it first runs, some
iterations of the event loop later. Operations behind it wait until its request is written, so that a fork has the state
before them. They don't wait for its answer.

Signals (interrupt, kill) have no place in this order. They strike the operation that runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


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
