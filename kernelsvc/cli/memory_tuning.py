"""Tune the garbage collector and malloc of the server process, after all imports.

A profile of Python functions does not show these costs. By default the collector examines the new objects of a cell
three times, and now and then all imported modules. Nearly none of them are cyclic garbage. And glibc returns each
freed block above 128 KiB to Linux (mallopt(3), M_MMAP_THRESHOLD). A copy of a 10 MB result then takes 2,500 page
faults, a third of the server's time for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

#: Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Free bytes at the end of the heap above which glibc returns them to Linux: enough for the copies of a 10 MB result.
KEPT_BYTES = 64 * 1024 * 1024
#: Blocks up to this size come from the heap. It is the maximum of glibc's dynamic threshold on 64-bit systems.
HEAP_BYTES = 32 * 1024 * 1024
#: Arguments of gc.set_threshold(). Rare enough that cells do not pay, and often enough for the cyclic garbage of
#: thousands of connections.
THRESHOLDS = 20_000, 10, 10


def tune() -> None:
    """Apply the settings to this process. Without glibc, only those of the garbage collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
