"""What stands between a cold kernel's socket and libzmq: it passes bytes on, and counts them.

libzmq keeps the parts of a message until the last one has come, and no option of it
limits their sum: a program that speaks ZMTP by hand, and never says "last", would have
this process hold whatever it sends. So libzmq connects to a ``MeteringProxy``, the relay
to the kernel, and the relay reads the framing (ZMTP 3, https://rfc.zeromq.org/spec/23)
of what the kernel sends: a message that grows beyond the bounds ends the connection
before its next part is passed on. Nothing is kept here but one chunk for each
direction, so a slow reader slows its sender.

libzmq finds the relay under an abstract name that cannot be guessed, and the relay
speaks with nobody but this process, as Linux vouches.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable

from kernelsvc.kernels.zmq.messages import MAX_PARTS, MAX_ROUTING, InvalidMessage
from kernelsvc.linux import peer
from kernelsvc.linux.acceptor import Acceptor
from kernelsvc.linux.tasks import OwnedTasks

#: Bytes that are passed on at once.
CHUNK = 256 * 1024
#: Seconds between attempts to reach a kernel that is starting.
RETRY_SECONDS = 0.01
#: Seconds for the last requests to reach a kernel, once libzmq has closed its end.
LINGER_SECONDS = 1.0

_GREETING = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_PARTS = MAX_PARTS + MAX_ROUTING
#: Largest command (READY, PING, ERROR); a handful of names.
_MOST_COMMAND = 64 * 1024


class ZmtpMeter:
    """Reads one direction of a ZMTP connection, in pieces of any size, and keeps none of it.

    Args:
        most: bytes that one message may have, all its parts together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._head = bytearray()
        self._want = _GREETING
        self._greeted = False
        self._skip = 0
        self._size = self._parts = 0

    def feed(self, data: bytes) -> None:
        """The next bytes.

        Raises:
            Garbled: no ZMTP 3, or a message beyond the bounds.
        """
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(self._want - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == self._want:
                    self._read_head()
            at += step

    def _read_head(self) -> None:
        head = self._head
        if not self._greeted:
            if head[0] != 0xFF or head[9] != 0x7F or head[10] < 3:
                raise InvalidMessage("no ZMTP of version 3")
            self._greeted = True
        elif len(head) == 1:
            self._want = 9 if head[0] & _LONG else 2
            return
        else:
            self._count(head[0], int.from_bytes(head[1:], "big"))
        head.clear()
        self._want = 1

    def _count(self, flags: int, size: int) -> None:
        if flags & _COMMAND:
            if size > _MOST_COMMAND:
                raise InvalidMessage(f"a command above {_MOST_COMMAND} bytes")
        else:
            self._size += size
            self._parts += 1
            if self._size > self._most or self._parts > _PARTS:
                raise InvalidMessage(f"a message above {self._most} bytes or {MAX_PARTS} parts")
            if not flags & _MORE:
                self._size = self._parts = 0
        self._skip = size


class _Runner:
    """The thread that all relays of this process run in, while there are any.

    Not the server's own loop: a kernel's PUB socket drops output when nobody reads it,
    so relays must go on while that loop computes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users = 0

    def acquire(self) -> asyncio.AbstractEventLoop:
        """The loop of the thread, which runs until everybody who asked has called ``release``."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="cold relays", daemon=True).start()
            self._users += 1
            return self._loop

    def release(self) -> None:
        """Called in the thread."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._loop is not None:
                self._loop.stop()
                self._loop = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


_runner = _Runner()


class MeteringProxy:
    """One socket of a kernel, metered. Made and closed on the server's event loop; works in a thread.

    Args:
        path: of the kernel's Unix socket, which may not be there yet.
        most: bytes of one message.
        on_garbled: called once on the server's loop, when the kernel broke a bound; the connection is gone then.
    """

    def __init__(self, path: str, most: int, on_garbled: Callable[[str], None]) -> None:
        self._path, self._most, self._on_garbled = path, most, on_garbled
        self._home = asyncio.get_running_loop()
        self._name = f"kernelsvc-{secrets.token_hex(16)}"
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self._name}")
        self._listener.listen(4)
        self._loop = _runner.acquire()
        self._tasks = OwnedTasks(self._loop)
        self._acceptor: Acceptor | None = None
        self._loop.call_soon_threadsafe(self._open)

    @property
    def url(self) -> str:
        """What libzmq connects to."""
        return f"ipc://@{self._name}"

    def close(self) -> None:
        """Let nobody in any more; what libzmq has given away already still reaches the kernel. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.create_task, self._close())

    def _open(self) -> None:
        self._acceptor = Acceptor(self._listener, self._accept, self._loop)

    async def _close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        self._listener.close()
        await self._tasks.wait(LINGER_SECONDS)
        self._tasks.cancel()
        await self._tasks.wait()
        self._loop.call_soon(_runner.release)

    def _garbled(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the server's loop is closed
            self._home.call_soon_threadsafe(self._on_garbled, why)

    def _accept(self, ours: socket.socket, _: object) -> None:
        if peer.credentials(ours).pid != os.getpid():
            ours.close()
            return
        self._tasks.start(self._serve(ours))

    async def _serve(self, ours: socket.socket) -> None:
        with ours, await self._reach() as kernel:
            down = self._loop.create_task(self._pump(kernel, ours, ZmtpMeter(self._most)))
            up = self._loop.create_task(self._pump(ours, kernel, None))
            # What libzmq has let go of ends it all; what a kernel that is gone has left is still passed on.
            up.add_done_callback(lambda done: down.cancel() if not done.cancelled() and done.result() else None)
            try:
                await asyncio.wait([down])
            finally:
                for way in (up, down):
                    way.cancel()
                await asyncio.wait([up, down])
            if not down.cancelled() and isinstance(error := down.exception(), InvalidMessage):
                self._garbled(str(error))

    async def _reach(self) -> socket.socket:
        """Connect to the kernel, as soon as it listens. Safe to cancel."""
        while True:
            kernel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                kernel.connect(self._path)
            except OSError:
                kernel.close()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return kernel

    async def _pump(self, source: socket.socket, target: socket.socket, meter: ZmtpMeter | None) -> bool:
        """Pass on until one of the two ends; whether it was the source."""
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(source, CHUNK):
                if meter is not None:
                    meter.feed(data)
                await self._loop.sock_sendall(target, data)
            return True
        return False
