"""A session's time, set by its owner; and sessions that live beside another, in its directory and for its time.

Without a lease a session ends at its lifetime or when it is idle for too long.
With one it ends when the lease does, and the lease may be given again and again,
within the lifetime that the server allows. A pause is a lease too: a long one,
during which the variables go to disk and whoever paused the session serves it
no cells. What is granted is an event in the log, so it outlives the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Literal

from kernelsvc.errors import KernelsvcError, LimitTooHigh, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits
from kernelsvc.model.machine import PAUSED_SECONDS
from kernelsvc.model.objects import Principal, Scope, SessionInfo, SessionState
from kernelsvc.session import Session

Find = Callable[[Principal, str, Scope], Session]


class Leases:
    """Grants time, and ends with a session those beside it.

    Args:
        find: a session of a principal, for a scope.
        live: the open sessions by id.
        view: a session as the API shows it.
        limits: the server's; their lifetime bounds every lease.
    """

    def __init__(
        self, find: Find, live: Mapping[str, Session], view: Callable[[Session], SessionInfo], limits: Limits
    ) -> None:
        self._find, self._live, self._view, self._limits = find, live, view, limits
        self._ending: set[asyncio.Task[None]] = set()

    def grant(
        self,
        who: Principal,
        session: str,
        seconds: float,
        *,
        then: Literal["close", "pause"] | None = None,
        at_least: bool = False,
    ) -> SessionInfo:
        """Give a session time from now on, and take it out of a pause. Those beside it get the same.

        However often it is renewed, a session that is not paused lives no longer
        than the server's lifetime limit; ``expires_at`` says what came of it.

        Args:
            who: its owner.
            session: its id.
            seconds: from now.
            then: what happens at the end; None leaves it as it was (at first: close).
            at_least: leave a longer lease as it is.

        Raises:
            LimitTooHigh: more than the server's lifetime limit at once.
            SessionClosed: it has ended.
        """
        found = self._running(who, session)
        most = self._limits.lifetime_seconds
        if most is not None and seconds > most:
            raise LimitTooHigh(
                f"A lease of {seconds:.0f} s is above this server's {most:.0f}; ask for at most that.",
                limit="lifetime_seconds",
                wanted=seconds,
                allowed=most,
            )
        lease = found.machine.lease
        now = asyncio.get_running_loop().time()
        resumes = lease is not None and lease.paused
        if most is not None and not resumes:
            began = found.machine.born if found.machine.run_since is None else found.machine.run_since
            seconds = max(0.0, min(seconds, began + most - now))
        if at_least and lease is not None and not resumes and found.machine.leased_until >= now + seconds:
            return self._view(found)
        action = then or (lease.then if lease is not None else "close")
        return self._put(found, ev.Leased(seconds=round(seconds, 6), then=action))

    def pause(self, who: Principal, session: str) -> SessionInfo:
        """Pause a session, and those beside it; their variables go to disk as soon as no cell runs.

        Raises:
            SessionClosed: it has ended.
        """
        found = self._running(who, session)
        lease = found.machine.lease
        then = lease.then if lease is not None else "close"
        return self._put(found, ev.Leased(seconds=PAUSED_SECONDS, then=then, paused=True))

    def keep(self, who: Principal, session: str) -> SessionInfo:
        """Give a session as long as a paused one has, without pausing it.

        Raises:
            SessionClosed: it has ended.
        """
        return self._put(self._running(who, session), ev.Leased(seconds=PAUSED_SECONDS))

    def sidecars(self, who: Principal, session: str) -> list[SessionInfo]:
        """The open sessions that live in this one's directory, oldest first."""
        found = self._find(who, session, "read")
        return sorted(map(self._view, self._neighbours(found.id)), key=lambda each: each.created_at)

    def began(self, session: Session) -> None:
        """A session has begun: beside another it has as much time as that."""
        host = self._live.get(session.about.beside or "")
        if host is not None and (lease := host.machine.lease) is not None:
            left = max(0.0, host.machine.leased_until - asyncio.get_running_loop().time())
            session.try_record(ev.Leased(seconds=round(left, 6), then=lease.then, paused=lease.paused))

    def ended(self, session: str) -> None:
        """A session has ended: so do those beside it."""
        for neighbour in self._neighbours(session):
            task = asyncio.ensure_future(_close(neighbour, f"{session}, in whose directory it lived, has ended"))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _running(self, who: Principal, session: str) -> Session:
        found = self._find(who, session, "run")
        if found.state is SessionState.CLOSED:
            raise SessionClosed()
        return found

    def _neighbours(self, session: str) -> list[Session]:
        return [each for each in self._live.values() if each.about.beside == session]

    def _put(self, session: Session, lease: ev.Leased) -> SessionInfo:
        session.record(lease)
        for neighbour in self._neighbours(session.id):
            neighbour.try_record(ev.Leased(seconds=lease.seconds, then=lease.then, paused=lease.paused))
        return self._view(session)


async def _close(session: Session, reason: str) -> None:
    # What the disk refuses now, the lease ends later.
    with contextlib.suppress(KernelsvcError, OSError):
        await session.close(reason)
