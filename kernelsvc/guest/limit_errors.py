"""Which cap an exception tells of: what the machine's kernel refused, as the code met it.

Said in the reply's metadata and only ever shown: it names the cause in words. What
it says is of no consequence to anybody but its own session.
"""

from __future__ import annotations

import _thread
import errno
import os
from typing import Any

_DISK = {errno.EFBIG, errno.EDQUOT}
_SCRATCH = ("/tmp", "/dev/shm")
#: How far back from an exception its causes are looked at.
_DEPTH = 8


def limit_of(error: BaseException | None) -> dict[str, Any] | None:
    """The cap that made a cell fail, as ``{"limit": NAME}``; None when it was none.

    Args:
        error: what the cell raised.
    """
    for _ in range(_DEPTH):
        if error is None:
            return None
        found = _one(error)
        if found is not None:
            return found
        error = error.__cause__ or error.__context__
    return None


def _one(error: BaseException) -> dict[str, Any] | None:
    if isinstance(error, MemoryError):
        return {"limit": "memory_bytes"}
    if isinstance(error, RuntimeError) and error.args == ("can't start new thread",):
        return {"limit": "processes"}
    return _of_number(error.errno) if isinstance(error, OSError) else None


def _of_number(number: int | None) -> dict[str, Any] | None:
    if number == errno.ENOMEM:
        return {"limit": "memory_bytes"}
    if number == errno.EMFILE:
        return {"limit": "open_files"}
    if number in _DISK:
        return {"limit": "disk_bytes"}
    if number == errno.ENOSPC:
        return _full()
    # A socket without data says EAGAIN too. Only where there is no room for a thread was it a fork that failed.
    if number == errno.EAGAIN and not _room_for_a_thread():
        return {"limit": "processes"}
    return None


def _room_for_a_thread() -> bool:
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        return False
    return True


def _full() -> dict[str, Any]:
    """Which filesystem has no room left."""
    for path in _SCRATCH:
        try:
            about = os.statvfs(path)
        except OSError:
            continue
        # A tmpfs of our own; where there is none, the path lies on the machine's disk.
        sized = about.f_blocks and os.stat(path).st_dev != os.stat(".").st_dev
        if sized and (about.f_bavail * about.f_frsize < 1 << 16 or about.f_favail == 0):
            return {"limit": "scratch", "bytes": about.f_blocks * about.f_frsize}
    return {"limit": "disk_bytes"}
