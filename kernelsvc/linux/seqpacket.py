"""JSON datagrams with descriptors over ``SOCK_SEQPACKET``, between host, init, fork server and server.

unix(7): a SOCK_SEQPACKET socket "preserves message boundaries". A datagram arrives whole with its descriptors, or not
at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

#: Maximum bytes of a datagram. Writers limit their requests.
DATAGRAM = 192 * 1024
#: Requested size of the socket's buffer (socket(7): at most twice ``net.core.wmem_max``). A datagram must fit whole.
BUFFER = 1 << 20
#: Maximum datagrams that wait for a peer that does not read. More are refused.
BACKLOG = 4096

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode

_SO_PASSRIGHTS = 83  # asm-generic/socket.h since Linux 6.16; Python has no name for it

Received = Callable[[dict[str, Any], list[int]], None]


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        # unix(7): SO_SNDBUF "imposes an upper limit on the size of outgoing datagrams". SO_RCVBUF has no effect.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return ends


def refuse_descriptors(sock: socket.socket) -> None:
    """Have Linux refuse descriptors that the peer sends from now on (EPERM for the sender).

    Before Linux 6.16 the peer may send some. unix(7): those in excess of the receiver's buffer are closed
    automatically.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def receive(sock: socket.socket, max_fds: int) -> tuple[dict[str, Any], list[int]] | None:
    """Return one datagram and its descriptors, or None at the end.

    Args:
        sock: the socket.
        max_fds: maximum of descriptors.

    Raises:
        BlockingIOError: there is none yet.
        ValueError: it is not a JSON object, too long, or with too many descriptors. All descriptors are closed.
    """
    try:
        # recvmsg(2): MSG_CMSG_CLOEXEC sets the flag with the receipt. Later would be too late if another thread forks.
        data, fds, flags, _ = socket.recv_fds(sock, DATAGRAM, max_fds, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not data:
        # recv(2): an empty datagram and the end of the connection look alike, so no writer sends one. An empty datagram
        # may have descriptors.
        close_all(fds)
        return None
    try:
        # recvmsg(2): the datagram was longer than the buffer, or Linux discarded some of its descriptors.
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a datagram was cut off")
        return decode(data), list(fds)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        close_all(fds)
        raise ValueError(f"not a JSON object: {error}") from None


def close_all(fds: Sequence[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)


class SeqpacketChannel:
    """One end of a connection, on the event loop.

    Args:
        sock: a connected socket, which belongs to the channel.
        received: receives each datagram, and owns its descriptors.
        closed: called once if the peer has closed the connection or sent an invalid datagram.
        fds: maximum of descriptors that the peer may send with one datagram.
    """

    def __init__(self, sock: socket.socket, received: Received, closed: Callable[[], None], *, fds: int) -> None:
        sock.setblocking(False)
        if not fds:
            refuse_descriptors(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.sock = sock
        self._received = received
        self._closed = closed
        self._fds = fds
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether the channel is open."""
        return self.sock.fileno() >= 0

    def send(self, body: dict[str, Any] | msgspec.Struct, fds: Sequence[int] = ()) -> bool:
        """Send one datagram, later if the peer is slow. Return False if the channel is closed or its queue is full.

        The descriptors are duplicated if they must wait. The caller closes its own.
        """
        if not self.is_open:
            return False
        data = encode(body)
        try:
            if not self._waiting and self._put(data, fds):
                return True
        except OSError:
            return False
        if len(self._waiting) >= BACKLOG:
            return False
        if not self._waiting:
            self._loop.add_writer(self.sock.fileno(), self._flush)
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        return True

    def _put(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(self.sock, [data], list(fds))
        except BlockingIOError:
            return False
        return True

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # the reader gets the error, too
            while self._waiting and self._put(*self._waiting[0]):
                close_all(self._waiting.popleft()[1])
            if self._waiting:
                return
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        self._loop.remove_writer(self.sock.fileno())
        while self._waiting:
            close_all(self._waiting.popleft()[1])

    def _read(self) -> None:
        try:
            got = receive(self.sock, self._fds)
        except BlockingIOError:
            return
        except ValueError:
            got = None
        if got is None:
            self.close()
            self._closed()
        else:
            self._received(*got)

    def close(self) -> None:
        """Close the socket, without calling ``closed``."""
        if self.is_open:
            self._drop_waiting()
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()
