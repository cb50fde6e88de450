"""Turns of the event loop for work that others can ask for without end: one at a time, a quarter of its time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

#: Seconds of one turn, after which the event loop has ``REST`` times as many for other work.
TURN_SECONDS, REST = 0.005, 3
#: A piece of work. Gets the time on the event loop's clock at which its turn ends.
Work = Callable[[float], object]


class Turns:
    """A queue of pieces of work. Each one ends with its turn, and takes another turn for the rest."""

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()
        self._next: asyncio.TimerHandle | None = None
        self._free_at = 0.0

    def wait(self, work: Work) -> None:
        """Call ``work`` in a turn of its own, after those that wait."""
        self._waiting.append(work)
        if self._next is None:
            self._next = asyncio.get_running_loop().call_at(self._free_at, self._turn)

    def _turn(self) -> None:
        loop, work = asyncio.get_running_loop(), self._waiting.popleft()
        began = loop.time()
        try:
            work(began + TURN_SECONDS)
        finally:
            ended = loop.time()
            self._free_at = ended + REST * (ended - began)
            self._next = loop.call_at(self._free_at, self._turn) if self._waiting else None
