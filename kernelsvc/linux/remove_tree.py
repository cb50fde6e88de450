"""Remove a directory that hostile code has filled.

A kernel may leave a tree a million levels deep (deeper than Python recurses, longer than a path, more than the limit of
descriptors), directories without permissions, and links to anywhere. So no link is followed and no tree is descended:
each directory is moved up to the top, emptied there and removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it. Does nothing if it does not exist.

    Takes time in proportion to the number of files: call it in a thread.

    Raises:
        OSError: an entry could not be removed.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fchmod(top, 0o700)
        counter = 0
        while names := os.listdir(top):
            for name in names:
                counter = _remove_entry(top, name, counter)
    finally:
        os.close(top)
    path.rmdir()


def _remove_entry(top: int, name: str, counter: int) -> int:
    """Remove one entry of ``top``: unlink or move up its own entries first. Return the counter for new names."""
    try:
        os.unlink(name, dir_fd=top)
        return counter
    except (IsADirectoryError, PermissionError):
        # unlink(2): EISDIR for a directory on Linux, EPERM on others.
        with contextlib.suppress(OSError):
            os.chmod(name, 0o700, dir_fd=top)
    here = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for entry in os.listdir(here):
            try:
                os.unlink(entry, dir_fd=here)
            except (IsADirectoryError, PermissionError):
                # A directory that may not be written can't be moved: its ".." would change (rename(2), EACCES).
                with contextlib.suppress(OSError):
                    os.chmod(entry, 0o700, dir_fd=here)
                counter = _move_up(here, entry, top, counter)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=top)
    return counter


def _move_up(here: int, entry: str, top: int, counter: int) -> int:
    while True:
        counter += 1
        target = f".removing-{counter}"
        try:
            os.stat(target, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(entry, target, src_dir_fd=here, dst_dir_fd=top)
            return counter
