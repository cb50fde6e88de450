"""Read whole lines of a file of any size in limited pieces, without moving its position (pread(2))."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

#: Bytes per read when a whole file is walked. A thread that walks one lets others run at each read, so about every
#: millisecond.
CHUNK = 1 << 18


def read_lines(fd: int, offset: int, end: int, size: int = CHUNK) -> list[bytes]:
    """Return whole lines without newlines from ``offset``: about ``size`` bytes, and at least one line if there is one.

    A line longer than ``size`` is read whole. Nothing at or after ``end`` is read.
    """
    begun: list[bytes] = []
    while True:
        data = os.pread(fd, min(size, end - offset), offset)
        if b"\n" in data:
            break
        offset += len(data)
        if len(data) < size or offset >= end:
            return []
        begun.append(data)
        size *= 2
    *lines, _ = data.split(b"\n")
    if begun:
        lines[0] = b"".join((*begun, lines[0]))
    return lines


def pieces(fd: int, offset: int, end: int, size: int = CHUNK) -> Iterator[bytes]:
    """Yield the bytes between ``offset`` and ``end`` in pieces of whole lines, each line with its newline."""
    while offset < end:
        data = os.pread(fd, min(size, end - offset), offset)
        whole = data.rfind(b"\n") + 1
        if not whole:
            data = b"".join(line + b"\n" for line in read_lines(fd, offset, end, 2 * size))
            whole = len(data)
        if not whole:
            return
        offset += whole
        yield data[:whole]


def walk(fd: int, offset: int, end: int, size: int = CHUNK) -> Iterator[bytes]:
    """Yield every whole line between ``offset`` and ``end``. Memory stays near ``size`` and the longest line."""
    while offset < end:
        lines = read_lines(fd, offset, end, size)
        if not lines:
            return
        offset += sum(map(len, lines)) + len(lines)
        yield from lines


class SparseIndex:
    """Offsets of some numbered lines of a file. The others are found by counting newlines.

    One entry (16 bytes) for 64 lines or 64 KiB, whichever comes first: at most 2.5 KB for 10,000 small lines and 16
    KB for 64 MB. A look-up reads at most 64 KiB and one line.

    Attributes:
        next_seq, next_offset: lines before both need no entry. Only to be read.
    """

    EVERY_LINES = 64
    EVERY_BYTES = 64 * 1024

    def __init__(self) -> None:
        self._seqs = array("Q")
        self._offsets = array("Q")
        self.next_seq = 0
        self.next_offset = 0

    def add(self, seq: int, offset: int) -> None:
        """Note that line ``seq`` begins at ``offset``. Call it for each line in order."""
        if seq >= self.next_seq or offset >= self.next_offset:
            self._seqs.append(seq)
            self._offsets.append(offset)
            self.next_seq, self.next_offset = seq + self.EVERY_LINES, offset + self.EVERY_BYTES

    def add_all(self, seq: int, offset: int, lines: Sequence[bytes]) -> None:
        """Note that these lines begin at ``offset`` with number ``seq``."""
        for number, line in enumerate(lines, seq):
            self.add(number, offset)
            offset += len(line) + 1

    def find(self, fd: int, seq: int, end: int) -> int:
        """Return the offset of line ``seq``, which must exist before ``end``."""
        at = bisect_right(self._seqs, seq) - 1
        here, offset = self._seqs[at], self._offsets[at]
        while here < seq:
            lines = read_lines(fd, offset, end, self.EVERY_BYTES)[: seq - here]
            if not lines:
                raise EOFError(f"line {seq} is not in the file")
            offset += sum(map(len, lines)) + len(lines)
            here += len(lines)
        return offset

    @property
    def nbytes(self) -> int:
        """Memory of the entries."""
        return (len(self._seqs) + len(self._offsets)) * self._seqs.itemsize
