"""One connection to a kernel, from connect(2) to WELCOME."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from kernelsvc.kernels.forked import wire_parser
from kernelsvc.kernels.forked.reassembly import reassembly
from kernelsvc.kernels.forked.stdio_pipe import StdioPipe
from kernelsvc.kernels.forked.wire_parser import HEADER, HELLO, Welcome, WireViolation
from kernelsvc.linux import peer, procfs
from kernelsvc.linux.readable import wait_readable
from kernelsvc.linux.seqpacket import close_all, refuse_descriptors

#: Seconds between attempts to connect: the first, and the maximum.
RETRY_SECONDS = 0.002, 0.05
#: Maximum bytes of one read.
READ = 256 * 1024
#: Seconds from the first byte of WELCOME to its last. The first may come late: a cell that runs C code
#: blocks its kernel, and has limits of its own.
WELCOME_SECONDS = 10.0
#: Descriptors that come with the first byte of WELCOME: the read ends of the pipes for standard output and error.
PIPES = 2

_encode = msgspec.json.Encoder().encode


async def connect(path: str, *, wait: bool) -> socket.socket:
    """Connect to a kernel's socket. Safe to cancel.

    Args:
        path: path of the socket.
        wait: whether to wait for a listener that is not there yet.

    Raises:
        OSError: no process listens, and ``wait`` is False.
    """
    pause, longest = RETRY_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)  # connect(2): EAGAIN for a nonblocking Unix socket when the backlog is full
            return sock
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError) as error:
            sock.close()
            if not (wait or isinstance(error, BlockingIOError)):
                raise
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(pause)
        pause = min(longest, pause * 2)


class WireConnection:
    """One connected socket.

    Args:
        sock: connected to a kernel. It belongs to this object.

    Attributes:
        peer_pid: the kernel's pid as Linux reports it.
        welcome: the kernel's description of itself, which is not trusted.
        first: number of the first frame that follows, or 0 before WELCOME.
        rest: bytes that came after WELCOME.
        pipes: the kernel's standard output and error, opened again.
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
        cls, path: str, last_frame: int, identity: dict[str, Any] | None = None, *, wait: bool
    ) -> WireConnection:
        """Connect and send HELLO. Safe to cancel.

        Args:
            path: path of the kernel's socket.
            last_frame: the last frame that the server has.
            identity: see ``WireClient.connect``.
            wait: see ``connect``.

        Raises:
            OSError: no process listens.
        """
        sock = await connect(path, wait=wait)
        try:
            body = _encode({"version": wire_parser.VERSION, **({"identity": identity} if identity else {})})
            hello = HEADER.pack(len(body), HELLO, last_frame) + body
            await asyncio.get_running_loop().sock_sendall(sock, hello)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def wait_welcome(self) -> None:
        """Wait for WELCOME, which is late while a kernel runs C code. Safe to cancel, and to call again.

        Raises:
            WireViolation: the kernel sent something else, or other descriptors, or not all of WELCOME in time.
            EOFError, OSError: the kernel closed the connection.
        """
        if not self.rest:
            await wait_readable(self.sock.fileno())
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                while not self._receive():
                    await wait_readable(self.sock.fileno())
        except TimeoutError:
            raise WireViolation(f"WELCOME was incomplete after {WELCOME_SECONDS:g} seconds") from None

    def _receive(self) -> bool:
        if self._dropped:
            raise WireViolation("WELCOME was incomplete when the memory for incomplete frames was full")
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, READ, PIPES, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        try:
            if not data:
                raise EOFError
            self._take_pipes(fds, flags, first=not self.rest)
        finally:
            close_all(fds)
        self.rest += data
        found = wire_parser.parse_welcome(self.rest)
        if found is not None:
            self.welcome, self.first = found
            if not self.pipes:
                self._open_pipes(self.welcome.pipes)
            refuse_descriptors(self.sock)
        reassembly.hold(self, 0, 0 if found else len(self.rest))
        return found is not None

    def _take_pipes(self, fds: Sequence[int], flags: int, *, first: bool) -> None:
        """Open the pipes that came with some bytes. If none came with the first ones, WELCOME has their numbers.

        unix(7): descriptors in excess of the buffer "are automatically closed in the receiving process", and
        recvmsg(2) then sets ``MSG_CTRUNC``. A read ends after the bytes that descriptors came with. So all that came
        are in ``fds``, and the caller closes them.
        """
        if flags & socket.MSG_CTRUNC and len(fds) < PIPES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if flags & socket.MSG_CTRUNC or len(fds) not in ((0, PIPES) if first else (0,)):
            raise WireViolation(f"WELCOME did not come with {PIPES} descriptors")
        if fds:
            self.pipes.append(StdioPipe(fds[0], "stdout"))
            self.pipes.append(StdioPipe(fds[1], "stderr"))

    def _open_pipes(self, numbers: Sequence[int]) -> None:
        """Open the pipes of a kernel that could send no descriptors: its user has too many in flight (unix(7)).

        Args:
            numbers: the kernel's numbers of its descriptors for stdout and stderr.

        Raises:
            WireViolation: they are not two of its descriptors that are pipes of this server.
            EOFError: the kernel has ended.
        """
        names: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
        pidfd = peer.pidfd(self.sock)
        try:
            for number, name in zip(numbers, names, strict=True):
                # O_PATH opens nothing, so a file that is no pipe has no effect.
                fd = os.open(f"/proc/{self.peer_pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
                try:
                    self.pipes.append(StdioPipe(fd, name))
                finally:
                    os.close(fd)
            if procfs.pid_of(pidfd) != self.peer_pid:
                raise EOFError  # It has ended, so the pid may stand for another process.
        except (ValueError, FileNotFoundError, PermissionError):
            raise WireViolation(f"WELCOME did not come with {PIPES} descriptors") from None
        finally:
            os.close(pidfd)

    def drop_partial(self) -> None:
        """See ``reassembly.PartialFrameOwner``. The task that waits for WELCOME fails."""
        self._dropped = True
        self.rest = bytearray()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # ends the wait of that task

    def take_pipes(self) -> list[StdioPipe]:
        """Pass the pipes to the caller, which closes them."""
        pipes, self.pipes = self.pipes, []
        return pipes

    def close(self) -> None:
        """Close the socket and the pipes that were not taken, and free the buffer."""
        self.sock.close()
        self.rest = bytearray()
        reassembly.release(self)
        for pipe in self.take_pipes():
            pipe.close()
