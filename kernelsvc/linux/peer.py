"""The process at the other end of a Unix socket, as Linux vouches for it (unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("3i")
_SO_PEERPIDFD = 77  # asm-generic/socket.h since Linux 6.5; Python has no name for it


class PeerCredentials(NamedTuple):
    """Process, user and group of the peer at the time of the connection.

    unix(7), ``SO_PEERCRED``: "The returned credentials are those that were in effect at the time of the call to
    connect(2), listen(2), or socketpair(2)."

    Attributes:
        pid: in the pid namespace of this process, or 0 if the peer is not visible in it.
        uid: effective user id.
        gid: effective group id.
    """

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> PeerCredentials:
    """Return the credentials of the peer of a connected Unix socket.

    Raises:
        OSError: the socket is closed or not connected.
    """
    return PeerCredentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def pidfd(sock: socket.socket) -> int:
    """Return a pidfd of the peer process. The caller closes it.

    Before Linux 6.5 the descriptor is opened by pid, which may stand for another process by then: the caller must
    check the process.

    Raises:
        OSError: the process has ended.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(credentials(sock).pid)
