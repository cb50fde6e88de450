"""The second line of caps: look after what Linux does not enforce by itself, and hear of what it did."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from kernelsvc.model.limits import Usage
from kernelsvc.model.objects import Principal
from kernelsvc.model.usage_history import UsageHistory, UsageSample, sample_of
from kernelsvc.sandbox.watchdog import SessionUse, Watchdog, Watched, hard_limits
from kernelsvc.service.leases import Find
from kernelsvc.service.stopped_kernels import StoppedKernelDetector
from kernelsvc.session.session import Session

log = logging.getLogger(__name__)


class ResourceMonitor:
    """Looks at every live session again and again.

    Attributes:
        usage: what each was seen to use last, by id.
        histories: what each was seen to use over its life, by id.

    Args:
        live: the sessions, by id; changes under us.
        seconds: between two looks.
    """

    def __init__(self, live: Mapping[str, Session], seconds: float) -> None:
        self.usage: dict[str, Usage] = {}
        self.histories: dict[str, UsageHistory] = {}
        self._live = live
        self._seconds = seconds

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._look())
            both.create_task(StoppedKernelDetector(self._live.values).run())

    async def _look(self) -> None:
        dog = Watchdog()
        while True:
            await asyncio.sleep(self._seconds)
            for ended in self.histories.keys() - self._live.keys():
                del self.histories[ended]
            watched = {session.id: found for session in self._live.values() if (found := _watched(session))}
            if not watched:
                continue
            try:
                uses, breaches = await asyncio.to_thread(dog.poll, watched)
            except OSError as error:
                log.warning("the watchdog could not look: %s", error)
                continue
            for name, use in uses.items():
                session = self._live.get(name)
                if session is not None:
                    self.usage[name] = used = _usage(use)
                    self.histories.setdefault(name, UsageHistory()).add(time.time(), used)
                    session.guard.on_watchdog(breaches.get(name, []))

    def counted(self, kernels: Iterable[str], limit: str) -> None:
        """The kernel host says: where these kernels live, a cap of Linux's has struck some other process."""
        struck = set(kernels)
        for session in list(self._live.values()):
            if session.about.kernel in struck:
                session.guard.on_cgroup_event(limit)


class UsageSamples:
    """What sessions used over their lives.

    Args:
        find: a session of a principal, for a scope.
        watching: who measures it.
    """

    def __init__(self, find: Find, watching: ResourceMonitor) -> None:
        self._find, self._watching = find, watching

    def of(self, who: Principal, session: str) -> list[UsageSample]:
        """A session's samples, the oldest first; the last one is of now.

        Raises:
            NotFound: there is no such session.
        """
        found = self._find(who, session, "read")
        now = sample_of(time.time(), self._watching.usage.get(found.id, Usage()))
        return [*(each for each in self._watching.histories.get(found.id, ()) if each.at < now.at), now]


def _watched(session: Session) -> Watched | None:
    if session.info is None or not session.info.pid:
        return None
    about = session.about
    hard = hard_limits(session.report.limits)
    return Watched(root=session.info.pid, limits=about.limits, workdir=about.workdir, hard=hard)


def _usage(use: SessionUse) -> Usage:
    return Usage(
        memory_bytes=use.memory_bytes or use.resident_bytes,
        cpu_seconds=use.cpu_seconds,
        processes=len(use.pids),
        disk_bytes=use.disk_bytes,
    )
