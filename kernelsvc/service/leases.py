"""Leases: how long a session lives, set by its owner. Also sidecars, which share a session's directory and lease.

Without a lease a session ends at its lifetime limit, or when it is idle for too
long. With a lease it ends when the lease does. A lease can be renewed any number
of times within the server's lifetime limit. A pause is a long lease, during which
the variables are on disk, or its programs are stopped in memory, and the server that
paused the session runs no cells in it. A lease is an event in the journal, so it outlives the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

from kernelsvc.errors import KernelsvcError, LimitTooHigh
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits
from kernelsvc.model.machine import PAUSED_SECONDS
from kernelsvc.model.objects import Principal, SessionInfo
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session


class Leases:
    """Grant leases, and end the sidecars of a session that has ended. Implements ``LeaseApi``.

    Args:
        registry: all sessions.
        limits: the server's limits. Their lifetime is the longest lease.
    """

    def __init__(self, registry: SessionRegistry, limits: Limits) -> None:
        self._registry, self._limits = registry, limits
        self._ending = OwnedTasks()

    def grant(
        self,
        who: Principal,
        session: str,
        seconds: float,
        *,
        then: Literal["close", "pause"] | None = None,
        at_least: bool = False,
    ) -> SessionInfo:
        """Give a session a lease from now on, and end its pause. Its sidecars get the same lease.

        A session that is not paused never lives longer than the server's lifetime
        limit, however often its lease is renewed. ``expires_at`` shows the result.

        Args:
            who: the owner.
            session: the session's id.
            seconds: the length of the lease, from now.
            then: what happens at the end. None leaves it as it was (at first: close).
            at_least: keep the present lease if it is longer.

        Raises:
            LimitTooHigh: ``seconds`` is above the server's lifetime limit.
            SessionClosed: the session has ended.
        """
        found = self._registry.find_open(who, session)
        most = self._limits.lifetime_seconds
        if most is not None and seconds > most:
            raise LimitTooHigh(
                f"A lease of {seconds:.0f} s is above this server's {most:.0f}. Ask for at most that.",
                limit="lifetime_seconds",
                wanted=seconds,
                allowed=most,
            )
        lease = found.lease
        now = asyncio.get_running_loop().time()
        resumes = lease is not None and lease.paused
        if most is not None and not resumes:
            began = found.lifetime_began
            seconds = max(0.0, min(seconds, began + most - now))
        if at_least and lease is not None and not resumes and found.leased_until >= now + seconds:
            return self._registry.describe(found)
        action = then or (lease.then if lease is not None else "close")
        return self._put(found, ev.Leased(seconds=round(seconds, 6), then=action))

    async def pause(self, who: Principal, session: str) -> SessionInfo:
        """Pause a session and its sidecars, and wait until their variables are on disk.

        If a cell or a program runs, this returns immediately, and they are saved as soon as none does. Cancelling it
        does not cancel the pause.

        Raises:
            SessionClosed: the session has ended.
        """
        found = self._registry.find_open(who, session)
        lease = found.lease
        then = lease.then if lease is not None else "close"
        self._put(found, ev.Leased(seconds=PAUSED_SECONDS, then=then, paused=True))
        resting = (each.hibernate_if_due() for each in [found, *self._registry.sidecars(session)])
        await asyncio.gather(*resting)
        return self._registry.describe(found)

    def keep(self, who: Principal, session: str) -> SessionInfo:
        """Give a session the lease of a paused one without pausing it.

        Raises:
            SessionClosed: the session has ended.
        """
        return self._put(self._registry.find_open(who, session), ev.Leased(seconds=PAUSED_SECONDS))

    def sidecars(self, who: Principal, session: str) -> list[SessionInfo]:
        """Return the open sessions that share this one's directory, the oldest first."""
        found = self._registry.find(who, session)
        sidecars = map(self._registry.describe, self._registry.sidecars(found.id))
        return sorted(sidecars, key=lambda each: each.created_at)

    def began(self, session: Session) -> None:
        """Give a sidecar that has begun the lease of the session whose directory it shares."""
        main = self._registry.get(session.spec.beside or "")
        if main is not None and (lease := main.lease) is not None:
            left = max(0.0, main.leased_until - asyncio.get_running_loop().time())
            session.try_record(ev.Leased(seconds=round(left, 6), then=lease.then, paused=lease.paused))

    def ended(self, session: str) -> None:
        """End the sidecars of a session that has ended."""
        for sidecar in self._registry.sidecars(session):
            self._ending.start(_close(sidecar, f"{session}, whose directory it shared, has ended"))

    def _put(self, session: Session, lease: ev.Leased) -> SessionInfo:
        session.record(lease)
        for sidecar in self._registry.sidecars(session.id):
            sidecar.try_record(ev.Leased(seconds=lease.seconds, then=lease.then, paused=lease.paused))
        return self._registry.describe(session)


async def _close(session: Session, reason: str) -> None:
    # If the journal can't be written now, the sidecar ends later, with its lease.
    with contextlib.suppress(KernelsvcError, OSError):
        await session.close(reason)
