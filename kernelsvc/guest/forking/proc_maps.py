"""Read /proc/self/maps (proc(5)) into a buffer outside of the heap.

The text has 100 kilobytes or more and is read before every fork. As a ``str`` it would leave freed heap pages that the
fork keeps and the original writes again: one megabyte for each checkpoint. So it is read into its own mapping, whose
pages are released before the fork (madvise(2), MADV_DONTNEED).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

from kernelsvc.guest.private_modules import os

#: First size of the buffer in bytes. It doubles when it is too small.
ROOM = 1 << 20


class ProcMaps:
    """The buffer and its present contents. Create it in the template, where it counts to no session's memory."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._length = 0

    def read(self) -> None:
        """Read the maps."""
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
        """Return the lines that contain one of the tokens. Usually there are none, and nothing is copied."""
        if all(self._room.find(token, 0, self._length) < 0 for token in tokens):
            return ""
        every = self._room[: self._length].splitlines(keepends=True)
        return b"".join(line for line in every if any(token in line for token in tokens)).decode("utf-8", "replace")

    def search(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """Yield the matches of a pattern in the maps."""
        return pattern.finditer(self._room, 0, self._length)

    def drop(self) -> None:
        """Release the pages."""
        self._length = 0
        self._room.madvise(mmap.MADV_DONTNEED)
