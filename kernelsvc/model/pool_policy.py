"""Decide how many ready kernels to keep for new sessions. Pure: time is an argument, in seconds.

A ready kernel costs a few megabytes, and a session that finds one need not wait for a fork. The pool keeps as many as
the largest recent burst of requests: a burst may come again, and an hour later rather not. A new server assumes the
largest burst.
"""

from __future__ import annotations

from collections import deque
from math import ceil

#: Requests within so many seconds are one burst.
WINDOW = 10.0
#: Seconds in which the memory of the largest burst halves.
HALF_LIFE = 600.0
#: Share of the maximum that is always ready.
LEAST = 0.25


class PoolDemand:
    """Demand for sessions of one kind.

    Args:
        most: The maximum number of ready kernels.
        now: Monotonic seconds.
    """

    def __init__(self, most: int, now: float) -> None:
        self._max = most
        self._peak = float(most)
        self._at = now
        self._asked: deque[float] = deque(maxlen=max(1, most))

    def asked(self, now: float) -> None:
        """Record a request for a session, whether or not a kernel was ready."""
        self._asked.append(now)
        self.target(now)

    def target(self, now: float) -> int:
        """Return the number of kernels to keep ready."""
        while self._asked and self._asked[0] <= now - WINDOW:
            self._asked.popleft()
        self._peak *= 0.5 ** (max(0.0, now - self._at) / HALF_LIFE)
        self._at = max(self._at, now)
        self._peak = max(self._peak, float(len(self._asked)))
        return min(self._max, max(ceil(self._max * LEAST), ceil(self._peak - 1e-9)))
