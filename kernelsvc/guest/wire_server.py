"""The kernel's end of the kernel wire: one socket, no thread.

Theory of operation. The kernel listens. The server that connects last and sends HELLO has the connection, and receives
all frames that it does not have yet. Frames go into the outbox and to the socket immediately. A writer waits in poll(2)
in two cases only: the socket buffer is full, or the outbox is full. While it waits, it also accepts connections and
reads acknowledgements, so a server can be replaced in the middle of a cell.

Two further callers serve the wire while the cell does not write: the event loop when the kernel is idle or awaits
(``FdWatcher``), and the handler of SIGURG, which Linux sends when a server connects while the cell computes (fcntl(2),
``F_SETSIG``).

Signals. A user's handler may raise between any two bytecodes (a time-out by SIGALRM does). ``serve`` masks signals.
Sending must be fast and does not: ``Outbox.put`` adds, sends and records a frame without a call in between. Code takes
a lock by ``with``, never by ``acquire``, after which CPython would check for signals before the ``try``. The kernel's
own handlers use ``run_unlocked``, which waits for the release of the lock.

Processes that user code forks inherit these objects but must not use them. An at-fork hook closes their sockets and
sets ``foreign``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from kernelsvc.guest import wire_frames
from kernelsvc.guest.private_modules import fcntl, os, select, signal, socket, threading, time
from kernelsvc.guest.stdio.stdio_reads import MOST_BYTES, StdioReads
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
    WireRequest,
    stream_prefix,
)

#: Bytes that are put between two checks for acknowledgements.
ACK_EVERY = 256 * 1024
#: Size of the send buffer (SO_SNDBUF, socket(7)). Linux counts about 800 bytes for each short frame, so its default of
#: 208 KiB is full after 270 lines, and a print then waits until the server runs.
SEND_BUFFER_BYTES = 1 << 20
#: Ids of requests that are stored for a server that asks which requests arrived.
MAX_SEEN = 32

_F_SETSIG = 10  # fcntl.h. Python has no name for it.
#: The C function, without the conversion to enums, which costs more than the call.
_sigmask: Callable[..., Any] = importlib.import_module("_signal").pthread_sigmask
_READ = 256 * 1024
_SMALL_READ = 2048
_MAX_FDS = 16


class FdWatcher(Protocol):
    """Polls the descriptors while the kernel is idle: an event loop."""

    def watch(self, fd: int) -> None:
        """Call ``WireServer.serve`` when this descriptor is readable."""

    def unwatch(self, fd: int) -> None:
        """Stop polling the descriptor."""

    def arrived(self) -> None:
        """Check ``WireServer.inbox``: a request was read outside of the poll."""


def exit_unreachable(closed: str) -> NoReturn:
    """End this process: user code closed a descriptor of the kernel, and a server would wait without end.

    Args:
        closed: The descriptor's name, for the message on standard error.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"The kernel ends: code in the session closed its {closed}.\n".encode())
    os._exit(70)


class ControlRequest:
    """A CONTROL request with the descriptors that came with it. Close those that you don't use."""

    def __init__(self, number: int, body: dict[str, Any], fds: list[int]) -> None:
        self.number = number
        self.body = body
        self.fds = fds

    @property
    def op(self) -> str:
        """The operation."""
        return str(self.body.get("op"))

    def close(self) -> None:
        """Close the descriptors that no handler has taken."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class _Connection:
    """A socket, and the bytes that were read from it and are not a whole frame yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.fds: list[int] = []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._inode = os.fstat(sock.fileno()).st_ino

    @property
    def replaced(self) -> bool:
        """Whether user code closed the descriptor. Its number may belong to any file now, even another connection."""
        try:
            return os.fstat(self.sock.fileno()).st_ino != self._inode
        except OSError:
            return True

    def read(self) -> bool:
        """Read all available bytes. Return False if the peer has closed the socket."""
        size = _READ
        while True:
            try:
                # SCM_RIGHTS (unix(7)): descriptors of CONTROL requests arrive with the bytes.
                data, fds, _, _ = socket.recv_fds(self.sock, size, _MAX_FDS)
            # The session is at its memory limit. A small request, which may free memory, must still be readable.
            except MemoryError:
                if size == _SMALL_READ:
                    raise
                size = _SMALL_READ
                continue
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            self.fds += fds
            if not data:
                return False
            self.data += data
            # A short read without descriptors: the socket is empty. With descriptors recvmsg(2) stops early, so read
            # on.
            if len(data) < size and not fds:
                return True

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class _Guard:
    """The wire's lock, held with all signals masked in this thread. Pending handlers run after its release."""

    _ALL = tuple(int(s) for s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

    def __init__(self, lock: threading.RLock, after: Callable[[], None]) -> None:
        self._lock = lock
        self._after = after
        self._before: list[Any] = []

    def __enter__(self) -> None:
        # An empty set changes nothing and returns the present mask (pthread_sigmask(3)).
        before = _sigmask(signal.SIG_BLOCK, ())
        try:
            _sigmask(signal.SIG_BLOCK, self._ALL)  # Runs pending handlers.
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
        inbox: Requests of the server that no handler has taken yet.
        foreign: True in a process that user code forked.
        watcher: Polls while the kernel is idle.
        seen: Ids of the last requests.
        cell: Id of the last request that runs a cell.
        answer: Id of the last answer to a cell that asked.
        hello: Body of the last HELLO, for a checkpoint that waits for one.
        on_tools: Called with each message on the channel ``tools``, while the wire is locked.
        divert: Called with each request. Returns True for those that it handles, which stay out of the inbox.
    """

    def __init__(
        self, listener: socket.socket, raw: Sequence[int], describe: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        """Listen.

        Args:
            listener: A bound socket. ``listen`` is called here, so that SO_PEERCRED of clients names this process
                (unix(7)).
            raw: Read ends of the pipes behind descriptors 1 and 2. Each server gets them.
            describe: Called with the body of each HELLO. Returns WELCOME's fields beyond ``version`` and ``seen``.
        """
        self.inbox: deque[WireRequest | ControlRequest] = deque()
        self.seen: deque[str] = deque(maxlen=MAX_SEEN)
        self.cell = self.answer = ""
        self.foreign = False
        self.watcher: FdWatcher | None = None
        self.divert: Callable[[WireRequest], bool] | None = None
        self.on_tools: Callable[[WireRequest], None] | None = None
        self.corked = False
        self.hello: dict[str, Any] | None = None
        self.outbox = wire_frames.Outbox()
        self._stdio = StdioReads(raw)
        self._describe = describe
        self._lock = threading.RLock()
        self._guard = _Guard(self._lock, self._run_deferred)
        self._waiting = 0  # Active calls of ``wait_for``. They poll the listener, so SIGURG is not needed.
        self._deferred: list[Callable[[], None]] = []
        self._mid_line = False
        self._conn: _Connection | None = None
        self._pending: list[_Connection] = []
        self._ack_check_at = 0  # Value of ``Outbox.total`` at which to check for acknowledgements.
        # The socket's ``send`` while frames may be sent immediately.
        self._send_now: Callable[[bytes], int] | None = None
        self._listen(listener)

    # -- guards -----------------------------------------------------------------------

    def run_unlocked(self, act: Callable[[], None]) -> None:
        """Run ``act`` now, or after the release of the lock if a signal arrived while this thread holds it."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._deferred.append(act)
        else:
            act()

    def _run_deferred(self) -> None:
        """Run the functions that ``run_unlocked`` deferred."""
        while self._deferred and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._deferred.pop(0)()

    def _new_lock(self) -> None:
        """In a fork: replace the lock, which a thread that does not exist here may hold (fork(2))."""
        self._deferred = []
        self._waiting = 0
        self._lock = threading.RLock()
        self._guard = _Guard(self._lock, self._run_deferred)

    def on_sigurg(self) -> None:
        """Handle SIGURG: a server connects."""
        if not (self.foreign or self._waiting):
            self.run_unlocked(self.serve)

    def close_in_child(self) -> None:
        """In a process that user code forked: close the wire, which belongs to the parent."""
        self.foreign = True
        self.watcher = self._send_now = self.divert = None
        self._new_lock()
        for connection in self._all_connections():
            connection.close()
        self._conn, self._pending = None, []
        self._listener.close()
        self._stdio = StdioReads(())

    # -- connections ------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        # Descriptors from SCM_RIGHTS are inheritable unless set otherwise. A program that replaces this one must not
        # get it.
        listener.set_inheritable(False)
        listener.setblocking(False)
        # listen(2) in this process: SO_PEERCRED of a client shows the process that called listen (unix(7)).
        listener.listen(16)
        self._listener = listener
        _signal_when_readable(listener.fileno())

    def adopt(self, listener: socket.socket, raw: Sequence[int]) -> list[int]:
        """In a fork of the kernel: use another listener and other pipes, with an empty outbox. Calls no watcher.

        Returns:
            The read ends of the original's pipes. The caller closes them.
        """
        for connection in self._all_connections():
            connection.close()
        self._conn, self._pending = None, []
        self._listener.close()
        for item in self.inbox:
            # Listener and pipes of the next fork, which this one must not hold open.
            if isinstance(item, ControlRequest):
                item.close()
        self.inbox.clear()
        self.seen.clear()
        self.cell = self.answer = ""
        self.hello = None
        self._new_lock()
        self.outbox = wire_frames.Outbox(self.outbox.limit)
        self._ack_check_at = 0
        self._send_now = None
        old, self._stdio = self._stdio.fds, StdioReads(raw)
        self._listen(listener)
        return old

    def watch_all(self, watcher: FdWatcher) -> None:
        """Let a new watcher poll all open descriptors."""
        self.watcher = watcher
        watcher.watch(self._listener.fileno())
        for connection in self._all_connections():
            watcher.watch(connection.sock.fileno())

    def _all_connections(self) -> list[_Connection]:
        return [*self._pending, self._conn] if self._conn else list(self._pending)

    def _unwatch(self, connection: _Connection) -> None:
        if self.watcher and connection.sock.fileno() >= 0:
            self.watcher.unwatch(connection.sock.fileno())

    def fds(self) -> set[int]:
        """Return all descriptors that belong to the wire."""
        own = {self._listener.fileno(), *self._stdio.fds}
        for connection in self._all_connections():
            own |= {connection.sock.fileno(), *connection.fds}
        for item in self.inbox:
            if isinstance(item, ControlRequest):
                own.update(item.fds)
        return own

    def serve(self, readable: int | None = None) -> None:
        """Accept connections and read all input. Never blocks.

        Args:
            readable: The descriptor that a poll reported. If it is the server's connection, the listener is not
                checked.
        """
        with self._guard:
            self._serve(readable)

    def _serve(self, readable: int | None = None) -> None:
        if any(connection.replaced for connection in self._all_connections()):
            exit_unreachable("connection")
        if self._conn is None or self._conn.sock.fileno() != readable:
            self._accept()
            for connection in list(self._pending):
                self._read_hello(connection)
        if self._conn:
            self._read(self._conn)
        if not self.corked:
            self._pump()
        box = self.outbox
        self._ack_check_at = box.total + (ACK_EVERY if box.size + 2 * ACK_EVERY <= box.limit else 0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # These mean that the descriptor is closed or reused. Other errors concern one connection only
                # (accept(2)).
                if error.errno in (errno.EBADF, errno.ENOTSOCK, errno.EINVAL) and self._conn is None:
                    exit_unreachable("listener")
                return
            sock.setblocking(False)
            _signal_when_readable(sock.fileno())  # HELLO may arrive later, while the cell computes for an hour.
            connection = _Connection(sock)
            self._pending.append(connection)
            self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        try:
            if self.watcher:
                self.watcher.watch(sock.fileno())
        except (OSError, ValueError):
            exit_unreachable("event loop")

    def _read_hello(self, connection: _Connection) -> None:
        alive = connection.read()
        try:
            found = wire_frames.parse(connection.data)
            if found:
                self._welcome(connection, found)
                return
        except (wire_frames.WireError, ValueError, OSError):
            alive = False
        if not alive:
            self._unwatch(connection)
            self._pending.remove(connection)
            connection.close()

    def _welcome(self, connection: _Connection, found: list[Frame]) -> None:
        hello = found[0]
        body = json.loads(hello.payload or b"{}")
        if hello.kind != HELLO or not isinstance(body, dict):
            raise wire_frames.WireError("the first frame must be HELLO")
        if self._conn:
            self._read(self._conn)  # Requests that the old server sent before it closed count as received.
            self._disconnect()
        described = self._describe(body)
        self.hello = body
        first = self.outbox.rewind(hello.number)
        received = {"seen": list(self.seen), "cell": self.cell, "answer": self.answer}
        numbers = {"version": wire_frames.VERSION, "pipes": [*self._stdio.fds]}
        payload = json.dumps({**numbers, **described, **received}).encode()
        welcome = wire_frames.HEADER.pack(len(payload), HELLO, first) + payload
        # Blocking: WELCOME and its descriptors must go out in one sendmsg(2).
        connection.sock.setblocking(True)
        try:
            socket.send_fds(connection.sock, [welcome], self._stdio.fds)
        except OSError as error:
            # unix(7), ETOOMANYREFS: Linux counts the descriptors in flight for each user, and other sessions may have
            # the same one. The server then opens the pipes by their numbers.
            if error.errno != errno.ETOOMANYREFS:
                raise
            connection.sock.sendall(welcome)
        connection.sock.setblocking(False)
        _stop_signal(connection.sock.fileno())
        self._pending.remove(connection)
        self._conn = connection
        self._send_now = None if self.corked else connection.sock.send
        self._process_frames(connection, found[1:])
        self._pump()

    def _disconnect(self) -> None:
        conn, self._conn, self._send_now = self._conn, None, None
        if conn:
            self._unwatch(conn)
            conn.close()

    # -- what comes in --------------------------------------------------------------------

    def _read(self, conn: _Connection) -> None:
        alive = conn.read()
        try:
            self._process_frames(conn, wire_frames.parse(conn.data))
        except wire_frames.WireError:
            alive = False
        if not alive and conn is self._conn:
            self._disconnect()

    def _process_frames(self, conn: _Connection, found: list[Frame]) -> None:
        before = len(self.inbox)
        for frame in found:
            if frame.kind == ACK:
                self.outbox.ack(frame.number)
            elif frame.kind == MESSAGE:
                request = wire_frames.parse_request(frame.payload)
                if request.channel == "tools":
                    # Results settle calls at once. Fifty of them must not push the cell's id out of ``seen``.
                    if self.on_tools is not None:
                        self.on_tools(request)
                    continue
                self.seen.append(request.msg_id)
                if request.msg_type == "execute_request":
                    self.cell = request.msg_id
                elif request.channel == "stdin":
                    self.answer = request.msg_id
                if self.divert is None or not self.divert(request):
                    self.inbox.append(request)
            elif frame.kind == CONTROL:
                self.inbox.append(self._parse_control(conn, frame))
        if len(self.inbox) > before and self.watcher:
            self.watcher.arrived()

    def _parse_control(self, conn: _Connection, frame: Frame) -> ControlRequest:
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
        """Serve the wire until a condition is true. Return False if the time is over.

        A signal handler may raise out of this method. The handler of SIGURG does nothing meanwhile: if it served
        between the check and the poll, the poll would wait for input that was read already.
        """
        end = None if seconds is None else time.monotonic() + seconds
        self._waiting += 1
        try:
            while not condition():
                if end is not None and time.monotonic() >= end:
                    return False
                self.serve(self._poll(end))
            return True
        finally:
            self._waiting -= 1

    def _poll(self, end: float | None) -> int | None:
        """Wait for input, or for room to send. Return the descriptor if only one is ready."""
        poller = select.poll()
        poller.register(self._listener.fileno(), select.POLLIN)
        for connection in self._pending:
            poller.register(connection.sock.fileno(), select.POLLIN)
        conn = self._conn
        if conn:
            waits = not (self.corked or self.outbox.clear)
            poller.register(conn.sock.fileno(), select.POLLIN | (select.POLLOUT if waits else 0))
        ready = poller.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000)
        return ready[0][0] if len(ready) == 1 else None

    # -- what goes out --------------------------------------------------------------------

    def send(self, kind: int, payload: bytes, *, hold: bool = False) -> None:
        """Send one frame. Blocks while the outbox is full or the socket takes no more.

        If a signal handler raises while this blocks, the frame is either not numbered and not sent, or accepted as a
        whole.
        """
        if not self._try_send(kind, payload, hold):
            self._send_waiting(kind, payload)
        elif not (self.outbox.clear or self.corked or hold):
            self._wait_until_sent()

    def _try_send(self, kind: int, payload: bytes, hold: bool) -> bool:
        """Put a frame and give it to a free socket: the fast path. Return False if other work must come first."""
        accepted = False
        with self._lock:
            box, send_now = self.outbox, None if hold else self._send_now
            room = box.total < self._ack_check_at and len(payload) < wire_frames.RUN_BYTES
            if room and (hold or self.corked or (send_now and box.clear)):
                sent = box.put(kind, payload, send_now)
                accepted = True
                if not sent:
                    with self._guard:
                        self._disconnect()
        if self._deferred:
            self._run_deferred()
        return accepted

    def _send_waiting(self, kind: int, payload: bytes) -> None:
        if not self.foreign:
            self.wait_for(lambda: self.foreign or self._try_put(kind, payload))
        self._wait_until_sent()

    def _wait_until_sent(self) -> None:
        if self._conn and not self.corked and not self.outbox.clear:
            self.wait_for(lambda: self._conn is None or self.corked or self.outbox.clear)

    def _try_put(self, kind: int, payload: bytes) -> bool:
        with self._guard:
            if not self._has_room(len(payload)):
                return False
            self.outbox.put(kind, payload)
            if not self.corked:
                self._pump()
            return True

    def _has_room(self, length: int) -> bool:
        """Whether the outbox takes so many bytes, after a look for acknowledgements."""
        if self.outbox.total >= self._ack_check_at:
            self._serve()
        room = self.outbox.has_room(length)
        if not room:
            self._uncork_now()  # Frames that are held back can't be acknowledged.
        return room

    def _pump(self) -> None:
        """Send until the socket takes no more. An error costs the connection but no frame."""
        while self._conn:
            view = self.outbox.unsent()
            if view is None:
                return
            try:
                self.outbox.mark_sent(self._conn.sock.send(view))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._disconnect()
            finally:
                view.release()

    def cork(self) -> None:
        """Hold back all frames from now on, to send several in one write (compare TCP_CORK, tcp(7))."""
        self.corked = True
        self._send_now = None

    def uncork(self) -> None:
        """Send all frames that wait."""
        if not self._uncork_if_clear():
            with self._guard:
                self._uncork_now()
            self._wait_until_sent()

    def _uncork_if_clear(self) -> bool:
        """Stop holding back if the outbox is clear: then no signals need be masked. Return whether it was."""
        with self._lock:
            opened = self.outbox.clear
            if opened:
                self.corked = False
                self._send_now = self._conn.sock.send if self._conn else None
        if self._deferred:
            self._run_deferred()
        return opened

    def _uncork_now(self) -> None:
        self.corked = False
        self._send_now = self._conn.sock.send if self._conn else None
        self._pump()

    def text(self, prefix: bytes, text: str) -> None:
        """Send text as STREAM frames, split if it is long. ``prefix`` comes from ``wire_frames.stream_prefix``."""
        if not self._mid_line and self._stdio.readable():  # A print writes each of its arguments by itself.
            self._forward_stdio()
        self._mid_line = not text.endswith("\n")
        self._text(prefix, text)

    def _text(self, prefix: bytes, text: str) -> None:
        if len(text) <= MAX_TEXT // 4:
            self.send(STREAM, prefix + text.encode("utf-8", "replace"))
            return
        step = MAX_TEXT if text.isascii() else MAX_TEXT // 4
        for at in range(0, len(text), step):
            self.send(STREAM, prefix + text[at : at + step].encode("utf-8", "replace"))

    def _forward_stdio(self) -> None:
        """Send what ended subprocesses and C code have written before, which the server would read later."""
        self.wait_for(lambda: self.foreign or self._try_forward())
        self._wait_until_sent()

    def _try_forward(self) -> bool:
        """Move the bytes in the pipes to the socket, also while corked. Return False if the outbox has no room.

        While corked, they can't wait: the server would read later bytes of the pipe first. A signal handler that raises
        loses no bytes, because it runs after this.
        """
        with self._guard:
            if not self._has_room(2 * MOST_BYTES):
                return False
            for name, data in self._stdio.take():
                prefix = stream_prefix(name, self.cell, raw=True)
                for at in range(0, len(data), MAX_TEXT):
                    self.outbox.put(STREAM, prefix + data[at : at + MAX_TEXT])
                self._pump()
            return True

    def message(self, payload: bytes, *, hold: bool = False) -> None:
        """Send a Jupyter message (``wire_frames.join``).

        Args:
            payload: Its bytes.
            hold: Whether it may wait for the next message, which follows soon. Any frame that is sent takes it along.

        Raises:
            ValueError: It is larger than a frame may be.
        """
        if self._stdio.readable():
            self._forward_stdio()
        if len(payload) > MAX_FRAME:
            raise ValueError(f"a message of {len(payload)} bytes is too large (at most {MAX_FRAME})")
        self.send(MESSAGE, payload, hold=hold)

    def reply(self, request: int, body: dict[str, Any]) -> None:
        """Answer a CONTROL request."""
        self.send(REPLY, json.dumps({"request": request, **body}).encode())

    def drain(self, seconds: float) -> None:
        """Wait until the server has acknowledged all frames, or the time is over."""
        self.wait_for(lambda: self.outbox.first > self.outbox.last, seconds)


def _signal_when_readable(fd: int) -> None:
    # The owner gets the signal when the descriptor becomes readable (fcntl(2), O_ASYNC).
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    # Instead of SIGIO, whose default action ends a process (signal(7)).
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _stop_signal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
