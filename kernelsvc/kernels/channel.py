"""Datagrams of JSON with descriptors over ``SOCK_SEQPACKET``: how host, init, template and server talk.

See unix(7): a datagram arrives whole or not at all, with its descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

#: Largest datagram that is read; writers are bounded by what they write.
DATAGRAM = 192 * 1024
FDS = 8

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(dict[str, Any]).decode

Received = Callable[[dict[str, Any], list[int]], None]
_PID = re.compile(rb"^Pid:\t(-?\d+)$", re.MULTILINE)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One datagram, or None at the end.

    Raises:
        BlockingIOError: there is none yet.
        ValueError: it is not a JSON object.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, DATAGRAM, FDS)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not data:
        return None
    try:
        return decode(data), list(fds)
    except (msgspec.DecodeError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"not a JSON object: {error}") from None


class Channel:
    """One end, on the event loop. ``received`` owns the descriptors it is given."""

    def __init__(self, sock: socket.socket, received: Received, closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._received = received
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self.sock.fileno() >= 0

    def send(self, body: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send one datagram; False if the other end is gone or does not read."""
        if not self.is_open:
            return False
        try:
            socket.send_fds(self.sock, [encode(body)], list(fds))
        except OSError:
            return False
        return True

    def _read(self) -> None:
        try:
            got = receive(self.sock)
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
            self._loop.remove_reader(self.sock.fileno())
            self.sock.close()


def pid_of(pidfd: int) -> int:
    """The pid that a pidfd stands for, as this process sees it; 0 if it is reaped or out of sight."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        found = _PID.search(file.read())
        if found:
            return max(0, int(found[1]))
    return 0


async def wait_pidfd(pidfd: int) -> None:
    """Wait until the process has ended. Safe to cancel."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(pidfd, wake)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
