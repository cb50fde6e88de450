"""Prefault the pages that the next cell will write, after a fork.

After a fork every page is shared, and the first write to a page is a fault that copies it (fork(2)). A cell like ``1 +
1`` writes about 1,400 pages, mostly reference counts, and nearly the same ones each time. To find them, this module
skips prefaulting for two forks and reads from ``/proc/self/pagemap`` which pages are exclusive to this process after a
cell. From then on these pages are copied right after each fork, many at a time (madvise(2), MADV_POPULATE_WRITE, which
changes no byte), while no cell waits. Every ``FORKS_PER_MEASURE`` forks they are measured again.

A page that is copied and not written wastes memory. So only pages with two writes, between three forks, count.
The measurement itself writes as little as possible. Long runs are skipped, since they are data that is written once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kernelsvc.guest.forking.proc_maps import ProcMaps
from kernelsvc.guest.private_modules import ctypes, open_file

#: Most pages, most pages in one run, and the largest mapping that is searched, in bytes.
MOST_PAGES, MOST_RUN, MOST_MAPPED = 4096, 64, 256 << 20
#: Number of forks for which a measurement is used.
FORKS_PER_MEASURE = 32
_PAGE = 4096
_POPULATE_WRITE = 23
#: Bits in the highest byte of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _FILE, _EXCLUSIVE = 0x80, 0x20, 0x01
_EXCLUSIVE_ONLY = bytes((byte & (_PRESENT | _FILE | _EXCLUSIVE)) == _PRESENT | _EXCLUSIVE for byte in range(256))
_RUN = re.compile(rb"\x01+")
_WRITABLE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 \d+", re.MULTILINE)

Range = tuple[int, int]


class PagePrefault:
    """The pages that are copied after a fork. Each fork measures its own."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._left = 0
        self._measuring = False
        self._first_measure: list[Range] | None = None

    def forking(self, mapped: ProcMaps) -> None:
        """Measure if it is due. Call it right before a fork.

        Args:
            mapped: The maps, just read.
        """
        if not self._measuring:
            return
        found = written(mapped)
        if self._first_measure is None:
            self._first_measure = found
        else:
            self._ranges, self._left, self._measuring = common(self._first_measure, found), FORKS_PER_MEASURE, False
            self._first_measure = None

    def forked(self) -> None:
        """Copy the pages. Call it in the original after it has replied to the fork request."""
        if self._left:
            self._left -= 1
            populate(self._ranges)
        else:
            self._measuring = True


def written(mapped: ProcMaps) -> list[Range]:
    """Return the short runs of pages that are exclusive to this process, as address and length.

    Args:
        mapped: The maps, just read.
    """
    found: list[Range] = []
    left = MOST_PAGES
    try:
        with open_file("/proc/self/pagemap", "rb", buffering=0) as pagemap:
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
    """Return the intersection of two lists of ranges. Each is ordered and has no overlaps."""
    found: list[Range] = []
    first_ranges, other_ranges = iter(one), iter(other)
    a, b = next(first_ranges, None), next(other_ranges, None)
    while a and b:
        begin, end = max(a[0], b[0]), min(sum(a), sum(b))
        if begin < end:
            found.append((begin, end - begin))
        if sum(a) < sum(b):
            a = next(first_ranges, None)
        else:
            b = next(other_ranges, None)
    return found


def runs(entries: bytes) -> Iterator[Range]:
    """Yield first page and number of pages of each short run of exclusive pages.

    Args:
        entries: Pagemap entries, 8 bytes for each page.
    """
    for run in _RUN.finditer(entries[7::8].translate(_EXCLUSIVE_ONLY)):
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
    """Copy these pages. Errors are ignored: a page may have been unmapped."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, length in ranges:
        madvise(address, length, _POPULATE_WRITE)
