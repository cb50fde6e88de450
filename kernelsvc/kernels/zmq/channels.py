"""The ZMQ sockets of a kernelspec kernel, read from the event loop.

Theory of operation
-------------------
libzmq reads the sockets in a thread of its own. The server's sockets have no high-water mark (a PUB socket that reaches
one drops output), so nothing is lost while this process is slow. As the buffer of libzmq has no limit, the sender must
be stopped instead: when a drain has not caught up for ``LAG_SECONDS``, ``on_lag(True)`` requests a SIGSTOP of the
kernel, and ``on_lag(False)`` its SIGCONT when the sockets are empty.

A ZMQ socket's descriptor is edge-triggered (zmq_getsockopt(3), ``ZMQ_FD``): it signals that *some* event occurred, and
after any send or receive the socket must be read again. So every wake-up drains all sockets until they are empty, at
most ``SLICE_MESSAGES`` and about ``SLICE_BYTES`` at a time before the loop continues.

A connection that ends while the process runs means a message above the limit or a kernel that closed its socket. Both
end the kernel. The size of one message, all its parts together, is counted before libzmq receives it
(``metering_proxy``).

A connection that ends because the process has ended means that everything the process sent has been read. So the last
output of a kernel is complete.
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
from kernelsvc.kernels.read_budget import MAX_READ, ReadBudget
from kernelsvc.kernels.zmq.messages import MAX_PARTS, Channel, HmacKey, InvalidMessage, decode
from kernelsvc.kernels.zmq.metering_proxy import MeteringProxy

#: Maximum messages in one slice, after which the event loop continues.
SLICE_MESSAGES = 256
#: The same for a kernel whose messages take long.
MIN_SLICE = 16
#: Bytes in one slice, about.
SLICE_BYTES = 4 * 1024 * 1024
#: Seconds of continuous draining after which the kernel is stopped.
LAG_SECONDS = 0.05
#: Milliseconds between attempts to connect to a kernel that is starting.
RECONNECT_MS = 10
#: Maximum requests that wait for a kernel that does not read.
MAX_WAITING_REQUESTS = 10_000

Sending = Literal["shell", "control", "stdin"]


@dataclass(frozen=True)
class ChannelAddresses:
    """Addresses of a kernel's sockets.

    Attributes:
        path: prefix of the sockets' paths.
        ports: number of each channel's socket.
        identity: routing id of the server, the same after a restart.
        pid: of the kernel. None does not check which process listens.
    """

    path: str
    ports: dict[Channel, int]
    identity: str
    pid: int | None = None

    def socket(self, channel: Channel) -> str:
        """Return the path of a channel's socket."""
        return f"{self.path}-{self.ports[channel]}"

    def url(self, channel: Channel) -> str:
        """Return the ZMQ address of a channel's socket."""
        return f"ipc://{self.socket(channel)}"


class Channels:
    """The four sockets of one kernel.

    Args:
        context: shared by all kernels of a server.
        addresses: of the sockets.
        key: signs the messages of both sides.
        max_message_bytes: a larger message ends its connection.
        budget: the kernel's share of the event loop, which the caller closes.
        on_messages: receives the messages of one drain, in order for each channel, iopub first.
        on_invalid: the kernel broke the protocol. Nothing more is read.
        on_lag: stops (True) and continues (False) the kernel.
        on_disconnect: a connection has ended.

    Attributes:
        disconnected: set when both shell and iopub have ended and libzmq has read everything before, and by ``close``.
        lagging: whether the kernel is to be stopped.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: ChannelAddresses,
        key: HmacKey,
        *,
        max_message_bytes: int,
        budget: ReadBudget,
        on_messages: Callable[[list[KernelMessage]], None],
        on_invalid: Callable[[str], None],
        on_lag: Callable[[bool], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self.disconnected = asyncio.Event()
        self._key = key
        self._max = max_message_bytes
        self._budget = budget
        self._hold: asyncio.TimerHandle | None = None  # nothing is read until it fires
        self._held = False  # the proxies don't read from the kernel
        self._on_messages, self._on_invalid = on_messages, on_invalid
        self._on_lag, self._on_disconnect = on_lag, on_disconnect
        self._loop = asyncio.get_running_loop()
        self.lagging = self._paused = self._closed = False
        self._behind_since: float | None = None
        self._scheduled: asyncio.Handle | None = None
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._proxies: dict[Channel, MeteringProxy] = {}
        self._disconnected: set[Channel] = set()
        for channel in ("iopub", "shell", "control", "stdin"):
            self._open(context, channel, addresses)

    def _open(self, context: zmq.Context[zmq.Socket[bytes]], channel: Channel, addresses: ChannelAddresses) -> None:
        socket = context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
        socket.linger = 0
        socket.rcvhwm = 0
        socket.sndhwm = MAX_WAITING_REQUESTS
        socket.set(zmq.MAXMSGSIZE, self._max)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.routing_id = addresses.identity.encode()
        if channel in ("iopub", "shell"):
            monitor = self._monitors[channel] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._loop.add_reader(monitor.FD, self._wake)
        # The proxy accepts the connection before the kernel listens, so libzmq must not limit the handshake.
        socket.set(zmq.HANDSHAKE_IVL, 0)
        proxy = self._proxies[channel] = MeteringProxy(
            addresses.socket(channel), self._max, self._invalid, family=addresses.pid
        )
        socket.connect(proxy.url)
        self._sockets[channel] = socket
        self._loop.add_reader(socket.FD, self._wake)
        self._wake()

    # -- writing ------------------------------------------------------------------------

    def send(self, channel: Sending, parts: list[bytes]) -> bool:
        """Send a request. Return False if the kernel does not read and too many requests wait."""
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
        """Stop reading until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Continue to read."""
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._scheduled is None and self._hold is None and not self._closed:
            self._scheduled = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = None
        if self._closed:
            return
        self._watch_monitors()
        if self._paused:
            return
        started = self._loop.time()
        empty = self._slice()
        now = self._loop.time()
        seconds = self._budget.charge(now - started, now)
        self._check_lag(empty)
        if seconds and not self._closed:
            self._hold = self._loop.call_later(seconds, self._end_hold)
            self._update_proxies()
        elif not empty:
            self._wake()

    def _end_hold(self) -> None:
        self._hold = None
        self._update_proxies()
        self._wake()

    def _update_proxies(self) -> None:
        """Stop or continue the flow into libzmq's buffers, which have no limit.

        The signal that stops the kernel may take a while, and does not reach a process that left the session.
        """
        on = self.lagging or self._hold is not None
        if on != self._held:
            self._held = on
            for proxy in self._proxies.values():
                proxy.hold(on)

    def _slice(self) -> bool:
        """Read and deliver one slice. Return whether all sockets are empty."""
        messages: list[KernelMessage] = []
        space = SLICE_BYTES
        empty = True
        try:
            for channel, socket in self._sockets.items():
                space = self._read(channel, socket, messages, space)
                empty = empty and space > 0
        except InvalidMessage as error:
            self.close()
            self._on_messages(messages)
            self._on_invalid(str(error))
            return True  # reading has ended
        if messages:
            self._on_messages(messages)
        return empty

    def _read(self, channel: Channel, socket: zmq.Socket[bytes], messages: list[KernelMessage], space: int) -> int:
        """Read one socket until it is empty or the slice is full.

        Return the bytes left in the slice, or 0 if it is full.
        """
        most = max(MIN_SLICE, SLICE_MESSAGES * self._budget.read_size // MAX_READ)
        while space > 0 and len(messages) < most:
            try:
                parts, size = self._parts(socket)
            except zmq.Again:
                return space
            messages.append(decode(channel, parts, self._key))
            space -= size
        return 0

    def _parts(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], int]:
        """Receive one message. Return its parts and its size, both limited."""
        parts = [socket.recv(zmq.NOBLOCK)]
        size = len(parts[0])
        while socket.rcvmore:
            part = socket.recv(zmq.NOBLOCK)
            size += len(part)
            if len(parts) >= MAX_PARTS or size > self._max:
                raise InvalidMessage(f"a message above {self._max} bytes or {MAX_PARTS} parts")
            parts.append(part)
        return parts, size

    def _check_lag(self, empty: bool) -> None:
        now = self._loop.time()
        if empty:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        lagging = self._behind_since is not None and now - self._behind_since > LAG_SECONDS
        if lagging and not self.lagging:
            self.lagging = True
            self._update_proxies()
            self._on_lag(True)
        elif empty and self.lagging:
            self.lagging = False
            self._update_proxies()
            self._on_lag(False)

    # -- the end ------------------------------------------------------------------------

    def _invalid(self, why: str) -> None:
        if not self._closed:
            self.close()
            self._on_invalid(why)

    def _watch_monitors(self) -> None:
        for channel, monitor in self._monitors.items():
            with contextlib.suppress(zmq.Again):
                while True:
                    recv_monitor_message(monitor, zmq.NOBLOCK)
                    self._disconnected.add(channel)
        if self._disconnected and not self.disconnected.is_set():
            self._on_disconnect()
        if len(self._disconnected) == len(self._monitors):
            self.disconnected.set()

    async def read_rest(self) -> None:
        """Deliver all messages of a kernel that has ended. Safe to cancel."""
        empty = False
        while not (empty or self._closed or self._paused):
            empty = self._slice()
            await asyncio.sleep(0)  # lets other callbacks run between slices

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.disconnected.set()
        if self._scheduled is not None:
            self._scheduled.cancel()
        if self._hold is not None:
            self._hold.cancel()
        for channel, socket in self._sockets.items():
            if channel in self._monitors:
                monitor = self._monitors[channel]
                self._loop.remove_reader(monitor.FD)
                socket.disable_monitor()
                monitor.close(0)
            self._loop.remove_reader(socket.FD)
            socket.close(0)
        for proxy in self._proxies.values():
            proxy.close()
