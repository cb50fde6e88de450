"""Connect to a Unix socket in a directory that another user's code can change.

connect(2) follows symbolic links. Code that can replace the socket by a link could make a privileged process connect to
any socket of the machine, and send it whatever that process sends. So the name is opened first, without following it,
and the connection is made to the opened inode (proc(5), ``/proc/self/fd``). There is no moment between check and use.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from kernelsvc.linux import peer, procfs


def connect_nofollow(sock: socket.socket, path: str, *, family: int | None = None) -> None:
    """Connect a nonblocking Unix socket to the socket at ``path``, which must not be a link.

    Args:
        sock: the socket.
        path: absolute. Only the last name and its directory are in reach of untrusted code.
        family: pid of a process. The listener must be it, its descendant, or its sibling. None does not check.

    Raises:
        PermissionError: the name is not a socket's, or the listener is another process.
        OSError: no process listens there, or the path is too long.
    """
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # open(2): with O_PATH and O_NOFOLLOW a symbolic link is opened itself.
        inode = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        if not stat.S_ISSOCK(os.fstat(inode).st_mode):
            raise PermissionError(errno.EPERM, "it is not a socket")
        sock.connect(f"/proc/self/fd/{inode}")
    finally:
        os.close(inode)
    if family is not None and not _related(peer.credentials(sock).pid, family):
        raise PermissionError(errno.EPERM, "another process listens there")


def _related(pid: int, family: int) -> bool:
    """Return whether a process is another one, its descendant, or its sibling with descendants.

    A kernel may be started by a wrapper. A process whose parent has ended belongs to the init, which is the parent of
    the first one.
    """
    first = procfs.stat(family)
    roots = {family, first.parent} if first is not None else {family}
    while pid > 1:
        if pid in roots:
            return True
        found = procfs.stat(pid)
        if found is None:
            return False
        pid = found.parent
    return False
