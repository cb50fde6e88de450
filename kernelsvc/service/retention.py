"""What becomes of closed sessions that are old: archived or removed, on purpose and on record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from kernelsvc.errors import KernelsvcError
from kernelsvc.store.index import Index
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

log = logging.getLogger(__name__)

#: Seconds between two looks: a tenth of the age, within these bounds.
LOOK_SECONDS = 0.5, 3600.0


def due(closed: Iterable[tuple[str, float]], now: float, age: float) -> list[str]:
    """Which sessions are over age, oldest first. Pure.

    Args:
        closed: sessions and when each had its last entry (seconds since the epoch).
        now: the present, likewise.
        age: seconds that a closed session is kept.
    """
    return [session for at, session in sorted((at, session) for session, at in closed) if now - at >= age]


class Retention:
    """Looks through the closed sessions from time to time.

    Args:
        store: where they lie.
        index: where they are listed; forgets them too.
        age: seconds that a closed session is kept.
        action: what happens to it then.
        forget: called with the id of each before it goes.
        finish: writes the last notebook of one that is archived; a crash may have come between its end and that.
    """

    def __init__(
        self,
        store: SessionDirectories,
        index: Index,
        age: float,
        action: Literal["archive", "remove"],
        forget: Callable[[str], object],
        finish: Callable[[SessionDirectory], Awaitable[None]],
    ) -> None:
        self._store = store
        self._index = index
        self._age = age
        self._action = action
        self._forget = forget
        self._finish = finish

    async def run(self) -> None:
        """Look, act, wait, for ever. Safe to cancel: what is under way goes on at the next start."""
        least, most = LOOK_SECONDS
        while True:
            await self.look()
            await asyncio.sleep(min(most, max(least, self._age / 10)))

    async def look(self) -> list[str]:
        """Act on what is due now; returns which sessions went. A failure is logged and tried again next time."""
        gone = []
        for session in due(self._closed(), self._store.clock(), self._age):
            why = f"closed for {self._age:g} s"
            act = self._store.archive if self._action == "archive" else self._store.remove
            self._forget(session)
            try:
                if self._action == "archive":
                    await self._finish(self._store.directory(session))
                await asyncio.to_thread(act, session, why)
            except (OSError, KernelsvcError) as error:
                log.error("session %s can't be retired: %s", session, error)
                continue
            self._index.remove(session)
            gone.append(session)
        return gone

    def _closed(self) -> Iterable[tuple[str, float]]:
        """Closed sessions, but for those in whose directory the files of a branch lie."""
        for session in self._index.closed() - self._hosts():
            try:
                yield session, self._store.directory(session).journal.stat().st_mtime
            except (OSError, KernelsvcError):
                continue  # going already, or removed by hand

    def _hosts(self) -> set[str]:
        """Sessions below whose ``home`` another one's files lie: the first ones of families."""
        top = self._store.sessions.resolve()
        hosts = set()
        for found in self._store.scan():
            files = found.working()
            if files.is_relative_to(top) and (host := files.relative_to(top).parts[0]) != found.id:
                hosts.add(host)
        return hosts
