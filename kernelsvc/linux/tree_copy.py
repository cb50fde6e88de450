"""Copy a directory tree that hostile code wrote, by descriptor. Nothing outside of it is read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

#: Most bytes of one sendfile(2), and deepest directory that is copied.
_PIECE, MAX_DEPTH = 1 << 20, 64
#: ioctl_ficlone(2): share the blocks of two files until one is written.
_FICLONE = 0x40049409
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class TreeCopy:
    """One copy of a tree.

    Links are copied as links. Pipes, sockets and devices are skipped, and files with a second name, which may lie
    outside of the tree. Permissions are kept without set-user-id bits, and so are times. The owner is not.

    Args:
        most_bytes: bytes that may be copied. None for no limit.
        most_files: files that may be copied. None for no limit.

    Attributes:
        skipped: paths of files that could not be read, at most ``MAX_SKIPPED``.
    """

    MAX_SKIPPED = 20

    def __init__(self, most_bytes: int | None, most_files: int | None) -> None:
        self._bytes, self._files = most_bytes, most_files
        self.skipped: list[str] = []

    def copy(self, source: int, target: int, at: str = "", depth: int = 0) -> None:
        """Copy the content of a directory. Slow for a large tree: call it in a thread.

        Args:
            source: descriptor of the directory.
            target: descriptor of an empty directory, in which no other process writes.
            at: path of ``source`` below the top, with a ``/`` at its end.
            depth: number of directories above.

        Raises:
            OSError: EFBIG above a limit. Otherwise the disk is full or failed.
        """
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            self._files = _less(self._files, 1)
            try:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
                if stat.S_ISLNK(info.st_mode):
                    os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                    continue
                kind = _DIRECTORY if stat.S_ISDIR(info.st_mode) else _READ
                opened = os.open(name, kind, dir_fd=source) if _is_copied(info) and depth < MAX_DEPTH else -1
            except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
                self._skip(at + name, error)
                continue
            if opened < 0:
                self._skip(at + name, None)
                continue
            try:
                self._copy_opened(opened, target, name, at, depth)
            finally:
                os.close(opened)

    def _copy_opened(self, opened: int, target: int, name: str, at: str, depth: int) -> None:
        info = os.fstat(opened)  # a cell may have replaced the file since it was listed
        if not _is_copied(info):
            self._skip(at + name, None)
        elif stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            made = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self.copy(opened, made, f"{at}{name}/", depth + 1)
                _copy_status(info, made)
            finally:
                os.close(made)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=target)
            try:
                self._copy_data(opened, made, info.st_blocks * 512)
                _copy_status(info, made)
            finally:
                os.close(made)

    def _copy_data(self, opened: int, made: int, size: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(made, _FICLONE, opened)
            self._bytes = _less(self._bytes, size)
            return
        while (count := os.sendfile(made, opened, None, _PIECE)) > 0:
            self._bytes = _less(self._bytes, count)

    def _skip(self, path: str, error: OSError | None) -> None:
        if not isinstance(error, FileNotFoundError) and len(self.skipped) < self.MAX_SKIPPED:
            self.skipped.append(os.fsencode(path).decode("utf-8", "replace"))


def _is_copied(info: os.stat_result) -> bool:
    return stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink == 1)


def _less(left: int | None, by: int) -> int | None:
    if left is not None and left < by:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return None if left is None else left - by


def _copy_status(info: os.stat_result, made: int) -> None:
    os.fchmod(made, stat.S_IMODE(info.st_mode) & 0o777)
    os.utime(made, ns=(info.st_atime_ns, info.st_mtime_ns))
