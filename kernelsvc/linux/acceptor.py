"""Accept connections on a listening socket, also when the process has no descriptor left.

accept(2) fails with EMFILE or ENFILE while the connection stays in the queue, so
that a level-triggered event loop calls it again immediately, without end. An
``Acceptor`` stops watching its socket for a moment instead, as libuv and nginx do,
and logs once per period. Every listening socket of the server and of the kernel
host is served by one.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

#: Connections that are accepted in one turn of the event loop. Those accepted before are read in between.
AT_ONCE = 32
#: Seconds for which an acceptor does not watch its socket after accept(2) has failed.
PAUSE_SECONDS = 0.2
#: Seconds between two log lines about failures of accept(2) on one socket.
LOG_SECONDS = 60.0
#: accept(2): "The per-process limit on the number of open file descriptors has been reached", the system-wide one,
#: and "Not enough free memory".
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Passes each new connection of one listening socket to a function, on the event loop.

    Args:
        listener: a listening socket that does not block. The caller closes it, after ``close``.
        take: receives each connection, not blocking, and its peer's address.
        loop: whose thread calls ``take``. The running loop when None. Call the constructor in that thread.
    """

    def __init__(
        self,
        listener: socket.socket,
        take: Callable[[socket.socket, Any], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._listener, self._take = listener, take
        self._loop = loop or asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._failures, self._logged_at = 0, float("-inf")
        self._closed = False
        self._watch()

    def close(self) -> None:
        """Accept no more connections. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._listener.fileno())

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._failed(error)
                    return
                # accept(2): "Linux accept() passes already-pending network errors on the new socket as an error code
                # from accept() [...] treating them like EAGAIN by retrying". The connection has left the queue.
                continue
            connection.setblocking(False)
            self._take(connection, address)
            if self._closed:
                return

    def _failed(self, error: OSError) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._watch)
        self._failures += 1
        now = self._loop.time()
        if now >= self._logged_at + LOG_SECONDS:
            log.warning(
                "%s accepts no connections for the moment: %s (%d times since the last such line). "
                "They wait until descriptors are free. Raise the limit with LimitNOFILE or 'ulimit -n'.",
                _name(self._listener),
                error.strerror,
                self._failures,
            )
            self._failures, self._logged_at = 0, now


def _name(listener: socket.socket) -> str:
    return f"The listening socket {listener.getsockname()!r}"


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of open files to the hard limit.

    The soft limit is 1024 on most systems for the sake of programs that call select(2). The event loop uses epoll(7).

    Returns:
        The soft limit from before, which child processes should begin with.
    """
    soft, hard = inherited_descriptor_limits()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


@functools.cache
def inherited_descriptor_limits() -> tuple[int, int]:
    """Return the soft and hard limit of open files that this process started with."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)
