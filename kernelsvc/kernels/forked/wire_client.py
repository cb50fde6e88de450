"""The server's end of the kernel wire (``docs/reference/wire.md``).

One ``WireClient`` belongs to one kernel for as long as that lives. It reads in large
pieces, hands whole batches to ``deliver``, and acknowledges what was taken, with the
next request or soon: an acknowledgement of its own wakes a kernel that has nothing
to do. When
``deliver`` refuses, nothing more is read until ``resume``, the kernel's buffer
fills and its prints block: back-pressure without a queue.

A connection that ends while the kernel lives is made again: the kernel names
the requests that it saw, those it did not see are sent once more, and the
frames go on after the last that was delivered. Only a kernel that can't be
reached any more is ``lost``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec

from kernelsvc.errors import AtCapacity, KernelDead, Timeout
from kernelsvc.kernels.forked import wire_parser as frames
from kernelsvc.kernels.forked.coalescing_reader import CoalescingReader
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.stdio_pipe import StdioPipe
from kernelsvc.kernels.forked.wire_connection import READ, WireConnection, connect
from kernelsvc.kernels.forked.wire_parser import ACK, CONTROL, HEADER, MESSAGE, WireParser, WireViolation
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.linux import peer
from kernelsvc.protocol import jupyter

log = logging.getLogger(__name__)

T = TypeVar("T")

Deliver = Callable[[Sequence[Output]], None]
Lost = Callable[["WireLost"], None]

#: A read below this brought what was written in one go.
SMALL = 4096
#: Most bytes that wait for a kernel that does not read its requests.
MAX_OUTGOING = 64 * 1024 * 1024
#: Taken frames are acknowledged after so many bytes, or seconds, unless a request goes out before.
ACK_BYTES, ACK_SECONDS = 64 * 1024, 0.05
#: Requests kept until the kernel is known to have seen them; it names its last 32.
KEPT_REQUESTS = 32
#: Connections that a kernel may end within so many seconds. A signal's handler that raises in a print ends one too.
MAX_HANG_UPS, HANG_UP_SECONDS = 20, 60.0
#: Seconds that one frame may take to arrive, after which it is asked for again; checked as often.
PARTIAL_SECONDS = 30.0
#: Seconds after a connection was made again at which the listener is looked at.
LOOK_AGAIN_SECONDS = 0.5

_encode = msgspec.json.Encoder().encode


class WireLost(KernelDead):
    """The wire to the kernel ended.

    Attributes:
        violation: True when the kernel broke the protocol (end it with cause
            ``protocol``), False when its end of the socket is simply gone.
    """

    def __init__(self, message: str, *, violation: bool = False) -> None:
        super().__init__(message)
        self.violation = violation


_GONE = "The kernel closed its socket and can't be reached any more."


def _loss(error: Exception) -> WireLost:
    if isinstance(error, WireViolation):
        return WireLost(f"The kernel broke its protocol: {error}.", violation=True)
    return WireLost(_GONE)


async def _within(end: float, work: Awaitable[T]) -> T:
    """``work``, if it is done before ``end`` on the loop's clock; its failures as those of ``connect``."""
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
    """The wire to one kernel. Every method is called from the event loop that connected it.

    Attributes:
        peer_pid: the kernel's pid as Linux vouches for it (``SO_PEERCRED``), in the server's pid namespace.
    """

    def __init__(self, path: str, link: WireConnection, *, last_frame: int, max_frame: int) -> None:
        self.peer_pid = link.peer_pid
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._parser = WireParser(last=last_frame, max_frame=max_frame)
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None
        self._link: WireConnection | None = None
        self._reader: CoalescingReader | None = None  # of the link
        self._raw: list[StdioPipe] = []
        self._raw_readers: list[CoalescingReader] = []  # one for each
        self._loss: WireLost | None = None
        self._refused: list[Output] = []
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._outgoing_bytes = 0
        self._stuck = False  # the socket takes no more: the loop says when it does
        self._acked = last_frame
        self._unacknowledged_bytes = 0  # bytes taken since the kernel was told
        self._only_text = False  # the last batch
        self._ack_timer: asyncio.TimerHandle | None = None
        self._controls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._control_number = 0
        self._requests: dict[str, bytes] = {}  # that the kernel may not have seen, as frames, by id
        self._healing: asyncio.Task[None] | None = None
        self._hang_ups: deque[float] = deque(maxlen=MAX_HANG_UPS)  # when the last ones were
        self._partial = False  # half a frame is held
        self._partial_timer: asyncio.TimerHandle | None = None
        self._welcome = link.welcome
        if link.first:
            self._adopt(link)
        else:
            self._healing = self._loop.create_task(self._complete(link), name=f"wait for {path}")

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
    ) -> WireClient:
        """Connect to a kernel's listener, say HELLO, await WELCOME. A HELLO wakes a parked checkpoint.

        Safe to cancel.

        Args:
            path: the listener's socket.
            last_frame: the highest frame that the journal holds.
            deadline: seconds from now; until then a refused connection is tried again.
            identity: for a parked checkpoint only: who it is from now on (``kernel``,
                ``session``, ``workdir``, ``env``); None keeps what the fork request said.
            busy_ok: a kernel that is there but answers late, since its cell sits in C
                code, is good too: ``welcome`` is empty until it does, what is sent waits,
                and requests that it turns out to have seen are not sent again.
            max_frame: most bytes of one message.

        Raises:
            Timeout: nobody answered in time.
            WireLoss: it answered, but not as the protocol says.
        """
        end = asyncio.get_running_loop().time() + deadline
        link = await _within(end, WireConnection.open(path, last_frame, identity, patient=True))
        try:
            await _within(end, link.welcomed())
        except Timeout:
            if not busy_ok:
                link.close()
                raise
        except BaseException:
            link.close()
            raise
        if link.first and link.first <= last_frame:
            link.close()
            raise WireLost(f"The kernel never sent frame {last_frame}. It is not the one it was.", violation=True)
        return cls(path, link, last_frame=link.first - 1 if link.first else last_frame, max_frame=max_frame)

    @staticmethod
    async def peer(path: str, *, deadline: float = 10.0) -> int:
        """The pid behind a listener, in the server's pid namespace. A parked checkpoint sleeps on. Safe to cancel.

        Raises:
            Timeout: nobody listened in time.
        """
        try:
            async with asyncio.timeout(deadline):
                sock = await connect(path, patient=True)
        except TimeoutError:
            raise Timeout("The kernel did not listen in time. Try again.") from None
        with sock:
            return peer.credentials(sock).pid

    @property
    def welcome(self) -> dict[str, Any]:
        """What the kernel said of itself: ``version, kernel, session, pid, python, ipykernel, seen, cell, busy``."""
        return msgspec.to_builtins(self._welcome)  # type: ignore[no-any-return]

    @property
    def last_frame(self) -> int:
        """The highest frame that was delivered."""
        return self._acked

    def _adopt(self, link: WireConnection) -> None:
        self._link = link
        self._welcome = link.welcome
        self._unacknowledged_bytes = 0  # HELLO has told it
        self._parser.reset()
        if not self._raw:
            self._raw = link.take_pipes()
        self._reader = CoalescingReader(self._loop, link.sock.fileno(), self._read)
        self._raw_readers = [
            CoalescingReader(self._loop, pipe.fd, partial(self._read_raw, n)) for n, pipe in enumerate(self._raw)
        ]

    def start(self, deliver: Deliver, lost: Lost) -> None:
        """Begin to read.

        Args:
            deliver: as in ``port.Sink``.
            lost: called once, with the reason, after the last batch (raw pipes included); not after ``close``.
        """
        self._deliver, self._lost = deliver, lost
        self._watch()
        self._loop.call_soon(self._feed_rest)

    def _watch(self) -> None:
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
        if self._link is None or self._refused:
            return
        chunk = self._receive()
        if chunk == b"":
            self._hung_up()
        elif chunk:
            self._feed(chunk)
            if self._only_text and self._reader is not None:
                self._reader.took_text(len(chunk))

    def _receive(self) -> bytes | None:
        """What is there; b"" at the end, None if nothing is."""
        if self._link is None:
            return None
        try:
            return self._link.sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _feed(self, chunk: bytes) -> None:
        self._unacknowledged_bytes += len(chunk)
        try:
            batch = self._parser.feed(chunk)
            if batch and len(chunk) < SMALL and _mid_line(batch[-1]) and (more := self._receive()):
                # A print is two writes; the line's end has most likely come meanwhile.
                batch = frames.joined(batch, self._parser.feed(more))
        except WireViolation as error:
            self._lose(WireLost(f"The kernel broke its protocol: {error}.", violation=True))
            return
        if self._parser.replies:
            for reply in self._parser.replies:
                self._answered(reply)
            self._parser.replies.clear()
        end = self._look_through(batch)
        if end >= 0:
            batch[end:end] = [text for pipe in self._raw for text in pipe.drain()]
        self._give(batch)
        if self._partial or self._parser.pending:
            self._hold_partial()

    def _hold_partial(self) -> None:
        """Count the incomplete frame against the limit for all kernels, and see to it that it becomes whole."""
        if self._link is None:
            return  # all was freed with the connection
        size, last = self._parser.pending, self._parser.last
        self._partial = size > 0
        if size and self._partial_timer is None:
            self._partial_timer = self._loop.call_later(PARTIAL_SECONDS, self._look_at_partial, last)
        reassembly.hold(self, last, size)

    def _look_at_partial(self, last: int) -> None:
        self._partial_timer = None
        if self._parser.last != last or self._refused or not self._parser.pending:  # it moves, or is not read now
            self._hold_partial()
            return
        log.warning("kernel %s: a frame was not whole within %g s; connecting again", self._path, PARTIAL_SECONDS)
        self._hung_up()

    def drop_partial(self) -> None:
        """See ``reassembly.Connection``."""
        log.info("kernel %s: no memory is left for its incomplete frame; connecting again", self._path)
        self._hung_up(counted=False)

    def _look_through(self, batch: list[Output]) -> int:
        """Forget requests that the kernel speaks of: they need not be sent again.

        Returns:
            where a cell ends in this batch, or -1 if none does.
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
        if self._refused:
            return
        pipe, reader = self._raw[number], self._raw_readers[number]
        text = pipe.read()
        if text is not None:
            self._give([text])
            reader.took_text(len(text.text))
        elif pipe.ended:
            reader.unwatch()

    def _give(self, batch: list[Output]) -> None:
        """Deliver, then acknowledge; what is refused waits for ``resume``."""
        if self._deliver is None:
            return
        if batch:
            try:
                self._deliver(batch)
            except OSError:
                self._refused = batch
                self._unwatch()
                return
            except Exception:
                log.exception("a batch from kernel %s could not be taken", self._path)
                self._lose(WireLost("The server failed on what the kernel sent; its log has the details."))
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
        """The frame that tells the kernel what was taken; empty if it knows."""
        if not self._unacknowledged_bytes or self._link is None:
            return b""
        self._unacknowledged_bytes = 0
        return HEADER.pack(0, ACK, self._acked)

    def resume(self) -> None:
        """Deliver again what ``deliver`` refused, and read on."""
        batch, self._refused = self._refused, []
        if not batch:
            return
        self._give(batch)
        if self._loss is not None:
            self._finish()
        elif not self._refused and self._lost is not None:
            self._watch()

    def drain(self) -> bool:
        """Deliver all that is there, now; for when the process is known to have ended.

        Returns:
            False if ``deliver`` refused; call it again after ``resume``.
        """
        while self._link is not None and self._lost is not None and not self._refused:
            try:
                chunk = self._link.sock.recv(READ)
            except OSError:
                break
            if not chunk:
                break
            self._feed(chunk)
        if not self._refused and self._lost is not None:
            self._give([text for pipe in self._raw for text in pipe.drain()])
        return not self._refused

    # -- sending ----------------------------------------------------------------------------

    def send_message(
        self,
        channel: Literal["shell", "control", "stdin"],
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Send a Jupyter message. What the socket does not take at once is kept, and sent when it does.

        Raises:
            AtCapacity: the kernel has not read the last 64 MiB that were sent to it.
        """
        header = {"msg_id": msg_id, "msg_type": msg_type, "username": "", "session": "", "version": "5.4"}
        parts = [_encode(header), b"{}", _encode(metadata or {}), _encode(content), *buffers]
        payload = jupyter.join_v1(channel, parts)
        frame = HEADER.pack(len(payload), MESSAGE, 0) + payload
        if self._outgoing_bytes + len(frame) > MAX_OUTGOING:
            raise AtCapacity("The kernel does not take more requests. Wait for the running cell, or interrupt it.")
        self._requests[msg_id] = frame
        if len(self._requests) > KEPT_REQUESTS:
            del self._requests[next(iter(self._requests))]
        self._send(self._acknowledgement() + frame)

    async def control(
        self, op: str, fds: Sequence[int] = (), *, timeout: float = 10.0, **fields: Any
    ) -> dict[str, Any]:
        """Send a CONTROL request and await its REPLY. ``fds`` are duplicated to the kernel; the caller closes its own.

        Cancelling it leaves the request with the kernel.

        Ops: ``survey``; ``fork`` (``mode="checkpoint"|"branch", force: bool, identity: {kernel, session, workdir,
        env}``, ``fds`` = bound listener, stdout read, stdout write, stderr read, stderr write).

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

    def _answered(self, reply: frames.Reply) -> None:
        waiting = self._controls.get(reply.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply.body)

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._link is None and data[4] != CONTROL:
            return  # requests are sent again when the kernel is back; acknowledgements come with HELLO
        sent = 0
        if not (fds or self._outgoing or self._link is None):  # nearly always
            try:
                sent = self._link.sock.send(data)
            except OSError:
                sent = 0  # ``_flush`` finds out why
            if sent == len(data):
                return
        self._outgoing.append((memoryview(data)[sent:], [os.dup(fd) for fd in fds]))
        self._outgoing_bytes += len(data) - sent
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outgoing and self._link is not None:
            view, fds = self._outgoing[0]
            sock = self._link.sock
            try:
                count = socket.send_fds(sock, [view], fds) if fds else sock.send(view)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(sock.fileno(), self._flush)
                self._stuck = True
                return
            except OSError:
                return  # the reader finds out, and connects again
            for fd in fds:
                os.close(fd)
            self._outgoing_bytes -= count
            if count == len(view):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (view[count:], [])
        if self._stuck and self._link is not None:
            self._loop.remove_writer(self._link.sock.fileno())
            self._stuck = False

    def _drop_outgoing(self) -> None:
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def seen(self, msg_id: str) -> bool:
        """Whether the kernel said, when it was connected, that it had received this request."""
        welcome = self._welcome
        return msg_id in welcome.seen or msg_id in (welcome.busy, welcome.cell)

    # -- ends -------------------------------------------------------------------------------

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if self._reader is not None:
            self._reader.unwatch()
            self._reader = None
        if link is not None:
            self._loop.remove_writer(link.sock.fileno())
            self._stuck = False
            link.close()
        self._drop_outgoing()
        self._parser.reset()
        self._partial = False
        reassembly.release(self)
        if self._partial_timer is not None:
            self._partial_timer.cancel()
            self._partial_timer = None

    def _hung_up(self, *, counted: bool = True) -> None:
        """Connect again after the connection ended, if the kernel still lives and does not do so all the time."""
        self._disconnect()
        if counted:
            now = self._loop.time()
            if len(self._hang_ups) == MAX_HANG_UPS and now - self._hang_ups[0] < HANG_UP_SECONDS:
                what = f"its connection ended more than {MAX_HANG_UPS} times in {HANG_UP_SECONDS:g} seconds"
                self._lose(WireLost(f"The kernel broke its protocol: {what}.", violation=True))
                return
            self._hang_ups.append(now)
        if self._healing is not None:
            self._healing.cancel()
        self._healing = self._loop.create_task(self._reconnect(), name=f"heal {self._path}")

    async def _reconnect(self) -> None:
        try:
            link = await WireConnection.open(self._path, self._parser.last, patient=False)
        except OSError:
            self._lose(WireLost(_GONE))
        else:
            await self._complete(link)
            await self._verify_listener()

    async def _verify_listener(self) -> None:
        """Whether the door is still there: code that closes descriptor by descriptor may have let us in on the way."""
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        try:
            (await connect(self._path, patient=False)).close()
        except OSError:
            if self._lost is not None:
                self._lose(WireLost(_GONE))

    async def _complete(self, link: WireConnection) -> None:
        """Wait, for as long as it takes, for WELCOME; go on where the last connection ended."""
        try:
            await link.welcomed()
        except asyncio.CancelledError:
            link.close()
            raise
        except (WireViolation, OSError, EOFError) as error:
            link.close()
            self._lose(_loss(error))
            return
        other = self._raw and [pipe.identity for pipe in link.pipes] != [pipe.identity for pipe in self._raw]
        if link.first != self._parser.last + 1 or other:
            link.close()
            what = "handed over other pipes than before" if other else "does not go on where it ended"
            self._lose(WireLost(f"The kernel {what}.", violation=True))
            return
        self._unwatch()
        self._adopt(link)
        for msg_id, frame in self._requests.items():
            if not self.seen(msg_id):
                self._send(frame)
        if self._lost is not None and not self._refused:
            self._watch()
            self._feed_rest()

    def _feed_rest(self) -> None:
        """What came together with WELCOME."""
        if self._link is not None and self._link.rest:
            rest, self._link.rest = bytes(self._link.rest), bytearray()
            self._feed(rest)

    def _lose(self, loss: WireLost) -> None:
        self._loss = loss
        self._disconnect()
        if not loss.violation:
            self._give([text for pipe in self._raw for text in pipe.drain()])
        self._finish()

    def _finish(self) -> None:
        """Say that the wire is lost, once everything before that is delivered."""
        lost, loss = self._lost, self._loss
        if loss is not None and not self._refused:
            self.close()
            if lost is not None:
                lost(loss)

    def close(self) -> None:
        """Let go of the kernel; it lives on, and keeps what was not acknowledged."""
        if self._healing is not None and self._healing is not asyncio.current_task():
            self._healing.cancel()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._unwatch()
        self._lost = self._deliver = None
        self._disconnect()
        for pipe in self._raw:
            pipe.close()
        for waiting in self._controls.values():
            if not waiting.done():
                waiting.set_exception(KernelDead("The kernel is gone. Restart the session."))


def _mid_line(item: Output) -> bool:
    return isinstance(item, StreamText) and not item.text.endswith("\n")


def _ends_cell(item: KernelMessage) -> bool:
    if item.msg_type == "execute_reply":
        return True
    return item.msg_type == "status" and item.content.get("execution_state") == "idle"
