"""Data derived from the journals: index, notebooks, metrics, signatures.

A projection may fail and be rebuilt from the journal. An error here never stops
a cell.
"""

from __future__ import annotations

import asyncio
import logging
import syslog
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, KernelsvcError, NotFound
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.audit import head_statement
from kernelsvc.model.events import Event, JournalSigned, NotAsWritten, SessionClosed, SessionStarted, decode
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.objects import Deletion
from kernelsvc.service.api import NotebookFormat
from kernelsvc.service.journal_stream import JournalStream
from kernelsvc.store.convert import ConverterQueue, convert
from kernelsvc.store.heads import HeadFile, judge
from kernelsvc.store.index import Index
from kernelsvc.store.journal import METER, Journal
from kernelsvc.store.keys import SigningKey, is_good, signed_deletion
from kernelsvc.store.notebook_document import METADATA_BYTES, Signer, audit_in
from kernelsvc.store.notebook_file import EXPORT_BYTES, NotebookFile, cells_of, unsigned, write_inherited
from kernelsvc.store.recovery import end_of
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory
from kernelsvc.store.write_limiter import WriteLimiter
from kernelsvc.telemetry import operator_log
from kernelsvc.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

#: Seconds between two writes of the index.
FLUSH_SECONDS = 0.5
#: Seconds in which the last notebooks of closed sessions must be written when the server stops.
CLOSE_SECONDS = 5.0
#: Seconds between an event and the rendering of the notebook, so that the client gets its answer first.
LINGER = 0.003


def _origin(journal: Journal) -> dict[str, Any] | None:
    """Return where a branch began, as its journal's first entry says. None for other sessions, or without an entry."""
    try:
        first = next((decode(line) for line in journal.lines(1, 1)), None)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    return first.parent if isinstance(first, SessionStarted) else None


def head_syslog(session: str, signed: JournalSigned) -> None:
    """Send a signed head to syslog (syslog(3)), which journald also reads. A ``head_log`` of ``Projections``."""
    text = f"kernelsvc head session={session} head={signed.head} key={signed.key} signature={signed.signature}"
    syslog.syslog(syslog.LOG_NOTICE | syslog.LOG_AUTHPRIV, text)


class Projections:
    """The projections of one data directory.

    Args:
        store: All session directories. They record the heads of journals from now on.
        metrics: Counts events.
        key: Signs journals and notebooks.
        head_log: Called with a session's id and each signature, to keep a copy elsewhere.
        present_name: Returns the present name of the principal that a journal names.
    """

    def __init__(
        self,
        store: SessionDirectories,
        metrics: Metrics,
        key: SigningKey,
        head_log: Callable[[str, JournalSigned], None] | None = None,
        *,
        present_name: Callable[[str], str] = str,
    ) -> None:
        self.index = Index(store.data / "index.sqlite", present_name=present_name)
        self.metrics = metrics
        self._store = store
        self._key = key
        self._head_log = head_log
        self._heads = HeadFile(store.data / "heads", key.secret("heads"))
        store.use_heads(self._heads)
        self._notebooks: dict[str, NotebookFile] = {}
        self.converters = ConverterQueue()
        self._limiter = WriteLimiter(time.monotonic())
        self._finishing = OwnedTasks()
        #: The writes of the last notebooks, by session.
        self._last_writes: dict[str, asyncio.Task[None]] = {}
        #: The writes of branches' inherited cells, by branch.
        self._inheriting: dict[str, asyncio.Task[None]] = {}
        self._unfinished: list[SessionDirectory] = []
        self._flusher: asyncio.TimerHandle | None = None
        self._on_complete: Callable[[str], None] | None = None

    @property
    def public_key(self) -> str:
        """The public key that checks every signature of this server."""
        return self._key.public

    def secret(self, purpose: str) -> bytes:
        """Return a secret of this server for a purpose. It is the same after a restart."""
        return self._key.secret(purpose)

    def catch_up_index(self, sessions: Iterable[SessionDirectory]) -> None:
        """Repair the ends of journals after a loss of power, and index missing entries. Run it in a thread.

        If a journal needs neither, only its end is read.
        """
        seen = self.index.seqs()
        for directory in sessions:
            try:
                self._catch_up(directory, seen.get(directory.id))
            except (OSError, KernelsvcError) as error:
                log.error("session %s: its journal can't be read: %s", directory.id, error)
        self.index.flush()

    def complete(self, directory: SessionDirectory) -> None:
        """Repair the end of a closed session's journal after a loss of power. Run it in a thread."""
        try:
            last = end_of(directory.journal)
            if last is None or isinstance(last, SessionClosed):
                self._complete(directory)
        except (OSError, KernelsvcError) as error:
            log.error("session %s: its journal can't be read: %s", directory.id, error)

    def _catch_up(self, directory: SessionDirectory, seen: int | None) -> None:
        last = end_of(directory.journal)
        if last is None or isinstance(last, SessionClosed):
            self._complete(directory)
            last = end_of(directory.journal)
        if self.index.stale or last is None or seen != last.seq:
            journal = Journal.open(directory.journal, directory.id, read_only=True)
            self.index.learn(directory.id, journal.lines())
            if isinstance(last, JournalSigned):
                self._unfinished.append(directory)

    def _complete(self, directory: SessionDirectory) -> None:
        """Cut off a torn end, and sign the journal of a session that closed without a signature."""
        closed = isinstance(end_of(directory.journal), SessionClosed)
        journal = self.open_journal(directory)
        try:
            if closed:
                directory.forget_secrets()
                journal.append([self.signer(directory.id, journal)()])
                journal.sync()
        finally:
            journal.close()

    def forget_secrets(self, session: str) -> None:
        """Remove the environment variables of a session that has ended from its directory. Never raises."""
        try:
            self._store.directory(session).forget_secrets()
        except (OSError, KernelsvcError) as error:
            log.error("session %s: its environment variables stay in session.json: %s", session, error)

    def open_journal(self, directory: SessionDirectory) -> Journal:
        """Open a session's journal for writing. Put entries that the server can't vouch for on record, in the journal.

        Raises:
            OSError, Conflict, NotSupported: See ``Journal.open``.
        """
        journal = self._store.open_journal(directory)
        judged = journal.judgement
        if journal.refused:
            log.error("session %s: NOT AS WRITTEN: %s It is readable and never signed", directory.id, judged.message)
        elif judged.message:
            log.warning("session %s: %s", directory.id, judged.message)
        if judged.first:
            last, first = journal.last_seq, min(judged.first, journal.last_seq)
            event = NotAsWritten(first=first, last=last, refused=journal.refused, message=judged.message)
            try:
                journal.append([event])
            except OSError:
                journal.close()
                raise
        return journal

    def open(self, directory: SessionDirectory, journal: Journal) -> None:
        """Keep the notebook of an open session up to date."""
        inherited = directory.inherited if directory.inherited.exists() else None
        self._notebooks[directory.id] = NotebookFile(
            directory.notebook, journal, parent=inherited, linger=LINGER, limiter=self._limiter
        )
        if inherited is None:
            self.inherit(directory, _origin(journal))

    def signer(self, session: str, journal: Journal) -> Callable[[], Event]:
        """Return the function that makes the last entry of a journal: the signature of its head, or its refusal."""

        def sign() -> Event:
            if journal.refused:
                text = "The log is not signed, because it is not as the server wrote it."
                return NotAsWritten(first=1, last=journal.last_seq, refused=True, message=text)
            signed = self._key.sign_head(session, journal.head)
            if self._head_log is not None:
                self._head_log(session, signed)
            return signed

        return sign

    def _audit_signer(self, journal: Journal) -> Signer:
        """Return the signer of a notebook. For a closed journal: only if its end is known to be genuine."""
        return self._key.sign_audit if self._is_known(journal) else unsigned

    def _is_known(self, journal: Journal) -> bool:
        if not journal.closed:
            return not journal.refused
        last = end_of(journal.path)
        if isinstance(last, JournalSigned) and last.key == self._key.public and last.prev == last.head:
            return is_good(head_statement(journal.session, Head(last.seq - 1, last.head)), last.key, last.signature)
        record = self._heads.find(journal.session)
        return judge(record, journal.head, lambda _seq: "").kind == "watched"

    def feed(self, session: str, events: Sequence[Event], principal: str) -> None:
        """Update the projections with entries that were just appended. ``principal`` is the session's owner."""
        self.index.feed(session, events)
        for event in events:
            self.metrics.record(event)
            if type(event) in operator_log.LINES:
                operator_log.record(event, principal, events)
        notebook = self._notebooks.get(session)
        if notebook is not None:
            notebook.feed(events)
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flusher = None
        self.index.flush()
        spent = METER.take()
        self.metrics.append_seconds.inc(spent.append_seconds)
        self.metrics.journal_bytes.inc(spent.bytes)
        for seconds in spent.syncs:
            self.metrics.sync_seconds.observe(seconds)

    def finish(self, session: str) -> None:
        """Write the last notebook of a session whose journal is complete."""
        notebook = self._notebooks.pop(session, None)
        if notebook is not None:
            self._write_last(session, self._finish(session, notebook))

    def _write_last(self, session: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._last_writes[session] = self._finishing.start(work)
        task.add_done_callback(lambda _: self._last_writes.pop(session, None))

    async def _finish(self, session: str, notebook: NotebookFile) -> None:
        await self._inherited(session)
        if await notebook.finish(self._audit_signer(notebook.journal)) and self._on_complete is not None:
            self._on_complete(session)

    def when_complete(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the id of each closed session from now on, when its last notebook is on disk."""
        self._on_complete = listener

    def finish_others(self) -> None:
        """Write, in the background, the last notebooks of sessions that closed just before the server died."""
        while self._unfinished and not self.index.stale:
            directory = self._unfinished.pop()
            self._write_last(directory.id, self._finish_other(directory))
        self._unfinished.clear()

    async def _finish_other(self, directory: SessionDirectory) -> None:
        try:
            await self.last_notebook(directory)
        except (OSError, KernelsvcError) as error:
            log.warning("session %s: the write of its last notebook failed: %s", directory.id, error)

    async def last_notebook(self, directory: SessionDirectory) -> None:
        """Write the complete, signed notebook of a closed session again.

        Raises:
            OSError: its journal can't be read.
        """
        journal = await asyncio.to_thread(Journal.open, directory.journal, directory.id, read_only=True)
        inherited = await self._inherited_cells(directory, journal)
        await NotebookFile(directory.notebook, journal, parent=inherited).finish(self._audit_signer(journal))

    async def closed_notebook(self, directory: SessionDirectory) -> bytes:
        """Return the complete, signed notebook of a closed session. Its file is not written.

        Raises:
            OSError, AtCapacity: Its journal can't be read.
        """
        journal = await asyncio.to_thread(Journal.open, directory.journal, directory.id, read_only=True)
        return await self._export(directory, journal)

    async def notebook_file(self, directory: SessionDirectory) -> JournalStream | None:
        """Return the last notebook of a closed session as it is on disk, if it is too large to be made again.

        None if it is smaller, not complete, or not signed by this server. Waits for its write. Safe to cancel.
        """
        if (writing := self._last_writes.get(directory.id)) is not None:
            await asyncio.wait([writing])
        try:
            stream = JournalStream(directory.notebook)
        except NotFound:
            return None
        good = False
        try:
            good = stream.size > EXPORT_BYTES and await asyncio.to_thread(self._is_last, directory, stream)
            return stream if good else None
        finally:
            if not good:
                stream.close()

    def _is_last(self, directory: SessionDirectory, stream: JournalStream) -> bool:
        last = end_of(directory.journal)
        audit = audit_in(stream.end(METADATA_BYTES)) if isinstance(last, JournalSigned) else None
        if last is None or audit is None:
            return False
        is_own = (audit.session, audit.seq, audit.key) == (directory.id, last.seq, self._key.public)
        return is_own and is_good(audit.statement(), audit.key, audit.signature)

    async def export(
        self, directory: SessionDirectory, journal: Journal, format: NotebookFormat, principal: str
    ) -> bytes:
        """Return the notebook as it is now, signed.

        Raises:
            Internal, Timeout, TooLarge: it could not be converted.
            AtCapacity: there is no space on the disk, or too many notebooks are being converted.
        """
        if format == "ipynb":
            return await self._export(directory, journal)
        # The turn comes first: a notebook that waits would take memory.
        async with self.converters.turn(principal):
            return await convert(await self._export(directory, journal), format)

    async def _export(self, directory: SessionDirectory, journal: Journal) -> bytes:
        inherited = await self._inherited_cells(directory, journal)
        notebook = self._notebooks.get(directory.id)
        passing = notebook is None
        if notebook is None:
            notebook = NotebookFile(directory.notebook, journal, parent=inherited, for_export=True)
        try:
            return await notebook.export(self._audit_signer(journal))
        except OSError as error:
            raise AtCapacity(f"Writing the notebook failed ({error.strerror}). Try again.") from error
        finally:
            if passing:
                notebook.close()

    def inherit(self, branch: SessionDirectory, origin: dict[str, Any] | None) -> None:
        """Give a branch's notebook its parent's cells up to the fork, in the background. Its exports wait for them.

        Args:
            branch: its directory.
            origin: its parent's id as ``session``, and the last entry before the fork as ``seq``. None for a session
                that is no branch.
        """
        if origin is not None and branch.id not in self._inheriting:
            task = self._inheriting[branch.id] = self._finishing.start(self._inherit(branch, origin))
            task.add_done_callback(lambda _: self._inheriting.pop(branch.id, None))

    async def _inherit(self, branch: SessionDirectory, origin: dict[str, Any]) -> None:
        try:
            parent = self._store.directory(str(origin.get("session")))
            await self._inherited(parent.id)  # the parent may be a branch, too

            def fill() -> None:
                journal = Journal.open(parent.journal, parent.id, read_only=True)
                cells = cells_of(journal, int(origin.get("seq", 0)))
                write_inherited(branch.inherited, parent.id, cells, parents=parent.inherited)

            await asyncio.to_thread(fill)
        except (OSError, KernelsvcError) as error:
            log.warning("the branch %s has no cells of its parent: %s", branch.id, error)
            return
        notebook = self._notebooks.get(branch.id)
        if notebook is not None:
            notebook.inherit(branch.inherited)

    async def _inherited(self, session: str) -> None:
        """Wait until the inherited cells of a session are written, if that is under way. Safe to cancel."""
        if (writing := self._inheriting.get(session)) is not None:
            await asyncio.wait([writing])

    async def _inherited_cells(self, directory: SessionDirectory, journal: Journal) -> Path | None:
        """Return the file with a branch's inherited cells. None for other sessions, and if the parent is gone."""
        if directory.id not in self._inheriting and not directory.inherited.exists():
            # The server may have died before it wrote them.
            self.inherit(directory, _origin(journal))
        await self._inherited(directory.id)
        return directory.inherited if directory.inherited.exists() else None

    async def settle(self) -> None:
        """Wait until the last notebooks of closed sessions are written, ``CLOSE_SECONDS`` at most."""
        await self._finishing.wait(CLOSE_SECONDS)

    def sign(self, deletion: Deletion) -> Deletion:
        """Return the record of a deletion, signed by this server."""
        return signed_deletion(self._key, deletion)

    def forget(self, session: str) -> None:
        """Drop the notebook of a session whose start failed."""
        notebook = self._notebooks.pop(session, None)
        if notebook is not None:
            notebook.close()

    async def close(self) -> None:
        """Write pending changes and close all files."""
        await self._finishing.wait(CLOSE_SECONDS)
        for notebook in self._notebooks.values():
            notebook.close()
        if self._flusher is not None:
            self._flusher.cancel()
        self.index.close()
        self._heads.close()
