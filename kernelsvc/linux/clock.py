"""The machine's clock, which an operator or a time service can set forward or back at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A smaller step changes nothing that counts. Time services slew the clock by less (adjtime(3)).
STEP_SECONDS = 60.0


def boot_time() -> float:
    """Return seconds since the machine booted. No process can set this clock, and it counts suspended time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # clock_gettime(2)


class SteadyClock:
    """Seconds since the epoch, for decisions that delete: a step forward of the machine's clock makes nothing old.

    Args:
        wall: reads the machine's clock.
        steady: reads a clock that can't be set.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = boot_time) -> None:
        self._wall, self._steady = wall, steady
        self._first = self._last = wall() - steady()

    def __call__(self) -> float:
        """Return the present: at most the time of the first reading and the seconds that passed since then."""
        return min(self._wall(), self._first + self._steady())

    def step(self) -> float:
        """Return the seconds by which the clock was set since the last call, negative for back. 0: it was not set."""
        before, self._last = self._last, self._wall() - self._steady()
        found = self._last - before
        return found if abs(found) >= STEP_SECONDS else 0.0
