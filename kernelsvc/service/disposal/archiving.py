"""Copy the records of closed sessions to the archive (setting ``archive_url``), and read them there.

A session's directory says whether its record was copied, so a restart forgets nothing: each start, and each look later,
finds the closed sessions that are missing in the archive. Threads of their own copy them. A failure is logged once
and tried again, and delays neither the close of a session nor the stop of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from typing import TypeVar

from kernelsvc.errors import AtCapacity, NotFound, TooLarge
from kernelsvc.linux.atomic_file import replace_bytes
from kernelsvc.linux.tasks import in_daemon_thread
from kernelsvc.model.cluster.ids import session_of
from kernelsvc.model.events import JournalSigned, NotAsWritten
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.objects import Principal
from kernelsvc.service.api import ByteStream, RecordPart
from kernelsvc.service.projections import Projections
from kernelsvc.store.convert import ConverterQueue, Format, convert
from kernelsvc.store.notebook_file import EXPORT_BYTES
from kernelsvc.store.record_archive import JOURNAL, NOTEBOOK, ArchivedRecord, RecordArchive
from kernelsvc.store.recovery import end_of
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Records that are copied at the same time.
AT_ONCE = 8
#: Shortest and longest seconds before another try, when no copy succeeds.
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Seconds between two looks for closed sessions that are not in the archive, such as those that were moved here.
LOOK_SECONDS = 600.0
#: Seconds that a stopping server waits for the copies of sessions that it has ended.
STOP_SECONDS = 5.0
#: Threads that read the archive for clients at the same time, seconds for one piece, and its bytes.
MAX_READS, READ_SECONDS, PIECE_BYTES = 16, 20.0, 1024 * 1024
FILES: dict[RecordPart, str] = {"journal": JOURNAL, "notebook": NOTEBOOK}


class Archiver:
    """Copies the records of closed sessions to an archive.

    Args:
        archive: The archive.
        store: All session directories.
        projections: Says when a record is complete, and renders notebooks that are not on disk.
    """

    def __init__(self, archive: RecordArchive, store: SessionDirectories, projections: Projections) -> None:
        self._archive, self._store, self._projections = archive, store, projections
        #: Whether the notebook on disk is complete, by session.
        self._waiting: dict[str, bool] = {}
        self._failing = self._stopped = False
        self._wake = asyncio.Event()
        #: Nothing waits, or a stop need not wait for it.
        self._idle = asyncio.Event()
        self._index = projections.index
        projections.when_complete(self._add)
        projections.metrics.watch(lambda: {"unarchived_sessions": float(len(self._waiting))})

    def is_archived(self, directory: SessionDirectory) -> bool:
        """Whether a session's record was copied to this archive."""
        try:
            return directory.archived.read_text("utf-8") == self._archive.url
        except (OSError, ValueError):
            return False

    def _add(self, session: str) -> None:
        self._waiting[session] = True
        if not self._failing:
            self._idle.clear()
        self._wake.set()

    async def settle(self) -> None:
        """Wait until nothing waits or a copy fails, ``STOP_SECONDS`` at most. Safe to cancel."""
        await self._projections.settle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._idle.wait()

    async def run(self) -> None:
        """Copy records until cancelled. The next start copies the rest."""
        time, pause = asyncio.get_running_loop().time, 0.0
        next_look = time()
        try:
            while True:
                if time() >= next_look:
                    await self._look()
                    next_look = time() + LOOK_SECONDS
                self._wake.clear()
                batch = [*islice(self._waiting.items(), AT_ONCE)]
                done = await asyncio.gather(*(self._try(*each) for each in batch))
                (self._idle.set if self._failing or not self._waiting else self._idle.clear)()
                if batch and not any(done):
                    pause = min(max(SHORTEST_PAUSE, 2 * pause), LONGEST_PAUSE)
                    await asyncio.sleep(pause)
                    continue
                pause = 0.0
                if not self._waiting:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(next_look):
                            await self._wake.wait()
        finally:
            self._stopped = True

    async def _look(self) -> None:
        closed = self._index.closed() - self._waiting.keys()
        for session in await asyncio.to_thread(self._missing, closed):
            self._waiting.setdefault(session, False)

    def _missing(self, closed: Iterable[str]) -> list[str]:
        found = []
        for session in closed:
            with contextlib.suppress(NotFound, OSError):
                directory = self._store.directory(session)
                complete = isinstance(end_of(directory.journal), JournalSigned | NotAsWritten)
                if complete and not self.is_archived(directory):
                    found.append(session)
        return found

    async def _try(self, session: str, written: bool) -> bool:
        """Copy a record. Return False if it must be tried again, after those that wait already."""
        try:
            directory = self._store.directory(session)
            if not written and (file := await self._projections.notebook_file(directory)) is not None:
                file.close()
                written = True
            notebook = None if written else await self._projections.closed_notebook(directory)
            await in_daemon_thread(partial(self._copy, directory, notebook))
        except Exception as error:
            if not isinstance(error, NotFound) and directory.path.is_dir():
                self._note_failure(session, error)
                return False
        else:
            if self._failing:
                log.info("Records are copied to %s again", self._archive.url)
            self._failing = False
        del self._waiting[session]  # copied, or deleted meanwhile
        return True

    def _note_failure(self, session: str, error: Exception) -> None:
        if not self._failing:
            log.warning(
                "session %s: its record can't be copied to %s. It waits with %d others, and the server tries again: %s",
                session, self._archive.url, len(self._waiting) - 1, error, extra={"action": "archive_failed"},
            )  # fmt: skip
        self._failing = True
        self._waiting[session] = self._waiting.pop(session)

    def _copy(self, directory: SessionDirectory, notebook: bytes | None) -> None:
        principal = directory.read_about().get("principal")
        if not isinstance(principal, str) or not principal:
            raise OSError("session.json names no owner")
        record = ArchivedRecord(
            session=directory.id,
            principal=principal,
            key=self._projections.public_key,
            at=timestamp(self._store.clock()),
        )
        self._archive.put(record, directory.journal, directory.notebook if notebook is None else notebook)
        if not directory.path.is_dir() and not self._stopped:
            # It was deleted for good meanwhile, and that may have looked into the archive before the copy was there.
            self._archive.remove(directory.id)
            return
        replace_bytes(directory.archived, self._archive.url.encode())


class RecordStream:
    """A file of a record in pieces. Implements ``ByteStream``.

    Args:
        read: Returns the bytes between two positions.
        size: Bytes that ``next`` returns in all.
    """

    def __init__(self, read: Callable[[int, int], Awaitable[bytes]], size: int) -> None:
        self._read, self.size, self._at = read, size, 0

    async def next(self) -> bytes:
        """Return the next piece, or nothing at the end. Safe to cancel.

        Raises:
            BrokenPipeError: The archive does not return the rest.
        """
        if self._at == self.size:
            return b""
        try:
            piece = await self._read(self._at, min(self.size, self._at + PIECE_BYTES))
        except (AtCapacity, OSError):
            piece = b""
        if not piece:
            raise BrokenPipeError("the archive does not return the rest of a record")
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Do nothing: each piece is read by itself."""


class ArchivedRecords:
    """The records of an archive, for clients. Implements ``RecordsApi``.

    Args:
        archive: The archive.
        present_name: Returns the present name of the principal that a record names.
        converters: Limits conversions.
    """

    def __init__(self, archive: RecordArchive, present_name: Callable[[str], str], converters: ConverterQueue) -> None:
        self._archive, self._present_name, self._converters = archive, present_name, converters
        self._turns = asyncio.Semaphore(MAX_READS)
        #: A thread that hangs keeps its slot, when its turn is over.
        self._slots = threading.BoundedSemaphore(2 * MAX_READS)

    async def owner(self, session: str) -> str | None:
        """Return the owner of a record, or None if there is none. Safe to cancel.

        Raises:
            AtCapacity: The archive does not answer.
        """
        found = await self._call(partial(self._archive.find, session))
        return None if found is None else self._present_name(found.principal)

    async def open(self, who: Principal, session: str, part: RecordPart) -> ByteStream | None:
        """See ``RecordsApi.open``."""
        known = session_of(session)
        owner = None if known is None else await self.owner(known)
        if known is None or owner is None:
            return None
        if owner != who.name and "audit" not in who.scopes:
            raise NotFound(f"There is no session {session!r}. List your sessions.")
        try:
            size = await self._call(partial(self._archive.size, known, FILES[part]))
        except FileNotFoundError:
            return None

        def read(start: int, end: int) -> Awaitable[bytes]:
            return self._call(partial(self._archive.read, known, FILES[part], start, end))

        return RecordStream(read, size)

    async def convert(self, who: Principal, notebook: ByteStream, format: Format) -> bytes:
        """See ``RecordsApi.convert``."""
        if notebook.size > EXPORT_BYTES:
            raise TooLarge(f"The notebook has more than {EXPORT_BYTES >> 20} MiB. Export it as ipynb.")
        # The turn comes first: a notebook that waits would take memory.
        async with self._converters.turn(who.name):
            pieces: list[bytes] = []
            try:
                while piece := await notebook.next():
                    pieces.append(piece)
            except BrokenPipeError:
                raise AtCapacity("The archive of closed sessions does not answer. Try again later.") from None
            return await convert(b"".join(pieces), format)

    async def remove(self, session: str) -> None:
        """Remove a record, if there is one.

        Raises:
            AtCapacity: The archive does not answer. Some of its files may be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            await self._call(partial(self._archive.remove, session))

    async def _call(self, work: Callable[[], T]) -> T:
        def run() -> T:
            try:
                return work()
            finally:
                self._slots.release()

        try:
            async with asyncio.timeout(READ_SECONDS), self._turns:
                if not self._slots.acquire(blocking=False):
                    raise AtCapacity("The archive of closed sessions does not answer. Try again later.")
                return await in_daemon_thread(run)
        except FileNotFoundError:
            raise
        except OSError as error:  # also TimeoutError
            log.warning("The archive %s does not answer: %s", self._archive.url, error or type(error).__name__)
            raise AtCapacity("The archive of closed sessions does not answer. Try again later.") from None
