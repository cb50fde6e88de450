"""Connecting to a kernel: one socket, from the first knock to WELCOME."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

import msgspec

from kernelsvc.kernels import wire_frames as frames
from kernelsvc.kernels.wire_frames import HEADER, HELLO, Welcome

#: Seconds between attempts to connect: first, and at the most.
RETRY_SECONDS = 0.002, 0.05
#: Most bytes of one read.
READ = 256 * 1024

_encode = msgspec.json.Encoder().encode
_UCRED = struct.Struct("3i")


def peer_pid(sock: socket.socket) -> int:
    """Who is at the other end, as Linux vouches for it (unix(7), ``SO_PEERCRED``)."""
    pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


async def knock(path: str, *, patient: bool) -> socket.socket:
    """Connect. Safe to cancel.

    Args:
        path: the listener's.
        patient: wait for a listener that is not there yet.

    Raises:
        OSError: nobody listens, and ``patient`` was not asked.
    """
    loop = asyncio.get_running_loop()
    pause, longest = RETRY_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, path)
            return sock
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError) as error:
            sock.close()
            if not (patient or isinstance(error, BlockingIOError)):
                raise
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(pause)
        pause = min(longest, pause * 2)


class Link:
    """One connected socket.

    Attributes:
        welcome: what the kernel said of itself; not to be trusted.
        first: number of the first frame that follows; 0 before WELCOME.
        rest: bytes that came after WELCOME.
        fds: descriptors that came with it: the raw pipes' read ends.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer_pid = peer_pid(sock)
        self.welcome = Welcome(version=0)
        self.first = 0
        self.rest = bytearray()
        self.fds: list[int] = []

    @classmethod
    async def open(cls, path: str, last_frame: int, identity: dict[str, Any] | None = None, *, patient: bool) -> Link:
        """Connect and say HELLO. Safe to cancel.

        Raises:
            OSError: nobody listens.
        """
        sock = await knock(path, patient=patient)
        try:
            body = _encode({"version": frames.VERSION, **({"identity": identity} if identity else {})})
            hello = HEADER.pack(len(body), HELLO, last_frame) + body
            await asyncio.get_running_loop().sock_sendall(sock, hello)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def welcomed(self) -> None:
        """Wait for WELCOME, which a kernel that sits in C code says late. Safe to cancel, and to call again.

        Raises:
            Violation: something else came.
            EOFError, OSError: the kernel hung up.
        """
        while not self._receive():
            await self._readable()

    def _receive(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, READ, 8)
        except (BlockingIOError, InterruptedError):
            return False
        self.fds += fds
        if not data:
            raise EOFError
        self.rest += data
        found = frames.welcome(self.rest)
        if found is not None:
            self.welcome, self.first = found
        return found is not None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(self.sock.fileno(), wake)
        try:
            await ready
        finally:
            loop.remove_reader(self.sock.fileno())

    def close(self) -> None:
        """Let go of the socket and of descriptors that nobody took."""
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
