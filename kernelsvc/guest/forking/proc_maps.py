"""What is mapped into this process (proc(5)), read where it leaves nothing behind.

The text has a hundred kilobytes and more, and is read before every fork. As a ``str``
it would lie, long freed, in pages that the copy then keeps for itself and that the
original writes anew before the next one: a megabyte for each checkpoint. So it is
read into pages of its own, which are given back before the fork.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator

#: Room at first; doubled when it is too small.
ROOM = 1 << 20


class ProcMaps:
    """The room, and what is in it now. Make it in the template, where it counts towards no session's memory."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._length = 0

    def read(self) -> None:
        """Read it."""
        self._length = 0
        fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while taken := self._take(fd):
                self._length += taken
        finally:
            os.close(fd)

    def _take(self, fd: int) -> int:
        if self._length == len(self._room):
            self._room.resize(2 * self._length)
        with memoryview(self._room) as room, room[self._length :] as rest:
            return os.readv(fd, [rest])

    def lines(self, *tokens: bytes) -> str:
        """Those that hold one of these; most often none does, and nothing is copied."""
        if all(self._room.find(token, 0, self._length) < 0 for token in tokens):
            return ""
        every = self._room[: self._length].splitlines(keepends=True)
        return b"".join(line for line in every if any(token in line for token in tokens)).decode("utf-8", "replace")

    def search(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """Each place in what was read that fits."""
        return pattern.finditer(self._room, 0, self._length)

    def drop(self) -> None:
        """Give the pages back."""
        self._length = 0
        self._room.madvise(mmap.MADV_DONTNEED)
