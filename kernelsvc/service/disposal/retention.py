"""Archive or remove closed sessions of a certain age, and record it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from kernelsvc.errors import KernelsvcError
from kernelsvc.linux.clock import SteadyClock
from kernelsvc.service.disposal.archiving import Archiver
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.projections import Projections
from kernelsvc.settings import Settings
from kernelsvc.store.sessions import SessionDirectories

log = logging.getLogger(__name__)

#: Least and most seconds between two passes. Between these limits it is a tenth of the age.
PASS_SECONDS = 0.5, 3600.0


def due(closed: Iterable[tuple[str, float]], now: float, age: float) -> list[str]:
    """Return the sessions that are over age, the oldest first.

    Args:
        closed: sessions and when each had its last entry (seconds since the epoch).
        now: the present, likewise.
        age: seconds for which a closed session stays.
    """
    return [session for at, session in sorted((at, session) for session, at in closed) if now - at >= age]


class Retention:
    """Check the closed sessions at intervals, and retire the old ones.

    Args:
        settings: the server's settings: the age at which a session is retired, and the action.
        store: all session directories.
        projections: the index, which forgets a retired session, and the last notebook of an archived one.
        closed: keeps closed sessions in memory.
        archiver: knows which sessions are in the archive of ``archive_url``. The others stay. None: no such archive.
    """

    def __init__(
        self,
        settings: Settings,
        store: SessionDirectories,
        projections: Projections,
        closed: ClosedSessions,
        archiver: Archiver | None = None,
    ) -> None:
        self._archiver = archiver
        self._store = store
        self._clock = SteadyClock(store.clock)
        self._projections = projections
        self._index = projections.index
        self._closed = closed
        self._age = settings.retention_seconds or 0.0
        self._action = settings.retention_action

    async def run(self) -> None:
        """Retire sessions at intervals. Safe to cancel: the next start completes the one in progress."""
        least, most = PASS_SECONDS
        while True:
            await self.retire()
            await asyncio.sleep(min(most, max(least, self._age / 10)))

    async def retire(self) -> list[str]:
        """Retire the sessions that are due now, and return their ids. A failure is logged and tried again later."""
        gone = []
        for session in due(self._closed_sessions(), self._clock(), self._age):
            why = f"closed for {self._age:g} s"
            act = self._store.archive if self._action == "archive" else self._store.remove
            self._closed.forget(session)
            try:
                if self._action == "archive":
                    # A crash may have come between the session's end and its last notebook.
                    await self._projections.last_notebook(self._store.directory(session))
                await asyncio.to_thread(act, session, why)
            except (OSError, KernelsvcError) as error:
                log.error("session %s can't be retired. The next pass tries again: %s", session, error)
                continue
            self._index.remove(session)
            gone.append(session)
        return gone

    def _closed_sessions(self) -> Iterable[tuple[str, float]]:
        """Yield closed sessions and the time of their last entry. Those whose directory holds a branch's files stay."""
        for session in self._index.closed() - self._hosts():
            try:
                directory = self._store.directory(session)
                if self._archiver is None or self._archiver.is_archived(directory):
                    yield session, directory.journal.stat().st_mtime
            except (OSError, KernelsvcError):
                continue  # it is being removed, or an operator removed it

    def _hosts(self) -> set[str]:
        """Return the sessions whose ``home`` holds the files of another one: the first sessions of families."""
        top = self._store.sessions.resolve()
        hosts = set()
        for found in self._store.scan():
            files = found.working()
            if files.is_relative_to(top) and (host := files.relative_to(top).parts[0]) != found.id:
                hosts.add(host)
        return hosts
