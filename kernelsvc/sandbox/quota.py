"""A hard cap on a session's files: project quotas, where the machine has them.

A filesystem that is mounted with ``prjquota`` (ext4 made with ``-O quota,project``,
XFS) counts what carries a project's number, and what is made in a directory
inherits the number. So each family of sessions becomes a project: no mount, no
image, nothing to clean up, and it holds over a restart of the machine. Only root may
set it, so an ordinary user's sessions stay supervised. A session can't leave its
project: the filter refuses the ioctl that would. See quotactl(2), ioctl_xfs_fsgetxattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import struct

from kernelsvc.sandbox.syscall_table import NUMBERS

FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C_581F, 0x401C_5820
_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=IIIII8s")
#: struct if_dqblk (linux/quota.h), in blocks of 1024 bytes.
_DQBLK = struct.Struct("=QQQQQQQQI4x")
_BLOCK = 1024
_QIF_LIMITS = 1 | 4
_GETQUOTA, _SETQUOTA, _PROJECT = 0x80_0007, 0x80_0008, 2
#: Numbers below it are left to people.
_FIRST = 1 << 20
#: An inode for each so many bytes of the cap, and some more.
_BYTES_PER_INODE, _LEAST_INODES = 16 * 1024, 10_000

_libc = ctypes.CDLL(None, use_errno=True)


def is_available(directory: str) -> bool:
    """Whether quotas of projects are on where ``directory`` lies, and this process may set them."""
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


def limit(directory: str, most: int | None) -> None:
    """Cap what lies below ``directory``, which may have files already. Nothing may run in it now.

    Args:
        directory: becomes a project of its own, if it isn't one.
        most: bytes; None takes the cap away.

    Raises:
        OSError: Linux refused.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags, _, _, project, _, _ = _FSXATTR.unpack(_attributes(fd))
        if not (project and flags & _PROJINHERIT):
            # Unique as long as the directory is there, and its files with it.
            project = _FIRST + os.fstat(fd).st_ino % ((1 << 31) - _FIRST)
            _enroll(directory, project)
        blocks = 0 if most is None else max(1, most // _BLOCK)
        inodes = 0 if most is None else max(_LEAST_INODES, most // _BYTES_PER_INODE)
        _quotactl(
            fd, _SETQUOTA, project, bytearray(_DQBLK.pack(blocks, blocks, 0, inodes, inodes, 0, 0, 0, _QIF_LIMITS))
        )
    finally:
        os.close(fd)


def _enroll(directory: str, project: int) -> None:
    """Give the number to the directory and to all that lies in it, without following a link."""
    for _, _, files, fd in os.fwalk(directory, follow_symlinks=False):
        _set_project(fd, project, inherit=True)
        for name in files:
            with contextlib.suppress(OSError):  # a link, a socket: they hold next to nothing
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
