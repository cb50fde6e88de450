"""Open directories without following any link on the path.

A session may be allowed to rename the directory that it works in, and to put a link in its place. Opening the path
would follow the link. So a path through directories that a session can change is walked from the root: each component
is opened relative to the one before with ``O_NOFOLLOW`` (open(2)). There is no moment between a check and a use. The
caller passes the path with the machine's own links resolved.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(path: str | Path, flags: int = os.O_PATH) -> int:
    """Open a directory. The caller closes the descriptor.

    Args:
        path: absolute.
        flags: for the directory itself.

    Raises:
        OSError: it does not exist, or ENOTDIR or ELOOP if a component is a link.
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


def stat_directory(path: str | Path) -> os.stat_result:
    """Return the status of a directory.

    Raises:
        OSError: see ``open_directory``.
    """
    fd = open_directory(path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def is_directory(path: str | Path) -> bool:
    """Return whether the path is a directory and no component is a link."""
    with contextlib.suppress(OSError):
        stat_directory(path)
        return True
    return False


def make_directory(path: str | Path, mode: int, owner: os.stat_result | None = None) -> None:
    """Make a directory.

    Args:
        path: absolute.
        mode: its permissions.
        owner: status of a file whose owner it gets, if that is another user and this process may change it.

    Raises:
        OSError: it exists already, a component is a link, or the disk failed.
    """
    parent = open_directory(os.path.dirname(os.path.abspath(path)))
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


def walk(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield a directory and all below it: a descriptor, valid until the next step, and the names of its entries.

    Hostile code may have nested them 100,000 levels deep. So this uses two descriptors whatever the depth, and no path
    (os.fwalk has a descriptor and a path for each level). The way up is ``..``: no process may move directories of the
    tree meanwhile.

    Raises:
        OSError: a directory can't be read, or was moved.
    """
    here = os.open(path, _READ)
    above: list[tuple[int, list[str]]] = []  # of each level: inode, directories not visited yet
    try:
        while True:
            with os.scandir(here) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            yield here, [name for name, _ in found]
            above.append((os.fstat(here).st_ino, [name for name, is_directory in found if is_directory]))
            while not above[-1][1]:
                above.pop()
                if not above:
                    return
                here = _go(here, "..")
                if os.fstat(here).st_ino != above[-1][0]:
                    raise OSError(errno.ESTALE, "a directory was moved", path)
            here = _go(here, above[-1][1].pop())
    finally:
        os.close(here)


def _go(here: int, name: str) -> int:
    following = os.open(name, _READ, dir_fd=here)
    os.close(here)
    return following
