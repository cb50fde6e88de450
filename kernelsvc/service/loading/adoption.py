"""How a server finds again what an earlier one left: every session, read back and joined to its kernel.

Small logs are read before the first request is answered. Large ones are read one
after the other while others are served (``recovering``); until then their sessions
count against the quotas, keep their idempotency keys, and no kernel is taken for a stray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from itertools import islice

import msgspec

from kernelsvc.errors import KernelsvcError
from kernelsvc.kernels.launchers import Launchers
from kernelsvc.model.admission import Reservation
from kernelsvc.model.events import Event
from kernelsvc.model.objects import SessionState
from kernelsvc.service.loading.background_loading import BackgroundLoads
from kernelsvc.service.loading.session_loading import about_of, beginning_of, is_large, life_of, reading_of
from kernelsvc.service.projections import Projections
from kernelsvc.session import Session, SessionSpec
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)

#: Seconds between attempts to reach a kernel that an earlier server started.
ADOPT_AGAIN_SECONDS = 1.0
#: Events that the index is given at once.
_TOLD = 200


class Adoption:
    """One server's, at its start.

    Args:
        projections: told of what they missed.
        launchers: know the kernels.
        recoveries: what is read while others are served.
        live: open sessions by id; what is found open goes there.
        promised: sessions that count against the quotas, and are not among ``live`` yet.
        made: sessions by their owner's idempotency key.
        make: a session from its directory and log.
        keep: takes one that turns out to be closed.
        discard: removes one that never began.
    """

    def __init__(
        self,
        projections: Projections,
        launchers: Launchers,
        recoveries: BackgroundLoads,
        live: MutableMapping[str, Session],
        promised: MutableMapping[str, Reservation],
        made: MutableMapping[tuple[str, str], asyncio.Future[str] | str],
        make: Callable[[SessionSpec, SessionDirectory, Journal], Session],
        keep: Callable[[Session], None],
        discard: Callable[[str], None],
    ) -> None:
        self._projections = projections
        self._launchers = launchers
        self._recoveries = recoveries
        self._live = live
        self._promised = promised
        self._made = made
        self._make = make
        self._keep = keep
        self._discard = discard
        self._whole = True
        self._later: set[str] = set()

    async def run(self, found: Iterable[SessionDirectory]) -> None:
        """Adopt all that have small logs, and begin with the others."""
        small: list[SessionDirectory] = []
        large: list[SessionDirectory] = []
        for directory in found:
            (large if is_large(directory.journal) else small).append(directory)
        await asyncio.to_thread(self._projections.catch_up_index, small)
        self._projections.finish_others()
        closed = self._projections.index.closed()
        await asyncio.gather(*(self._adopt(directory) for directory in small if directory.id not in closed))
        self._later = {directory.id for directory in large}
        for directory in sorted(large, key=lambda each: each.journal.stat().st_size):
            self._begin(directory, closed=directory.id in closed)
        await self._end_strays()

    def _begin(self, directory: SessionDirectory, *, closed: bool) -> None:
        """Read this one later; what must not be forgotten meanwhile is taken from ``session.json``."""
        try:
            about = msgspec.convert(directory.read_about(), SessionSpec)
        except msgspec.ValidationError:
            about = None
        if about is not None and not closed:
            self._promised[about.id] = Reservation(principal=about.principal, memory_bytes=about.limits.memory_bytes)
            if about.idempotency_key is not None:
                self._made[about.principal, about.idempotency_key] = about.id
        if about is not None and directory.id not in self._projections.index.seqs():
            self._projections.index.feed(directory.id, [beginning_of(about)])
        owner = about.principal if about else None
        self._recoveries.begin(directory.id, owner, partial(self._recover, directory, about, closed=closed))

    async def _recover(self, directory: SessionDirectory, about: SessionSpec | None, *, closed: bool) -> None:
        try:
            if not closed:
                await self._adopt(directory)
            if directory.id not in self._live:
                await asyncio.to_thread(self._projections.complete, directory)
        finally:
            self._promised.pop(directory.id, None)
            if about is not None and about.idempotency_key is not None and directory.id not in self._live:
                self._made.pop((about.principal, about.idempotency_key), None)
            self._later.discard(directory.id)
        await self._end_strays()

    async def _end_strays(self) -> None:
        """End kernels that are nobody's, once it is known of every session which are its own."""
        if self._whole and not self._later:
            await self._launchers.end_strays({kernel for s in self._live.values() for kernel in s.kernels()})

    async def _adopt(self, directory: SessionDirectory) -> None:
        """Take a session up again. What is wrong with one must not stop the others."""
        try:
            session = await self._read(directory)
        except Exception as error:
            log.error("session %s can't be opened: %s", directory.id, error, exc_info=not isinstance(error, OSError))
            self._whole = False  # a kernel may be its own
            return
        if session is None:
            return
        if session.state is SessionState.CLOSED:
            session.log.close()
            self._keep(session)
            return
        self._live[session.id] = session
        about = session.about
        if about.idempotency_key is not None:
            self._made[about.principal, about.idempotency_key] = session.id
        if not await self._adopted(session):
            session.spawn(self._adopt_later(session))

    async def _read(self, directory: SessionDirectory) -> Session | None:
        """The session as its log tells of it; None if it never began, and nobody was told of it."""
        read = reading_of(directory.journal)
        journal = await read(Journal.open, directory.journal, directory.id)
        if journal.last_seq == 0:
            journal.close()
            self._discard(directory.id)
            return None
        session = self._make(about_of(directory, journal), directory, journal)
        life = life_of(journal)
        if is_large(directory.journal) and self._projections.index.seqs().get(directory.id) != journal.last_seq:
            life = self._telling(directory.id, life)
        await read(session.rebuild, life)
        return session

    def _telling(self, session: str, life: Iterator[Event]) -> Iterator[Event]:
        """Let the index learn what a log holds while it is read in a thread: in the loop's own, some at a time."""
        loop, index = asyncio.get_running_loop(), self._projections.index

        def passing() -> Iterator[Event]:
            anew = True
            while some := [*islice(life, _TOLD)]:
                loop.call_soon_threadsafe(partial(index.learn_events, session, some, anew=anew))
                anew = False
                yield from some

        return passing()

    async def _adopted(self, session: Session) -> bool:
        try:
            await session.adopt()
        except (OSError, KernelsvcError) as error:
            log.warning("session %s can't be adopted yet: %s", session.id, error)
            return False
        self._projections.index.set_state(session.id, session.state)
        return True

    async def _adopt_later(self, session: Session) -> None:
        while session.state is not SessionState.CLOSED and not await self._adopted(session):  # noqa: ASYNC110
            await asyncio.sleep(ADOPT_AGAIN_SECONDS)
