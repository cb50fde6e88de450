"""The read ends of the pipes behind descriptors 1 and 2, in the kernel that also has the write ends.

The server reads these pipes, which works while the kernel is busy in C code. But text that a subprocess wrote before
its end would then arrive after a print that followed, or in the middle of it. So the kernel looks before each frame
that it sends, and sends what is there as a frame of its own. Text that the server has read already precedes the frame
anyway: it reads its socket first, and a pipe only when the socket is empty.

Only the server decodes these bytes, because either reader may get one half of a character.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator, Sequence

from kernelsvc.guest.private_modules import fcntl, os, select, time

#: Most bytes of each pipe that are taken at once: a process that still writes must not hold up the kernel.
MOST_BYTES = 1 << 20
_INT = bytes(4)
#: Attempts to lock a pipe, a millisecond apart.
_LOCK_TRIES = 50


def _lock(fd: int) -> None:
    """Lock a pipe against the server (flock(2)), which must not find text in it that follows the frames it has read.

    The server's lock is on another open file description and lasts for microseconds. User code can lock a third one and
    keep it, so this gives up in the end. Then only the order of that code's text is lost.
    """
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        else:
            return


class StdioReads:
    """Both pipes.

    Args:
        fds: read ends for standard output and standard error, or nothing in a process that must not read them.

    Attributes:
        fds: the descriptors.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = list(fds)
        self._inodes = [os.fstat(fd).st_ino for fd in self.fds]
        self._poll = select.poll()
        for fd in self.fds:
            self._poll.register(fd, select.POLLIN)

    def readable(self) -> bool:
        """Whether there is, or may be, anything to take."""
        try:
            return bool(self._poll.poll(0))
        except RuntimeError:  # Another thread looks at this moment. CPython allows one at a time.
            return True

    def take(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name of each pipe that is not empty, and the bytes that are in it at this moment.

        The pipe stays locked until the next step: the caller sends the bytes before the server can read those that
        follow them. Waits while the server reads, and at most ``_LOCK_TRIES`` ms.
        """
        for number, fd in enumerate(self.fds):
            try:
                if os.fstat(fd).st_ino != self._inodes[number]:
                    raise OSError("user code has closed the descriptor, and the number is another file's now")
                # The server shares the pipe but not the flags, which are this process's to set (fcntl(2)).
                os.set_blocking(fd, False)
                _lock(fd)
                try:
                    left = min(MOST_BYTES, int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, _INT), sys.byteorder))
                    if left and (data := os.read(fd, left)):
                        yield ("stderr" if number else "stdout"), data
                finally:
                    fcntl.flock(fd, fcntl.LOCK_UN)
            except BlockingIOError:
                continue
            except OSError:  # The server still has descriptors of its own.
                self._poll = select.poll()
                return
