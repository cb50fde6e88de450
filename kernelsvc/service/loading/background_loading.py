"""Sessions whose logs are being read back, while others are served.

A log of a gigabyte takes seconds to read. Meanwhile its session shows itself in
lists as ``restoring``, whoever asks for it waits, and is told ``recovering`` if it
takes longer than a request may wait. One is read at a time, in a thread that lets
the event loop run about every millisecond, so that the others' cells go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec

from kernelsvc.errors import Recovering
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Usage
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.service.loading.session_loading import is_large
from kernelsvc.session import SessionSpec
from kernelsvc.store.index import SessionRow
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)


def ids_in(text: str) -> list[str]:
    """What stands in a text and may be the id of a session."""
    return _ID.findall(text)


_ID = re.compile(r"s_[0-9a-f]{16}")


class BackgroundLoads:
    """What is under way.

    Args:
        seconds: how long a request waits for the session that it names.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._owners: dict[str, str | None] = {}
        self._lane = asyncio.Lock()

    def __contains__(self, session: str) -> bool:
        return session in self._tasks

    def begin(self, session: str, owner: str | None, work: Callable[[], Awaitable[object]]) -> None:
        """Read this one back, after those that were begun before; a failure is logged."""
        if session not in self._tasks:
            self._owners[session] = owner
            self._tasks[session] = asyncio.ensure_future(self._one(session, work))

    async def _one(self, session: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            async with self._lane:
                await work()
        except Exception as error:
            log.error("session %s can't be read: %s", session, error, exc_info=not isinstance(error, OSError))
        finally:
            del self._tasks[session], self._owners[session]

    def check(self, session: str, who: str | None = None) -> None:
        """Nothing may be asked of a session that is being read back; and of another's nothing is told.

        Raises:
            Recovering: this one is.
        """
        if session in self._tasks and (who is None or self._owners[session] in (None, who)):
            raise Recovering(session=session)

    async def named(self, text: str) -> None:
        """Wait for the sessions that a request names; one that takes too long is told of by ``check``. Safe to cancel.

        Args:
            text: wherever the request may name them: its path, say.
        """
        if not self._tasks:
            return
        plain = text.replace("-", "")  # Jupyter's paths have dashes in it
        waiting = [task for session, task in self._tasks.items() if session.removeprefix("s_") in plain]
        if waiting:
            await asyncio.wait(waiting, timeout=self._seconds)

    async def all(self, seconds: float) -> None:
        """Wait for all of them, but no longer than this. Safe to cancel."""
        if self._tasks:
            await asyncio.wait([*self._tasks.values()], timeout=seconds)

    def close(self) -> None:
        """Begin no more; what is being read is read for nothing."""
        for task in self._tasks.values():
            task.cancel()


def brief(row: SessionRow, directory: SessionDirectory) -> SessionInfo | None:
    """How a list shows a session whose large log has not been read: from ``session.json`` and the index."""
    if not is_large(directory.journal):
        return None
    about = msgspec.convert(directory.read_about(), SessionSpec)
    return SessionInfo(
        state=SessionState.CLOSED if row.state == "closed" else SessionState.RESTORING,
        id=about.id,
        name=about.name,
        template=about.template,
        created_at=about.created_at,
        last_activity_at=row.last_activity_at,
        expires_at=None,
        principal=about.principal,
        labels=about.labels,
        limits=about.limits,
        usage=Usage(),
        last_seq=row.last_seq,
        execution_count=0,
        parent=about.parent,
        kernel=None,
        sandbox=SandboxReport(),
        checkpoints=[],
        sidecar_of=about.beside,
        beside=about.beside,
    )
