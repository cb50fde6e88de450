"""Deliver a session's events to its readers. Pure: no socket, no clock.

A connection can attach to a session once, so all readers of one session share one ``EventFeed``. Each reader has its
own cursor, and gets each event above it exactly once, also when the server sends events again after a reconnect. A
reader that does not read fills its buffer, whose size is limited. The feed then asks the connection to detach and, when
there is room again, to attach after the lowest cursor. The server's log is therefore the queue, and memory grows on
neither side.

``take`` ignores events while the feed is detached: the server may have sent them before it handled the detach request.
A gap in the sequence numbers is a fault of the server or the network. It raises ``SequenceGap``, and the connection
attaches again.
"""

from __future__ import annotations

from collections import deque

from kernelsvc.errors import KernelsvcError
from kernelsvc.model.events import CellFinished, Event, SessionClosed

#: Buffered bytes of a reader above which its feed detaches: half of the kernel wire's buffer.
MAX_BYTES = 4 * 1024 * 1024
MAX_EVENTS = 10_000


class SequenceGap(Exception):
    """The server left out an event."""


class FeedReader:
    """One consumer of one session's events.

    Attributes:
        last_seq: the cursor. The reader has received or skipped each event up to it.
        cell: if set, the reader gets only this cell's events, and ends with the cell.
        done: no event follows those in the buffer.
        error: the reason, if the reader ended early.
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
        """Whether the buffer exceeds its limit."""
        return not self.done and (self._bytes > MAX_BYTES or len(self._buffer) > MAX_EVENTS)

    @property
    def waiting(self) -> int:
        """Number of events in the buffer."""
        return len(self._buffer)

    def take(self, event: Event, size: int) -> bool:
        """Take the event that follows the cursor. Return True if there is something new to read."""
        self.last_seq = event.seq
        closed = isinstance(event, SessionClosed)
        wanted = self.cell is None or event.cell == self.cell
        if wanted:
            self._buffer.append((event, size))
            self._bytes += size
        self.done = closed or (self.cell is not None and wanted and isinstance(event, CellFinished))
        return wanted or self.done

    def drain(self) -> list[Event]:
        """Remove and return all events in the buffer."""
        events = [event for event, _ in self._buffer]
        self._buffer.clear()
        self._bytes = 0
        return events

    def rewind(self, after: int) -> None:
        """Move the cursor back. The reader must not have received any event after the new position."""
        self.last_seq = min(self.last_seq, after)

    def fail(self, error: KernelsvcError) -> None:
        """End the reader with an error, after the events in its buffer."""
        if not self.done:
            self.done, self.error = True, error


class EventFeed:
    """The readers of one session on one connection.

    Attributes:
        live: whether the connection is attached, or has sent an attach request.
        position: sequence number of the last event that the feed dispatched.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.readers: list[FeedReader] = []
        self.live = False
        self.position = 0

    def wants(self) -> int | None:
        """Return the cursor to attach after. Return None if there is no reader, or if a reader's buffer is full."""
        open_readers = [reader for reader in self.readers if not reader.done]
        if not open_readers or any(reader.full for reader in open_readers):
            return None
        return min(reader.last_seq for reader in open_readers)

    def step(self) -> tuple[str, int] | None:
        """Return the next request to the server: ``("attach", after)``, ``("detach", 0)`` or None."""
        cursor = self.wants()
        if self.live:
            # A connection attaches to a session once, so that a lower cursor needs a detach first.
            return ("detach", 0) if cursor is None or cursor < self.position else None
        return None if cursor is None else ("attach", cursor)

    def attached(self, after: int) -> None:
        """Note that the attach request was sent. The events from now on belong to it."""
        self.live, self.position = True, after

    def lost(self) -> None:
        """Note that the feed is detached, by a request or by a lost connection. ``take`` ignores events from now on."""
        self.live = False

    def take(self, event: Event, size: int) -> list[FeedReader]:
        """Deliver an event to each reader whose cursor is directly before it. Return the readers with something new.

        A reader with a lower cursor waits until ``step`` has attached the feed again, at that cursor.

        Raises:
            SequenceGap: the server left out an event.
        """
        if not self.live or event.seq <= self.position:
            return []
        if event.seq != self.position + 1:
            raise SequenceGap(f"session {self.session}: expected event {self.position + 1}, got {event.seq}")
        # A reader with a lower cursor must not skip events: it waits for the next attachment.
        next_ones = [reader for reader in self.readers if not reader.done and reader.last_seq == self.position]
        self.position = event.seq
        return [reader for reader in next_ones if reader.take(event, size)]
