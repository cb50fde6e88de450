"""How many ready kernels are kept for sessions to come: pure; time enters as an argument. Seconds.

A ready kernel costs a few megabytes, and a session that finds one need not wait for
a fork. As many are kept as were asked for at once not long ago: a burst that came
once may come again, one that was an hour ago rather not. A server begins as if it
had seen the largest.
"""

from __future__ import annotations

from collections import deque
from math import ceil

#: Sessions asked for within so many seconds are one burst.
WINDOW = 10.0
#: What is remembered of the largest burst halves in this time.
HALF_LIFE = 600.0
#: The part of the most that is kept in any case.
LEAST = 0.25


class PoolDemand:
    """What sessions of one kind are asked for.

    Args:
        most: how many may be kept.
        now: monotonic seconds.
    """

    def __init__(self, most: int, now: float) -> None:
        self._most = most
        self._peak = float(most)
        self._at = now
        self._asked: deque[float] = deque(maxlen=max(1, most))

    def asked(self, now: float) -> None:
        """A session was asked for, whether or not a kernel was ready."""
        self._asked.append(now)
        self.target(now)

    def target(self, now: float) -> int:
        """How many to keep."""
        while self._asked and self._asked[0] <= now - WINDOW:
            self._asked.popleft()
        self._peak *= 0.5 ** (max(0.0, now - self._at) / HALF_LIFE)
        self._at = max(self._at, now)
        self._peak = max(self._peak, float(len(self._asked)))
        return min(self._most, max(ceil(self._most * LEAST), ceil(self._peak - 1e-9)))
