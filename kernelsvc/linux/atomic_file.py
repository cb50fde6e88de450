"""Replace a file so that every reader sees the old content or the new content, complete."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make created, renamed and removed entries of a directory durable.

    fsync(2): "Calling fsync() does not necessarily ensure that the entry in the directory containing the file has also
    reached disk. For that an explicit fsync() on a file descriptor for the directory is also needed."

    Raises:
        OSError: the entries may not be durable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: Path) -> None:
    """Make all changes of a file system durable. sync(2) would wait for those of every other disk, too.

    Args:
        path: a directory in it.

    Raises:
        OSError: the changes may not be durable.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # Python has no syncfs(2).
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(fd)


def replace(path: Path, fill: Callable[[int], None], *, durable: bool = False, mode: int = 0o600) -> None:
    """Write a new file and rename it over ``path``. rename(2) replaces the old file atomically.

    The temporary name is always the same, so the next write replaces the rest of a crashed one. One writer at a time.

    Args:
        path: the file to replace or make.
        fill: writes the content to a descriptor.
        durable: whether the file must survive a power cut (file and directory are synced). Otherwise the old one may be
            there after a power cut.
        mode: permissions of the new file.

    Raises:
        OSError: the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            fill(fd)
            if durable:
                # Before the rename. A filesystem with delayed allocation may otherwise write the new name first, and a
                # power cut in between would leave an empty file.
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` at the file's position. write(2) may write less in one call.

    Raises:
        OSError: a part is not written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_bytes(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace a file by ``data``, see ``replace``.

    Raises:
        OSError: the old file is unchanged.
    """
    replace(path, lambda fd: write_all(fd, data), durable=durable, mode=mode)
