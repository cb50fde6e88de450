"""A branch's own copy of its parent's directory, made by the branch itself.

Inside, the copy can read and write no more than the session may, so links,
devices and directories swapped in mid-copy can harm nobody: there is nothing to
be tricked into reading. Where the filesystem can (btrfs, XFS, bcachefs), files
share their blocks until one is written (ioctl_ficlone(2)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat

_FICLONE = 0x40049409
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS}


class DirectoryTooLarge(Exception):
    """The directory holds more than a branch may have."""


def size_of(directory: str) -> int:
    """Bytes on disk below ``directory``; links are not followed."""
    total, waiting = 0, [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                total += status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
    return total


def copy(source: str, target: str, most: int | None) -> None:
    """Copy what is in ``source`` into ``target``, an empty directory.

    Links are copied as links; FIFOs, sockets and devices are left out.

    Args:
        source: the parent's directory.
        target: the branch's.
        most: bytes that a branch may have; None for any.

    Raises:
        FolderTooLarge: there is more; nothing was copied.
        OSError: the disk refused.
    """
    if most is not None and (size := size_of(source)) > most:
        raise DirectoryTooLarge(
            f"the directory holds {size} bytes and a branch may have {most}; delete some files first"
        )
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
            elif entry.is_dir(follow_symlinks=False):
                os.mkdir(path)
                copy(entry.path, path, None)
                shutil.copystat(entry.path, path)
            elif entry.is_file(follow_symlinks=False):
                _copy_file(entry.path, path)


def _copy_file(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            shutil.copyfileobj(reader, writer, 1 << 20)
    shutil.copystat(source, target)
