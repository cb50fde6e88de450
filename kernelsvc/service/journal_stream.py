"""A file of a session's record as a stream of bytes: every whole line that is there at the moment."""

from __future__ import annotations

import os
from pathlib import Path

from kernelsvc.errors import NotFound

#: Bytes of one piece.
CHUNK_BYTES = 256 * 1024


class JournalStream:
    """Read a journal's file, or a notebook's. Implements ``ByteStream``.

    Args:
        path: the file.

    Attributes:
        size: bytes that ``next`` will give in all.

    Raises:
        NotFound: retention has removed the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFound(f"This session's {path.stem} was removed by retention.") from None
        self.size = whole_lines(self._fd)
        self._at = 0

    async def next(self) -> bytes:
        """Return the next piece, or nothing at the end. Safe to cancel.

        Raises:
            BrokenPipeError: the file became shorter than ``size``.
        """
        if self._at == self.size:
            return b""
        piece = os.pread(self._fd, min(CHUNK_BYTES, self.size - self._at), self._at)
        if not piece:
            raise BrokenPipeError("the file became shorter while it was sent")
        self._at += len(piece)
        return piece

    def end(self, size: int) -> bytes:
        """Return the last bytes, at most ``size``, without a change of the position."""
        return os.pread(self._fd, size, max(0, self.size - size))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def whole_lines(fd: int) -> int:
    """Return the size of a file up to its last newline, because the line after that is still being written."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - CHUNK_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
