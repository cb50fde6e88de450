"""Closed sessions, read back from their directories when a client asks for one."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import NoReturn

import msgspec

from kernelsvc.errors import NotFound, Recovering
from kernelsvc.service.loading.background_loading import BackgroundLoads
from kernelsvc.service.loading.session_loading import is_large, machine_events, read_spec
from kernelsvc.service.session_factory import SessionFactory
from kernelsvc.session import Session, SessionSpec
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

log = logging.getLogger(__name__)

#: Closed sessions that stay in memory. The one that was read first goes first.
MAX_KEPT = 64


class ClosedSessions:
    """Read closed sessions back, and keep the last ``MAX_KEPT`` in memory.

    Args:
        store: all session directories.
        factory: makes the session objects.
        loads: reads large journals in the background.
    """

    def __init__(self, store: SessionDirectories, factory: SessionFactory, loads: BackgroundLoads) -> None:
        self._store = store
        self._factory = factory
        self._loads = loads
        self._kept: OrderedDict[str, Session] = OrderedDict()

    def __contains__(self, session: str) -> bool:
        return session in self._kept

    def keep(self, session: Session) -> None:
        """Keep a closed session in memory."""
        self._kept[session.id] = session
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def forget(self, session: str) -> None:
        """Drop a session from memory, because its directory will be removed."""
        self._kept.pop(session, None)

    def workdir(self, session: str) -> str | None:
        """Return the directory of a session, from its specification on disk, or None if there is none."""
        try:
            return str(self._store.directory(session).read_about()["workdir"])
        except (NotFound, OSError, KeyError, ValueError):
            return None

    def get(self, session: str) -> Session | None:
        """Return a session, read from its directory if it is not in memory. None if there is none.

        Raises:
            Recovering: its journal is large, and a thread reads it now. ``BackgroundLoads.named`` waits for that.
        """
        found = self._kept.get(session)
        if found is None:
            try:
                directory = self._store.directory(session)
                if is_large(directory.journal):
                    self._read_in_background(directory)
                journal = Journal.open(directory.journal, directory.id, read_only=True)
                found = self._factory.read_only(read_spec(directory, journal), directory, journal)
                _rebuild(found, journal)
            except (NotFound, OSError, msgspec.ValidationError):
                return None
            self.keep(found)
        return found

    def _read_in_background(self, directory: SessionDirectory) -> NoReturn:
        spec = msgspec.convert(directory.read_about(), SessionSpec)

        async def read() -> None:
            journal = await asyncio.to_thread(Journal.open, directory.journal, directory.id, read_only=True)
            found = self._factory.read_only(spec, directory, journal)
            await asyncio.to_thread(_rebuild, found, journal)
            self.keep(found)

        self._loads.begin(directory.id, spec.principal, read)
        raise Recovering(session=directory.id)


def _rebuild(found: Session, journal: Journal) -> None:
    """Replay a journal. The chain may be in order and the events senseless: a log that was edited can hold anything."""
    try:
        found.rebuild(machine_events(journal))
    except OSError:
        raise
    except Exception as error:
        log.error("session %s: its journal can't be replayed: %r", found.id, error)
        found.mark_unreadable(f"{type(error).__name__} after a replay of its entries")
