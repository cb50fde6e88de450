"""The second line of caps: look after what Linux does not enforce by itself, and hear of what it did."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from kernelsvc.model.limits import Usage
from kernelsvc.sandbox.watchdog import Use, Watchdog, Watched, hard_limits
from kernelsvc.service.stillness import Stillness
from kernelsvc.session.core import Session

log = logging.getLogger(__name__)


class Watching:
    """Looks at every live session again and again.

    Attributes:
        usage: what each was seen to use last, by id.

    Args:
        live: the sessions, by id; changes under us.
        seconds: between two looks.
    """

    def __init__(self, live: Mapping[str, Session], seconds: float) -> None:
        self.usage: dict[str, Usage] = {}
        self._live = live
        self._seconds = seconds

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._look())
            both.create_task(Stillness(self._live.values).run())

    async def _look(self) -> None:
        dog = Watchdog()
        while True:
            await asyncio.sleep(self._seconds)
            watched = {session.id: found for session in self._live.values() if (found := _watched(session))}
            if not watched:
                continue
            try:
                uses, breaches = await asyncio.to_thread(dog.look, watched)
            except OSError as error:
                log.warning("the watchdog could not look: %s", error)
                continue
            for name, use in uses.items():
                session = self._live.get(name)
                if session is not None:
                    self.usage[name] = _usage(use)
                    session.guard.looked(breaches.get(name, []))

    def counted(self, kernels: Iterable[str], limit: str) -> None:
        """The kernel host says: where these kernels live, a cap of Linux's has struck some other process."""
        struck = set(kernels)
        for session in list(self._live.values()):
            if session.about.kernel in struck:
                session.guard.counted(limit)


def _watched(session: Session) -> Watched | None:
    if session.info is None or not session.info.pid:
        return None
    about = session.about
    hard = hard_limits(session.report.limits)
    return Watched(root=session.info.pid, limits=about.limits, workdir=about.workdir, hard=hard)


def _usage(use: Use) -> Usage:
    return Usage(
        memory_bytes=use.memory_bytes or use.resident_bytes,
        cpu_seconds=use.cpu_seconds,
        processes=len(use.pids),
        disk_bytes=use.disk_bytes,
    )
