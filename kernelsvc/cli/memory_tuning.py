"""How a server's process deals with memory: set once, when everything is imported.

Both settings are about work that nobody sees in a profile of Python functions. The
garbage collector looks at all that a cell makes, three times a cell, and at everything
that was ever imported now and then; nearly nothing of it is garbage that counting
references leaves behind. And glibc gives each block above some size back to Linux as
soon as it is free, so that every copy of a large result is 2,500 page faults of fresh
memory: a third of what 10 MB of HTML cost the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

#: malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes that are free at the heap's end before they go back to Linux: what a result of 10 MB takes on its way.
KEPT_BYTES = 64 * 1024 * 1024
#: Blocks up to this size come from the heap; the most that glibc itself would ever come to.
HEAP_BYTES = 32 * 1024 * 1024
#: Objects made before the youngest are looked at, and how often that is done before the older ones are: seldom enough
#: for cells not to pay for it, often enough for what thousands of connections leave behind in circles.
THRESHOLDS = 20_000, 10, 10


def tune() -> None:
    """Make this process quick at what a server does. Without glibc, only the garbage collector is told."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
