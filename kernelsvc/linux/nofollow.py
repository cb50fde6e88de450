"""Directories that are reached through directories alone.

A session may have the right to rename what it works in, and to put a link in its
place; who then opened the path would follow it to wherever it leads. So a path that
passes through what a session may change is walked from the root, each component
opened on its own relative to the one before, and no link is ever followed: there is
no moment between looking and using. The caller gives the path with the links that
are the machine's own resolved already.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_plain(path: str | Path, flags: int = os.O_PATH) -> int:
    """A descriptor of a directory; the caller closes it.

    Args:
        path: absolute.
        flags: for the directory itself.

    Raises:
        OSError: it isn't there; ENOTDIR or ELOOP where a link lies on the way or in its place.
    """
    parts = Path(os.path.abspath(path)).parts
    current = os.open(parts[0], _STEP if len(parts) > 1 else flags | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts[1:], 2):
            wanted = _STEP if number < len(parts) else flags | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            following = os.open(part, wanted, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def stat_plain(path: str | Path) -> os.stat_result:
    """What that directory is.

    Raises:
        OSError: as ``open_plain``.
    """
    fd = open_plain(path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_plain(path: str | Path) -> bool:
    """Whether it is a directory, and no link lies on the way."""
    with contextlib.suppress(OSError):
        stat_plain(path)
        return True
    return False


def make_plain(path: str | Path, mode: int, owner: os.stat_result | None = None) -> None:
    """Make a directory.

    Args:
        path: absolute.
        mode: its permissions.
        owner: whose it shall be, where that is somebody else and we may say so.

    Raises:
        OSError: it is there already, a link lies on the way, or the disk refuses.
    """
    parent = open_plain(os.path.dirname(os.path.abspath(path)))
    try:
        name = os.path.basename(path)
        os.mkdir(name, mode, dir_fd=parent)
        if owner is not None and owner.st_uid != os.geteuid():
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchown(made, owner.st_uid, owner.st_gid)
            finally:
                os.close(made)
    finally:
        os.close(parent)
