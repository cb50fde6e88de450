"""Idmapped mounts: a directory that belongs to the server's user on disk and to the session's user inside.

For a kernel host that is root and a server that is not. The server makes a session's directory and reads its files.
The session runs under a user id of its own. If the directory belonged to that user on disk, the server could not read
it. So the mount translates: the server's files on disk are the session's inside, and the files that the session makes
are the server's on disk. All other owners are mapped to the overflow user. See mount_setattr(2),
``MOUNT_ATTR_IDMAP``: since Linux 5.12, for most filesystems (tmpfs since 6.3).
"""

from __future__ import annotations

import contextlib
import os

from kernelsvc.guest.confine import linux as lx


def make_map(owner: tuple[int, int], inside: tuple[int, int]) -> int:
    """Make a user namespace that holds the translation. Return a descriptor of it, which the caller closes.

    Args:
        owner: user and group on disk.
        inside: user and group in the mount.

    Raises:
        OSError: this process may not make one.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    release, release_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(release_end)
            lx.unshare(["user"])
            os.write(ready_end, b"1")
            os.read(release, 1)
        finally:
            os._exit(0)
    os.close(ready_end)
    os.close(release)
    try:
        if not os.read(ready, 1):
            raise PermissionError("Linux refused a user namespace for the id map")
        lx.write_file(f"/proc/{pid}/uid_map", f"{owner[0]} {inside[0]} 1")
        lx.write_file(f"/proc/{pid}/gid_map", f"{owner[1]} {inside[1]} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(release_end)
        with contextlib.suppress(ChildProcessError):  # the host's SIGCHLD handler has reaped it
            os.waitpid(pid, 0)


def can_map(directory: str, map_fd: int) -> bool:
    """Return whether the filesystem of ``directory`` supports idmapped mounts. Attaches nothing."""
    try:
        os.close(lx.mapped_tree(directory, 0, map_fd))
    except OSError:
        return False
    return True


def make_owned(path: str, owner: os.stat_result) -> None:
    """Make a directory, if it does not exist, that belongs to the owner of its parent.

    The parent belongs to another user, who may replace the new directory by a link. So it is opened without following a
    link, and its owner is changed through the descriptor.

    Raises:
        OSError: Linux refused.
    """
    parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        name = os.path.basename(path)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            return
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            os.close(made)
    finally:
        os.close(parent)
