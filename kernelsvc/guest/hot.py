"""Pages that the next cell will write: given to this process before it needs them.

After a fork every page is shared, and the first write to one is a fault that copies
it. A cell as small as ``1 + 1`` writes some 1,400 of them, reference counts mostly,
and always about the same ones. Which ones shows when a cell has run between two forks
and nothing was taken after the first: they are this process's alone then, and are read
off ``/proc/self/pagemap``. From then on they are taken right after each fork, many at a
time (madvise(2), MADV_POPULATE_WRITE, which changes no byte), while nobody waits; now
and then a fork goes by without, and they are read anew.

Long runs are left out: they are data, written once, and not what every cell touches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

#: Pages taken at most, and in the longest run that is taken; and the largest mapping that is looked through, in bytes.
MOST_PAGES, MOST_RUN, MOST_MAPPED = 4096, 64, 256 << 20
#: For how many forks what was seen is believed.
LASTS = 32
_PAGE = 4096
_POPULATE_WRITE = 23
#: Bits of an entry's highest byte (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _FILE, _EXCLUSIVE = 0x80, 0x20, 0x01
_OURS = bytes((byte & (_PRESENT | _FILE | _EXCLUSIVE)) == _PRESENT | _EXCLUSIVE for byte in range(256))
_RUN = re.compile(rb"\x01+")
_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 \d+", re.MULTILINE)

Range = tuple[int, int]


class Hot:
    """What is taken after a fork. A copy learns its own."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._left = 0
        self._bare = False

    def forking(self, mapped: str) -> None:
        """Look, if there is something to be seen: call it right before a fork.

        Args:
            mapped: what ``/proc/self/maps`` says.
        """
        if self._bare:
            self._ranges, self._left, self._bare = written(mapped), LASTS, False

    def forked(self) -> None:
        """In the original, when it has said that it forked."""
        if self._left:
            self._left -= 1
            take(self._ranges)
        else:
            self._bare = True


def written(mapped: str) -> list[Range]:
    """What is this process's alone, as address and length, in short runs.

    Args:
        mapped: what ``/proc/self/maps`` says.
    """
    found: list[Range] = []
    left = MOST_PAGES
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for begin, end in _mappings(mapped):
                pagemap.seek(begin // _PAGE * 8)
                entries = pagemap.read((end - begin) // _PAGE * 8)
                for first, pages in runs(entries):
                    left -= pages
                    if left < 0:
                        return found
                    found.append((begin + first * _PAGE, pages * _PAGE))
    except OSError:
        return []
    return found


def runs(entries: bytes) -> Iterator[Range]:
    """First page and number of pages of each short run of pages that are ours.

    Args:
        entries: of pagemap, 8 bytes for each page.
    """
    for run in _RUN.finditer(entries[7::8].translate(_OURS)):
        if run.end() - run.start() <= MOST_RUN:
            yield run.start(), run.end() - run.start()


def _mappings(mapped: str) -> Iterator[Range]:
    left = MOST_MAPPED
    for match in _WRITABLE.finditer(mapped):
        begin, end = int(match[1], 16), int(match[2], 16)
        if end - begin <= left:
            left -= end - begin
            yield begin, end


def take(ranges: list[Range]) -> None:
    """Make these pages this process's own. Best effort: what has been unmapped meanwhile is passed over."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in ranges:
        madvise(address, length, _POPULATE_WRITE)
