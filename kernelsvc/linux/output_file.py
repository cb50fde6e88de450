"""Write a file to a path that a user gave: whole or not at all, and never in the place of anything but a file.

rename(2) replaces whatever has the new name, unless it is a directory. As root, ``backup /dev/null`` would put a
regular file in the place of the device. So a regular file is written beside its target and renamed, a FIFO or character
device (a terminal, ``/dev/stdout``) gets the finished content through an open file, and everything else is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kernelsvc.errors import BadRequest

_REFUSED = ((stat.S_ISDIR, "is a directory"), (stat.S_ISSOCK, "is a socket"), (stat.S_ISBLK, "is a block device"))
#: Errors of a disk. Others that the block raises, such as those of a connection, are its own.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_stream(path: Path) -> bool:
    """Return whether an output for this path is written through instead of renamed: a FIFO or a character device.

    Raises:
        BadRequest: it is a directory, a socket, a block device, or a symbolic link to a regular file or to nothing.
    """
    try:
        # A link is followed here: /dev/stdout leads to a pipe or a terminal.
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise BadRequest(f"Can't write {path}: {error.strerror}.") from None
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    kind = next((words for test, words in _REFUSED if test(mode)), None)
    # A rename would replace the link. To write to its target would let whoever made the link choose the place.
    kind = "is a symbolic link" if kind is None and path.is_symlink() else kind
    if kind is not None:
        raise BadRequest(f"Can't write {path}: it {kind}. Name a file.")
    return False


@contextlib.contextmanager
def output_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file whose content is at ``path`` when the block ends. If the block fails, ``path`` is unchanged.

    Args:
        path: the target. An existing regular file is replaced.
        mode: permissions of the file, without those that the umask forbids.

    Raises:
        BadRequest: the target can't be replaced (see ``is_stream``) or written.
    """
    if is_stream(path):
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            # Neither O_CREAT nor O_TRUNC: nothing is made or shortened. open(2): O_NOCTTY takes no terminal as its own.
            with _refusing(path), open(os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), "wb") as stream:
                shutil.copyfileobj(spool, stream)
        return
    # In the target's directory: rename(2) fails with EXDEV across file systems.
    part = path.with_name(f".{secrets.token_hex(6)}.part")
    with _refusing(path):
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with _refusing(path, _OF_DISK), open(fd, "w+b") as file:
            yield file
        # The target may have changed meanwhile.
        if is_stream(path):
            raise BadRequest(f"Can't write {path}: it is a pipe or a device now. Name a file.")
        with _refusing(path):
            part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


@contextlib.contextmanager
def _refusing(path: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        raise BadRequest(f"Can't write {path}: {error.strerror}.") from None
