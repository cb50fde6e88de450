"""Pages that the next cell will write: given to this process before it needs them.

After a fork every page is shared, and the first write to one is a fault that copies
it. A cell as small as ``1 + 1`` writes some 1,400 of them, reference counts mostly,
and always about the same ones. Which ones shows when a cell has run between two forks
and nothing was taken after the first: they are this process's alone then, and are read
off ``/proc/self/pagemap``. From then on they are taken right after each fork, many at a
time (madvise(2), MADV_POPULATE_WRITE, which changes no byte), while nobody waits; now
and then two forks go by without, and they are read anew.

A page that is taken and then not written costs memory: the copy has it to itself for
nothing. So only what was written twice, between three forks, counts; looking leaves as
little behind as can be, or it would see itself; and long runs are left out, for they are
data, written once, and not what every cell touches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

from kernelsvc.guest.forking.proc_maps import ProcMaps

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
_WRITABLE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 \d+", re.MULTILINE)

Range = tuple[int, int]


class PagePrefault:
    """What is taken after a fork. A copy learns its own."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._left = 0
        self._bare = False
        self._once: list[Range] | None = None

    def forking(self, mapped: ProcMaps) -> None:
        """Look, if there is something to be seen: call it right before a fork.

        Args:
            mapped: just read.
        """
        if not self._bare:
            return
        found = written(mapped)
        if self._once is None:
            self._once = found
        else:
            self._ranges, self._left, self._bare = common(self._once, found), LASTS, False
            self._once = None

    def forked(self) -> None:
        """In the original, when it has said that it forked."""
        if self._left:
            self._left -= 1
            populate(self._ranges)
        else:
            self._bare = True


def written(mapped: ProcMaps) -> list[Range]:
    """What is this process's alone, as address and length, in short runs.

    Args:
        mapped: just read.
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


def common(one: list[Range], other: list[Range]) -> list[Range]:
    """What is in both; each in order, and of ranges that do not overlap."""
    found: list[Range] = []
    mine, theirs = iter(one), iter(other)
    a, b = next(mine, None), next(theirs, None)
    while a and b:
        begin, end = max(a[0], b[0]), min(sum(a), sum(b))
        if begin < end:
            found.append((begin, end - begin))
        if sum(a) < sum(b):
            a = next(mine, None)
        else:
            b = next(theirs, None)
    return found


def runs(entries: bytes) -> Iterator[Range]:
    """First page and number of pages of each short run of pages that are ours.

    Args:
        entries: of pagemap, 8 bytes for each page.
    """
    for run in _RUN.finditer(entries[7::8].translate(_OURS)):
        if run.end() - run.start() <= MOST_RUN:
            yield run.start(), run.end() - run.start()


def _mappings(mapped: ProcMaps) -> Iterator[Range]:
    left = MOST_MAPPED
    for match in mapped.search(_WRITABLE):
        begin, end = int(match[1], 16), int(match[2], 16)
        if end - begin <= left:
            left -= end - begin
            yield begin, end


def populate(ranges: list[Range]) -> None:
    """Make these pages this process's own. Best effort: what has been unmapped meanwhile is passed over."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in ranges:
        madvise(address, length, _POPULATE_WRITE)
