"""Datagrams of JSON with descriptors over ``SOCK_SEQPACKET``: how host, init, template and server talk.

See unix(7): a datagram arrives whole or not at all, with its descriptors.
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

#: Largest datagram that is read; writers are bounded by what they write.
DATAGRAM = 192 * 1024
#: What a socket is asked to hold (Linux gives at most twice ``net.core.wmem_max``): a datagram must fit in whole.
BUFFER = 1 << 20
#: Datagrams that wait for a peer that does not read; one that leaves more unread is given up.
BACKLOG = 4096

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode

_SO_PASSRIGHTS = 83  # asm-generic/socket.h since Linux 6.16; Python has no name for it

Received = Callable[[dict[str, Any], list[int]], None]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return ends


def refuse_descriptors(sock: socket.socket) -> None:
    """Have Linux refuse descriptors that the other end sends from now on (EPERM for the sender).

    Before Linux 6.16 the other end may send some: a read without room for them closes them (unix(7)).
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def receive(sock: socket.socket, most: int) -> tuple[dict[str, Any], list[int]] | None:
    """One datagram, or None at the end.

    Args:
        sock: to read from.
        most: descriptors that may come with it.

    Raises:
        BlockingIOError: there is none yet.
        ValueError: it is not a JSON object, or too long, or more descriptors came with it. All are closed.
    """
    try:
        data, fds, flags, _ = socket.recv_fds(sock, DATAGRAM, most, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not data:
        close_all(fds)  # an empty datagram may carry some
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a datagram was cut off")
        return decode(data), list(fds)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        close_all(fds)
        raise ValueError(f"not a JSON object: {error}") from None


def close_all(fds: Sequence[int]) -> None:
    """Close every one of these descriptors."""
    for fd in fds:
        os.close(fd)


class SeqpacketChannel:
    """One end, on the event loop.

    Args:
        sock: connected; the channel's from now on.
        received: takes each datagram, and owns the descriptors that came with it.
        closed: called once when the other end is gone or sent what it may not send.
        fds: most descriptors that the other end may send with one datagram.
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
        """Whether it can still be used."""
        return self.sock.fileno() >= 0

    def send(self, body: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send one datagram, later if the other end is slow; False if it is gone or reads nothing at all.

        The descriptors are duplicated where they must wait; the caller closes its own.
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
        with contextlib.suppress(OSError):  # the reader finds out
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
        """Let go, without calling ``closed``."""
        if self.is_open:
            self._drop_waiting()
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()
