"""Who of many writes when: files that are made again and again share one part of the time.

A notebook is written soon after a cell has ended. Each write costs a third to most of a
millisecond however short the file is (a rename that replaces a file makes ext4 begin
to write it out), so a hundred sessions that run ten cells a second each would spend a
tenth of the server on notebooks that nobody looks at. Together they write at most one
in ``SPACING``; who comes when there are many waits for its turn, in the order in
which they came, and writes then what is there by then.
"""

from __future__ import annotations

#: Seconds between two writes of a crowd.
SPACING = 0.05
#: Writes that may come at once after a time of quiet, in seconds of spacing.
SLACK = 0.5


class WriteLimiter:
    """Turns to write. Pure: time enters as an argument. Seconds.

    Args:
        now: monotonic.
    """

    def __init__(self, now: float) -> None:
        self._next = now - SLACK

    def delay(self, now: float) -> float:
        """Take the next turn: seconds until it comes, 0 if it is now."""
        at = max(self._next, now - SLACK)
        self._next = at + SPACING
        return max(0.0, at - now)
