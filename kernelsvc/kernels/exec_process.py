"""A program that runs in a session's sandbox, from the server's side: its streams, its signals and its end.

The kernel host forks an exec shim (``guest.confine.exec_shim``), which holds the program's ends of the streams. Output
waits in a pipe until it is read. A slow reader slows the program and costs no memory.
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
from kernelsvc.linux.readable import wait_readable

#: Seconds for a program to start.
START_SECONDS = 30.0
#: Bytes of output read at a time.
CHUNK = 64 * 1024
#: Maximum bytes of arguments and environment. A request is one datagram.
MAX_ORDER_BYTES = 96 * 1024
#: Maximum bytes of standard input that wait for a program that does not read.
MAX_INPUT_BYTES = 4 << 20

Stream = Literal["stdout", "stderr", "pty"]


class ExecProcess:
    """One program. Made by ``start``.

    Attributes:
        pid: as seen inside the sandbox.
        ended: its wait status, or None if its end was not reported.
    """

    def __init__(self, streams: dict[Stream, int], stdin: int) -> None:
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._streams = streams
        self._stdin = stdin
        self._waiting = bytearray()
        self._closing_stdin = False
        self._channel: seqpacket.SeqpacketChannel | None = None

    # -- the exec shim ----------------------------------------------------------------------

    def listen(self, sock: socket.socket) -> None:
        """Use this socket as the channel to the exec shim."""
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._shim_gone, fds=0)

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        seqpacket.close_all(fds)
        if "pid" in body and not self._started.done():
            self.pid = int(body["pid"])
            self._started.set_result(None)
        elif "failed" in body and not self._started.done():
            text = str(body["failed"])
            error = BadRequest(f"The program can't be started: {text}.") if body.get("missing") else Internal(text)
            self._started.set_exception(error)
        elif "ended" in body and not self.ended.done():
            self.ended.set_result(int(body["ended"]))

    def _shim_gone(self) -> None:
        if not self._started.done():
            self._started.set_exception(NotFound("The session ended before its program began."))
        if not self.ended.done():
            self.ended.set_result(None)

    async def wait_started(self) -> None:
        """Wait until the program runs. Safe to cancel.

        Raises:
            BadRequest: there is no such program or directory.
            Internal: it can't be confined, or did not start in time.
            NotFound: the session has ended.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._started)
        except TimeoutError:
            raise Internal("The program did not start in time. Try again.") from None

    def signal(self, number: int) -> None:
        """Send a signal to the program and its process group. Does nothing when it has ended."""
        if self._channel is not None and not self.ended.done():
            self._channel.send({"signal": number})

    def close(self) -> None:
        """Close the streams and the channel. The exec shim kills a program that still runs."""
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
        if self._channel is not None:
            self._channel.close()
        if not self.ended.done():
            self.ended.set_result(signal.SIGKILL)
        if self._started.done():
            self._started.exception()
        for fd in {self._stdin, *self._streams.values()} - {-1}:
            os.close(fd)
        self._stdin, self._streams = -1, {}

    # -- streams ----------------------------------------------------------------------------

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that it writes to."""
        return tuple(self._streams)

    async def read(self, stream: Stream) -> bytes:
        """Return the next output of a stream: at most ``CHUNK`` bytes, or none at its end.

        Safe to cancel: nothing is lost.
        """
        while (fd := self._streams.get(stream, -1)) >= 0:
            try:
                return os.read(fd, CHUNK)
            except BlockingIOError:
                await wait_readable(fd)
            except OSError:  # EIO: the last process has closed the terminal
                return b""
        return b""

    def write(self, data: bytes) -> None:
        """Write to its standard input. Data that it does not read yet is buffered.

        Raises:
            NotFound: its standard input is closed.
            TooLarge: the buffer is full.
        """
        if self._stdin < 0 or self._closing_stdin:
            raise NotFound("The program's standard input is closed.")
        if len(self._waiting) + len(data) > MAX_INPUT_BYTES:
            raise TooLarge(
                f"The program has {len(self._waiting)} bytes of input to read. Send more after it has read them."
            )
        self._waiting += data
        self._feed()

    def close_input(self) -> None:
        """Close its standard input, after the buffered data."""
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
        except OSError:  # the program has closed its end (EPIPE)
            self._waiting.clear()
        self._loop.remove_writer(self._stdin)
        if self._closing_stdin and self._stdin not in self._streams.values():
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of its terminal, in characters. Does nothing without a terminal."""
        if "pty" in self._streams:
            set_size(self._streams["pty"], columns, rows)


def set_size(terminal: int, columns: int, rows: int) -> None:
    """Set the size of a terminal, in characters (TIOCSWINSZ)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def _pipes(*, with_input: bool) -> tuple[dict[Stream, int], int, list[int]]:
    """Return the output pipes to read, the input pipe to write, and the program's three ends."""
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
    server_end, shim_end = os.openpty()
    set_size(server_end, columns, rows)
    os.set_blocking(server_end, False)
    return {"pty": server_end}, server_end, [shim_end, os.dup(shim_end), os.dup(shim_end)]


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
    """Start a program in a kernel's sandbox. Safe to cancel: the program is killed.

    Args:
        host: the kernel host.
        kernel: id of the kernel.
        argv: the program and its arguments.
        env: variables in addition to those of the sandbox.
        cwd: directory as seen inside, or "" for the session's.
        with_input: whether the caller writes to its standard input. Otherwise it reads the end of the file.
        terminal: columns and rows of a terminal that replaces all three streams.

    Raises:
        BadRequest: there is no such program or directory.
        TooLarge: arguments and environment together.
        KernelsvcError: the host's error.
    """
    size = len(seqpacket.encode([list(argv), dict(env), cwd]))
    if size > MAX_ORDER_BYTES:
        raise TooLarge(f"Arguments and environment take {size} bytes and may take {MAX_ORDER_BYTES}. Use a file.")
    streams, stdin, program_ends = _terminal(*terminal) if terminal else _pipes(with_input=with_input)
    server_end, shim_end = seqpacket.pair()
    process = ExecProcess(streams, stdin)
    process.listen(server_end)
    request = ExecRequest(kernel=kernel, argv=[*argv], env={**env}, cwd=cwd, terminal=terminal is not None)
    try:
        try:
            await host.exec(request, [*program_ends, shim_end.fileno()])
        finally:
            shim_end.close()
            seqpacket.close_all(program_ends)
        await process.wait_started()
    except BaseException:
        with contextlib.suppress(OSError):
            process.close()
        raise
    return process
