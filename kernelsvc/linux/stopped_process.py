"""Continue processes that were stopped (SIGSTOP) while another process waits for them.

A stopped process looks alive: it exists and its sockets accept, but it never replies. If a process is found stopped
twice in a row while it is waited for, the caller's function continues it. A process that computes, waits for the disk
or is traced by a debugger has another state (proc_pid_stat(5)).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.linux import procfs

#: Seconds between two polls. A stop is found after one to two of them.
POLL_SECONDS = 0.2


class ResumeIfStopped:
    """Context manager: polls a process that must reply now.

    Args:
        pid: returns the process's pid as this process sees it, or 0 if there is none at the moment.
        go_on: called with the pid when it is stopped, and again if it still is two polls later. Must not raise.
    """

    def __init__(self, pid: Callable[[], int], go_on: Callable[[int], None]) -> None:
        self._pid = pid
        self._go_on = go_on
        self._before = 0
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(POLL_SECONDS, self._poll)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_SECONDS, self._poll)
        now = self._pid()
        info = procfs.stat(now) if now else None
        # proc_pid_stat(5): "T" is a process that a signal stopped. One that a debugger stopped has "t".
        stopped = now if info is not None and info.state == "T" else 0
        if stopped and stopped == self._before:
            self._go_on(stopped)
            stopped = 0
        self._before = stopped
