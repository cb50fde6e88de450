"""A proxy between a kernelspec kernel's socket and libzmq that limits the size of messages.

libzmq keeps the parts of a message until the last one has come, and no option limits their sum. A program that speaks
ZMTP itself and never sends the last part could fill this process's memory. So libzmq connects to a ``MeteringProxy``,
which reads the framing of the kernel's data (ZMTP 3, https://rfc.zeromq.org/spec/23). A message above the limits ends
the connection before its next part is forwarded. The proxy holds one chunk for each direction, so a slow reader slows
its sender.

libzmq finds the proxy under an abstract name that can't be guessed (unix(7)), and the proxy accepts connections of this
process only.
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
from kernelsvc.linux.unix_socket import connect_nofollow

#: Maximum bytes that are forwarded in one write.
CHUNK = 256 * 1024
#: Seconds between attempts to connect to a kernel that is starting.
RETRY_SECONDS = 0.01
#: Share of the time that counting may take, bytes that are counted at a time, and seconds after which it pauses.
METER_SHARE, METER_STEP, METER_SECONDS = 0.25, 4096, 0.001
#: Seconds for the last requests to reach a kernel, when libzmq has closed its end.
LINGER_SECONDS = 1.0

_GREETING = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_PARTS = MAX_PARTS + MAX_ROUTING
#: Maximum bytes of a command (READY, PING, ERROR), which holds a few names.
_MAX_COMMAND = 64 * 1024


class ZmtpMeter:
    """Counts one direction of a ZMTP connection, in pieces of any size. Keeps no data.

    Args:
        max_bytes: maximum size of one message, all its parts together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._want = _GREETING
        self._greeted = False
        self._skip = 0
        self._size = self._parts = 0

    def feed(self, data: bytes) -> None:
        """Count the next bytes.

        Raises:
            InvalidMessage: it is not ZMTP 3, or a message is above the limits.
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
            if size > _MAX_COMMAND:
                raise InvalidMessage(f"a command above {_MAX_COMMAND} bytes")
        else:
            self._size += size
            self._parts += 1
            if self._size > self._max_bytes or self._parts > _PARTS:
                raise InvalidMessage(f"a message above {self._max_bytes} bytes or {MAX_PARTS} parts")
            if not flags & _MORE:
                self._size = self._parts = 0
        self._skip = size


class _Runner:
    """The thread that runs all proxies of this process, while there are any.

    It is not the server's event loop: a kernel's PUB socket drops output when it is not read, so proxies must run
    while that loop computes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users = 0

    def acquire(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the thread, which runs until each caller has called ``release``."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="zmq proxies", daemon=True).start()
            self._users += 1
            return self._loop

    def release(self) -> None:
        """Release the loop. Call this in the thread."""
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
    """A proxy for one socket of a kernel. Made and closed on the server's event loop, run in a thread.

    Args:
        path: of the kernel's Unix socket, which may not exist yet.
        max_bytes: maximum size of one message.
        on_invalid: called once on the server's loop if the kernel broke a limit. The connection is closed then.
        family: pid of the kernel's process, whose family must be the listener. None does not check.
    """

    def __init__(
        self, path: str, max_bytes: int, on_invalid: Callable[[str], None], *, family: int | None = None
    ) -> None:
        self._family = family
        self._path, self._max_bytes, self._on_invalid = path, max_bytes, on_invalid
        self._owner_loop = asyncio.get_running_loop()
        self._name = f"kernelsvc-{secrets.token_hex(16)}"
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self._name}")
        self._listener.listen(4)
        self._loop = _runner.acquire()
        self._tasks = OwnedTasks(self._loop)
        self._acceptor: Acceptor | None = None
        self._running = asyncio.Event()
        self._running.set()
        self._loop.call_soon_threadsafe(self._open)

    @property
    def url(self) -> str:
        """The address that libzmq connects to."""
        return f"ipc://@{self._name}"

    def close(self) -> None:
        """Accept no more connections. Data that libzmq has sent already still reaches the kernel. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.create_task, self._close())

    def hold(self, on: bool) -> None:
        """Stop or continue to read from the kernel, whose writes block meanwhile."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self._running.clear if on else self._running.set)

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

    def _invalid(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the server's loop is closed
            self._owner_loop.call_soon_threadsafe(self._on_invalid, why)

    def _accept(self, connection: socket.socket, _: object) -> None:
        if peer.credentials(connection).pid != os.getpid():
            connection.close()
            return
        self._tasks.start(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                kernel = await self._reach()
            except PermissionError as refused:
                self._invalid(f"the path of its socket is not a socket of this session ({refused.strerror})")
                return
            with kernel:
                await self._forward(connection, kernel)

    async def _forward(self, connection: socket.socket, kernel: socket.socket) -> None:
        down = self._loop.create_task(self._pump(kernel, connection, ZmtpMeter(self._max_bytes)))
        up = self._loop.create_task(self._pump(connection, kernel, None))
        # When libzmq closes its end, both directions end. When the kernel ends, its remaining data is forwarded.
        up.add_done_callback(lambda done: down.cancel() if not done.cancelled() and done.result() else None)
        try:
            await asyncio.wait([down])
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait([up, down])
        if not down.cancelled() and isinstance(error := down.exception(), InvalidMessage):
            self._invalid(str(error))

    async def _reach(self) -> socket.socket:
        """Connect to the kernel when it listens. Safe to cancel.

        Raises:
            PermissionError: the path leads to a socket that is not the kernel's.
        """
        while True:
            kernel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                connect_nofollow(kernel, self._path, family=self._family)
            except PermissionError:
                kernel.close()
                raise
            except OSError:
                kernel.close()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return kernel

    async def _pump(self, source: socket.socket, target: socket.socket, meter: ZmtpMeter | None) -> bool:
        """Forward data until one end closes. Return whether the source did."""
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(source, CHUNK):
                if meter is not None:
                    await self._meter(meter, data)
                await self._loop.sock_sendall(target, data)
            return True
        return False

    async def _meter(self, meter: ZmtpMeter, data: bytes) -> None:
        """Count data from the kernel, at most for ``METER_SHARE`` of the time, and wait while the proxy is held.

        This thread and the event loop take turns with the interpreter's lock. Many small frames in each chunk would
        make every turn of the event loop wait for it (``sys.setswitchinterval``).
        """
        started = self._loop.time()
        for at in range(0, len(data), METER_STEP):
            meter.feed(data[at : at + METER_STEP])
            if (busy := self._loop.time() - started) > METER_SECONDS:
                await asyncio.sleep(busy * (1 / METER_SHARE - 1))
                started = self._loop.time()
        await self._running.wait()
