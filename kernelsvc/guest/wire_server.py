"""The kernel's end of the kernel wire: one socket, no thread.

Theory of operation. The kernel listens; whichever server connects and says
HELLO becomes the one connection, and is told everything it does not hold yet.
Frames go into the outbox and to the socket at once. A writer waits, in
``poll``, for two things only: a socket that takes no more, and an outbox that
is full. While it waits it serves the listener and reads acknowledgements, so a
server may come and go in the middle of a cell.

Two further ways lead in here when the cell does not write: the event loop, when
the kernel is idle or awaits (``FdWatcher``), and SIGURG, which Linux sends when a
server knocks at the listener (fcntl(2), ``F_SETSIG``) while the cell computes.

Signals. A handler of the user's may raise between any two bytecodes (a time-out by
SIGALRM does). Serving is done with signals masked. Sending, which must be fast,
is not: what is interrupted there costs the connection, never a frame; the server
connects again and goes on after the last frame it holds. A lock is taken with
``with`` and never with ``acquire``, after which CPython would look for signals
before the ``try``. Our own handlers ask ``guarded`` and wait for the lock's end.

Processes that user code forks inherit all of this and own none of it. An at-fork
hook closes the sockets in them; ``foreign`` says so from then on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from kernelsvc.guest import wire_frames
from kernelsvc.guest.wire_frames import (
    ACK,
    CONTROL,
    HELLO,
    MAX_FRAME,
    MAX_TEXT,
    MESSAGE,
    REPLY,
    STREAM,
    Frame,
    KernelRequest,
)

#: Bytes put between two looks at what the server has acknowledged.
ACK_EVERY = 256 * 1024
#: What the socket is asked to hold. Linux counts some 800 bytes for each short frame, so that its default (208 KiB) is
#: full after 270 lines, and a print waits for the server's turn on the processor.
SENDS = 1 << 20
#: Requests that are remembered for a server that asks which ones arrived.
SEEN = 32

_F_SETSIG = 10  # fcntl.h; Python has no name for it
#: Without the conversion to enums, which costs more than the call.
_sigmask: Callable[..., Any] = importlib.import_module("_signal").pthread_sigmask
_READ = 256 * 1024
_FRUGAL = 2048
_MAX_FDS = 16


class FdWatcher(Protocol):
    """Who polls the descriptors while the kernel is idle: an event loop."""

    def watch(self, fd: int) -> None:
        """Call ``WireServer.serve`` when this is readable."""

    def unwatch(self, fd: int) -> None:
        """No more."""

    def arrived(self) -> None:
        """Something was read elsewhere; look at ``WireServer.inbox``."""


def exit_unreachable(closed: str) -> NoReturn:
    """End this process, of which user code closed what it hears with; a server would wait for its cell for ever.

    Args:
        closed: what is gone; told on standard error.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"The kernel's {closed} was closed from inside; it can't go on.\n".encode())
    os._exit(70)


class ControlRequest:
    """A CONTROL request with the descriptors that came with it. Close what you don't keep."""

    def __init__(self, number: int, body: dict[str, Any], fds: list[int]) -> None:
        self.number = number
        self.body = body
        self.fds = fds

    @property
    def op(self) -> str:
        """What is asked."""
        return str(self.body.get("op"))

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class _Connection:
    """A socket with what was read from it and is not whole yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.fds: list[int] = []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDS)
        self._inode = os.fstat(sock.fileno()).st_ino

    @property
    def stolen(self) -> bool:
        """Whether user code closed our descriptor; its number may be anything's by now, another connection's too."""
        try:
            return os.fstat(self.sock.fileno()).st_ino != self._inode
        except OSError:
            return True

    def read(self) -> bool:
        """Read what is there; False when the other side has closed."""
        size = _READ
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, size, _MAX_FDS)
            except MemoryError:  # the session is at its cap: a small request, which may free some, must still get in
                if size == _FRUGAL:
                    raise
                size = _FRUGAL
                continue
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            self.fds += fds
            if not data:
                return False
            self.data += data
            if len(data) < size and not fds:
                return True

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class _Guard:
    """The wire's lock, with no signal's handler running in this thread while it is held; those due run after it."""

    _ALL = tuple(int(s) for s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

    def __init__(self, lock: threading.RLock, after: Callable[[], None]) -> None:
        self._lock = lock
        self._after = after
        self._before: list[Any] = []

    def __enter__(self) -> None:
        before = _sigmask(signal.SIG_BLOCK, ())
        try:
            _sigmask(signal.SIG_BLOCK, self._ALL)  # runs the handlers that are due
            self._lock.acquire()
        except BaseException:
            _sigmask(signal.SIG_SETMASK, before)
            raise
        self._before.append(before)

    def __exit__(self, *_: object) -> None:
        before = self._before.pop()
        self._lock.release()
        _sigmask(signal.SIG_SETMASK, before)
        self._after()


class WireServer:
    """See the module's docstring.

    Attributes:
        inbox: what the server sent and nobody has taken yet.
        foreign: True in a process that user code forked.
        watcher: polls while the kernel is idle.
        seen: ids of the last requests.
        cell: id of the last that runs a cell.
        woken: the last HELLO's body, for a checkpoint that waits for one.
    """

    def __init__(
        self, listener: socket.socket, raw: Sequence[int], describe: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        """Listen.

        Args:
            listener: bound; ``listen`` is called here so that the peer's credentials are this process's.
            raw: read ends of the pipes behind descriptors 1 and 2, handed to each server.
            describe: called with the body of each HELLO; returns WELCOME's fields beyond ``version`` and ``seen``.
        """
        self.inbox: deque[KernelRequest | ControlRequest] = deque()
        self.seen: deque[str] = deque(maxlen=SEEN)
        self.cell = ""
        self.foreign = False
        self.watcher: FdWatcher | None = None
        self.corked = False
        self.woken: dict[str, Any] | None = None
        self.outbox = wire_frames.Outbox()
        self._raw = list(raw)
        self._describe = describe
        self._lock = threading.RLock()
        self._guard = _Guard(self._lock, self._act)
        self._waiting = 0  # calls of ``wait_for``: they poll the listener, so SIGURG has nothing to add
        self._deferred: list[Callable[[], None]] = []
        self._conn: _Connection | None = None
        self._guests: list[_Connection] = []
        self._look_at = 0  # when so much was put, look at what the server says
        self._direct: Callable[[bytes], int] | None = None  # the socket's send, when it may be used at once
        self._listen(listener)

    # -- guards -----------------------------------------------------------------------

    def guarded(self, act: Callable[[], None]) -> None:
        """Do ``act`` now, or, when a signal came in the middle of our own work, right after it."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._deferred.append(act)
        else:
            act()

    def _act(self) -> None:
        """Do what ``guarded`` put off."""
        while self._deferred and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._deferred.pop(0)()

    def _renew_lock(self) -> None:
        """In a fork: some thread that does not exist here may have held it."""
        self._deferred = []
        self._waiting = 0
        self._lock = threading.RLock()
        self._guard = _Guard(self._lock, self._act)

    def on_sigurg(self) -> None:
        """SIGURG: a server is at the door."""
        if not (self.foreign or self._waiting):
            self.guarded(self.serve)

    def close_in_child(self) -> None:
        """In a process that the user forked: leave the wire to the parent."""
        self.foreign = True
        self.watcher = self._direct = None
        self._renew_lock()
        for connection in self._all_connections():
            connection.close()
        self._conn, self._guests = None, []
        self._listener.close()

    # -- the door -----------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        listener.set_inheritable(False)  # it came through a socket; a program that replaces this one must not keep it
        listener.setblocking(False)
        listener.listen(16)
        self._listener = listener
        _signal_when_readable(listener.fileno())

    def adopt(self, listener: socket.socket, raw: Sequence[int]) -> list[int]:
        """In a fork of the kernel: another door, other pipes, nothing sent or received yet. No watcher is told.

        Returns:
            the read ends of the original's pipes, which the caller closes.
        """
        for connection in self._all_connections():
            connection.close()
        self._conn, self._guests = None, []
        self._listener.close()
        for item in self.inbox:
            if isinstance(item, ControlRequest):  # the next copy's door and pipes, which this one must not hold
                item.close()
        self.inbox.clear()
        self.seen.clear()
        self.cell = ""
        self.woken = None
        self._renew_lock()
        self.outbox = wire_frames.Outbox(self.outbox.limit)
        self._look_at = 0
        self._direct = None
        old, self._raw = self._raw, list(raw)
        self._listen(listener)
        return old

    def watch_all(self, watcher: FdWatcher) -> None:
        """Let a new watcher poll what is open."""
        self.watcher = watcher
        watcher.watch(self._listener.fileno())
        for connection in self._all_connections():
            watcher.watch(connection.sock.fileno())

    def _all_connections(self) -> list[_Connection]:
        return [*self._guests, self._conn] if self._conn else list(self._guests)

    def _unwatch(self, connection: _Connection) -> None:
        if self.watcher and connection.sock.fileno() >= 0:
            self.watcher.unwatch(connection.sock.fileno())

    def fds(self) -> set[int]:
        """Every descriptor that is the wire's own."""
        own = {self._listener.fileno(), *self._raw}
        for connection in self._all_connections():
            own |= {connection.sock.fileno(), *connection.fds}
        for item in self.inbox:
            if isinstance(item, ControlRequest):
                own.update(item.fds)
        return own

    def serve(self, readable: int | None = None) -> None:
        """Let in who knocks, read what came. Never blocks.

        Args:
            readable: the one descriptor that a poll told of; the door is left alone if that is the server's.
        """
        with self._guard:
            self._serve(readable)

    def _serve(self, readable: int | None = None) -> None:
        if any(connection.stolen for connection in self._all_connections()):
            exit_unreachable("connection")
        if self._conn is None or self._conn.sock.fileno() != readable:
            self._accept()
            for guest in list(self._guests):
                self._read_hello(guest)
        if self._conn:
            self._read(self._conn)
        if not self.corked:
            self._pump()
        box = self.outbox
        self._look_at = box.total + (ACK_EVERY if box.size + 2 * ACK_EVERY <= box.limit else 0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EBADF, errno.ENOTSOCK, errno.EINVAL) and self._conn is None:
                    exit_unreachable("door")
                return
            sock.setblocking(False)
            _signal_when_readable(sock.fileno())  # HELLO may come after our look, and the cell compute for an hour
            guest = _Connection(sock)
            self._guests.append(guest)
            self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        try:
            if self.watcher:
                self.watcher.watch(sock.fileno())
        except (OSError, ValueError):
            exit_unreachable("event loop")

    def _read_hello(self, guest: _Connection) -> None:
        alive = guest.read()
        try:
            found = wire_frames.parse(guest.data)
            if found:
                self._welcome(guest, found)
                return
        except (wire_frames.WireError, ValueError, OSError):
            alive = False
        if not alive:
            self._unwatch(guest)
            self._guests.remove(guest)
            guest.close()

    def _welcome(self, guest: _Connection, found: list[Frame]) -> None:
        hello = found[0]
        body = json.loads(hello.payload or b"{}")
        if hello.kind != HELLO or not isinstance(body, dict):
            raise wire_frames.WireError("the first frame must be HELLO")
        if self._conn:
            self._read(self._conn)  # what the old server asked before it went counts as seen
            self._hang_up()
        described = self._describe(body)
        self.woken = body
        first = self.outbox.rewind(hello.number)
        payload = json.dumps(
            {"version": wire_frames.VERSION, **described, "seen": list(self.seen), "cell": self.cell}
        ).encode()
        welcome = wire_frames.HEADER.pack(len(payload), HELLO, first) + payload
        guest.sock.setblocking(True)
        socket.send_fds(guest.sock, [welcome], self._raw)
        guest.sock.setblocking(False)
        _signal_no_more(guest.sock.fileno())
        self._guests.remove(guest)
        self._conn = guest
        self._direct = None if self.corked else guest.sock.send
        self._take(guest, found[1:])
        self._pump()

    def _hang_up(self) -> None:
        conn, self._conn, self._direct = self._conn, None, None
        if conn:
            self._unwatch(conn)
            conn.close()

    # -- what comes in --------------------------------------------------------------------

    def _read(self, conn: _Connection) -> None:
        alive = conn.read()
        try:
            self._take(conn, wire_frames.parse(conn.data))
        except wire_frames.WireError:
            alive = False
        if not alive and conn is self._conn:
            self._hang_up()

    def _take(self, conn: _Connection, found: list[Frame]) -> None:
        before = len(self.inbox)
        for frame in found:
            if frame.kind == ACK:
                self.outbox.ack(frame.number)
            elif frame.kind == MESSAGE:
                request = wire_frames.parse_request(frame.payload)
                self.seen.append(request.msg_id)
                if request.msg_type == "execute_request":
                    self.cell = request.msg_id
                self.inbox.append(request)
            elif frame.kind == CONTROL:
                self.inbox.append(self._control(conn, frame))
        if len(self.inbox) > before and self.watcher:
            self.watcher.arrived()

    def _control(self, conn: _Connection, frame: Frame) -> ControlRequest:
        try:
            body = json.loads(frame.payload)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise wire_frames.WireError("a control request that is not a JSON object")
        wanted = body.get("fds", 0)
        count = wanted if isinstance(wanted, int) else 0
        taken, conn.fds = conn.fds[:count], conn.fds[count:]
        return ControlRequest(frame.number, body, taken)

    def wait_for(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until a condition is true that serving the wire makes true; False when the time is over.

        A signal's handler may raise out of here. SIGURG's does nothing meanwhile:
        if it served between the condition and the poll, the poll would wait for
        what has come already.
        """
        end = None if seconds is None else time.monotonic() + seconds
        self._waiting += 1
        try:
            while not condition():
                if end is not None and time.monotonic() >= end:
                    return False
                self._poll(end)
                self.serve()
            return True
        finally:
            self._waiting -= 1

    def _poll(self, end: float | None) -> None:
        poller = select.poll()
        poller.register(self._listener.fileno(), select.POLLIN)
        for guest in self._guests:
            poller.register(guest.sock.fileno(), select.POLLIN)
        conn = self._conn
        if conn:
            waits = not (self.corked or self.outbox.clear)
            poller.register(conn.sock.fileno(), select.POLLIN | (select.POLLOUT if waits else 0))
        poller.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000)

    # -- what goes out --------------------------------------------------------------------

    def send(self, kind: int, payload: bytes, *, hold: bool = False) -> None:
        """Send one frame. Blocks while the outbox is full or the socket takes no more.

        An exception that a signal handler raises while this blocks leaves the
        frame either unsent and unnumbered, or accepted whole.
        """
        if not self._sent_at_once(kind, payload, hold):
            self._send_slowly(kind, payload)
        elif not (self.outbox.clear or self.corked or hold):
            self._wait_until_sent()

    def _sent_at_once(self, kind: int, payload: bytes, hold: bool) -> bool:
        """What a print takes: put the frame, and give it to a free socket. False if more must be looked at first."""
        accepted = False
        with self._lock:
            try:
                box, direct = self.outbox, self._direct
                if box.total < self._look_at and len(payload) < wire_frames.RUN_BYTES:
                    if self.corked or hold:
                        clear = box.clear
                        frame = box.put(kind, payload)
                        accepted = True
                        if clear:
                            box.left(len(frame))
                    elif direct and box.clear:
                        frame = box.put(kind, payload)
                        accepted = True
                        try:
                            taken = direct(frame)
                        except BlockingIOError:
                            taken = 0
                        if taken != len(frame):
                            box.left(len(frame) - taken)
            except BaseException as error:
                # How much was sent is not known any more; the server comes back for the rest.
                with self._guard:
                    self._hang_up()
                if not isinstance(error, OSError):
                    raise
        if self._deferred:
            self._act()
        return accepted

    def _send_slowly(self, kind: int, payload: bytes) -> None:
        if not self.foreign:
            self.wait_for(lambda: self.foreign or self._accepted(kind, payload))
        self._wait_until_sent()

    def _wait_until_sent(self) -> None:
        if self._conn and not self.corked and not self.outbox.clear:
            self.wait_for(lambda: self._conn is None or self.corked or self.outbox.clear)

    def _accepted(self, kind: int, payload: bytes) -> bool:
        with self._guard:
            box = self.outbox
            if box.total >= self._look_at:
                self._serve()
            if not box.has_room(len(payload)):
                self._uncork_now()  # what is held back can't be acknowledged
                return False
            was_clear = box.clear
            frame = box.put(kind, payload)
            if was_clear:
                box.left(len(frame))
            if not self.corked:
                self._pump()
            return True

    def _pump(self) -> None:
        """Give the socket what it takes. Whatever goes wrong costs the connection, never a frame."""
        while self._conn:
            view = self.outbox.unsent()
            if view is None:
                return
            try:
                self.outbox.sent(self._conn.sock.send(view))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._hang_up()
            finally:
                view.release()

    def cork(self) -> None:
        """Hold back what is sent from now on, to send several frames at once."""
        self.corked = True
        self._direct = None

    def uncork(self) -> None:
        """Send what was held back."""
        if not self._opened_on_nothing():
            with self._guard:
                self._uncork_now()
            self._wait_until_sent()

    def _opened_on_nothing(self) -> bool:
        """Stop holding back if nothing was held: what sends nothing need not mask signals."""
        with self._lock:
            opened = self.outbox.clear
            if opened:
                self.corked = False
                self._direct = self._conn.sock.send if self._conn else None
        if self._deferred:
            self._act()
        return opened

    def _uncork_now(self) -> None:
        self.corked = False
        self._direct = self._conn.sock.send if self._conn else None
        self._pump()

    def text(self, prefix: bytes, text: str) -> None:
        """Send text as STREAM frames, split where it is long. ``prefix`` is ``frames.stream_prefix``'s."""
        if len(text) <= MAX_TEXT // 4:
            self.send(STREAM, prefix + text.encode("utf-8", "replace"))
            return
        step = MAX_TEXT if text.isascii() else MAX_TEXT // 4
        for at in range(0, len(text), step):
            self.send(STREAM, prefix + text[at : at + step].encode("utf-8", "replace"))

    def message(self, payload: bytes, *, hold: bool = False) -> None:
        """Send a Jupyter message (``frames.join``).

        Args:
            payload: its bytes.
            hold: it may wait for the next one, which is about to follow; whatever is sent takes it along.

        Raises:
            ValueError: it is larger than a frame may be.
        """
        if len(payload) > MAX_FRAME:
            raise ValueError(f"a message of {len(payload)} bytes; at most {MAX_FRAME} can be sent")
        self.send(MESSAGE, payload, hold=hold)

    def reply(self, request: int, body: dict[str, Any]) -> None:
        """Answer a CONTROL request."""
        self.send(REPLY, json.dumps({"request": request, **body}).encode())

    def drain(self, seconds: float) -> None:
        """Wait until the server holds everything, or the time is over."""
        self.wait_for(lambda: self.outbox.first > self.outbox.last, seconds)


def _signal_when_readable(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _signal_no_more(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
