"""The one timer of a session: it fires at the machine's next deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.session.journal_writer import RECOVER_SECONDS


class DeadlineTimer:
    """Calls ``fire`` at the next deadline.

    Args:
        next_deadline: the deadline in the loop's seconds, or None.
        fire: acts on what is due. If it raises OSError, because the journal can't be written, it is called again
            ``RECOVER_SECONDS`` later.
    """

    def __init__(self, next_deadline: Callable[[], float | None], fire: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._next_deadline = next_deadline
        self._fire = fire
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._not_before = 0.0

    def schedule(self) -> None:
        """Set the timer if the deadline is earlier than before. A later one is noticed when the timer fires."""
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
        """Don't fire until the next ``schedule``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        try:
            self._fire()
        except OSError:  # a deadline that has passed would otherwise fire in each turn of the loop
            self._not_before = self._loop.time() + RECOVER_SECONDS
        self.schedule()
