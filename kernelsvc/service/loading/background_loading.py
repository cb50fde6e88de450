"""Sessions whose large journals are read in the background, while other sessions are served.

A journal of one gigabyte takes seconds to read. Meanwhile lists show its session
as ``restoring``, and requests that name the session wait. A request that has waited
for too long gets the error ``recovering``. One journal is read at a time, in a
thread that lets the event loop run about every millisecond, so cells of other
sessions continue.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec

from kernelsvc.errors import Recovering
from kernelsvc.model.cluster.ids import DIGITS
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Usage
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.service.loading.session_loading import is_large
from kernelsvc.session import SessionSpec
from kernelsvc.store.index import SessionRow
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)


def ids_in(text: str) -> list[str]:
    """Return the sessions' ids in a text. E2B's clients send ids with a hyphen."""
    return [f"s_{digits}" for digits in _ID.findall(text)]


_ID = re.compile(rf"s[-_]({DIGITS})")


class BackgroundLoads:
    """Read journals one after the other, and have requests wait for them.

    Args:
        seconds: the longest time that a request waits for the session that it names.

    Attributes:
        owners: by session that is being read, the name of its principal, or None if it is not known. Only to be read.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.owners: dict[str, str | None] = {}
        self._one_at_a_time = asyncio.Lock()

    def __contains__(self, session: str) -> bool:
        return session in self._tasks

    def begin(self, session: str, owner: str | None, work: Callable[[], Awaitable[object]]) -> None:
        """Start to read a session back. It runs after the earlier ones. A failure is logged.

        Args:
            session: the session's id.
            owner: its principal's name, or None if it is not known.
            work: reads the session.
        """
        if session not in self._tasks:
            self.owners[session] = owner
            self._tasks[session] = asyncio.ensure_future(self._one(session, work))

    async def _one(self, session: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            async with self._one_at_a_time:
                await work()
        except Exception as error:
            log.error(
                "session %s: its journal can't be read: %s", session, error, exc_info=not isinstance(error, OSError)
            )
        finally:
            del self._tasks[session], self.owners[session]

    def check(self, session: str, who: str | None = None) -> None:
        """Check that a session is not being read.

        Args:
            session: the session's id.
            who: the caller's name. A caller learns nothing about the session of another.

        Raises:
            Recovering: the session is being read, and the caller may know that.
        """
        if session in self._tasks and (who is None or self.owners[session] in (None, who)):
            raise Recovering(session=session)

    async def named(self, text: str) -> None:
        """Wait for the sessions that a request names, at most ``seconds``. Then ``check`` says which are not ready.

        Safe to cancel.

        Args:
            text: the part of the request that may hold their ids, for example its path.
        """
        if not self._tasks:
            return
        digits = text.replace("-", "")  # Jupyter's paths have session ids as UUIDs, with dashes
        waiting = [task for session, task in self._tasks.items() if session.removeprefix("s_") in digits]
        if waiting:
            await asyncio.wait(waiting, timeout=self._seconds)

    async def all(self, seconds: float) -> None:
        """Wait for all sessions, at most this time. Safe to cancel."""
        if self._tasks:
            await asyncio.wait([*self._tasks.values()], timeout=seconds)

    def close(self) -> None:
        """Cancel all reading."""
        for task in self._tasks.values():
            task.cancel()


def brief(row: SessionRow, directory: SessionDirectory) -> SessionInfo | None:
    """Return how a list shows a session whose large journal is not read, from ``session.json`` and the index.

    Return None if the journal is not large.
    """
    if not is_large(directory.journal):
        return None
    spec = msgspec.convert(directory.read_about(), SessionSpec)
    return SessionInfo(
        state=SessionState.CLOSED if row.state == "closed" else SessionState.RESTORING,
        id=spec.id,
        name=spec.name,
        template=spec.template,
        created_at=spec.created_at,
        last_activity_at=row.last_activity_at,
        expires_at=None,
        principal=spec.principal,
        labels=spec.labels,
        limits=spec.limits,
        usage=Usage(),
        last_seq=row.last_seq,
        execution_count=0,
        parent=spec.parent,
        kernel=None,
        sandbox=SandboxReport(),
        checkpoints=[],
        sidecar_of=spec.beside,
        beside=spec.beside,
    )
