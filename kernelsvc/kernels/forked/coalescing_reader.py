"""Read a descriptor, with a short pause where a program prints line after line.

A program that prints in a loop wakes its reader for every few lines, and the work after a read (an entry in the log,
a message to each client) costs more than the lines. So after several small reads in quick succession the next one
waits for a moment, in which the descriptor's buffer gathers more. The first lines, occasional lines and output other
than text never wait. After a large read there is no pause, which would only delay the writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Seconds to wait. At 3 us for a line this fills Linux's default socket buffer (about 500 short frames).
PAUSE = 0.001
#: Maximum seconds between two reads in quick succession, and the number of such reads after which one waits.
QUICK_SECONDS, QUICK_READS = 4 * PAUSE, 4
#: Bytes from which a read is large.
LARGE = 48 * 1024


class CoalescingReader:
    """Calls a function when a descriptor is readable. The caller closes the descriptor.

    Args:
        loop: the event loop.
        fd: the descriptor.
        read: reads from it.
    """

    __slots__ = ("_fd", "_last", "_loop", "_quick_reads", "_read", "_timer", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, read: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._read = read
        self._quick_reads = 0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._watched = False

    def watch(self) -> None:
        """Call ``read`` whenever the descriptor is readable."""
        self._watched = True
        self._loop.add_reader(self._fd, self._read)

    def unwatch(self) -> None:
        """Stop calling ``read``. Call this before the descriptor is closed and its number reused. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def took_text(self, size: int) -> None:
        """Note that ``read`` has just read ``size`` bytes of text and nothing else. The next read may pause."""
        now = self._loop.time()
        self._quick_reads = self._quick_reads + 1 if now - self._last < QUICK_SECONDS else 0
        self._last = now
        if self._quick_reads >= QUICK_READS and size < LARGE:
            self.pause()

    def pause(self) -> None:
        """Call ``read`` again after a short pause."""
        if self._watched:
            self.unwatch()
            self._timer = self._loop.call_at(self._loop.time() + PAUSE, self._continue)

    def _continue(self) -> None:
        self._timer = None
        self.watch()
        self._read()
