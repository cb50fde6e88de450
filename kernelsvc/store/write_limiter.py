"""Limits of notebook writes for one notebook, and for all of them together.

A notebook is written soon after a cell ends. Each write costs 0.3 to 1 ms however short the file is: a rename that
replaces a file makes ext4 start to write it out (ext4(5), ``auto_da_alloc``). A hundred sessions with ten cells a
second each would use a tenth of the server for notebooks that no client reads. ``WriteSchedule`` limits the writes of
one notebook, ``WriteLimiter`` those of all: they share one write in ``SPACING``, in the order of requests. A delayed
write contains all cells up to its time.

Pure: time is an argument, in seconds.
"""

from __future__ import annotations

#: Seconds between two writes of a server under load.
SPACING = 0.05
#: Writes that may follow each other after a quiet time, in seconds of spacing.
SLACK = 0.5

#: Share of the time that writing may take, and the first credit in seconds.
SHARE = 0.05
CREDIT = 0.05
#: Writes that may follow each other, and how many more each second.
BURST, PER_SECOND = 10.0, 1.0
#: A larger notebook counts as one write for each part of this size, so that the bytes written for a cell don't grow
#: with the number of cells.
PART_BYTES = 256 * 1024


class WriteLimiter:
    """Spaces the writes of all notebooks.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._next = now - SLACK

    def delay(self, now: float) -> float:
        """Reserve the next write. Return the seconds until it is due, 0 for now."""
        at = max(self._next, now - SLACK)
        self._next = at + SPACING
        return max(0.0, at - now)


class WriteSchedule:
    """Spaces the writes of one notebook.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._credit = CREDIT
        self._writes = BURST
        self._at = now

    def wait(self, now: float) -> float:
        """Return the seconds until a write is due. 0 for now."""
        passed = max(0.0, now - self._at)
        self._credit = min(CREDIT, self._credit + SHARE * passed)
        self._writes = min(BURST, self._writes + PER_SECOND * passed)
        self._at = now
        return max(0.0, -self._credit / SHARE, (1.0 - self._writes) / PER_SECOND)

    def spent(self, seconds: float, size: int = 0) -> None:
        """Record a write: its duration, and its size in bytes."""
        self._credit -= seconds
        self._writes -= max(1.0, size / PART_BYTES)
