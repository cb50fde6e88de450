"""The time of the event loop and the memory that all answers of one principal use together."""

from __future__ import annotations

import asyncio
import time

from kernelsvc.errors import QuotaExceeded

#: Seconds of work that need no pause, so that a turn of one answer costs no timer, and the longest pause.
BURST_SECONDS, MAX_PAUSE_SECONDS = 0.02, 1.0
#: Most characters that the running answers of one principal hold together. One answer alone may begin with more.
MAX_HELD = 256 * 1024 * 1024


class AnswersShare:
    """The share of one principal: its answers work one after the other, and pause for as long as they have worked.

    A model's server may send without end. Each read of its stream was served in the same turn of the loop as those of
    all other answers, and a request of another client takes several turns.

    Attributes:
        held: Characters that its answers hold.
    """

    def __init__(self) -> None:
        self.held = 0
        # Time at which the pauses for all work so far are over.
        self._even_at = 0.0
        self._queue = asyncio.Lock()

    async def wait(self) -> None:
        """Wait until the next answer may work. Its work must begin before it waits for anything. Safe to cancel."""
        if not self._queue.locked() and self._debt() <= BURST_SECONDS:
            return  # nearly every token
        async with self._queue:
            if (debt := self._debt()) > BURST_SECONDS:
                await asyncio.sleep(debt)

    def _debt(self) -> float:
        return self._even_at - time.monotonic()

    def charge(self, seconds: float) -> None:
        """Charge the work of an answer that has ended now."""
        now = time.monotonic()
        self._even_at = min(max(now, self._even_at) + seconds, now + MAX_PAUSE_SECONDS)


class LoopTurn:
    """The time that one answer works on data which it has read, from ``begin`` to ``end``.

    Args:
        share: The share of the answer's principal.
    """

    def __init__(self, share: AnswersShare) -> None:
        self._share = share
        self._began: float | None = None

    async def begin(self) -> None:
        """Wait for the share, and begin. Safe to cancel."""
        await self._share.wait()
        self._began = time.monotonic()

    def end(self) -> None:
        """Charge the work, if it has begun. Called before each wait."""
        if self._began is not None:
            self._share.charge(time.monotonic() - self._began)
            self._began = None


class HeldText:
    """The characters that one answer holds until its end.

    Args:
        share: The share of the answer's principal.
    """

    def __init__(self, share: AnswersShare) -> None:
        self._share, self._size = share, 0

    def add(self, size: int) -> None:
        """Count more characters.

        Raises:
            QuotaExceeded: The principal's answers hold too many.
        """
        if self._share.held and self._share.held + size > MAX_HELD:
            raise QuotaExceeded(
                f"Your running answers hold more than {MAX_HELD // 2**20} MiB of input, text and pictures. "
                "Wait until one has ended."
            )
        self._share.held += size
        self._size += size

    def release(self) -> None:
        """Subtract the characters of this answer. Idempotent."""
        self._share.held -= self._size
        self._size = 0
