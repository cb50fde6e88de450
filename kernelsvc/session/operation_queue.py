"""The order of a session's operations on its kernel: forks, cells, messages.

The kernel carries out requests in the order in which it reads them. A plain call writes a cell or a message. A fork is
a coroutine, and it writes its request when its task first runs, one iteration of the event loop later. Operations
behind a fork wait until its request is written, so that the fork has the state before them. They don't wait for its
reply.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class OperationQueue:
    """A queue that begins the operations of one session in their order. Called from the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._forks: deque[Callable[[], object]] = deque()
        self._beginning = False

    @property
    def fork_waits(self) -> bool:
        """Whether the queue has a fork whose request is not written yet."""
        return self._beginning or bool(self._forks)

    def put(self, operation: Callable[..., object], *args: Any) -> None:
        """Call ``operation(*args)`` after all earlier operations, or now if none waits."""
        if self._beginning or self._waiting:
            self._waiting.append((operation, args))
        else:
            operation(*args)

    def put_fork(self, start: Callable[[], object]) -> None:
        """Begin a fork after all earlier operations. Later operations wait until its request is written.

        Args:
            start: creates the task that forks. The task must write the request before its first ``await`` that waits.
        """
        self._forks.append(start)
        self.put(self._begin, start)

    def _begin(self, start: Callable[[], object]) -> None:
        self._beginning = True
        self._forks.remove(start)
        start()
        # The event loop runs callbacks in order: first the first step of the task that start() created, then this.
        self._loop.call_soon(self._begun)

    def _begun(self) -> None:
        self._beginning = False
        while self._waiting and not self._beginning:
            operation, args = self._waiting.popleft()
            operation(*args)
