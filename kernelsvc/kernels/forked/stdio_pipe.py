"""Text that C code and subprocesses write to descriptors 1 and 2.

A kernel passes the read ends of its pipes to each server that connects. Both processes then share an open file
description, and status flags belong to the description (fcntl(2), ``F_SETFL``): user code could clear ``O_NONBLOCK``
and block the server in ``read``. So the server opens each pipe again, which gives it a description of its own
(proc(5), ``/proc/self/fd``), and closes the kernel's.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import select
import stat
import sys
import termios
from collections.abc import Iterator
from typing import Literal

from kernelsvc.kernels.forked.wire_parser import WireViolation
from kernelsvc.kernels.port import StreamText

#: Maximum bytes of one read, so that a flood from one kernel does not delay the others.
CHUNK = 256 * 1024
_INT = bytes(4)


class StdioPipe:
    """The server's own description of the read end of one pipe.

    Args:
        received: descriptor that a kernel sent. The caller closes it.
        name: the kernel's descriptor that writes to the pipe.

    Attributes:
        fd: the descriptor to read, or -1 after ``close``.
        identity: device and inode of the pipe.
        ended: whether every writer has closed it.
        decoder: of its bytes, also of those that the kernel reads and sends.

    Raises:
        WireViolation: it is not a pipe that this user made.
        OSError: no descriptor is free.
    """

    def __init__(self, received: int, name: Literal["stdout", "stderr"]) -> None:
        found = os.fstat(received)
        # The server makes every kernel's pipes, and a pipe belongs to the user that made it.
        if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid():
            raise WireViolation(f"{name} is not the pipe that the server made")
        try:
            # fifo(7): opening for read only with O_NONBLOCK succeeds "even if no one has opened on the write side yet".
            self.fd = os.open(f"/proc/self/fd/{received}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise WireViolation(f"{name} is a pipe that the server may not open") from None
        self.identity = found.st_dev, found.st_ino
        self.name = name
        self.ended = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def available(self) -> int:
        """Return the number of readable bytes, at most the pipe's capacity (fcntl(2), ``F_GETPIPE_SZ``)."""
        try:
            found = int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, _INT), sys.byteorder)
            return min(found, fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ)) if found else 0
        except OSError:
            return 0

    def read(self, max_bytes: int = CHUNK) -> StreamText | None:
        """Return up to ``max_bytes`` as text, or None if there are none. An incomplete character waits for its rest."""
        try:
            data = os.read(self.fd, max_bytes)
        except OSError:
            return None
        self.ended = not data
        text = self.decoder.decode(data)
        return StreamText(name=self.name, text=text) if text else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the pipe (flock(2)), so that the kernel reads nothing from it meanwhile. Never blocks.

        Yields:
            Whether it is locked. The kernel holds the lock for a moment, or for as long as hostile code likes.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def check_end(self) -> None:
        """Set ``ended`` if the pipe is empty and every writer has closed it (poll(2): POLLHUP)."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        self.ended = poll.poll(0) == [(self.fd, select.POLLHUP)]

    def drain(self) -> list[StreamText]:
        """Return the text in the pipe at this moment, without that written meanwhile."""
        remaining = self.available()
        if not remaining:
            return []
        found = []
        while remaining > 0:
            text = self.read(min(remaining, CHUNK))
            remaining -= CHUNK
            if text is not None:
                found.append(text)
        return found

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
