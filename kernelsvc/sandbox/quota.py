"""A hard limit of a session's files: project quotas, where the machine has them.

A filesystem mounted with ``prjquota`` (ext4 made with ``-O quota,project``, XFS) counts the files that carry a
project's number, and files made in a directory inherit the number. So each group of sessions becomes a project. There
is no mount, no image and nothing to clean up, and the limit survives a restart of the machine. Only root may set it,
so the sessions of other users are supervised. A session can't leave its project: the seccomp filter refuses that
ioctl. See quotactl(2) and ioctl_xfs_fsgetxattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import stat
import struct

from kernelsvc.linux.nofollow import walk
from kernelsvc.sandbox.syscall_table import NUMBERS

FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C_581F, 0x401C_5820
_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=IIIII8s")
#: struct if_dqblk (linux/quota.h), in blocks of 1024 bytes.
_DQBLK = struct.Struct("=QQQQQQQQI4x")
_BLOCK = 1024
_QIF_LIMITS = 1 | 4
_GETQUOTA, _SETQUOTA, _PROJECT = 0x80_0007, 0x80_0008, 2
#: First project number. Smaller numbers are for administrators.
_FIRST = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def is_available(directory: str) -> bool:
    """Return whether the filesystem of ``directory`` has project quotas that this process may set."""
    if os.geteuid() != 0:
        return False
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _quotactl(fd, _GETQUOTA, 0, bytearray(_DQBLK.size))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def limit(directory: str, maximum: int | None, files: int | None) -> None:
    """Limit the size of a directory, which may already hold files. No process may run in it now.

    Args:
        directory: becomes a project of its own, if it is none.
        maximum: bytes, or None for no limit.
        files: number of files and directories, or None for no limit.

    Raises:
        OSError: Linux refused.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags, _, _, project, _, _ = _FSXATTR.unpack(_attributes(fd))
        if not (project and flags & _PROJINHERIT):
            # The inode number is unique as long as the directory exists.
            project = _FIRST + os.fstat(fd).st_ino % ((1 << 31) - _FIRST)
            _assign_project(directory, project)
        blocks = 0 if maximum is None else max(1, maximum // _BLOCK)
        inodes = 0 if files is None else files
        _quotactl(
            fd, _SETQUOTA, project, bytearray(_DQBLK.pack(blocks, blocks, 0, inodes, inodes, 0, 0, 0, _QIF_LIMITS))
        )
    finally:
        os.close(fd)


def _assign_project(directory: str, project: int) -> None:
    """Give the project's number to the directory and to everything in it, without following a link."""
    for fd, names in walk(directory):
        _set_project(fd, project, inherit=True)
        for name in names:
            with contextlib.suppress(OSError):  # a link or a socket, which use almost no space
                if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    continue
                one = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
                try:
                    _set_project(one, project, inherit=False)
                finally:
                    os.close(one)


def _attributes(fd: int) -> bytes:
    buffer = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, FS_IOC_FSGETXATTR, buffer)
    return bytes(buffer)


def _set_project(fd: int, project: int, *, inherit: bool) -> None:
    flags, extent, extents, _, cow, rest = _FSXATTR.unpack(_attributes(fd))
    flags |= _PROJINHERIT if inherit else 0
    fcntl.ioctl(fd, FS_IOC_FSSETXATTR, _FSXATTR.pack(flags, extent, extents, project, cow, rest))


def _quotactl(fd: int, command: int, project: int, block: bytearray) -> None:
    number = NUMBERS[platform.machine()].get("quotactl_fd", -1)
    address = (ctypes.c_char * len(block)).from_buffer(block)
    if _libc.syscall(number, fd, ctypes.c_uint(command << 8 | _PROJECT), ctypes.c_uint(project), address) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
