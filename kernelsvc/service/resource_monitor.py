"""Resource use of the open sessions: measured at intervals, and compared with the limits that Linux does not enforce.

It also finds kernels that were stopped (SIGSTOP) in the middle of a cell. To
Linux such a process is alive: it exists and its socket accepts, but it never
replies, so its cell would last until its time limit. The server
ends a kernel that is stopped at two checks in a row, and the session continues from
its checkpoint. It does not end a kernel that is stopped for less than
``STOPPED_SECONDS``, or while no cell runs, or a process that computes, waits for the
disk or is traced by a debugger: its state is not ``T`` (proc_pid_stat(5)).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable

from kernelsvc.kernels.read_budget import ReadPauses
from kernelsvc.linux import procfs
from kernelsvc.model.limits import Usage
from kernelsvc.model.objects import Principal
from kernelsvc.model.usage_history import UsageHistory, UsageSample, sample_of
from kernelsvc.sandbox.watchdog import SessionUse, Watchdog, Watched, hard_limits
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session

log = logging.getLogger(__name__)

#: Seconds between two checks for stopped kernels. A stop is found after one to two of them.
STOPPED_SECONDS = 0.3


class ResourceMonitor:
    """Measure every open session at intervals. Implements ``UsageApi``.

    Args:
        registry: all sessions. It gets the last measured use of each.
        seconds: the time between two measurements.
        workspace_quota: returns the quota of the workspace with an address, in bytes.
    """

    def __init__(
        self,
        registry: SessionRegistry,
        seconds: float,
        workspace_quota: Callable[[str], int | None] = lambda address: None,
    ) -> None:
        self._registry = registry
        self._usage = registry.usage
        self._seconds = seconds
        self._histories: dict[str, UsageHistory] = {}
        self._workspace_quota = workspace_quota

    async def run(self) -> None:
        """Measure, and check for stopped kernels, until cancelled.

        An error of one measurement is logged, and the next one is made as usual: the limits of all sessions depend on
        it, and it reads files and names that code in sessions chooses.
        """
        watchdog, detector = Watchdog(is_workdir=self._is_workdir), StoppedKernelDetector(self._registry)
        async with asyncio.TaskGroup() as both:
            both.create_task(_repeat(self._seconds, lambda: self.measure(watchdog)))
            both.create_task(_repeat(STOPPED_SECONDS, detector.check))

    def _watched(self, session: Session) -> Watched | None:
        if session.info is None or not session.info.pid:
            return None
        spec = session.spec
        shared = next((bind.source for bind in spec.binds if bind.writable), "")
        return Watched(
            root=session.info.pid,
            limits=session.limits,
            workdir=spec.workdir,
            home=session.kernel.home if session.kernel is not None else "",
            own_network="net namespace" in session.sandbox.enforced,
            hard=hard_limits(session.sandbox.limits),
            workspace=shared,
            workspace_bytes=self._workspace_quota(spec.workspace) if shared else None,
        )

    async def measure(self, watchdog: Watchdog) -> None:
        """Measure the open sessions once, and pass each one the limits that it exceeds.

        Args:
            watchdog: reads the use, in a thread. It keeps state from one measurement to the next.
        """
        sessions = self._registry.open_sessions()
        for ended in self._histories.keys() - {session.id for session in sessions}:
            del self._histories[ended]
        watched = {session.id: found for session in sessions if (found := self._watched(session))}
        if not watched:
            return
        uses, breaches = await asyncio.to_thread(watchdog.poll, watched)
        for name, use in uses.items():
            session = self._registry.get(name)
            if session is not None:
                self._usage[name] = used = _usage(use)
                self._histories.setdefault(name, UsageHistory()).add(time.time(), used)
                session.on_watchdog(breaches.get(name, []))

    def _is_workdir(self, path: str) -> bool:
        """Return whether a path is the directory of a session: of a branch, beside its parent's directory.

        Called from the watchdog's thread.
        """
        found = self._registry.workdir(os.path.basename(path))
        return found is not None and os.path.realpath(found) == os.path.realpath(path)

    def on_cgroup_event(self, kernels: Iterable[str], limit: str) -> None:
        """Record that Linux enforced a limit on a process of some sessions that is not their kernel.

        Args:
            kernels: the kernels of the sessions.
            limit: the name of the limit.
        """
        affected = set(kernels)
        for session in self._registry.open_sessions():
            if session.spec.kernel in affected:
                session.on_cgroup_event(limit)

    def on_read_pauses(self, pauses: ReadPauses) -> None:
        """Record that a session's kernel sends more than its share, so that the server reads it with pauses."""
        for session in self._registry.open_sessions():
            if session.spec.kernel == pauses.kernel:
                session.on_read_pauses(pauses)

    def samples(self, who: Principal, session: str) -> list[UsageSample]:
        """Return the samples of a session's use, the oldest first. The last one is of now.

        Raises:
            NotFound: there is no such session.
        """
        found = self._registry.find(who, session)
        now = sample_of(time.time(), self._usage.get(found.id, Usage()))
        return [*(each for each in self._histories.get(found.id, ()) if each.at < now.at), now]


class StoppedKernelDetector:
    """Check the kernel of every session in which a cell runs.

    Args:
        registry: all sessions.
    """

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry
        self._before: set[tuple[str, int]] = set()

    def check(self) -> None:
        """Check once. End each kernel that was stopped at the last check too."""
        stopped: set[tuple[str, int]] = set()
        for session in self._registry.open_sessions():
            info = session.info
            if session.running is None or info is None or not info.pid:
                continue
            about = procfs.stat(info.pid)
            if about is None or about.state != "T":
                continue
            mark = session.id, info.pid
            stopped.add(mark)
            if mark in self._before:
                session.on_kernel_stopped()
        self._before = stopped


async def _repeat(seconds: float, act: Callable[[], Awaitable[None] | None]) -> None:
    """Do something at intervals, until cancelled. An error is logged, and ends nothing."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if (coroutine := act()) is not None:
                await coroutine
        except Exception:  # code in one session must not end the supervision of all by a name or a file
            log.exception("a measurement of the open sessions failed; the next one follows")


def _usage(use: SessionUse) -> Usage:
    return Usage(
        memory_bytes=use.shown_bytes,
        cpu_seconds=use.cpu_seconds,
        processes=len(use.pids),
        disk_bytes=use.disk.bytes if use.disk else None,
        files=use.disk.files if use.disk else None,
    )
