"""The server's end of the kernel wire (``docs/reference/wire.md``).

One ``WireClient`` belongs to one kernel for the life of the kernel. It reads in large pieces, passes whole batches to
``deliver``, and acknowledges them with the next request or after a short time: a separate acknowledgement would wake an
idle kernel. When ``deliver`` refuses a batch, nothing more is read until ``resume``. The kernel's buffer then fills and
its prints block, so there is back-pressure without a queue.

When a connection ends while the kernel runs, the client connects again. The kernel names the requests that it received,
the others are sent again, and the frames continue after the last delivered one. Only a kernel that can't be reached any
more is ``lost``.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
import termios
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec

from kernelsvc.errors import AtCapacity, KernelDead, Timeout
from kernelsvc.kernels.forked import wire_parser
from kernelsvc.kernels.forked.coalescing_reader import LARGE, CoalescingReader
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.stdio_pipe import StdioPipe
from kernelsvc.kernels.forked.wire_connection import WireConnection, connect
from kernelsvc.kernels.forked.wire_parser import ACK, CONTROL, HEADER, MESSAGE, WireParser, WireViolation
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.kernels.read_budget import ReadBudget, ReadBudgets
from kernelsvc.linux import peer
from kernelsvc.protocol import jupyter

log = logging.getLogger(__name__)

T = TypeVar("T")

Deliver = Callable[[Sequence[Output]], None]
Lost = Callable[["WireLost"], None]

#: Type of the message about the calls that the kernel waits for, after each connection. Only this module makes it.
WAITING = "tools_waiting"
#: A read below this size returned everything that was written.
SMALL = 4096
#: Pauses of a millisecond in which the rest of a print may arrive, before another process's text follows its start.
MAX_LINE_WAITS = 50
#: Maximum bytes that wait for a kernel that does not read its requests.
MAX_OUTGOING = 64 * 1024 * 1024
#: Largest frame that is joined with others of its turn of the loop, in bytes, and most of them.
MAX_JOINED, MAX_JOINED_FRAMES = 16 * 1024, 64
#: Bytes or seconds after which delivered frames are acknowledged, unless a request is sent before.
ACK_BYTES, ACK_SECONDS = 64 * 1024, 0.05
#: Maximum of requests kept until the kernel has confirmed them. It names its last 32. Their bytes are limited, too, to
#: those that may wait and those that the socket's buffer may hold.
MAX_REQUESTS, MAX_KEPT = 32, MAX_OUTGOING + 1024 * 1024
#: Maximum of connections that a kernel may end in so many seconds.
MAX_DISCONNECTS, DISCONNECT_SECONDS = 20, 60.0
#: Seconds for one frame to arrive, after which the client connects again. Checked at the same interval.
PARTIAL_SECONDS = 30.0
#: Seconds from a new connection to the check of the listener.
VERIFY_SECONDS = 0.5

_encode = msgspec.json.Encoder().encode


class WireLost(KernelDead):
    """The wire to the kernel ended.

    Attributes:
        violation: whether the kernel broke the protocol (end it with cause ``protocol``). Otherwise it closed its
            socket.
    """

    def __init__(self, message: str, *, violation: bool = False) -> None:
        super().__init__(message)
        self.violation = violation


_UNREACHABLE = "The kernel closed its socket and can't be reached any more."


def _loss(error: Exception) -> WireLost:
    if isinstance(error, WireViolation):
        return WireLost(f"The kernel broke its protocol: {error}.", violation=True)
    return WireLost(_UNREACHABLE)


async def _within(end: float, work: Awaitable[T]) -> T:
    """Await ``work`` until ``end`` on the loop's clock, and raise the errors of ``WireClient.connect``."""
    try:
        async with asyncio.timeout_at(end):
            return await work
    except TimeoutError:
        raise Timeout("The kernel did not answer in time. Try again, or restart the session.") from None
    except WireViolation as error:
        raise _loss(error) from None
    except (OSError, EOFError) as error:
        raise WireLost(f"The kernel ended before it answered ({error or 'end of file'}).") from None


class WireClient:
    """The wire to one kernel. Call every method from the event loop that connected it.

    Attributes:
        peer_pid: the kernel's pid as Linux reports it (``SO_PEERCRED``), in the server's pid namespace.
    """

    def __init__(
        self, path: str, connection: WireConnection, *, last_frame: int, max_frame: int, budget: ReadBudget
    ) -> None:
        self.peer_pid = connection.peer_pid
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._parser = WireParser(last=last_frame, max_frame=max_frame)
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None
        self._connection: WireConnection | None = None
        self._reader: CoalescingReader | None = None  # of the connection
        self._raw: list[StdioPipe] = []
        self._raw_readers: list[CoalescingReader] = []  # one for each pipe
        self._budget = budget
        self._pause: asyncio.TimerHandle | None = None  # nothing is read until it fires
        self._loss: WireLost | None = None
        self._undelivered: list[Output] = []
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._outgoing_bytes = 0
        self._turn: list[bytes] | None = None  # frames for the kernel that leave at the end of this turn of the loop
        self._write_blocked = False  # the socket is full, and the loop watches it
        self._acked = last_frame
        self._unacknowledged_bytes = 0  # bytes received since the last acknowledgement
        self._only_text = False  # in the last batch
        self._mid_line = False  # the last batch ends within a line
        self._line_waits = 0  # how often text in a pipe has waited for the rest of that line, or for frames before it
        self._ack_timer: asyncio.TimerHandle | None = None
        self._controls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._control_number = 0
        self._requests: dict[str, bytes] = {}  # frames by id, not confirmed yet
        self._reconnecting: asyncio.Task[None] | None = None
        self._disconnects: deque[float] = deque(maxlen=MAX_DISCONNECTS)  # times on the loop's clock
        self._partial = False  # the parser holds an incomplete frame
        self._partial_timer: asyncio.TimerHandle | None = None
        self._welcome = connection.welcome
        if connection.first:
            self._adopt(connection)
        else:
            self._reconnecting = self._loop.create_task(self._complete(connection), name=f"wait for {path}")

    # -- connecting -----------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        path: str,
        *,
        last_frame: int = 0,
        deadline: float = 10.0,
        identity: dict[str, Any] | None = None,
        busy_ok: bool = False,
        max_frame: int = jupyter.MAX_BYTES,
        budget: ReadBudget | None = None,
    ) -> WireClient:
        """Connect to a kernel, send HELLO and wait for WELCOME. HELLO resumes a checkpoint. Safe to cancel.

        Args:
            path: path of the kernel's socket.
            last_frame: the highest frame in the journal.
            deadline: seconds from now. Until then a refused connection is tried again.
            identity: for a checkpoint or branch: its new identity (``kernel``, ``session``, ``workdir``, ``env``), or
                None for the identity in the fork request.
            busy_ok: accept a kernel that answers late because its cell runs C code. ``welcome`` is empty until it
                answers, messages wait, and requests that the kernel has received already are not sent again.
            max_frame: maximum bytes of one message.
            budget: the kernel's share of the event loop, which this object closes. None for a kernel alone.

        Raises:
            Timeout: no answer in time.
            WireLost: the answer was not valid, or the kernel ended.
        """
        end = asyncio.get_running_loop().time() + deadline
        connection = await _within(end, WireConnection.open(path, last_frame, identity, wait=True))
        try:
            await _within(end, connection.wait_welcome())
        except Timeout:
            if not busy_ok:
                connection.close()
                raise
        except BaseException:
            connection.close()
            raise
        if connection.first and connection.first <= last_frame:
            connection.close()
            raise WireLost(
                f"The kernel never sent frame {last_frame}. Another kernel listens in its place.", violation=True
            )
        return cls(
            path,
            connection,
            last_frame=connection.first - 1 if connection.first else last_frame,
            max_frame=max_frame,
            budget=budget or ReadBudgets().open(path),
        )

    @staticmethod
    async def peer(path: str, *, deadline: float = 10.0) -> int:
        """Return the pid behind a listener, in the server's pid namespace.

        Does not resume a checkpoint. Safe to cancel.

        Raises:
            Timeout: no process listened in time.
        """
        try:
            async with asyncio.timeout(deadline):
                sock = await connect(path, wait=True)
        except TimeoutError:
            raise Timeout("The kernel did not listen in time. Try again.") from None
        with sock:
            return peer.credentials(sock).pid

    @property
    def welcome(self) -> dict[str, Any]:
        """The kernel's description of itself, see ``wire_parser.Welcome``."""
        return msgspec.to_builtins(self._welcome)  # type: ignore[no-any-return]

    @property
    def last_frame(self) -> int:
        """The highest frame that was delivered."""
        return self._acked

    def _adopt(self, connection: WireConnection) -> None:
        self._connection = connection
        self._welcome = connection.welcome
        self._unacknowledged_bytes = 0  # HELLO has acknowledged them
        self._parser.reset()
        if not self._raw:
            self._raw = connection.take_pipes()
            self._parser.decoders = [pipe.decoder for pipe in self._raw]
        self._reader = CoalescingReader(self._loop, connection.sock.fileno(), self._read)
        self._raw_readers = [
            CoalescingReader(self._loop, pipe.fd, partial(self._read_raw, n)) for n, pipe in enumerate(self._raw)
        ]

    def start(self, deliver: Deliver, lost: Lost) -> None:
        """Start to read.

        Args:
            deliver: as in ``port.Sink``.
            lost: called once, with the reason, after the last batch, standard output and error included. Not called
                after ``close``.
        """
        self._deliver, self._lost = deliver, lost
        self._watch()
        self._loop.call_soon(self._feed_rest)

    def _watch(self) -> None:
        if self._pause is not None:
            return
        if self._reader is not None:
            self._reader.watch()
        for reader in self._raw_readers:
            reader.watch()

    def _unwatch(self) -> None:
        if self._reader is not None:
            self._reader.unwatch()
        for reader in self._raw_readers:
            reader.unwatch()

    # -- reading ----------------------------------------------------------------------------

    def _read(self) -> None:
        if self._connection is None or self._undelivered:
            return
        started = self._loop.time()
        chunk = self._receive()
        if chunk == b"":
            self._connection_ended()
        elif chunk:
            self._feed(chunk)
            if self._only_text and self._reader is not None:
                self._reader.took_text(len(chunk))
            self._charge(started)

    def _charge(self, started: float) -> None:
        """Charge the kernel with a read, and pause if it is over its share."""
        now = self._loop.time()
        seconds = self._budget.charge(now - started, now)
        if seconds and self._pause is None and self._lost is not None:
            self._unwatch()
            self._pause = self._loop.call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        if not self._undelivered and self._lost is not None:
            self._watch()

    def _receive(self) -> bytes | None:
        """Return the available bytes, b"" at the end, or None if there are none."""
        if self._connection is None:
            return None
        try:
            return self._connection.sock.recv(self._budget.read_size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _feed(self, chunk: bytes) -> None:
        self._unacknowledged_bytes += len(chunk)
        try:
            batch = self._parser.feed(chunk)
            if batch and len(chunk) < SMALL and _mid_line(batch[-1]) and (more := self._receive()):
                # A print is two writes. The end of the line has probably arrived meanwhile.
                batch = wire_parser.merge_texts(batch, self._parser.feed(more))
        except WireViolation as error:
            self._lose(WireLost(f"The kernel broke its protocol: {error}.", violation=True))
            return
        if self._parser.replies:
            for reply in self._parser.replies:
                self._set_reply(reply)
            self._parser.replies.clear()
        end = self._scan(batch)
        if end >= 0:
            batch[end:end] = [text for pipe in self._raw for text in pipe.drain()]
        self._deliver_batch(batch)
        if self._partial or self._parser.pending:
            self._track_partial()

    def _track_partial(self) -> None:
        """Count the incomplete frame against the limit of all kernels, and check later that it has become complete."""
        if self._connection is None:
            return  # the buffer was freed with the connection
        size, last = self._parser.pending, self._parser.last
        self._partial = size > 0
        if size and self._partial_timer is None:
            self._partial_timer = self._loop.call_later(PARTIAL_SECONDS, self._check_partial, last)
        reassembly.hold(self, last, size)

    def _check_partial(self, last: int) -> None:
        self._partial_timer = None
        # It makes progress, or reading is paused.
        if self._parser.last != last or self._undelivered or self._pause or not self._parser.pending:
            self._track_partial()
            return
        log.warning(
            "kernel %s: a frame was incomplete for %g s. The server connects again.", self._path, PARTIAL_SECONDS
        )
        self._connection_ended()

    def drop_partial(self) -> None:
        """See ``reassembly.PartialFrameOwner``."""
        log.info("kernel %s: the memory for incomplete frames is full. The server connects again.", self._path)
        self._connection_ended(counted=False)

    def _scan(self, batch: list[Output]) -> int:
        """Forget the requests that outputs belong to: the kernel has them.

        Returns:
            The index at which a cell ends in this batch, or -1.
        """
        requests, end, self._only_text = self._requests, -1, bool(batch)
        for index, item in enumerate(batch):
            if requests:
                requests.pop(item.parent, None)
            if isinstance(item, KernelMessage):
                self._only_text = False
                if end < 0 and _ends_cell(item):
                    end = index
        return end

    def _read_raw(self, number: int) -> None:
        """Read a pipe, but only what was written after everything in the socket, and not in the middle of a print."""
        pipe, reader = self._raw[number], self._raw_readers[number]
        self._read()
        if self._undelivered or self._lost is None:
            return
        # The kernel itself sends what is in the pipe before what it prints, and so in the right order.
        if self._line_waits < (MAX_LINE_WAITS if self._mid_line else 1) and pipe.available() < LARGE:
            self._line_waits += 1
            reader.pause()
            return
        started = self._loop.time()
        text = self._read_before_frames(pipe)
        if text is not None:
            self._line_waits = 0
            self._deliver_batch([text])
            reader.took_text(len(text.text))
            self._charge(started)
        elif pipe.ended:
            reader.unwatch()

    def _read_before_frames(self, pipe: StdioPipe) -> StreamText | None:
        """Return text that was in the pipe before any frame that is still in the socket.

        The kernel reads the pipe, too, and runs meanwhile. So the order is: lock the pipe, count its bytes, check that
        the socket is empty, and read no more than was counted. After ``MAX_LINE_WAITS`` further attempts the text is
        read in any case: the kernel may keep the lock, or write to the socket all the time.
        """
        with pipe.locked() as locked:
            size = pipe.available()
            if not size:
                self._line_waits = 0
                pipe.check_end()
                return None
            late = self._line_waits >= 2 * MAX_LINE_WAITS
            if not late and (not locked or self._connection is None or _readable_bytes(self._connection.sock)):
                self._line_waits += 1
                return None
            return pipe.read(min(size, self._budget.read_size))

    def _deliver_batch(self, batch: list[Output]) -> None:
        """Deliver a batch, then acknowledge it. A refused batch waits for ``resume``."""
        if self._deliver is None:
            return
        if batch:
            self._mid_line = _mid_line(batch[-1])
            try:
                self._deliver(batch)
            except OSError:
                self._undelivered = batch
                self._unwatch()
                return
            except Exception:
                log.exception("the output of kernel %s can't be processed. Its connection is closed.", self._path)
                self._lose(WireLost("The server could not process the kernel's output. Its log has the details."))
                return
        if self._parser.last > self._acked:
            self._acked = self._parser.last
            if self._unacknowledged_bytes >= ACK_BYTES:
                self._send(self._acknowledgement())
            elif self._ack_timer is None:
                self._ack_timer = self._loop.call_later(ACK_SECONDS, self._acknowledge)

    def _acknowledge(self) -> None:
        self._ack_timer = None
        if owed := self._acknowledgement():
            self._send(owed)

    def _acknowledgement(self) -> bytes:
        """Return an ACK frame for the delivered frames, or nothing if the kernel knows of them."""
        if not self._unacknowledged_bytes or self._connection is None:
            return b""
        self._unacknowledged_bytes = 0
        return HEADER.pack(0, ACK, self._acked)

    def resume(self) -> None:
        """Deliver the refused batch again, and continue to read."""
        batch, self._undelivered = self._undelivered, []
        if not batch:
            return
        self._deliver_batch(batch)
        if self._loss is not None:
            self._finish()
        elif not self._undelivered and self._lost is not None:
            self._watch()

    def drain(self) -> bool:
        """Deliver everything that can be read now. For a process that has ended.

        A child of it may have the socket, too, and send more all the time. That is not read.

        Returns:
            False if ``deliver`` refused a batch. Call it again after ``resume``.
        """
        remaining = 0 if self._connection is None else _readable_bytes(self._connection.sock)
        while remaining > 0 and self._connection is not None and self._lost is not None and not self._undelivered:
            try:
                chunk = self._connection.sock.recv(min(remaining, self._budget.read_size))
            except OSError:
                break
            if not chunk:
                break
            remaining -= len(chunk)
            self._feed(chunk)
        if not self._undelivered and self._lost is not None:
            self._deliver_batch([text for pipe in self._raw for text in pipe.drain()])
        return not self._undelivered

    # -- sending ----------------------------------------------------------------------------

    def send_message(
        self,
        channel: Literal["shell", "control", "stdin", "tools"],
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
        session: str = "",
    ) -> None:
        """Send a Jupyter message. The part that the socket does not take is buffered and sent later.

        Raises:
            AtCapacity: the kernel has not read the last 64 MiB that were sent to it.
        """
        header = {"msg_id": msg_id, "msg_type": msg_type, "username": "", "session": session, "version": "5.4"}
        parts = [_encode(header), b"{}", _encode(metadata or {}), _encode(content), *buffers]
        payload = jupyter.join_v1(channel, parts)
        frame = HEADER.pack(len(payload), MESSAGE, 0) + payload
        if self._outgoing_bytes + len(frame) > MAX_OUTGOING:
            raise AtCapacity("The kernel does not take more requests. Wait for the running cell, or interrupt it.")
        if channel == jupyter.TOOLS:  # the kernel's WELCOME says for which results it waits
            self._send_in_turn(frame)
            return
        self._requests[msg_id] = frame
        while len(self._requests) > MAX_REQUESTS or self.kept_bytes > MAX_KEPT:
            del self._requests[next(iter(self._requests))]
        self._send(self._acknowledgement() + frame)

    def _send_in_turn(self, frame: bytes) -> None:
        """Send a frame immediately if it is the first one in this turn of the loop, else with the turn's other ones.

        The results of calls that ended together wake the kernel once. A large frame gains nothing.
        """
        if self._turn is None:
            self._turn = []
            self._loop.call_soon(self._end_turn)
        elif len(frame) <= MAX_JOINED and len(self._turn) < MAX_JOINED_FRAMES:
            self._turn.append(frame)
            return
        self._send(self._acknowledgement() + frame)

    def _end_turn(self) -> None:
        frames, self._turn = self._turn, None
        if frames:
            self._send(self._acknowledgement() + b"".join(frames))

    async def control(
        self, op: str, fds: Sequence[int] = (), *, timeout: float = 10.0, **fields: Any
    ) -> dict[str, Any]:
        """Send a CONTROL request and wait for its REPLY. Cancelling leaves the request with the kernel.

        Args:
            op: ``survey``, ``fork``, ``fence``, ``save`` or ``load``, see ``docs/reference/wire.md``.
            fds: descriptors that are duplicated to the kernel. The caller closes its own.
            timeout: seconds.
            fields: fields of the request.

        Raises:
            Timeout: no reply in time.
            KernelDead: the wire was lost meanwhile.
        """
        self._control_number += 1
        number = self._control_number
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._controls[number] = answer
        payload = _encode({"op": op, "fds": len(fds), **fields})
        try:
            self._send(HEADER.pack(len(payload), CONTROL, number) + payload, fds)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise Timeout(f"The kernel did not answer {op!r} in {timeout} seconds. Wait for its cell to end.") from None
        finally:
            del self._controls[number]

    def _set_reply(self, reply: wire_parser.Reply) -> None:
        waiting = self._controls.get(reply.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply.body)

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._connection is None and data[4] != CONTROL:
            return  # a new connection sends the requests again, and its HELLO acknowledges
        sent = 0
        if not (fds or self._outgoing or self._connection is None):  # the common case
            try:
                sent = self._connection.sock.send(data)
            except OSError:
                sent = 0  # ``_flush`` handles the error
            if sent == len(data):
                return
        self._outgoing.append((memoryview(data)[sent:], [os.dup(fd) for fd in fds]))
        self._outgoing_bytes += len(data) - sent
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outgoing and self._connection is not None:
            view, fds = self._outgoing[0]
            sock = self._connection.sock
            try:
                count = socket.send_fds(sock, [view], fds) if fds else sock.send(view)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(sock.fileno(), self._flush)
                self._write_blocked = True
                return
            except OSError:
                return  # the reader gets the error, too, and connects again
            for fd in fds:
                os.close(fd)
            self._outgoing_bytes -= count
            if count == len(view):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (view[count:], [])
        if self._write_blocked and self._connection is not None:
            self._loop.remove_writer(self._connection.sock.fileno())
            self._write_blocked = False

    def _drop_outgoing(self) -> None:
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def seen(self, msg_id: str) -> bool:
        """Return whether the kernel listed this request as received when it was connected."""
        welcome = self._welcome
        return msg_id in welcome.seen or msg_id in (welcome.busy, welcome.cell, welcome.answer)

    # -- ends -------------------------------------------------------------------------------

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if self._reader is not None:
            self._reader.unwatch()
            self._reader = None
        if connection is not None:
            self._loop.remove_writer(connection.sock.fileno())
            self._write_blocked = False
            connection.close()
        self._drop_outgoing()
        self._parser.reset()
        self._partial = False
        reassembly.release(self)
        if self._partial_timer is not None:
            self._partial_timer.cancel()
            self._partial_timer = None

    def _connection_ended(self, *, counted: bool = True) -> None:
        """Connect again, unless the kernel's connections end too often."""
        self._disconnect()
        if counted:
            now = self._loop.time()
            if len(self._disconnects) == MAX_DISCONNECTS and now - self._disconnects[0] < DISCONNECT_SECONDS:
                what = f"its connection ended more than {MAX_DISCONNECTS} times in {DISCONNECT_SECONDS:g} seconds"
                self._lose(WireLost(f"The kernel broke its protocol: {what}.", violation=True))
                return
            self._disconnects.append(now)
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self._reconnecting = self._loop.create_task(self._reconnect(), name=f"heal {self._path}")

    async def _reconnect(self) -> None:
        try:
            connection = await WireConnection.open(self._path, self._parser.last, wait=False)
        except OSError:
            self._lose(WireLost(_UNREACHABLE))
        else:
            await self._complete(connection)
            await self._verify_listener()

    async def _verify_listener(self) -> None:
        """Check that the kernel still listens. Code that closes every descriptor may close the listener last."""
        await asyncio.sleep(VERIFY_SECONDS)
        try:
            (await connect(self._path, wait=False)).close()
        except OSError:
            if self._lost is not None:
                self._lose(WireLost(_UNREACHABLE))

    async def _complete(self, connection: WireConnection) -> None:
        """Wait without a limit for WELCOME, and continue after the last delivered frame."""
        try:
            await connection.wait_welcome()
        except asyncio.CancelledError:
            connection.close()
            raise
        except (WireViolation, OSError, EOFError) as error:
            connection.close()
            self._lose(_loss(error))
            return
        other = self._raw and [pipe.identity for pipe in connection.pipes] != [pipe.identity for pipe in self._raw]
        if connection.first != self._parser.last + 1 or other:
            connection.close()
            what = "handed over other pipes than before" if other else "does not go on where it ended"
            self._lose(WireLost(f"The kernel {what}.", violation=True))
            return
        self._unwatch()
        self._adopt(connection)
        for msg_id, frame in self._requests.items():
            if not self.seen(msg_id):
                self._send(frame)
        if self._lost is not None and not self._undelivered:
            self._watch()
            self._feed_rest()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait because the kernel does not read."""
        return self._outgoing_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of requests that the kernel has not confirmed."""
        return sum(map(len, self._requests.values()))

    def _feed_rest(self) -> None:
        """Deliver what WELCOME says about calls, and parse the bytes that came together with it."""
        if self._welcome.calls:
            content = {"calls": self._welcome.calls}
            self._deliver_batch([KernelMessage(channel=jupyter.TOOLS, msg_type=WAITING, parent="", content=content)])
        if self._connection is not None and self._connection.rest:
            rest, self._connection.rest = bytes(self._connection.rest), bytearray()
            self._feed(rest)

    def _lose(self, loss: WireLost) -> None:
        self._loss = loss
        self._disconnect()
        if not loss.violation:
            self._deliver_batch([text for pipe in self._raw for text in pipe.drain()])
        self._finish()

    def _finish(self) -> None:
        """Report the loss of the wire, after everything before it was delivered."""
        lost, loss = self._lost, self._loss
        if loss is not None and not self._undelivered:
            self.close()
            if lost is not None:
                lost(loss)

    def close(self) -> None:
        """Disconnect. The kernel continues, and keeps the frames that were not acknowledged."""
        if self._reconnecting is not None and self._reconnecting is not asyncio.current_task():
            self._reconnecting.cancel()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._budget.close()
        self._unwatch()
        self._lost = self._deliver = None
        self._disconnect()
        for pipe in self._raw:
            pipe.close()
        for waiting in self._controls.values():
            if not waiting.done():
                waiting.set_exception(KernelDead("The kernel has ended. Restart the session."))


def _readable_bytes(sock: socket.socket) -> int:
    """Return the bytes in the socket's queue (unix(7), ``SIOCINQ``, which is FIONREAD), or 0 if it is closed."""
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def _mid_line(item: Output) -> bool:
    return isinstance(item, StreamText) and not item.text.endswith("\n")


def _ends_cell(item: KernelMessage) -> bool:
    if item.msg_type == "execute_reply":
        return True
    return item.msg_type == "status" and item.content.get("execution_state") == "idle"
