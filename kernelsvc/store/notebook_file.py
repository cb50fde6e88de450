"""The notebook file of a session: a projection of its journal, always valid, cheap to update.

Theory of operation
-------------------
``NotebookFile`` takes each event after its append (``feed``) and folds it later, many in one step: when a write is due,
when a client asks for the notebook, or when the waiting events have ``UNFOLDED_BYTES`` in the journal. Settled cells
are rendered once into a ``CellStore``, outside of memory. To write the notebook means to copy the store and to render
the few open cells. The file is replaced atomically (rename(2)), so a reader always finds a whole one.

A cell's end triggers a write while that is cheap. Each write spends credit, which grows by a twentieth of
the elapsed time. So a long notebook in a busy session gets fewer writes, and writing never takes more than 5 % of
the time (``write_limiter``). A session that sends cell after cell has its file written once a second, and less often if
it is large or if many sessions are busy. A thread writes files over a megabyte.

A projection may fail: the error is logged, and the notebook is rebuilt from the journal. The same code serves a
restarted server and a session that is only read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from kernelsvc.errors import TooLarge
from kernelsvc.linux.atomic_file import replace, write_all
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.audit import Audit
from kernelsvc.model.events import Event
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.notebook import NbCell, NotebookFold, inherited
from kernelsvc.store.cell_store import CellStore, encode
from kernelsvc.store.journal import Journal
from kernelsvc.store.notebook_document import NotebookDocument, Signer
from kernelsvc.store.write_limiter import WriteLimiter, WriteSchedule

log = logging.getLogger(__name__)

#: Events after which the file is written.
STEPS = frozenset(
    (ev.CellFinished, ev.SessionStarted, ev.SessionClosed, ev.KernelDied, ev.RolledBack, ev.KernelRestarted)
)
#: Most bytes of entries that wait to be folded.
UNFOLDED_BYTES = 64 * 1024

#: Size in bytes above which a thread writes the notebook.
INLINE_BYTES = 1 << 20
#: Largest notebook that is made for an export, in bytes. The server has it in memory, and a copy while it is sent.
EXPORT_BYTES = 128 << 20
#: Seconds of folding before other tasks of the event loop run.
SLICE = 0.002
#: Seconds before a failed write is retried.
RETRY = 5.0


class NotebookFile:
    """One session's ``notebook.ipynb``. Call methods on one thread, the event loop's if there is one.

    Args:
        path: The file.
        journal: The journal that it follows.
        parent: For a branch, the file with the parent's cells (``write_inherited``).
        clock: Monotonic seconds.
        linger: Seconds after an event before any folding or writing, so that clients get the event first.
        limiter: Limits the writes of all notebooks together. None: no such limit.
        for_export: Never write the file. A closed session's file is signed, and each write before the last is not.
    """

    def __init__(
        self,
        path: Path,
        journal: Journal,
        *,
        parent: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        linger: float = 0.0,
        limiter: WriteLimiter | None = None,
        for_export: bool = False,
    ) -> None:
        self.path = path
        self.journal = journal
        self._parent = parent
        self._clock = clock
        self._linger = linger
        self._limiter = limiter
        self._has_slot = False
        self._schedule = WriteSchedule(clock())
        self._fold = NotebookFold()
        # The head of the folded part. An empty digest means that its last line was not read back.
        self._chain = Head()
        #: How the journal's file differs from a chain that ends with its head. Empty if it does not.
        self.fault = ""
        self._unfolded: list[Event] = []
        self._folded_at = 0
        self._cells = CellStore(path.parent)
        self._catching_up: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._dirty = False
        self._closed = for_export

    @property
    def last_seq(self) -> int:
        """The last entry that was fed (perhaps not written)."""
        return self._unfolded[-1].seq if self._unfolded else self._fold.last_seq

    def inherit(self, parent: Path) -> None:
        """Begin with these cells from now on. For a branch, when it has its parent's cells."""
        self._parent = parent
        self._step()

    # -- folding ---------------------------------------------------------------

    def feed(self, events: Sequence[Event]) -> None:
        """Add events that were just appended to the journal. Writes the file if it is due. Never raises ``OSError``."""
        if self._closed or self._catching_up is not None or not events:
            return
        last = self.last_seq
        if events[0].seq != last + 1:
            if events[0].seq <= last:  # A failed disk lost entries.
                self._start_over()
            self._catch_up_soon()
            return
        self._unfolded += events
        head = self.journal.head
        self._chain = head if head.seq == events[-1].seq else Head(events[-1].seq)
        if not STEPS.isdisjoint(map(type, events)):
            self._dirty = True
        full = self.journal.size - self._folded_at > UNFOLDED_BYTES
        if full or not self._linger:
            self._fold_events()
            if self._dirty or self._fold.heavy:
                self._step()
        elif self._dirty and not (self._linger_timer or self._timer or self._writing):
            self._linger_timer = asyncio.get_running_loop().call_later(self._linger, self._after_linger)

    def _fold_events(self) -> None:
        unfolded, self._unfolded = self._unfolded, []
        self._folded_at = self.journal.size
        for event in unfolded:
            self._fold.feed(event)

    def _after_linger(self) -> None:
        """Write now, or fold nothing until the write is due."""
        self._linger_timer = None
        wait = self._schedule.wait(self._clock())
        if wait:
            self._later(wait)
        else:
            self._step()

    def _step(self) -> None:
        self._cancel_linger()
        self._dirty = True
        try:
            self._store_settled()
        except OSError as error:
            self._on_error(error)
            return
        if self._writing is None and self._timer is None and not self._closed:
            self._write_when_due()

    def _cancel_linger(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _store_settled(self) -> None:
        self._fold_events()
        _store_settled(self._fold, self._cells)

    def _on_error(self, error: OSError) -> None:
        log.warning(
            "the notebook of session %s can't be updated and will be rebuilt from the journal: %s",
            self.journal.session,
            error,
        )
        self._start_over()
        self._later(RETRY)

    def _start_over(self) -> None:
        self._fold, self._chain = NotebookFold(), Head()
        self._unfolded.clear()
        self._cells.close()

    def _catch_up_soon(self) -> None:
        self._catching_up = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            for _ in self._slices():
                await asyncio.sleep(0)
        except OSError as error:
            self._on_error(error)
            return
        finally:
            self._catching_up = None
        self._step()

    def _slices(self) -> Iterator[None]:
        """Fold the journal's entries after the cursor, with pauses. Ends when all are folded.

        Raises:
            OSError: The journal can't be read, or cells can't be stored.
        """
        self._fold_events()
        pause = self._clock() + SLICE
        while self._fold.last_seq < self.journal.last_seq:
            for line in self.journal.lines(self._fold.last_seq + 1):
                self._follow(line)
                self._fold.feed(_decode(line, self._fold.last_seq + 1))
                if self._fold.heavy:
                    self._store_settled()
                if self._clock() >= pause:
                    self._store_settled()
                    yield
                    pause = self._clock() + SLICE
        self._store_settled()

    def _follow(self, line: bytes) -> None:
        """Check that a line of the file continues the chain. The file could have been edited since it was written."""
        seq, digest = self._chain
        env = hash_chain.envelope(line)
        linked = env is not None and env.seq == seq + 1 and (env.prev == digest or (seq > 0 and not digest))
        if not linked and not self.fault:
            self.fault = f"Entry {seq + 1} does not follow the entry before it: one of the two was changed."
        self._chain = Head(seq + 1, hash_chain.digest(line))
        head = self.journal.head
        if seq + 1 == head.seq and self._chain != head and not self.fault:
            self.fault = f"Entry {head.seq} is not the one that was written."

    async def catch_up(self) -> None:
        """Fold all present entries of the journal. Safe to cancel: the folding continues.

        Raises:
            OSError: The journal can't be read, or the disk is full.
        """
        self._fold_events()
        while self._fold.last_seq < self.journal.last_seq:
            if self._catching_up is None:
                self._catch_up_soon()
            assert self._catching_up is not None
            before = self._fold.last_seq
            await asyncio.shield(self._catching_up)
            if self._fold.last_seq <= before:
                raise OSError(f"the journal of session {self.journal.session} can't be folded beyond {before}")

    # -- writing ----------------------------------------------------------------

    def _write_when_due(self) -> None:
        wait = self._schedule.wait(self._clock()) or self._limiter_delay()
        if wait:
            self._later(wait)
        elif self._size() <= INLINE_BYTES:
            self._write_inline()
        else:
            self._writing = asyncio.ensure_future(self._write_in_thread())

    def _limiter_delay(self) -> float:
        """Return the seconds until the next write of this notebook. 0 means now and uses the turn."""
        if self._has_slot or self._limiter is None:
            self._has_slot = False
            return 0.0
        wait = self._limiter.delay(self._clock())
        self._has_slot = wait > 0
        return wait

    def _size(self) -> int:
        return self._cells.nbytes + (self._parent.stat().st_size if self._parent and self._parent.exists() else 0)

    def _later(self, seconds: float) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._closed or self._writing is not None:
            return
        if self.last_seq < self.journal.last_seq and self._catching_up is None:
            self._catch_up_soon()
        elif self._dirty:
            self._step()

    def _write_inline(self) -> None:
        try:
            self.write()
        except OSError as error:
            log.warning(
                "a write of the notebook of session %s failed and will be retried: %s", self.journal.session, error
            )
            self._later(RETRY)

    async def _write_in_thread(self) -> None:
        self._dirty = False
        began = self._clock()
        document = self._document()
        try:
            await asyncio.to_thread(replace, self.path, document.write)
        except OSError as error:
            log.warning(
                "a write of the notebook of session %s failed and will be retried: %s", self.journal.session, error
            )
            self._dirty = True
            self._later(RETRY)
        finally:
            self._schedule.spent(self._clock() - began, self._size())
            self._writing = None
        if self._dirty and self._timer is None and not self._closed:
            self._step()

    def write(self, *, durable: bool = False, sign: Signer | None = None) -> None:
        """Replace the file now.

        Args:
            durable: Whether it must survive a power failure.
            sign: Signs the audit data, which the file then contains.

        Raises:
            OSError: The old file is unchanged.
        """
        began = self._clock()
        try:
            replace(self.path, self._document(sign).write, durable=durable)
            self._dirty = False
        finally:
            self._schedule.spent(self._clock() - began, self._size())

    def _document(self, sign: Signer | None = None) -> NotebookDocument:
        self._fold_events()
        rest, metadata = self._fold.rest(), self._fold.metadata()
        session, head = self.journal.session, self.journal.head
        if self.fault:
            log.error("session %s: NOT AS WRITTEN: %s Its notebook is not signed", session, self.fault)
            metadata["kernelsvc"]["not_as_written"] = self.fault
            sign = sign and unsigned
        return NotebookDocument(self._parent, self._cells.snapshot(), rest, metadata, session, head, sign)

    async def export(self, sign: Signer | None = None) -> bytes:
        """Return the notebook with all entries of the journal, as ``.ipynb``. Safe to cancel.

        Raises:
            OSError: The journal can't be read.
            TooLarge: It has more than ``EXPORT_BYTES``.
        """
        await self.catch_up()
        self._store_settled()
        if self._size() > EXPORT_BYTES:
            raise TooLarge(
                f"The notebook has more than {EXPORT_BYTES >> 20} MiB. "
                "Export it as ipynb when the session is closed, or the log now: kernelsvc export ID -o FILE.jsonl."
            )
        document = self._document(sign)
        if self._size() <= INLINE_BYTES:
            return document.data()
        return await asyncio.to_thread(document.data)

    async def finish(self, sign: Signer | None = None) -> bool:
        """Fold the rest, write the last version durably, and close. Never raises ``OSError``. Safe to cancel.

        Returns:
            Whether the write succeeded.
        """
        try:
            await self.catch_up()
            while self._writing is not None:  # the end of one write may begin the next
                await asyncio.shield(self._writing)
            self._store_settled()
            document = self._document(sign)
            # ``replace`` takes one writer at a time: no timer may write while the thread does.
            self._closed = True
            self._cancel_linger()
            await asyncio.to_thread(replace, self.path, document.write, durable=True)
            return True
        except OSError as error:
            log.warning(
                "the last write of the notebook of session %s failed. Export it from the journal: %s",
                self.journal.session,
                error,
            )
            return False
        finally:
            self.close()

    def close(self) -> None:
        """Close without writing: the server stops, or the session is gone. Idempotent."""
        self._closed = True
        self._unfolded.clear()
        self._cancel_linger()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._catching_up is not None:
            self._catching_up.cancel()
        self._cells.close()


def unsigned(audit: Audit) -> Audit:
    """Return the audit data without a signature. A ``notebook_document.Signer`` for what the server can't vouch for."""
    return audit


def _store_settled(fold: NotebookFold, store: CellStore) -> None:
    store.add(fold.take())
    for patch in fold.take_patches():
        store.change(patch.id, patch.apply)


def _decode(line: bytes, seq: int) -> Event:
    try:
        return ev.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        log.warning("entry %d of a journal can't be decoded and is missing in the notebook: %s", seq, error)
        return ev.SessionAdopted(seq=seq)


def cells_of(journal: Journal, until: int) -> Iterator[NbCell]:
    """Yield the notebook cells of a session as of entry ``until``, in bounded memory.

    Raises:
        OSError: The journal can't be read, or the disk is full.
    """
    fold, store = NotebookFold(), CellStore(journal.path.parent)
    try:
        for seq, line in enumerate(journal.lines(1, until), 1):
            fold.feed(_decode(line, seq))
            if fold.heavy or seq % 64 == 0:
                _store_settled(fold, store)
        _store_settled(fold, store)
        yield from store
        yield from fold.rest()
    finally:
        store.close()


def write_inherited(path: Path, session: str, cells: Iterable[NbCell], parents: Path | None = None) -> None:
    """Write the first part of a branch's notebook: its parent's cells, marked, and those that the parent inherited.

    Args:
        path: The branch's file for them.
        session: The parent's id.
        cells: The parent's own cells up to the fork (``cells_of``).
        parents: The parent's own file of inherited cells, if it is a branch.

    Raises:
        OSError: The file is unchanged.
    """

    def fill(fd: int) -> None:
        if parents is not None and parents.exists():
            with parents.open("rb") as file:
                for line in file:
                    cell = msgspec.json.decode(line.removesuffix(b",\n"))
                    write_all(fd, encode(inherited(cell, session)) + b",\n")
        for cell in cells:
            write_all(fd, encode(inherited(cell, session)) + b",\n")

    replace(path, fill, durable=True)
