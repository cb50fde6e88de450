"""A connection's queue of outgoing frames, which are sent in one write per turn of the event loop.

A write to a TCP socket costs more processor time than all other work for an event
(0.15 to 0.2 ms on the machine where it was measured, most of it in Linux). Frames that
are ready together are therefore sent together: a cell's last events and the reply to
the request that ran it. A frame may *linger* for others that follow soon. A frame
that does not linger takes them along immediately. Frames leave in the order of ``put``.

A reader of a log is a ``FrameSource``. It is announced with ``schedule`` and asked for
frames only when bytes are about to be sent. A log that grew five times meanwhile
is read once, and not at all while the client does not take bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Protocol

from tornado.iostream import StreamClosedError

#: Writes bytes to the stream. The future is done when they have left the process.
Write = Callable[[bytes], asyncio.Future[None]]
#: Unsent bytes beyond which sources are not read. Enough to fill a fast link.
MAX_BACKLOG = 256 * 1024
#: Size in bytes from which a piece is not joined with others.
LARGE_FRAME = 64 * 1024


class FrameSource(Protocol):
    """A source of frames that is read on demand."""

    def take(self) -> Sequence[bytes]:
        """Return the next whole frames, possibly in pieces. Empty: there are none for now."""

    def on_queued(self) -> None:
        """Called when the taken frames are queued. Later frames follow them."""


class SendQueue:
    """The queue of one connection. See the module's docstring.

    Args:
        write: Writes bytes to the stream.
        on_sent: Called when bytes have left the process.

    Attributes:
        backlog: Bytes that have not left the process.
        closed: Whether the stream is closed, so that nothing is sent any more.
    """

    def __init__(self, write: Write, on_sent: Callable[[], None]) -> None:
        self.backlog = 0
        self.closed = False
        self._write = write
        self._on_sent = on_sent
        self._frames: list[bytes] = []
        self._sources: dict[FrameSource, None] = {}
        self._due: asyncio.Handle | None = None
        self._lingers = False
        self._waiting: list[asyncio.Future[None]] = []

    def put(self, frames: bytes, linger: float = 0.0) -> None:
        """Send whole frames with the next write: in this turn of the loop, or within ``linger`` seconds."""
        if self.closed:
            return
        self._frames.append(frames)
        self.backlog += len(frames)
        self._schedule(linger)

    def send(self, frames: bytes) -> None:
        """Send whole frames immediately, after all that wait."""
        if not self.closed:
            self._frames.append(frames)
            self.backlog += len(frames)
            self.flush()

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """Ask this source for frames before the next write: in this turn of the loop, or within ``linger`` seconds."""
        if self.closed or (source in self._sources and self._due is not None and (linger or not self._lingers)):
            return
        self._sources[source] = None
        if self.backlog < MAX_BACKLOG:
            self._schedule(linger)

    def _schedule(self, linger: float) -> None:
        if self._due is not None and not (self._lingers and not linger):
            return
        if self._due is not None:
            self._due.cancel()
        loop = asyncio.get_running_loop()
        self._lingers = linger > 0
        self._due = loop.call_later(linger, self.flush) if linger else loop.call_soon(self.flush)

    def collect(self) -> None:
        """Queue frames of the scheduled sources while the backlog is below its limit."""
        while self._sources and self.backlog < MAX_BACKLOG:
            source = next(iter(self._sources))
            del self._sources[source]
            pieces = source.take()
            if pieces:
                self._sources[source] = None  # it may have more
                self._frames += pieces
                self.backlog += sum(map(len, pieces))
                source.on_queued()

    def flush(self) -> None:
        """Write all frames to the stream now."""
        self.collect()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        frames, self._frames = self._frames, []
        if not frames:
            return
        try:
            for data in _join_small(frames):
                self._follow(self._write(data), len(data))
        except StreamClosedError:
            self._on_closed()

    def _follow(self, written: asyncio.Future[None], size: int) -> None:
        if written.done():
            self._on_written(written, size)
        else:
            written.add_done_callback(lambda done: self._on_written(done, size))

    def _on_written(self, written: asyncio.Future[None], size: int) -> None:
        if written.cancelled() or written.exception() is not None:
            self._on_closed()
            return
        self.backlog -= size
        self._on_sent()
        if self._sources and self.backlog < MAX_BACKLOG:
            self._schedule(0.0)
        if not self.backlog:
            self._release()

    def _on_closed(self) -> None:
        self.closed = True
        self._frames.clear()
        self._sources.clear()
        self.backlog = 0
        self._release()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def drained(self) -> None:
        """Wait until all frames have left the process or the stream is closed. Cancelling stops only the wait."""
        self.flush()
        if self.backlog and not self.closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future


def _join_small(frames: list[bytes]) -> Iterable[bytes]:
    """Join small frames. A large one is written by itself, because a copy costs more than another write."""
    if len(frames) == 1:
        return frames
    if not any(len(each) >= LARGE_FRAME for each in frames):
        return [b"".join(frames)]
    groups = groupby(frames, key=lambda each: len(each) >= LARGE_FRAME)
    return [each for long, few in groups for each in (few if long else [b"".join(few)])]
