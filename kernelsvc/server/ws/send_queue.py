"""What leaves through a socket: the frames of one turn of the event loop, in one write.

A write to a TCP socket costs more processor time than everything else that is done
for an event (0.15 to 0.2 ms on the machine this was measured on, most of it in
Linux), so frames that are ready together go together: a cell's last events and the
answer to the request that ran it. Frames that nobody waits for may *linger* for
some that follow soon; whatever does not linger takes them along at once. Order is
the order of ``put``.

What reads a log is a ``FrameSource``: it is announced with ``expect`` and asked for its
frames only when something is about to leave, so that a log that grew five times
meanwhile is read once, and not at all while the other end does not take what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Protocol

from tornado.iostream import StreamClosedError

#: Gives bytes to the stream; done when they have left the process.
Write = Callable[[bytes], asyncio.Future[None]]
#: Bytes that may wait to leave before sources are asked for more. Enough to fill a fast link.
MAX_BACKLOG = 256 * 1024
#: Bytes from which on a piece is not joined with others.
LARGE_FRAME = 64 * 1024


class FrameSource(Protocol):
    """Something that has frames when it is asked."""

    def take(self) -> Sequence[bytes]:
        """The next whole frames, a good portion of them, in pieces as they lie; empty when there are none for now."""

    def on_queued(self) -> None:
        """They are in their place; what is put from here on comes after them."""


class SendQueue:
    """See the module's docstring.

    Args:
        write: the stream's.
        on_sent: called when bytes have left the process.

    Attributes:
        backlog: bytes that have not left the process.
        closed: the stream is gone; nothing leaves any more.
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
        """Send whole frames in this turn of the loop, or within ``linger`` seconds if nothing else goes before."""
        if self.closed:
            return
        self._frames.append(frames)
        self.backlog += len(frames)
        self._schedule(linger)

    def send(self, frames: bytes) -> None:
        """Send whole frames at once, and with them everything that waits."""
        if not self.closed:
            self._frames.append(frames)
            self.backlog += len(frames)
            self.flush()

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        """Ask this source before the next bytes leave; that is in this turn of the loop, or within ``linger``."""
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
        """Ask the sources, in turn, while there is room."""
        while self._sources and self.backlog < MAX_BACKLOG:
            source = next(iter(self._sources))
            del self._sources[source]
            pieces = source.take()
            if pieces:
                self._sources[source] = None  # until it has no more
                self._frames += pieces
                self.backlog += sum(map(len, pieces))
                source.on_queued()

    def flush(self) -> None:
        """Give everything to the stream now."""
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
        """Wait until everything has left the process, or nothing can any more. Safe to cancel: it leaves anyway."""
        self.flush()
        if self.backlog and not self.closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future


def _join_small(frames: list[bytes]) -> Iterable[bytes]:
    """Short ones together, long ones by themselves: to copy those costs more than another write."""
    if len(frames) == 1:
        return frames
    if not any(len(each) >= LARGE_FRAME for each in frames):
        return [b"".join(frames)]
    groups = groupby(frames, key=lambda each: len(each) >= LARGE_FRAME)
    return [each for long, few in groups for each in (few if long else [b"".join(few)])]
