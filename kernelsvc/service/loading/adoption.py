"""How a server adopts the sessions of an earlier one: it reads each journal and connects to the session's kernel.

Small journals are read before the first request is answered. Large ones are read
one after the other while other sessions are served (``recovering``). Until a
large journal is read, its session counts against the quotas and keeps its
idempotency key, and the server ends no kernel as a stray.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.model.events import Event
from kernelsvc.model.objects import SessionState
from kernelsvc.service.loading.background_loading import BackgroundLoads
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.loading.session_loading import first_event, is_large, machine_events, read_spec, reader_for
from kernelsvc.service.projections import Projections
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.service.session_factory import PreparedSession, SessionFactory
from kernelsvc.session import Session, SessionSpec
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)

#: Seconds between attempts to reach a kernel that an earlier server started.
ADOPT_AGAIN_SECONDS = 1.0
#: Events that the index gets in one turn of the event loop.
_INDEXED = 200


class Adoption:
    """Adopt the sessions of an earlier server, at the start of this one.

    Args:
        registry: all sessions. Each open one is added.
        closed: keeps each session that turns out to be closed.
        factory: makes session objects.
        projections: the index and the notebooks, which read the entries that they missed.
        launchers: reach the kernels.
        loads: reads large journals in the background.
    """

    def __init__(
        self,
        registry: SessionRegistry,
        closed: ClosedSessions,
        factory: SessionFactory,
        projections: Projections,
        launchers: KernelLaunchers,
        loads: BackgroundLoads,
    ) -> None:
        self._registry = registry
        self._keys = registry.keys
        self._closed = closed
        self._factory = factory
        self._projections = projections
        self._index = projections.index
        self._launchers = launchers
        self._loads = loads
        self._all_readable = True
        self._later: set[str] = set()

    async def run(self, found: Iterable[SessionDirectory]) -> None:
        """Adopt all sessions with small journals, and start to load the others."""
        small: list[SessionDirectory] = []
        large: list[SessionDirectory] = []
        for directory in found:
            (large if is_large(directory.journal) else small).append(directory)
        await asyncio.to_thread(self._projections.catch_up_index, small)
        self._projections.finish_others()
        closed = self._index.closed()
        await asyncio.gather(*(self._adopt(directory) for directory in small if directory.id not in closed))
        self._later = {directory.id for directory in large}
        for directory in sorted(large, key=lambda each: each.journal.stat().st_size):
            self._begin(directory, closed=directory.id in closed)
        await self._end_strays()

    async def take_in(self, directories: Iterable[SessionDirectory]) -> None:
        """Adopt sessions that another server has given to this one, while others are served."""
        for directory in directories:
            await asyncio.to_thread(self._projections.complete, directory)
            await self._learn(directory)
            if directory.id not in self._index.closed():
                await self._adopt(directory)

    async def _learn(self, directory: SessionDirectory) -> None:
        """Have the index learn a session that it has never seen. At a start, ``catch_up_index`` does so."""

        def lines() -> Iterator[Event]:
            yield from machine_events(Journal.open(directory.journal, directory.id, read_only=True))

        try:
            await asyncio.to_thread(deque, self._indexed(directory.id, lines()), 0)
        except (OSError, KernelsvcError) as error:
            log.error("session %s: its journal can't be read: %s", directory.id, error)

    def _begin(self, directory: SessionDirectory, *, closed: bool) -> None:
        """Load a session in the background. Its quota and its idempotency key come from ``session.json`` until then."""
        try:
            spec = msgspec.convert(directory.read_about(), SessionSpec)
        except msgspec.ValidationError:
            spec = None
        if spec is not None and not closed:
            self._registry.reserve([spec])
            if spec.idempotency_key is not None:
                self._keys.put(spec.principal, spec.idempotency_key, spec.id, spec.request_digest)
        if spec is not None and directory.id not in self._index.seqs():
            self._index.feed(directory.id, [first_event(spec)])
        owner = spec.principal if spec else None
        self._loads.begin(directory.id, owner, partial(self._recover, directory, spec, closed=closed))

    async def _recover(self, directory: SessionDirectory, spec: SessionSpec | None, *, closed: bool) -> None:
        try:
            if not closed:
                await self._adopt(directory)
            if directory.id not in self._registry:
                await asyncio.to_thread(self._projections.complete, directory)
        finally:
            self._registry.release(directory.id)
            if spec is not None and spec.idempotency_key is not None and directory.id not in self._registry:
                self._keys.forget(spec.principal, spec.idempotency_key)
            self._later.discard(directory.id)
        await self._end_strays()

    async def _end_strays(self) -> None:
        """End kernels that belong to no session. This needs the journals of all sessions."""
        if self._all_readable and not self._later:
            known = {kernel for session in self._registry.open_sessions() for kernel in session.kernels()}
            await self._launchers.end_strays(known)

    async def _adopt(self, directory: SessionDirectory) -> None:
        """Adopt one session. An error is logged, so that it does not stop the others."""
        try:
            session = await self._read(directory)
        except Exception as error:
            trace = not isinstance(error, OSError)
            log.error("session %s can't be loaded: opening its journal failed: %s", directory.id, error, exc_info=trace)
            self._all_readable = False  # its kernels are unknown, so no kernel is a stray
            return
        if session is None:
            return
        if session.state is SessionState.CLOSED:
            session.detach()
            self._closed.keep(session)
            return
        self._registry.add(session)
        about = session.spec
        if about.idempotency_key is not None:
            self._keys.put(about.principal, about.idempotency_key, session.id, about.request_digest)
        if not await self._adopted(session):
            session.spawn(self._adopt_later(session))

    async def _read(self, directory: SessionDirectory) -> Session | None:
        """Rebuild the session from its journal. Return None if creation never completed."""
        read = reader_for(directory.journal)
        journal = await read(self._projections.open_journal, directory)
        if journal.last_seq == 0:
            journal.close()
            self._factory.discard(directory.id)
            return None
        session = self._factory.open(PreparedSession(read_spec(directory, journal), directory, journal))
        events = machine_events(journal)
        if is_large(directory.journal) and self._index.seqs().get(directory.id) != journal.last_seq:
            events = self._indexed(directory.id, events)
        await read(session.rebuild, events)
        return session

    def _indexed(self, session: str, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on in a thread, and have the index learn them in the event loop, some at a time."""
        loop, index = asyncio.get_running_loop(), self._index

        def passing() -> Iterator[Event]:
            first = True
            while some := [*islice(events, _INDEXED)]:
                loop.call_soon_threadsafe(partial(index.learn_events, session, some, anew=first))
                first = False
                yield from some

        return passing()

    async def _adopted(self, session: Session) -> bool:
        try:
            await session.adopt()
        except (OSError, KernelsvcError) as error:
            log.warning("session %s: its kernel can't be adopted yet. The server tries again: %s", session.id, error)
            return False
        self._index.set_state(session.id, session.state)
        return True

    async def _adopt_later(self, session: Session) -> None:
        while session.state is not SessionState.CLOSED and not await self._adopted(session):  # noqa: ASYNC110
            await asyncio.sleep(ADOPT_AGAIN_SECONDS)
