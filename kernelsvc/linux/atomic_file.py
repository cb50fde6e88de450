"""Replacing a file so that every reader sees the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable.

    Raises:
        OSError: it may not be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, fill: Callable[[int], None], *, durable: bool = False, mode: int = 0o600) -> None:
    """Write a new file beside ``path`` and rename it over it.

    The temporary name is always the same, so what a crash leaves is overwritten by
    the next write. One writer at a time.

    Args:
        path: what is replaced or made.
        fill: writes the content to a descriptor.
        durable: whether it must survive a power cut (file and directory synced);
            otherwise a cut may leave the old one.
        mode: the new file's permissions.

    Raises:
        OSError: the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            fill(fd)
            if durable:
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
    """Write all of ``data`` at the file's position; write(2) may take less at a time.

    Raises:
        OSError: not all of it was written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_bytes(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """``replace`` with the content at hand.

    Raises:
        OSError: the old file is as it was.
    """
    replace(path, lambda fd: write_all(fd, data), durable=durable, mode=mode)
