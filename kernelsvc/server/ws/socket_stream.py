"""An established connection's socket, read by a callback and written at once.

Theory of operation. Tornado's stream serves HTTP: what is read goes through a buffer, a
future and a coroutine, at some sixty calls of Python's for a frame. A WebSocket needs
none of it once it is open: when bytes are there they are handed over in the same turn of
the event loop, and what is written goes to the socket in the same call; only what Linux
doesn't take is kept, in the pieces that it was given in, without a copy.

``SocketStream`` has those methods of Tornado's stream that its WebSocket protocol calls, with
their meaning, so that closing, pinging and time limits stay Tornado's.

Who reads decides how fast: while it is paused nothing is taken from the socket, and
the other end waits in TCP.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

#: Bytes that are read in one go.
READ_BYTES = 64 * 1024
#: Pieces that go to the socket in one call.
MAX_PIECES = 64


async def take_over(stream: IOStream) -> tuple[socket.socket, bytes]:
    """The socket of a stream that nobody reads, and what the stream has read already; the stream is closed by it.

    Raises:
        StreamClosedError: the other end is on_closed.
    """
    if stream.writing():
        await stream.write(b"")
    ahead = asyncio.ensure_future(stream.read_bytes(READ_BYTES, partial=True))
    taken = stream.socket.dup()
    early = ahead.result() if ahead.done() and ahead.exception() is None else b""
    stream.close()
    if ahead.done():
        ahead.exception()  # has been looked at
    else:
        ahead.add_done_callback(lambda done: done.exception())
    return taken, early


class SocketStream:
    """See the module's docstring. Called from the event loop's thread.

    Args:
        taken: a connected socket that does not block.
        on_data: given what was read.
        on_closed: called once when the connection has ended, whoever ended it, in a later turn of the loop.
        on_released: called once when the descriptor is closed.
    """

    def __init__(
        self,
        taken: socket.socket,
        on_data: Callable[[bytes], None],
        on_closed: Callable[[], None],
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        self.io_loop = IOLoop.current()
        self._loop = asyncio.get_running_loop()
        self._socket = taken
        self._fd = taken.fileno()
        self._on_data = on_data
        self._on_closed = on_closed
        self._on_released = on_released
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
        """Hear what comes."""
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def pause(self) -> None:
        """Take nothing from the socket for now."""
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
        """Send this after everything that was given before.

        Returns:
            A future that is done when the bytes have left the process.

        Raises:
            StreamClosedError: the connection is on_closed.
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
        return future

    def _send(self, data: bytes) -> int:
        """Bytes that Linux took; an error shows at the next look."""
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
        """Whether the connection has ended."""
        return self._closed

    def close(self) -> None:
        """End the connection at once; what has not left is lost. Idempotent."""
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
            future.exception()  # nobody need look

    def set_nodelay(self, on: bool) -> None:
        """Tornado's name for ``TCP_NODELAY``; of no effect on a Unix socket."""
        if not self._closed and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(on))
