"""Kernels that were stopped (SIGSTOP) in the middle of a cell.

Such a process is not dead to Linux, its socket is open, and it will never answer:
the cell would last until its limit. One that is stopped at two looks in a row is
ended, and the session goes on from its checkpoint. Whoever stops a kernel for less
than ``LOOK_SECONDS``, or while no cell runs, is left alone. What computes, waits for
the disk or is held by a debugger is in another state (proc(5)) and is not meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from kernelsvc.linux import procfs
from kernelsvc.session import Session

#: Seconds between two looks. A stop is found after one to two of them.
LOOK_SECONDS = 0.3


class StoppedKernelDetector:
    """Looks at every session's kernel while a cell runs in it.

    Args:
        sessions: those that live now.
    """

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        self._sessions = sessions
        self._before: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Look for ever. Safe to cancel."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look once; end what was still at the last look too."""
        still: set[tuple[str, int]] = set()
        for session in self._sessions():
            info = session.info
            if session.machine.running is None or info is None or not info.pid:
                continue
            about = procfs.stat(info.pid)
            if about is None or about.state != "T":
                continue
            mark = session.id, info.pid
            still.add(mark)
            if mark in self._before:
                session.guard.on_kernel_stopped()
        self._before = still
