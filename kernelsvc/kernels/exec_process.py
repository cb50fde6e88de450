"""A program beside a session's kernel, from the server's side: its streams, its signals and its end.

The kernel host forks a keeper (``guest.keeper``), which has the program's other
ends. What the program writes waits in a pipe until it is read: a slow reader
slows the program, and costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kernelsvc.errors import BadRequest, Internal, NotFound, TooLarge
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import ExecRequest
from kernelsvc.linux import seqpacket

#: Seconds until a program must have begun.
START_SECONDS = 30.0
#: Bytes of output read at a time.
CHUNK = 64 * 1024
#: Most bytes of arguments and environment; they travel in one datagram.
MAX_ORDER_BYTES = 96 * 1024
#: Bytes of standard input that wait for a program that does not read.
MAX_INPUT_BYTES = 4 << 20

Stream = Literal["stdout", "stderr", "pty"]


class ExecProcess:
    """One program. Made by ``start``.

    Attributes:
        pid: as seen inside the sandbox.
        ended: its wait status, or None if nobody saw how it ended.
    """

    def __init__(self, streams: dict[Stream, int], stdin: int) -> None:
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._streams = streams
        self._stdin = stdin
        self._waiting = bytearray()
        self._closing_stdin = False
        self._channel: seqpacket.SeqpacketChannel | None = None

    # -- the keeper -----------------------------------------------------------------------

    def listen(self, sock: socket.socket) -> None:
        """Take the server's end of the socket to the keeper."""
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._keeper_gone, fds=0)

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        seqpacket.close_all(fds)
        if "pid" in body and not self._begun.done():
            self.pid = int(body["pid"])
            self._begun.set_result(None)
        elif "failed" in body and not self._begun.done():
            text = str(body["failed"])
            wrong = BadRequest(f"The program can't be started: {text}.") if body.get("missing") else Internal(text)
            self._begun.set_exception(wrong)
        elif "ended" in body and not self.ended.done():
            self.ended.set_result(int(body["ended"]))

    def _keeper_gone(self) -> None:
        if not self._begun.done():
            self._begun.set_exception(NotFound("The session ended before its program began."))
        if not self.ended.done():
            self.ended.set_result(None)

    async def begun(self) -> None:
        """Wait until it runs.

        Raises:
            BadRequest: there is no such program or directory.
            Internal: it can't be confined, or not in time.
            NotFound: the session has ended.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._begun)
        except TimeoutError:
            raise Internal("The program did not start in time. Try again.") from None

    def signal(self, number: int) -> None:
        """Send a signal to the program and its process group; nothing happens when it has ended."""
        if self._channel is not None and not self.ended.done():
            self._channel.send({"signal": number})

    def close(self) -> None:
        """Let go: a program that still runs is killed."""
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
        if self._channel is not None:
            self._channel.close()
        if not self.ended.done():
            self.ended.set_result(signal.SIGKILL)
        if self._begun.done():
            self._begun.exception()
        for fd in {self._stdin, *self._streams.values()} - {-1}:
            os.close(fd)
        self._stdin, self._streams = -1, {}

    # -- streams ----------------------------------------------------------------------------

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What it writes to."""
        return tuple(self._streams)

    async def read(self, stream: Stream) -> bytes:
        """What it wrote there, at most ``CHUNK``; empty at its end. Safe to cancel: nothing is lost."""
        while (fd := self._streams.get(stream, -1)) >= 0:
            try:
                return os.read(fd, CHUNK)
            except BlockingIOError:
                await _readable(fd)
            except OSError:  # a terminal whose last user has gone (EIO)
                return b""
        return b""

    def write(self, data: bytes) -> None:
        """Give it standard input; what it does not read yet waits.

        Raises:
            NotFound: its standard input is closed.
            TooLarge: too much waits already.
        """
        if self._stdin < 0 or self._closing_stdin:
            raise NotFound("The program's standard input is closed.")
        if len(self._waiting) + len(data) > MAX_INPUT_BYTES:
            raise TooLarge(f"The program has {len(self._waiting)} bytes of input to read yet. Send more when it did.")
        self._waiting += data
        self._feed()

    def close_input(self) -> None:
        """End its standard input, after what waits."""
        self._closing_stdin = True
        self._feed()

    def _feed(self) -> None:
        if self._stdin < 0:
            return
        try:
            while self._waiting:
                del self._waiting[: os.write(self._stdin, self._waiting)]
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._feed)
            return
        except OSError:  # it reads no more
            self._waiting.clear()
        self._loop.remove_writer(self._stdin)
        if self._closing_stdin and self._stdin not in self._streams.values():
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, columns: int, rows: int) -> None:
        """Give its terminal another size; nothing happens without one."""
        if "pty" in self._streams:
            set_size(self._streams["pty"], columns, rows)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    own = os.dup(fd)  # a selector knows a number once, and the original may be closed meanwhile
    loop.add_reader(own, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(own)
        os.close(own)


def set_size(terminal: int, columns: int, rows: int) -> None:
    """The size of a terminal, in characters (tty_ioctl(4))."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def _pipes(*, with_input: bool) -> tuple[dict[Stream, int], int, list[int]]:
    """Output to read, input to write, and the program's three ends."""
    in_read, in_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    for fd in (in_write, out_read, err_read):
        os.set_blocking(fd, False)
    if not with_input:
        os.close(in_write)
        in_write = -1
    return {"stdout": out_read, "stderr": err_read}, in_write, [in_read, out_write, err_write]


def _terminal(columns: int, rows: int) -> tuple[dict[Stream, int], int, list[int]]:
    ours, theirs = os.openpty()
    set_size(ours, columns, rows)
    os.set_blocking(ours, False)
    return {"pty": ours}, ours, [theirs, os.dup(theirs), os.dup(theirs)]


async def start(
    host: HostClient,
    kernel: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    with_input: bool = True,
    terminal: tuple[int, int] | None = None,
) -> ExecProcess:
    """Start a program in a kernel's sandbox. Safe to cancel: it is killed.

    Args:
        host: the kernel host.
        kernel: the kernel's id.
        argv: the program and its arguments.
        env: additions to the sandbox's environment.
        cwd: as seen inside; empty for the session's directory.
        with_input: whether it has a standard input that is written to; else it is at its end.
        terminal: columns and rows of a terminal that stands for all three streams.

    Raises:
        BadRequest: there is no such program or directory.
        TooLarge: arguments and environment together.
        KernelsvcError: as the host says.
    """
    size = len(seqpacket.encode([list(argv), dict(env), cwd]))
    if size > MAX_ORDER_BYTES:
        raise TooLarge(f"Arguments and environment take {size} bytes and may take {MAX_ORDER_BYTES}. Use a file.")
    streams, stdin, given = _terminal(*terminal) if terminal else _pipes(with_input=with_input)
    ours, theirs = seqpacket.pair()
    process = ExecProcess(streams, stdin)
    process.listen(ours)
    request = ExecRequest(kernel=kernel, argv=[*argv], env={**env}, cwd=cwd, terminal=terminal is not None)
    try:
        try:
            await host.exec(request, [*given, theirs.fileno()])
        finally:
            theirs.close()
            seqpacket.close_all(given)
        await process.begun()
    except BaseException:
        with contextlib.suppress(OSError):
            process.close()
        raise
    return process
