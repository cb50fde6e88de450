"""Processes that were stopped (SIGSTOP) while somebody waits for them.

Such a process is not dead to Linux and will never answer. One that is seen stopped
twice in a row while it is waited for is told to go on; what is done if that doesn't
help is for the caller. What computes, waits for the disk or is held by a debugger is
in another state (proc(5)) and is not meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.linux import procfs

#: Seconds between two looks. A stop is found after one to two of them.
LOOK_SECONDS = 0.2


class ResumeIfStopped:
    """``with``: an eye on the process that must do something now.

    Args:
        pid: says which one it is, as this process sees it, or 0 if there is none at the moment.
        go_on: called with the pid when it is stopped, and again if it still is two looks later; raises nothing.
    """

    def __init__(self, pid: Callable[[], int], go_on: Callable[[int], None]) -> None:
        self._pid = pid
        self._go_on = go_on
        self._before = 0
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
        now = self._pid()
        about = procfs.stat(now) if now else None
        still = now if about is not None and about.state == "T" else 0
        if still and still == self._before:
            self._go_on(still)
            still = 0
        self._before = still
