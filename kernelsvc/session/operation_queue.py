"""The order of a session's operations on its kernel: forks, cells, messages.

The kernel carries out requests in the order in which it reads them. A cell or a message is written by a call. A fork
is a coroutine, whose request is written when its task first runs, one turn of the event loop later. Operations behind
a fork wait for that, and for nothing else: the fork is then of the moment before them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class OperationQueue:
    """Begins the operations of one session in the order in which they were put. Called from the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._forks: deque[Callable[[], object]] = deque()
        self._beginning = False

    @property
    def fork_waits(self) -> bool:
        """Whether a fork was put whose request is not written yet."""
        return self._beginning or bool(self._forks)

    def put(self, operation: Callable[..., object], *args: Any) -> None:
        """Begin an operation, a plain call, behind all that were put before: now if none waits."""
        if self._beginning or self._waiting:
            self._waiting.append((operation, args))
        else:
            operation(*args)

    def put_fork(self, start: Callable[[], object]) -> None:
        """Begin a fork behind all operations that were put before, and hold those that follow until it has begun.

        Args:
            start: creates the task that forks. Up to its first wait the task writes the request.
        """
        self._forks.append(start)
        self.put(self._begin, start)

    def _begin(self, start: Callable[[], object]) -> None:
        self._beginning = True
        self._forks.remove(start)
        start()
        # The loop calls in order: first the task's first step, which asyncio scheduled in start(), then this.
        self._loop.call_soon(self._begun)

    def _begun(self) -> None:
        self._beginning = False
        while self._waiting and not self._beginning:
            operation, args = self._waiting.popleft()
            operation(*args)
