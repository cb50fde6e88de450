"""Reading from one descriptor, without haste where somebody prints line after line.

A program that prints in a loop wakes its reader for every few lines, and what follows a
read (an entry in the log, a message to each client) costs more than the lines. So after
some reads of a little text in quick succession the next one waits for a moment, in which
the descriptor's own buffer gathers what comes. The first lines, lines that come now and
then, and whatever is no text are never waited for; a read of much text says that waiting
would only hold the writer up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Seconds to wait: at 3 us a printed line, what Linux's default buffer of a socket (some 500 short frames) holds.
PAUSE = 0.001
#: Reads of text that follow one another within so many seconds are in quick succession; so many of them are haste.
SOON, HASTE = 4 * PAUSE, 4
#: A read of so many bytes is much.
MUCH = 48 * 1024


class CoalescingReader:
    """One descriptor of an event loop's, read by a callback. The descriptor stays the caller's."""

    __slots__ = ("_fd", "_haste", "_last", "_loop", "_read", "_timer", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, read: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._read = read
        self._haste = 0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._watched = False

    def watch(self) -> None:
        """Call ``read`` whenever something is there."""
        self._watched = True
        self._loop.add_reader(self._fd, self._read)

    def unwatch(self) -> None:
        """No more; also before the descriptor is closed, whose number may be another's then. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def took_text(self, size: int) -> None:
        """``read`` has just brought ``size`` bytes of text, and nothing else: perhaps let more of it gather."""
        now = self._loop.time()
        self._haste = self._haste + 1 if now - self._last < SOON else 0
        self._last = now
        if self._haste >= HASTE and size < MUCH and self._watched:
            self.unwatch()
            self._timer = self._loop.call_at(now + PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.watch()
        self._read()
