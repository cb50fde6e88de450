"""Connecting to a kernel: one socket, from the first knock to WELCOME."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from kernelsvc.kernels.forked import wire_parser as frames
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.stdio_pipe import StdioPipe
from kernelsvc.kernels.forked.wire_parser import HEADER, HELLO, Welcome, WireViolation
from kernelsvc.linux import peer
from kernelsvc.linux.seqpacket import close_all, refuse_descriptors

#: Seconds between attempts to connect: first, and at the most.
RETRY_SECONDS = 0.002, 0.05
#: Most bytes of one read.
READ = 256 * 1024
#: Seconds from the first byte of WELCOME to its last. The first one may come late: a running cell
#: that sits in C code keeps its kernel from the socket, and has limits of its own.
WELCOME_SECONDS = 10.0
#: Descriptors that come with the first byte of WELCOME: the read ends of the raw pipes.
PIPES = 2

_encode = msgspec.json.Encoder().encode


async def connect(path: str, *, patient: bool) -> socket.socket:
    """Connect. Safe to cancel.

    Args:
        path: the listener's.
        patient: wait for a listener that is not there yet.

    Raises:
        OSError: nobody listens, and ``patient`` was not asked.
    """
    pause, longest = RETRY_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)  # never waits: EAGAIN says that the listener's queue is full (connect(2))
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


class WireConnection:
    """One connected socket.

    Attributes:
        welcome: what the kernel said of itself; not to be trusted.
        first: number of the first frame that follows, or 0 before WELCOME.
        rest: bytes that came after WELCOME.
        pipes: the raw pipes, opened again; the kernel's own descriptors are closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer_pid = peer.credentials(sock).pid
        self.welcome = Welcome(version=0)
        self.first = 0
        self.rest = bytearray()
        self.pipes: list[StdioPipe] = []
        self._dropped = False

    @classmethod
    async def open(
        cls, path: str, last_frame: int, identity: dict[str, Any] | None = None, *, patient: bool
    ) -> WireConnection:
        """Connect and say HELLO. Safe to cancel.

        Raises:
            OSError: nobody listens.
        """
        sock = await connect(path, patient=patient)
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
            Violation: something else came, or not the descriptors that belong there, or not all of it in time.
            EOFError, OSError: the kernel hung up.
        """
        if not self.rest:
            await self._readable()
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                while not self._receive():
                    await self._readable()
        except TimeoutError:
            raise WireViolation(f"WELCOME was not whole within {WELCOME_SECONDS:g} seconds") from None

    def _receive(self) -> bool:
        if self._dropped:
            raise WireViolation("WELCOME was not whole when the memory for incomplete frames was full")
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, READ, PIPES, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        try:
            if not data:
                raise EOFError
            self._take_pipes(fds, flags, 0 if self.rest else PIPES)
        finally:
            close_all(fds)
        self.rest += data
        found = frames.welcome(self.rest)
        if found is not None:
            self.welcome, self.first = found
            refuse_descriptors(self.sock)
        reassembly.hold(self, 0, 0 if found else len(self.rest))
        return found is not None

    def _take_pipes(self, fds: Sequence[int], flags: int, expected: int) -> None:
        """Open the pipes again that came with some bytes.

        Linux ends a read after bytes that descriptors came with, closes those for which there is no room, and says
        ``MSG_CTRUNC`` (unix(7), recvmsg(2)): so all that came are in ``fds``, and the caller closes those.
        """
        if flags & socket.MSG_CTRUNC and len(fds) < PIPES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if flags & socket.MSG_CTRUNC or len(fds) != expected:
            raise WireViolation(f"WELCOME did not come with {PIPES} descriptors")
        if fds:
            self.pipes.append(StdioPipe(fds[0], "stdout"))
            self.pipes.append(StdioPipe(fds[1], "stderr"))

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

    def drop_partial(self) -> None:
        """See ``reassembly.Connection``. The task that waits for WELCOME fails."""
        self._dropped = True
        self.rest = bytearray()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes that task

    def take_pipes(self) -> list[StdioPipe]:
        """Give the pipes to the caller, which closes them."""
        pipes, self.pipes = self.pipes, []
        return pipes

    def close(self) -> None:
        """Let go of the socket, the buffer, and pipes that nobody took."""
        self.sock.close()
        self.rest = bytearray()
        reassembly.release(self)
        for pipe in self.take_pipes():
            pipe.close()
