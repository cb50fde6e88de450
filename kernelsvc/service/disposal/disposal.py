"""The end of the records of one server: deletion by request, retention by age, and the archive before it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from kernelsvc.service.disposal.archiving import ArchivedRecords, Archiver
from kernelsvc.service.disposal.deletion import SessionDeleter
from kernelsvc.service.disposal.retention import Retention
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.projections import Projections
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings
from kernelsvc.store.record_archive import RecordArchive
from kernelsvc.store.sessions import SessionDirectories


class Disposal:
    """Builds and runs the parts that end records.

    Args:
        settings: the server's settings.
        store: all session directories.
        registry: finds sessions and checks callers.
        projections: the index, the notebooks and the key.
        closed: keeps closed sessions in memory.
        present_name: returns the present name of the principal that a record names.

    Attributes:
        records: the records in the archive. None without the setting ``archive_url``.
        delete: see ``SessionDeleter.delete``.

    Raises:
        BadRequest: the archive can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        store: SessionDirectories,
        registry: SessionRegistry,
        projections: Projections,
        closed: ClosedSessions,
        present_name: Callable[[str], str],
    ) -> None:
        self.records: ArchivedRecords | None = None
        self._archiver: Archiver | None = None
        self._retention: Retention | None = None
        if settings.archive_url:
            archive = RecordArchive(settings.archive_url)
            self.records = ArchivedRecords(archive, present_name, projections.converters)
            self._archiver = Archiver(archive, store, projections)
        if settings.retention_seconds is not None:
            self._retention = Retention(settings, store, projections, closed, self._archiver)
        self.delete = SessionDeleter(store, registry, projections, closed, self.records).delete

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Return the work that runs until it is cancelled."""
        return (part.run() for part in (self._archiver, self._retention) if part is not None)

    async def settle(self) -> None:
        """Give the records of sessions that have just ended some seconds to reach the archive. Safe to cancel."""
        if self._archiver is not None:
            await self._archiver.settle()
