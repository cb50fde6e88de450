"""A directory that stays its owner's on disk and is the session's own inside: idmapped mounts.

For a kernel host that is root and a server that is not. The server makes a session's
directory and reads what comes to lie in it; the session runs under a user id of its
own, which may not have the directory on disk, or the server could no longer read
it. So the mount translates: what the server owns on disk is the session's inside,
and what the session makes is the server's on disk. Everything else in there is
nobody's. See mount_setattr(2), ``MOUNT_ATTR_IDMAP``; since Linux 5.12, for most
filesystems (tmpfs since 6.3).
"""

from __future__ import annotations

import contextlib
import os

from kernelsvc.guest.confine import linux as lx


def make_map(owner: tuple[int, int], inside: tuple[int, int]) -> int:
    """A user namespace that stands for the translation; a descriptor, the caller's.

    Args:
        owner: user and group on disk.
        inside: user and group that they are in the mount.

    Raises:
        OSError: this process may not make one.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    hold, hold_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold_end)
            lx.unshare(["user"])
            os.write(ready_end, b"1")
            os.read(hold, 1)
        finally:
            os._exit(0)
    os.close(ready_end)
    os.close(hold)
    try:
        if not os.read(ready, 1):
            raise PermissionError("a user namespace for the map of owners can't be made")
        lx.write_file(f"/proc/{pid}/uid_map", f"{owner[0]} {inside[0]} 1")
        lx.write_file(f"/proc/{pid}/gid_map", f"{owner[1]} {inside[1]} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(hold_end)
        with contextlib.suppress(ChildProcessError):  # whoever waits for every child was quicker
            os.waitpid(pid, 0)


def can_map(directory: str, map_fd: int) -> bool:
    """Whether the filesystem of ``directory`` can be mounted so; nothing is attached anywhere."""
    try:
        os.close(lx.mapped_tree(directory, 0, map_fd))
    except OSError:
        return False
    return True


def make_owned(path: str, owner: os.stat_result) -> None:
    """Make a directory, if it isn't there, that belongs to the owner of its parent.

    The parent is another user's: what was made is opened without following a link
    and only then given away.

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
