"""The timer of a session, which fires at the machine's next deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.session.journal_writer import RECOVER_SECONDS


class DeadlineTimer:
    """A timer that calls ``fire`` at the next deadline.

    Args:
        next_deadline: returns the deadline in the event loop's time (seconds), or None.
        fire: handles the deadlines that have passed. If it raises OSError because the journal is not writable, the
            timer calls it again ``RECOVER_SECONDS`` later.
    """

    def __init__(self, next_deadline: Callable[[], float | None], fire: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._next_deadline = next_deadline
        self._fire = fire
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._not_before = 0.0

    def schedule(self) -> None:
        """Set the timer if the deadline has become earlier. A later deadline takes effect when the timer fires."""
        at = self._next_deadline()
        if at is None:
            return
        at = max(at, self._not_before)
        if self._timer is not None and self._at <= at:
            return
        self.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._due)

    def cancel(self) -> None:
        """Stop the timer until the next ``schedule``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        try:
            self._fire()
        except OSError:  # without a delay the passed deadline would fire in each iteration of the loop
            self._not_before = self._loop.time() + RECOVER_SECONDS
        self.schedule()
