"""Copy a parent's directory for a branch, in the branch's own process.

Inside the sandbox the copy can read and write no more than the session may. So links, devices and directories that are
replaced during the copy are harmless. Where the filesystem supports it (btrfs, XFS, bcachefs), files share their blocks
until one is written (ioctl_ficlone(2)).
"""

from __future__ import annotations

import errno
import shutil

from kernelsvc.guest.private_modules import fcntl, open_file, os, stat

_FICLONE = 0x40049409
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS}


class DirectoryTooLarge(Exception):
    """The directory holds more bytes than a branch may have."""


def size_of(directory: str) -> int:
    """Return the bytes on disk below ``directory``. Links are not followed."""
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
    """Copy the contents of ``source`` into ``target``, an empty directory.

    Links are copied as links. FIFOs, sockets and devices are skipped.

    Args:
        source: The parent's directory.
        target: The branch's directory.
        most: Bytes that a branch may have, or None for no limit.

    Raises:
        DirectoryTooLarge: There are more bytes. Nothing was copied.
        OSError: A file could not be read or written.
    """
    if most is not None and (size := size_of(source)) > most:
        raise DirectoryTooLarge(
            f"the directory holds {size} bytes and a branch may have {most}. Delete some files first"
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
    with open_file(source, "rb", buffering=0) as reader, open_file(target, "xb", buffering=0) as writer:
        try:
            # Shares blocks until one side writes, all or nothing.
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            shutil.copyfileobj(reader, writer, 1 << 20)
    shutil.copystat(source, target)
