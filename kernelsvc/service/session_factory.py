"""Session objects, made from a specification, a directory and a journal.

Every session goes through here: a new one, a branch, a member of the warm pool,
one that an earlier server left, and a closed one that is read back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelsvc.errors import AtCapacity
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.kernels.port import Launcher
from kernelsvc.model.checkpoint_policy import CheckpointBudget
from kernelsvc.model.events import Event
from kernelsvc.model.state import Policy
from kernelsvc.service.projections import Projections
from kernelsvc.session import Session, SessionSpec
from kernelsvc.session.tool_calls import OfferPort
from kernelsvc.settings import Settings
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

#: Called after events of a session are in its journal.
Observer = Callable[[Session, Sequence[Event]], None]


@dataclass
class PreparedSession:
    """A session whose directory and empty journal exist, and whose kernel does not run yet.

    Attributes:
        spec: the specification. ``workdir`` and, unless the session shares a directory, ``family`` are filled in.
        directory: its files on disk.
        journal: its journal, open for writing.
    """

    spec: SessionSpec
    directory: SessionDirectory
    journal: Journal


class SessionFactory:
    """Make session objects, and the directories of new sessions.

    Args:
        settings: the server's settings.
        store: all session directories.
        launchers: start kernels.
        projections: notebooks and the index, which follow each open session.
        versions: names and versions of the software, for the journal's first entry.
        observer: called after events of any session are in its journal.
        spans: whether the spans of cells are exported.
    """

    def __init__(
        self,
        settings: Settings,
        store: SessionDirectories,
        launchers: KernelLaunchers,
        projections: Projections,
        versions: dict[str, str],
        observer: Observer,
        *,
        spans: bool = False,
    ) -> None:
        self._settings = settings
        self._store = store
        self._launchers = launchers
        self._projections = projections
        self._versions = versions
        self._observer = observer
        self._spans = spans
        self.offers: OfferPort | None = None
        self._withdraw: Callable[[SessionSpec], None] = lambda spec: None
        self._budget = CheckpointBudget(len(os.sched_getaffinity(0)), asyncio.get_running_loop().time())

    def use_offers(self, offers: OfferPort) -> None:
        """Let new sessions call these functions of clients."""
        self.offers = offers

    def recheck_binds_with(self, withdraw: Callable[[SessionSpec], None]) -> None:
        """Have ``withdraw`` called before each kernel starts that is no copy of another one."""
        self._withdraw = withdraw

    def now(self) -> float:
        """Return the present, in seconds since the epoch, by the clock that stamps journals."""
        return self._store.clock()

    def require_template(self, template: str) -> None:
        """Check that a template exists.

        Raises:
            NotFound: there is no such template.
        """
        self._launchers.launcher(template)

    def prepare(
        self,
        spec: SessionSpec,
        *,
        parent: Path | None = None,
        place: Path | None = None,
        sidecar_of: Path | None = None,
    ) -> PreparedSession:
        """Create the directory and the journal of a new session.

        Args:
            spec: the specification. ``workdir`` and ``family`` are filled in.
            parent: for a branch, the working directory of its parent.
            place: for a branch, the directory in which its own is created.
            sidecar_of: for a sidecar, the working directory that it shares.

        Raises:
            AtCapacity: the disk refuses. Nothing was created.
        """
        try:
            directory, journal = self._store.create(spec.id, {}, parent=parent, place=place, beside=sidecar_of)
        except OSError as error:
            raise AtCapacity(
                f"No session can be recorded ({error.strerror}). Free disk space and try again."
            ) from error
        family = str(directory.home.resolve()) if parent is None and sidecar_of is None else ""
        spec.use_directory(str(directory.working()), family=family)
        return PreparedSession(spec, directory, journal)

    def open(self, prepared: PreparedSession) -> Session:
        """Return the session object of an open session. From now on its notebook follows the journal."""
        self._projections.open(prepared.directory, prepared.journal)
        launcher = self._launchers.launcher(prepared.spec.template)
        return self._session(prepared.spec, prepared.directory, prepared.journal, launcher)

    def read_only(self, spec: SessionSpec, directory: SessionDirectory, journal: Journal) -> Session:
        """Return the session object of a closed session, which has no kernel and takes no cells."""
        return self._session(spec, directory, journal, None)

    def discard(self, session: str) -> None:
        """Remove the directory and the notebook of a session that was prepared and never began."""
        self._projections.forget(session)
        self._store.discard(session)

    def _session(
        self, spec: SessionSpec, directory: SessionDirectory, journal: Journal, launcher: Launcher | None
    ) -> Session:
        settings, limits = self._settings, spec.limits
        policy = Policy(
            cell_seconds=limits.cell_seconds,
            idle_seconds=limits.idle_seconds,
            lifetime_seconds=limits.lifetime_seconds,
            grace_seconds=settings.interrupt_grace_seconds,
            max_queued=settings.max_queued_cells,
            output_bytes=limits.output_bytes,
            max_cell_output_bytes=settings.max_cell_output_bytes,
            max_log_bytes=settings.max_log_bytes,
            hibernate_seconds=settings.hibernate_seconds,
            limits=limits,
            spans=self._spans,
        )
        return Session(
            spec,
            journal,
            launcher,
            policy,
            sync=settings.journal_sync,
            observer=self._observer,
            versions=self._versions,
            checkpoints=settings.checkpoints,
            checkpoint_max_bytes=settings.checkpoint_max_bytes,
            account=self._budget,
            sign=self._projections.signer(spec.id, journal),
            saved=directory.saved,
            offers=self.offers,
            withdraw=self._withdraw,
        )
