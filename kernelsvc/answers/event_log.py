"""The events of one answer, between the answer and its readers."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from typing import Any

#: Most events and characters of text that wait for a slow client before the answer waits too, and number of events of a
#: background answer after which it keeps no further pieces of text.
MAX_WAITING, MAX_CHARACTERS, MAX_KEPT = 2000, 4 * 1024 * 1024, 50_000


class EventLog:
    """Events in order, numbered from 0.

    Args:
        keep: Whether events stay after they were read, for readers that come later.
        first: Number of the first event.
    """

    def __init__(self, *, keep: bool, first: int = 0) -> None:
        self._events: list[dict[str, Any]] = []
        self._first = first
        self._keep = keep
        self._characters = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    def add(self, events: list[dict[str, Any]]) -> None:
        """Add events. Of a background answer with too many, the pieces of text are left out: a whole item follows."""
        if len(self._events) >= MAX_KEPT:
            events = [each for each in events if not str(each.get("type")).endswith(".delta")]
        if events:
            self._events += events
            self._characters += 0 if self._keep else _characters(events)
            self._news.set()

    def close(self) -> None:
        """Mark the end."""
        self._closed = True
        self._news.set()

    async def flush(self) -> None:
        """Wait while too much waits for the only reader. Safe to cancel."""
        while not self._closed and (self._characters > MAX_CHARACTERS or self._is_long()):
            self._room.clear()
            await self._room.wait()

    def _is_long(self) -> bool:
        return not self._keep and len(self._events) > MAX_WAITING

    def wake(self) -> None:
        """End the waits of the readers."""
        self._news.set()

    async def after(self, number: int) -> list[dict[str, Any]] | None:
        """Wait for events behind the first ``number`` ones. Safe to cancel.

        Returns:
            The events. An empty list if ``wake`` has ended the wait. None at the end.
        """
        if not (found := self._events[self._position(number) :]) and not self._closed:
            self._news.clear()
            await self._news.wait()
            found = self._events[self._position(number) :]
        if not self._keep:
            self._first += len(self._events)
            self._events, self._characters = [], 0
            self._room.set()
        return None if self._closed and not found else found

    def _position(self, number: int) -> int:
        last = self._events[-1].get("sequence_number") if self._events else None
        if last is None or last - self._first == len(self._events) - 1:
            return max(0, number - self._first)
        # Numbers have gaps where pieces were left out, and where a kill of the server has cut the answer.
        return bisect_left(self._events, number, key=lambda each: each.get("sequence_number", 0))

    @property
    def number(self) -> int:
        """Number of the next event of a log whose events have numbers."""
        return int(self._events[-1]["sequence_number"]) + 1 if self._events else self._first

    def all(self) -> list[dict[str, Any]]:
        """Return the kept events."""
        return list(self._events)


def _characters(value: Any) -> int:
    """Return the number of characters of all texts in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
