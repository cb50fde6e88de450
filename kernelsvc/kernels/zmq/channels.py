"""The sockets of a cold kernel: ZMQ over ``ipc``, read from the event loop.

Theory of operation
-------------------
libzmq reads the sockets in a thread of its own, without a high-water mark on
our side (a PUB socket that meets one drops output), so nothing is lost while
this process is slow. What it has read is unbounded, though, so the one who
sends must be stopped instead: when a drain has not caught up for
``LAG_SECONDS``, ``on_lag(True)`` asks for a SIGSTOP of the kernel and
``on_lag(False)`` for its SIGCONT once the sockets are empty.

A ZMQ socket's descriptor is edge-triggered: it says that *something* happened,
and after any send or receive the socket must be asked again. So every wake-up
drains all sockets until they are empty, at most ``SLICE_MESSAGES`` and about
``SLICE_BYTES`` at a time before the loop gets its turn.

A connection that breaks while the process lives is a message above the limit or a
kernel that closed its socket: neither can go on. What one message may have, all its
parts together, is counted before libzmq gets to see it (``cold_relay``).

A connection that breaks because the process died tells that all it had sent has
been read, which is how the last words of a kernel are known to be complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

from kernelsvc.kernels.port import KernelMessage
from kernelsvc.kernels.zmq.messages import MAX_PARTS, Channel, HmacKey, InvalidMessage, decode
from kernelsvc.kernels.zmq.metering_proxy import MeteringProxy

#: Messages handled before the event loop gets its turn.
SLICE_MESSAGES = 256
#: And bytes.
SLICE_BYTES = 4 * 1024 * 1024
#: Seconds of unbroken draining after which the kernel is stopped.
LAG_SECONDS = 0.05
#: Milliseconds between attempts to connect to a kernel that is starting.
RECONNECT_MS = 10
#: Requests that wait for a kernel that does not read.
MAX_WAITING_REQUESTS = 10_000

Sending = Literal["shell", "control", "stdin"]


@dataclass(frozen=True)
class Connection:
    """Where a kernel's sockets are. ``identity`` stays the same when another server connects."""

    path: str
    ports: dict[Channel, int]
    identity: str

    def socket(self, channel: Channel) -> str:
        """Where the kernel's socket of a channel lies."""
        return f"{self.path}-{self.ports[channel]}"

    def url(self, channel: Channel) -> str:
        """Its address as ZMQ has it."""
        return f"ipc://{self.socket(channel)}"


class Channels:
    """The four sockets of one kernel.

    Args:
        context: shared by all kernels of a server.
        connection: where they are.
        key: what both sides sign with.
        max_message_bytes: a larger message breaks its connection.
        on_messages: gets what one drain brought, in order per channel, iopub first.
        on_garbled: the kernel broke the protocol; nothing is read any more.
        on_lag: asked to stop (True) and to continue (False) the kernel.
        on_hangup: a connection broke.

    Attributes:
        gone: set when both shell and iopub broke, with all that came before read by libzmq, and by ``close``.
        lagging: whether the kernel is asked to stop.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        connection: Connection,
        key: HmacKey,
        *,
        max_message_bytes: int,
        on_messages: Callable[[list[KernelMessage]], None],
        on_garbled: Callable[[str], None],
        on_lag: Callable[[bool], None],
        on_hangup: Callable[[], None],
    ) -> None:
        self.gone = asyncio.Event()
        self._key = key
        self._max = max_message_bytes
        self._on_messages, self._on_garbled = on_messages, on_garbled
        self._on_lag, self._on_hangup = on_lag, on_hangup
        self._loop = asyncio.get_running_loop()
        self.lagging = self._paused = self._closed = False
        self._behind_since: float | None = None
        self._scheduled: asyncio.Handle | None = None
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._relays: dict[Channel, MeteringProxy] = {}
        self._hung_up: set[Channel] = set()
        for channel in ("iopub", "shell", "control", "stdin"):
            self._open(context, channel, connection)

    def _open(self, context: zmq.Context[zmq.Socket[bytes]], channel: Channel, connection: Connection) -> None:
        socket = context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
        socket.linger = 0
        socket.rcvhwm = 0
        socket.sndhwm = MAX_WAITING_REQUESTS
        socket.set(zmq.MAXMSGSIZE, self._max)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.routing_id = connection.identity.encode()
        if channel in ("iopub", "shell"):
            monitor = self._monitors[channel] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._loop.add_reader(monitor.FD, self._wake)
        # The relay keeps the connection while the kernel starts, and libzmq must not lose patience meanwhile.
        socket.set(zmq.HANDSHAKE_IVL, 0)
        relay = self._relays[channel] = MeteringProxy(connection.socket(channel), self._max, self._garbled)
        socket.connect(relay.url)
        self._sockets[channel] = socket
        self._loop.add_reader(socket.FD, self._wake)
        self._wake()

    # -- writing ------------------------------------------------------------------------

    def send(self, channel: Sending, parts: list[bytes]) -> bool:
        """Hand a request to the kernel; False if it has stopped reading and too much waits."""
        if self._closed:
            return False
        try:
            self._sockets[channel].send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._wake()
        return True

    # -- reading ------------------------------------------------------------------------

    def pause(self) -> None:
        """Read nothing until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._scheduled is None and not self._closed:
            self._scheduled = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = None
        if self._closed:
            return
        self._watch_monitors()
        if self._paused:
            return
        empty = self._slice()
        self._judge_lag(empty)
        if not empty:
            self._wake()

    def _slice(self) -> bool:
        """Read and hand on one slice; whether all sockets are empty now."""
        messages: list[KernelMessage] = []
        room = SLICE_BYTES
        empty = True
        try:
            for channel, socket in self._sockets.items():
                room = self._read(channel, socket, messages, room)
                empty = empty and room > 0
        except InvalidMessage as error:
            self.close()
            self._on_messages(messages)
            self._on_garbled(str(error))
            return True  # nothing is read any more
        if messages:
            self._on_messages(messages)
        return empty

    def _read(self, channel: Channel, socket: zmq.Socket[bytes], messages: list[KernelMessage], room: int) -> int:
        """Read one socket until it is empty or the slice is full; how many bytes may still come, 0 if it is full."""
        while room > 0 and len(messages) < SLICE_MESSAGES:
            try:
                parts, size = self._parts(socket)
            except zmq.Again:
                return room
            messages.append(decode(channel, parts, self._key))
            room -= size
        return 0

    def _parts(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], int]:
        """One message and its size; bounded in parts and in all, whatever its sender claims."""
        parts = [socket.recv(zmq.NOBLOCK)]
        size = len(parts[0])
        while socket.rcvmore:
            part = socket.recv(zmq.NOBLOCK)
            size += len(part)
            if len(parts) >= MAX_PARTS or size > self._max:
                raise InvalidMessage(f"a message above {self._max} bytes or {MAX_PARTS} parts")
            parts.append(part)
        return parts, size

    def _judge_lag(self, empty: bool) -> None:
        now = self._loop.time()
        if empty:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        lagging = self._behind_since is not None and now - self._behind_since > LAG_SECONDS
        if lagging and not self.lagging:
            self.lagging = True
            self._on_lag(True)
        elif empty and self.lagging:
            self.lagging = False
            self._on_lag(False)

    # -- the end ------------------------------------------------------------------------

    def _garbled(self, why: str) -> None:
        if not self._closed:
            self.close()
            self._on_garbled(why)

    def _watch_monitors(self) -> None:
        for channel, monitor in self._monitors.items():
            with contextlib.suppress(zmq.Again):
                while True:
                    recv_monitor_message(monitor, zmq.NOBLOCK)
                    self._hung_up.add(channel)
        if self._hung_up and not self.gone.is_set():
            self._on_hangup()
        if len(self._hung_up) == len(self._monitors):
            self.gone.set()

    async def read_rest(self) -> None:
        """Hand on all that is here: the kernel is gone and sends no more. Safe to cancel."""
        empty = False
        while not (empty or self._closed or self._paused):
            empty = self._slice()
            await asyncio.sleep(0)  # others get their turn between slices

    def close(self) -> None:
        """Let go of the sockets. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.gone.set()
        if self._scheduled is not None:
            self._scheduled.cancel()
        for channel, socket in self._sockets.items():
            if channel in self._monitors:
                monitor = self._monitors[channel]
                self._loop.remove_reader(monitor.FD)
                socket.disable_monitor()
                monitor.close(0)
            self._loop.remove_reader(socket.FD)
            socket.close(0)
        for relay in self._relays.values():
            relay.close()
