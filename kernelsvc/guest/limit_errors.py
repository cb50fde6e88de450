"""Which limit an exception shows, by the error that Linux returned to the code.

The reply's metadata carries the result, and clients display it. It comes from inside the sandbox, so it only affects
messages to its own session.
"""

from __future__ import annotations

import _thread
import errno
import os
from typing import Any

_DISK = {errno.EFBIG, errno.EDQUOT}
_SCRATCH = ("/tmp", "/dev/shm")
#: Number of causes of an exception that are checked.
_DEPTH = 8


def limit_of(error: BaseException | None) -> dict[str, Any] | None:
    """Return the limit that made a cell fail as ``{"limit": NAME}``, or None.

    Args:
        error: The exception that the cell raised.
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
    # EAGAIN can also come from a non-blocking socket. It shows the process limit only if no thread can be started
    # (pthread_create(3), fork(2)).
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
    """Return which filesystem is full."""
    for path in _SCRATCH:
        try:
            stats = os.statvfs(path)
        except OSError:
            continue
        # The session has its own tmpfs. Where it has none, the path is on the disk of the machine.
        sized = stats.f_blocks and os.stat(path).st_dev != os.stat(".").st_dev
        if sized and (stats.f_bavail * stats.f_frsize < 1 << 16 or stats.f_favail == 0):
            return {"limit": "scratch", "bytes": stats.f_blocks * stats.f_frsize}
    return {"limit": "disk_bytes"}
