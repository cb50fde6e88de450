"""An established connection's socket, read by a callback and written immediately, and its queue of outgoing frames.

Tornado's stream serves HTTP: input passes through a buffer, a future and a
coroutine, with some sixty Python calls for a frame. An open WebSocket needs none of
this. Here, input is passed on in the turn of the event loop in which it arrives, and
output goes to the socket in the call. Only bytes that Linux does not take are kept, in
their original pieces, without a copy.

``SocketStream`` has the methods of Tornado's stream that Tornado's WebSocket protocol
calls, with their meaning, so that closing, pinging and time limits stay Tornado's.

The reader controls the speed: while it is paused, nothing is read from the socket, and
TCP stops the client.

**Outgoing frames** wait in a ``SendQueue`` and leave in one write per turn of the event loop. A write to a TCP socket
costs more processor time than all other work for an event (0.15 to 0.2 ms on the machine where it was measured, most of
it in Linux). So frames that are ready together are sent together: a cell's last events and the reply to the request
that ran it. A frame may *linger* for others that follow soon. A frame that does not linger takes them along
immediately. Frames leave in the order of ``put``.

A reader of a log is a ``FrameSource``. It is announced with ``schedule`` and asked for frames only when bytes are about
to be sent. A log that grew five times meanwhile is read once, and not at all while the client does not take bytes.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Protocol

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

#: Most bytes of one read.
READ_BYTES = 64 * 1024
#: Most pieces of one sendmsg(2), far below Linux's limit of 1,024 (IOV_MAX, writev(2)): a piece is a long frame, and a
#: full socket takes a few of them.
MAX_PIECES = 64
#: Writes bytes to the stream. The future is done when they have left the process.
Write = Callable[[bytes], asyncio.Future[None]]
#: Unsent bytes beyond which sources are not read. Enough to fill a fast link.
MAX_BACKLOG = 256 * 1024
#: Size in bytes from which a piece is not joined with others.
LARGE_FRAME = 64 * 1024


async def take_over(stream: IOStream) -> tuple[socket.socket, bytes]:
    """Detach the socket from a stream that no task reads, and close the stream.

    Returns:
        The socket, and the bytes that the stream has read already.

    Raises:
        StreamClosedError: The client disconnected.
    """
    if stream.writing():
        await stream.write(b"")
    ahead = asyncio.ensure_future(stream.read_bytes(READ_BYTES, partial=True))
    taken = stream.socket.dup()
    early = ahead.result() if ahead.done() and ahead.exception() is None else b""
    stream.close()
    if ahead.done():
        ahead.exception()  # marks the exception as retrieved, else asyncio logs it
    else:
        ahead.add_done_callback(lambda done: done.exception())
    return taken, early


class SocketStream:
    """The stream of one socket. See the module's docstring. Used on the event loop's thread.

    Args:
        taken: A connected, non-blocking socket.
        on_data: Called with bytes that were read.
        on_closed: Called once when the connection has ended, from either side, in a later turn of the loop.
        on_released: Called once when the descriptor is closed.
        on_unsent: Called with the bytes that Linux has not taken yet, when their number has changed.
    """

    def __init__(
        self,
        taken: socket.socket,
        on_data: Callable[[bytes], None],
        on_closed: Callable[[], None],
        on_released: Callable[[], None] = lambda: None,
        on_unsent: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.io_loop = IOLoop.current()
        self._loop = asyncio.get_running_loop()
        self._socket = taken
        self._fd = taken.fileno()
        self._on_data = on_data
        self._on_closed = on_closed
        self._on_released = on_released
        self._on_unsent = on_unsent
        self._reading = self._closed = False
        self._unsent: deque[memoryview] = deque()
        self._written = self._left = 0
        self._writers: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._done.set_result(None)

    @property
    def unsent(self) -> int:
        """Bytes that Linux has not taken yet."""
        return self._written - self._left

    # -- reading --------------------------------------------------------------------

    def listen(self) -> None:
        """Start to read."""
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def pause(self) -> None:
        """Stop reading."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self.close()

    # -- writing --------------------------------------------------------------------

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Send ``data`` after all earlier bytes.

        Returns:
            A future that is done when the bytes have left the process.

        Raises:
            StreamClosedError: The connection is closed.
        """
        if self._closed:
            raise StreamClosedError
        sent = 0 if self._unsent else self._send(data)
        if sent == len(data):
            return self._done
        if not self._unsent:
            self._loop.add_writer(self._fd, self._writable)
        self._unsent.append(memoryview(data)[sent:])
        self._written += len(data) - sent
        future: asyncio.Future[None] = self._loop.create_future()
        self._writers.append((self._written, future))
        self._on_unsent(self.unsent)
        return future

    def _send(self, data: bytes) -> int:
        """Return the number of bytes that Linux took. An error shows at the next read or write."""
        try:
            return self._socket.send(data)
        except OSError:
            return 0

    def _writable(self) -> None:
        few = [piece for piece, _ in zip(self._unsent, range(MAX_PIECES), strict=False)]
        try:
            sent = self._socket.sendmsg(few)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._left += sent
        self._on_unsent(self.unsent)
        while sent:
            first = self._unsent.popleft()
            if len(first) > sent:
                self._unsent.appendleft(first[sent:])
                break
            sent -= len(first)
        if not self._unsent:
            self._loop.remove_writer(self._fd)
        while self._writers and self._writers[0][0] <= self._left:
            _, future = self._writers.popleft()
            if not future.done():
                future.set_result(None)

    # -- the end --------------------------------------------------------------------

    def closed(self) -> bool:
        """Return whether the connection has ended."""
        return self._closed

    def close(self) -> None:
        """Close the connection immediately. Unsent bytes are lost. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.pause()
        if self._unsent:
            self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._socket.close()
        self._on_released()
        writers, self._writers = self._writers, deque()
        for _, future in writers:
            self._fail(future)
        self._loop.call_soon(self._on_closed)

    @staticmethod
    def _fail(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_exception(StreamClosedError())
            future.exception()  # marks the exception as retrieved, else asyncio logs it

    def set_nodelay(self, on: bool) -> None:
        """Set ``TCP_NODELAY``. No effect on a Unix socket."""
        if not self._closed and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(on))


class FrameSource(Protocol):
    """A source of frames that is read on demand."""

    def take(self) -> Sequence[bytes]:
        """Return the next whole frames, possibly in pieces. Empty: there are none for now."""

    def on_queued(self) -> None:
        """Called when the taken frames are queued. Later frames follow them."""


class SendQueue:
    """The outgoing frames of one connection. See the module's docstring.

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
        self._lingers = self._sent_first = False
        self._waiting: list[asyncio.Future[None]] = []

    def hold(self, frames: bytes) -> None:
        """Keep whole frames for the next write, which the caller starts."""
        if not self.closed:
            self._frames.append(frames)
            self.backlog += len(frames)

    def put(self, frames: bytes, linger: float = 0.0) -> None:
        """Send whole frames with the next write: in this turn of the loop, or within ``linger`` seconds."""
        if not self.closed:
            self.hold(frames)
            self._schedule(linger)

    def send(self, frames: bytes) -> None:
        """Send whole frames immediately, after all that wait."""
        if not self.closed:
            self.hold(frames)
            self.flush()

    def send_first(self, frames: bytes) -> None:
        """Send whole frames immediately if they are the first ones in this turn of the loop, else with the next write.

        So one call is not delayed, and fifty calls that arrive together leave in two writes. send(2) and the wake-up of
        its reader cost as much as the rest of a call.
        """
        if self._sent_first:
            self.put(frames)
            return
        self._sent_first = True
        asyncio.get_running_loop().call_soon(self._end_turn)
        self.send(frames)

    def _end_turn(self) -> None:
        self._sent_first = False

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
