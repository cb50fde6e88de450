"""Delete one session for good: log, notebook, files, index, archive. A signed record without content stays."""

from __future__ import annotations

import asyncio
import logging

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.model.hash_chain import Head, timestamp
from kernelsvc.model.objects import Deletion, Principal, SessionState
from kernelsvc.service.disposal.archiving import ArchivedRecords
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.projections import Projections
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.store.sessions import SessionDirectories

log = logging.getLogger(__name__)

#: Branches that an error names.
_MOST_NAMES = 5


class SessionDeleter:
    """Delete sessions for good.

    Args:
        store: all session directories.
        registry: finds the session and checks the caller.
        projections: the index, and the key that signs the record.
        closed: keeps closed sessions in memory.
        records: the archive of ``archive_url``, or None.
    """

    def __init__(
        self,
        store: SessionDirectories,
        registry: SessionRegistry,
        projections: Projections,
        closed: ClosedSessions,
        records: ArchivedRecords | None = None,
    ) -> None:
        self._store, self._records = store, records
        self._registry = registry
        self._projections = projections
        self._index = projections.index
        self._closed = closed

    async def delete(self, who: Principal, session: str, *, force: bool) -> Deletion:
        """Delete a session and return the record. If this is cancelled, a second call completes it.

        Args:
            who: the caller: the owner, or a principal with the scope ``operate``.
            session: the session's id, also of an archived one.
            force: end the session first if it is open.

        Raises:
            Forbidden, NotFound, Recovering: see ``SessionRegistry.find``.
            Conflict: the session is open and ``force`` is False, or it has branches or sidecars, which hold its cells
                or share its files. Nothing was deleted.
            AtCapacity: the archive of ``archive_url`` does not answer. The files here may be deleted.
            OSError: some files may be deleted. A second call continues.
        """
        principal, elsewhere = await self._close(who, session, force=force)
        self._closed.forget(session)

        def record(head: Head) -> Deletion:
            at = timestamp(self._store.clock())
            deletion = Deletion(
                session=session, at=at, by=who.name, principal=principal, seq=head.seq, head=head.digest
            )
            return self._projections.sign(deletion)

        deletion = await asyncio.to_thread(self._store.delete, session, record, elsewhere=elsewhere)
        self._index.erase(session)
        if self._records is not None:
            # After the directory, so that no copy of it can come later.
            await self._records.remove(session)
        log.info("session %s was deleted for good by %s", session, who.name)
        return deletion

    async def _close(self, who: Principal, session: str, *, force: bool) -> tuple[str, bool]:
        """End the session if it is open. Return its owner, and whether only the archive has it."""
        try:
            found = self._registry.find_record(who, session, "run")
        except NotFound:
            owner, elsewhere = self._store.archived_owner(session), False
            if owner is None and self._records is not None:
                owner, elsewhere = await self._records.owner(session), True
            if owner is None or not (owner == who.name or "operate" in who.scopes):
                raise
            self._require_alone(session)
            return owner, elsewhere
        self._require_alone(session)
        if found.state is not SessionState.CLOSED:
            if not force:
                raise Conflict(f"Session {session} is open. Close it first, or delete it with force.", session=session)
            await found.close("deleted")
        await self._projections.settle()
        return found.principal, False

    def _require_alone(self, session: str) -> None:
        branches = [row.id for row in self._index.children(session)]
        sidecars = [each.id for each in self._registry.sidecars(session)]
        if others := branches + sidecars:
            names = ", ".join(others[:_MOST_NAMES]) + (" and more" if len(others) > _MOST_NAMES else "")
            raise Conflict(
                f"Session {session} has branches or sidecars that hold its cells or files: {names}. Delete them first.",
                session=session,
            )
