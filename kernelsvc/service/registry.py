"""The sessions of one server: the open ones, the closed ones that were read back, those in creation, and their owners.

Every other part of the service asks here for a session and reports here that
one began or ended. Nothing else holds a table of sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kernelsvc.errors import Conflict, Forbidden, NotFound, QuotaExceeded, Recovering, SessionClosed
from kernelsvc.model.admission import Ceilings, Reservation, admit
from kernelsvc.model.identity.fair_cache import FairCache
from kernelsvc.model.limits import Limits, Usage
from kernelsvc.model.objects import (
    CellRequest,
    Principal,
    Scope,
    SessionInfo,
    SessionRequest,
    SessionState,
    is_user_of,
)
from kernelsvc.model.state import size_of
from kernelsvc.service.loading.background_loading import BackgroundLoads, ids_in
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.session import Session, SessionSpec
from kernelsvc.settings import Settings
from kernelsvc.telemetry.metrics import Statistics

#: The scope that allows the same with the sessions of other principals.
_SCOPE_OF_OTHERS: dict[Scope, Scope] = {"read": "audit", "run": "operate", "approve": "operate"}
#: Most bytes of cells and other requests that wait in all sessions of one principal, and of a cell that counts only if
#: another one waits in its session: an idle session costs more.
MAX_WAITING_BYTES, SMALL_CELL = 256 * 1024 * 1024, 64 * 1024
#: Idempotency keys that are remembered, of one account and in all. See ``FairCache``.
MAX_KEYS, MAX_ALL_KEYS = 10_000, 50_000


class IdempotencyKeys:
    """Session ids by their owner's idempotency key. An account that makes many keys evicts only its own.

    A key names the id alone. If it named the session, each of the last sessions would stay in memory.
    """

    def __init__(self) -> None:
        self._known: FairCache[tuple[str, str], tuple[asyncio.Future[str] | str, str]]
        self._known = FairCache(MAX_KEYS, MAX_ALL_KEYS)

    def get(self, principal: str, key: str, digest: str = "") -> asyncio.Future[str] | str | None:
        """Return the session's id, a future of it while the session is in creation, or None.

        Args:
            principal: the owner.
            key: the key.
            digest: digest of the request (``request_digest``). Empty: not compared.

        Raises:
            Conflict: the key belongs to another request.
        """
        known, before = self._known.get((principal, key)) or (None, "")
        if known is not None and digest and before and digest != before:
            raise Conflict("This idempotency key created a session with other parameters. Use a new key.")
        return known

    def put(self, principal: str, key: str, session: str, digest: str = "") -> None:
        """Remember the id of a session that exists, and the digest of the request for it."""
        self._known.put(principal, (principal, key), (session, digest))

    def put_future(self, who: Principal, key: str, creation: asyncio.Future[str], digest: str = "") -> None:
        """Remember a session that is in creation. If creation fails, the key is forgotten."""
        name = who.name, key

        def settle(done: asyncio.Future[str]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._known.pop(name)
            elif name in self._known:
                # The finished task would keep its arguments and its result in memory.
                self._known.put(who.account, name, (done.result(), digest))

        self._known.put(who.account, name, (creation, digest))
        creation.add_done_callback(settle)

    def forget(self, principal: str, key: str) -> None:
        """Forget a key, if it is known."""
        self._known.pop((principal, key))


def request_digest(request: SessionRequest) -> str:
    """Return the SHA-256 (hex) of a request for a session: the same for requests with the same parameters."""
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).hexdigest()


class SessionRegistry:
    """Find sessions by id and owner, and decide whether more are admitted.

    Args:
        settings: the server's settings, with the ceilings of admission.
        closed: reads closed sessions back.
        loads: the sessions that are being read in the background.

    Attributes:
        keys: session ids by idempotency key.
        usage: the last measured use of each open session, by id.
        version: changes when a session is added or closed.
    """

    def __init__(self, settings: Settings, closed: ClosedSessions, loads: BackgroundLoads) -> None:
        self.keys = IdempotencyKeys()
        self.usage: dict[str, Usage] = {}
        self.version = 0
        self._settings = settings
        self._closed = closed
        self._loads = loads
        self._open: dict[str, Session] = {}
        self._reserved: dict[str, Reservation] = {}

    # -- open sessions -------------------------------------------------------------------

    def __contains__(self, session: str) -> bool:
        return session in self._open

    def get(self, session: str) -> Session | None:
        """Return an open session, or None."""
        return self._open.get(session)

    def open_sessions(self) -> list[Session]:
        """Return the open sessions, in the order in which they were added."""
        return [*self._open.values()]

    def statistics(self) -> Statistics:
        """Return gauges of the open sessions, and how many the server may have."""
        sessions, memory = self._open.values(), self._settings.max_total_memory_bytes
        return {
            "sessions": Counter(str(each.machine.state) for each in sessions),
            "unfinished_cells": sum(len(each.machine.queue) + len(each.machine.held) for each in sessions),
            "promised_memory_bytes": sum(each.limits.memory_bytes or 0 for each in sessions),
            "approvals_pending": sum(each.approvals_pending for each in sessions),
            "workspaces_in_use": len({each.spec.workspace for each in sessions} - {""}),
            "capacity": {"sessions": self._settings.max_sessions, **({"memory_bytes": memory} if memory else {})},
        }

    def sidecars(self, session: str) -> list[Session]:
        """Return the open sessions that share the directory of this one."""
        return [each for each in self._open.values() if each.spec.beside == session]

    def add(self, session: Session) -> None:
        """Add a session that has begun or was adopted."""
        self._open[session.id] = session
        self.version += 1

    def close(self, session: Session) -> None:
        """Move a session that has ended to the closed ones."""
        self._open.pop(session.id, None)
        self.version += 1
        self.usage.pop(session.id, None)
        self._closed.keep(session)

    # -- finding -------------------------------------------------------------------------

    def require_scope(self, who: Principal, scope: Scope) -> None:
        """Check a scope of the caller's token.

        Raises:
            Forbidden: the token lacks it.
        """
        if scope not in who.scopes:
            raise Forbidden(f"This token lacks the scope '{scope}'. Use one that has it.", scope=scope)

    def find(self, who: Principal, session: str, scope: Scope = "read") -> Session:
        """Return a session that the caller may use in this way, open or closed.

        Raises:
            Forbidden: the caller's token lacks the scope.
            NotFound: the caller has no such session, and its token has no scope for the sessions of others.
            Recovering: its journal is being read in the background.
            Conflict: its journal can't be read back.
        """
        found = self.find_record(who, session, scope)
        if found.unreadable:
            raise Conflict(
                f"The log of session {session} does not describe a session ({found.unreadable}). Download the log "
                "itself (GET /v1/sessions/ID/journal) and check it with 'kernelsvc verify'.",
                session=session,
            )
        return found

    def find_record(self, who: Principal, session: str, scope: Scope = "read") -> Session:
        """Return a session of the caller, of which perhaps only the log's bytes can be read.

        Raises:
            Forbidden, NotFound, Recovering: as ``find``.
        """
        self.require_scope(who, scope)
        if session.startswith("s-"):  # as E2B's clients show it, because host names have no underscore
            session = session.replace("-", "_", 1)
        of_others = _SCOPE_OF_OTHERS.get(scope) in who.scopes
        if session in self._loads.owners:
            self._loads.check(session, None if of_others else who.name)
        found = self._open.get(session) or self._closed.get(session)
        if found is None or not (of_others or found.principal == who.name):
            raise NotFound(f"There is no session {session!r}. List your sessions.")
        return found

    def find_open(self, who: Principal, session: str) -> Session:
        """Return an open session of the caller, whose token has the scope ``run``.

        Raises:
            SessionClosed: it has ended.
            Forbidden, NotFound, Recovering: as ``find``.
        """
        found = self.find(who, session, "run")
        if found.state is SessionState.CLOSED:
            raise SessionClosed()
        return found

    def owner(self, session: str) -> str | None:
        """Return the name of a session's principal, or None if there is no such session.

        Raises:
            Recovering: the session is closed, and its journal is large and not read yet.
        """
        found = self._open.get(session) or self._closed.get(session)
        return found.principal if found else None

    def workdir(self, session: str) -> str | None:
        """Return the directory of an open or closed session, or None if there is no such session. For any thread."""
        found = self._open.get(session)
        return found.spec.workdir if found else self._closed.workdir(session)

    def open_ids(self) -> list[str]:
        """Return the ids of the open sessions."""
        return [*self._open]

    def in_memory(self, session: str) -> bool:
        """Whether a session can be found without reading its journal."""
        return session in self._open or session in self._closed

    def is_loading(self, session: str) -> bool:
        """Whether a session's journal is being read in the background."""
        return session in self._loads

    async def ensure_loaded(self, text: str) -> None:
        """Load the sessions that a request names. Wait ``start_seconds`` at most. Safe to cancel.

        Args:
            text: any part of the request that may hold session ids, for example its path.
        """
        for session in ids_in(text):
            if session not in self._open and session not in self._loads:
                with contextlib.suppress(Recovering):
                    self._closed.get(session)
        await self._loads.named(text)

    def measured_disk(self, session: str) -> int | None:
        """Return the bytes of a session's directory by the last measurement, or None if there is none."""
        usage = self.usage.get(session)
        return None if usage is None else usage.disk_bytes

    def describe(self, session: Session) -> SessionInfo:
        """Return a session as the API shows it, with its last measured use."""
        return session.view(self.usage.get(session.id, Usage()))

    # -- admission -----------------------------------------------------------------------

    def reserve(self, specs: Iterable[SessionSpec]) -> None:
        """Count sessions that are not open yet against the quotas."""
        for spec in specs:
            self._reserved[spec.id] = Reservation(principal=spec.principal, memory_bytes=spec.limits.memory_bytes)

    def release(self, session: str) -> None:
        """Stop counting a session that was reserved, if it was."""
        self._reserved.pop(session, None)

    @contextlib.contextmanager
    def reserved(self, specs: Sequence[SessionSpec]) -> Iterator[None]:
        """Count sessions against the quotas while they are in creation."""
        self.reserve(specs)
        try:
            yield
        finally:
            for spec in specs:
                self.release(spec.id)

    def admit(self, who: Principal, limits: Limits, count: int = 1, *, warm: int = 0) -> None:
        """Check that more sessions fit.

        Args:
            who: their owner.
            limits: the limits of each.
            count: the number of sessions.
            warm: members of the warm pool, which count like sessions with the server's own limits.

        Raises:
            QuotaExceeded: the owner has as many as it may have.
            AtCapacity: the server has.
        """
        settings = self._settings
        ceilings = Ceilings(
            sessions=settings.max_sessions,
            sessions_per_principal=who.max_sessions or settings.max_sessions_per_principal,
            memory_bytes=settings.max_total_memory_bytes,
        )
        pool = [Reservation(principal="", memory_bytes=settings.limits.memory_bytes)] * warm
        admit([*self._reservations(), *self._reserved.values(), *pool], ceilings, who.account, limits, count=count)

    def check_cells(self, who: Principal, session: Session, cells: Sequence[CellRequest]) -> None:
        """Check that cells have room among those that run or wait in their owner's sessions. See ``check_waiting``."""
        size = sum(size_of(each) for each in cells if each.cell not in session.machine.cells)
        if size > SMALL_CELL or (size and session.waiting_bytes):
            self.check_waiting(who, session, size)

    def check_waiting(self, who: Principal, session: Session, size: int) -> None:
        """Check that a request of ``size`` bytes has room among those that wait in all sessions of its owner.

        Raises:
            QuotaExceeded: it has none. Nothing was sent.
        """
        owner = who.account if who.name == session.principal else session.principal
        own = (each for each in self._open.values() if each.principal == owner or is_user_of(each.principal, owner))
        waiting = sum(each.waiting_bytes for each in own)
        if waiting and waiting + size > MAX_WAITING_BYTES:
            raise QuotaExceeded(
                f"The cells and requests that wait in all of your sessions have {waiting} bytes, and with this one "
                f"more than {MAX_WAITING_BYTES}. Wait until some finish.",
                waiting=waiting,
                allowed=MAX_WAITING_BYTES,
            )

    def has_room(self, warm: int) -> bool:
        """Whether the warm pool may grow by one: it would be admitted, and no session is in creation.

        Args:
            warm: members that the pool has now.
        """
        settings, count = self._settings, len(self._open) + warm
        reserved = sum(each.memory_bytes or 0 for each in self._reservations())
        reserved += (warm + 1) * (settings.limits.memory_bytes or 0)
        most = settings.max_total_memory_bytes
        return not self._reserved and count < settings.max_sessions and (most is None or reserved <= most)

    def _reservations(self) -> list[Reservation]:
        return [
            Reservation(principal=each.principal, memory_bytes=each.limits.memory_bytes) for each in self._open.values()
        ]
