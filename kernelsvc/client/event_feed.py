"""Which event goes to which reader: values only, no socket, no clock.

A connection can be attached to a session once, so all readers of one session
share one ``EventFeed``. Each reader has a cursor of its own and takes each event
above it exactly once, whatever is sent again after a reconnect. A reader that
does not read fills its bounded buffer; the feed then asks to be detached and,
when there is room again, to be attached after the lowest cursor. So the server's
log is the queue, and neither side's memory grows.

Rules: ``take`` ignores everything while the feed is not live, so that events
which were under way when a detach was sent can do no harm. A hole in the
numbers is an error of the server or the wire and is raised as ``SequenceGap``; the
connection answers it by attaching again.
"""

from __future__ import annotations

from collections import deque

from kernelsvc.errors import KernelsvcError
from kernelsvc.model.events import CellFinished, Event, SessionClosed

#: A reader holds at most this much before it asks for a pause; the same order as a kernel's own wire buffer.
MAX_BYTES = 4 * 1024 * 1024
MAX_EVENTS = 10_000


class SequenceGap(Exception):
    """An event is missing between what came before and what came now."""


class FeedReader:
    """One consumer of one session's events.

    Attributes:
        last_seq: the cursor; everything up to it was taken or was not wanted.
        cell: when set, only this cell's events are kept, and its end is the reader's end.
        done: no event will follow those in the buffer.
        error: why there will be none, if that was not the natural end.
    """

    def __init__(self, after: int, cell: str | None = None) -> None:
        self.last_seq = after
        self.cell = cell
        self.done = False
        self.error: KernelsvcError | None = None
        self._buffer: deque[tuple[Event, int]] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether it should get no more for now."""
        return not self.done and (self._bytes > MAX_BYTES or len(self._buffer) > MAX_EVENTS)

    @property
    def waiting(self) -> int:
        """How many events lie in the buffer."""
        return len(self._buffer)

    def take(self, event: Event, size: int) -> bool:
        """Keep the event that follows the cursor, if it is wanted; True if there is now something to read."""
        self.last_seq = event.seq
        closed = isinstance(event, SessionClosed)
        wanted = self.cell is None or event.cell == self.cell
        if wanted:
            self._buffer.append((event, size))
            self._bytes += size
        self.done = closed or (self.cell is not None and wanted and isinstance(event, CellFinished))
        return wanted or self.done

    def drain(self) -> list[Event]:
        """Everything in the buffer, which is then empty."""
        events = [event for event, _ in self._buffer]
        self._buffer.clear()
        self._bytes = 0
        return events

    def rewind(self, after: int) -> None:
        """Go back to an earlier position; nothing may have been taken from there on yet."""
        self.last_seq = min(self.last_seq, after)

    def fail(self, error: KernelsvcError) -> None:
        """End it with an error, after what it already holds."""
        if not self.done:
            self.done, self.error = True, error


class EventFeed:
    """The readers of one session on one connection.

    Attributes:
        live: whether the connection is attached, or has asked to be.
        position: everything up to here was dispatched since it is live.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.readers: list[FeedReader] = []
        self.live = False
        self.position = 0

    def wants(self) -> int | None:
        """The cursor to be attached after, or None: nobody reads, or somebody has to catch up first."""
        open_readers = [reader for reader in self.readers if not reader.done]
        if not open_readers or any(reader.full for reader in open_readers):
            return None
        return min(reader.last_seq for reader in open_readers)

    def step(self) -> tuple[str, int] | None:
        """What to ask the server next: ``("attach", after)``, ``("detach", 0)`` or nothing."""
        cursor = self.wants()
        if self.live:
            return ("detach", 0) if cursor is None or cursor < self.position else None
        return None if cursor is None else ("attach", cursor)

    def attached(self, after: int) -> None:
        """The attach request is on its way; what comes now counts."""
        self.live, self.position = True, after

    def lost(self) -> None:
        """Detached, on purpose or by a broken connection; what still comes is ignored."""
        self.live = False

    def take(self, event: Event, size: int) -> list[FeedReader]:
        """Hand an event to every reader that has not had it; those with something new to read.

        A reader behind the position waits for the attachment to go back to it (``step`` says so).

        Raises:
            Gap: the server left an event out.
        """
        if not self.live or event.seq <= self.position:
            return []
        if event.seq != self.position + 1:
            raise SequenceGap(f"session {self.session}: expected event {self.position + 1}, got {event.seq}")
        next_ones = [reader for reader in self.readers if not reader.done and reader.last_seq == self.position]
        self.position = event.seq
        return [reader for reader in next_ones if reader.take(event, size)]
