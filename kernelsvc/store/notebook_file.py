"""The notebook file of a session: a projection of its journal, always valid, cheap to keep.

Theory of operation
-------------------
``NotebookFile`` takes each event when it is appended (``feed``) and folds it once,
later: many in one go, when the file is due, when somebody asks for the notebook,
or when what waits has ``FRESH_BYTES`` in the journal. What is settled is rendered
once and lies in a ``CellStore``, out of memory; writing the notebook means
copying that and rendering the few cells that are still open. The file is
replaced atomically, so a reader always finds a whole one.

It is written as soon as a cell ends while that is cheap. Each write spends
credit, which comes back at a twentieth of the time that passes: a long notebook
in a busy session is written less often, and never costs more than 5 % of the
time. A session that sends cell after cell has it written once a second, less often
once it is large, or when many sessions are as busy (``crowd``). A file over a megabyte
is written in a thread.

A projection may fail: what goes wrong here is logged, and the notebook is made
again from the journal, which holds everything. The same path serves a server
that starts again and a session that is only read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.linux.atomic_file import replace, write_all
from kernelsvc.model import events as ev
from kernelsvc.model.audit import Audit, audit
from kernelsvc.model.events import Event
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.notebook import NbCell, NotebookFold, inherited
from kernelsvc.store.cell_store import CellStore, Snapshot, encode
from kernelsvc.store.journal import Journal
from kernelsvc.store.write_limiter import WriteLimiter

log = logging.getLogger(__name__)

#: Events after which the file is worth writing.
STEPS = frozenset(
    (ev.CellFinished, ev.SessionStarted, ev.SessionClosed, ev.KernelDied, ev.RolledBack, ev.KernelRestarted)
)
#: Bytes that go to the file in one write.
WRITE_BYTES = 64 * 1024
#: Bytes of entries that wait to be folded.
FRESH_BYTES = 64 * 1024

#: The share of time that writing may take, and the credit to begin with, seconds.
SHARE = 0.05
CREDIT = 0.05
#: Writes that may follow each other at once, and how many more each second: a hundred busy sessions write a hundred
#: notebooks, and each costs most of a millisecond however short it is.
BURST, PER_SECOND = 10.0, 1.0
#: A larger notebook's write counts for as many as there are such parts in it, so that the bytes written for a cell
#: don't grow with the number of cells.
PART_BYTES = 256 * 1024
#: A notebook larger than this is written in a thread.
INLINE_BYTES = 1 << 20
#: Seconds of folding before the event loop gets a turn, when there is much to catch up with.
SLICE = 0.002
#: Seconds before a failed write is tried again.
RETRY = 5.0

Signer = Callable[[Audit], Audit]


class WriteSchedule:
    """When the next write may be: pure, time enters as an argument. Seconds."""

    def __init__(self, now: float) -> None:
        self._credit = CREDIT
        self._writes = BURST
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until a write is due; 0 if it is now."""
        passed = max(0.0, now - self._at)
        self._credit = min(CREDIT, self._credit + SHARE * passed)
        self._writes = min(BURST, self._writes + PER_SECOND * passed)
        self._at = now
        return max(0.0, -self._credit / SHARE, (1.0 - self._writes) / PER_SECOND)

    def spent(self, seconds: float, size: int = 0) -> None:
        """A write of so many bytes took this long."""
        self._credit -= seconds
        self._writes -= max(1.0, size / PART_BYTES)


class NotebookFile:
    """One session's ``notebook.ipynb``. Methods are called on one thread, that of the event loop if there is one.

    Args:
        path: where it lies.
        journal: what it is folded from.
        parent: the file with the parent's cells, for a branch (``write_inherited``).
        clock: monotonic seconds.
        linger: seconds after an event before anything is folded or written: its reader goes first.
        crowd: whose turns it shares with other notebooks; None: it is alone.
    """

    def __init__(
        self,
        path: Path,
        journal: Journal,
        *,
        parent: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        linger: float = 0.0,
        crowd: WriteLimiter | None = None,
    ) -> None:
        self.path = path
        self._journal = journal
        self._parent = parent
        self._clock = clock
        self._linger = linger
        self._crowd = crowd
        self._has_turn = False
        self._pace = WriteSchedule(clock())
        self._fold = NotebookFold()
        self._fresh: list[Event] = []
        self._folded_at = 0
        self._cells = CellStore(path.parent)
        self._catching_up: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._dirty = False
        self._closed = False

    @property
    def last_seq(self) -> int:
        """The last entry that was taken in (not: written)."""
        return self._fresh[-1].seq if self._fresh else self._fold.last_seq

    def inherit(self, parent: Path) -> None:
        """Begin with these cells from now on; for a branch, when its parent's are written."""
        self._parent = parent
        self._step()

    # -- folding ---------------------------------------------------------------

    def feed(self, events: Sequence[Event]) -> None:
        """Take in what was just appended to the journal; write the file if it is time. Never raises ``OSError``."""
        if self._closed or self._catching_up is not None or not events:
            return
        last = self.last_seq
        if events[0].seq != last + 1:
            if events[0].seq <= last:  # a failed disk took entries back
                self._forget()
            self._catch_up_soon()
            return
        self._fresh += events
        if not STEPS.isdisjoint(map(type, events)):
            self._dirty = True
        full = self._journal.size - self._folded_at > FRESH_BYTES
        if full or not self._linger:
            self._fold_fresh()
            if self._dirty or self._fold.heavy:
                self._step()
        elif self._dirty and not (self._soon or self._timer or self._writing):
            self._soon = asyncio.get_running_loop().call_later(self._linger, self._look)

    def _fold_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._folded_at = self._journal.size
        for event in fresh:
            self._fold.feed(event)

    def _look(self) -> None:
        """A cell has ended a moment ago: write now, or fold nothing until it is time."""
        self._soon = None
        wait = self._pace.wait(self._clock())
        if wait:
            self._later(wait)
        else:
            self._step()

    def _step(self) -> None:
        self._rest()
        self._dirty = True
        try:
            self._settle()
        except OSError as error:
            self._failed(error)
            return
        if self._writing is None and self._timer is None:
            self._write_when_due()

    def _rest(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _settle(self) -> None:
        self._fold_fresh()
        _settle(self._fold, self._cells)

    def _failed(self, error: OSError) -> None:
        log.warning(
            "the notebook of session %s can't be written, it will be made again: %s", self._journal.session, error
        )
        self._forget()
        self._later(RETRY)

    def _forget(self) -> None:
        self._fold = NotebookFold()
        self._fresh.clear()
        self._cells.close()

    def _catch_up_soon(self) -> None:
        self._catching_up = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            for _ in self._slices():
                await asyncio.sleep(0)
        except OSError as error:
            self._failed(error)
            return
        finally:
            self._catching_up = None
        self._step()

    def _slices(self) -> Iterator[None]:
        """Fold what the journal holds beyond the cursor, pausing now and then; ends when nothing is left.

        Raises:
            OSError: the journal can't be read, or cells can't be stored.
        """
        self._fold_fresh()
        pause = self._clock() + SLICE
        while self._fold.last_seq < self._journal.last_seq:
            for line in self._journal.lines(self._fold.last_seq + 1):
                self._fold.feed(_decode(line, self._fold.last_seq + 1))
                if self._fold.heavy:
                    self._settle()
                if self._clock() >= pause:
                    self._settle()
                    yield
                    pause = self._clock() + SLICE
        self._settle()

    async def catch_up(self) -> None:
        """Fold in everything that the journal holds now. Safe to cancel; the folding goes on.

        Raises:
            OSError: the journal can't be read, or there is no room.
        """
        self._fold_fresh()
        while self._fold.last_seq < self._journal.last_seq:
            if self._catching_up is None:
                self._catch_up_soon()
            assert self._catching_up is not None
            before = self._fold.last_seq
            await asyncio.shield(self._catching_up)
            if self._fold.last_seq <= before:
                raise OSError(f"the journal of session {self._journal.session} can't be folded beyond {before}")

    def catch_up_now(self) -> None:
        """``catch_up`` where there is no event loop.

        Raises:
            OSError: the journal can't be read, or there is no room.
        """
        for _ in self._slices():
            pass
        self._dirty = True

    # -- writing ----------------------------------------------------------------

    def _write_when_due(self) -> None:
        wait = self._pace.wait(self._clock()) or self._turn()
        if wait:
            self._later(wait)
        elif self._size() <= INLINE_BYTES:
            self._write_inline()
        else:
            self._writing = asyncio.ensure_future(self._write_in_thread())

    def _turn(self) -> float:
        """Seconds until it is our turn to write; 0 if it is now, and then it is used."""
        if self._has_turn or self._crowd is None:
            self._has_turn = False
            return 0.0
        wait = self._crowd.delay(self._clock())
        self._has_turn = wait > 0
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
        if self.last_seq < self._journal.last_seq and self._catching_up is None:
            self._catch_up_soon()
        elif self._dirty:
            self._step()

    def _write_inline(self) -> None:
        try:
            self.write()
        except OSError as error:
            log.warning("the notebook of session %s can't be written now: %s", self._journal.session, error)
            self._later(RETRY)

    async def _write_in_thread(self) -> None:
        self._dirty = False
        began = self._clock()
        document = self._document()
        try:
            await asyncio.to_thread(replace, self.path, document.write)
        except OSError as error:
            log.warning("the notebook of session %s can't be written now: %s", self._journal.session, error)
            self._dirty = True
            self._later(RETRY)
        finally:
            self._pace.spent(self._clock() - began, self._size())
            self._writing = None
        if self._dirty and self._timer is None and not self._closed:
            self._step()

    def write(self, *, durable: bool = False, sign: Signer | None = None) -> None:
        """Replace the file now.

        Args:
            durable: whether it must survive a power cut.
            sign: signs the audit that the file then carries.

        Raises:
            OSError: the old file is as it was.
        """
        began = self._clock()
        try:
            replace(self.path, self._document(sign).write, durable=durable)
            self._dirty = False
        finally:
            self._pace.spent(self._clock() - began, self._size())

    def _document(self, sign: Signer | None = None) -> Document:
        self._fold_fresh()
        rest, metadata = self._fold.rest(), self._fold.metadata()
        session, head = self._journal.session, self._journal.head
        return Document(self._parent, self._cells.snapshot(), rest, metadata, session, head, sign)

    async def export(self, sign: Signer | None = None) -> bytes:
        """The notebook as it is now, with everything that the journal holds, as ``.ipynb``. Safe to cancel.

        Raises:
            OSError: the journal can't be read.
        """
        await self.catch_up()
        self._settle()
        document = self._document(sign)
        if self._size() <= INLINE_BYTES:
            return document.data()
        return await asyncio.to_thread(document.data)

    async def finish(self, sign: Signer | None = None) -> None:
        """Fold in the rest, write the last version, durably, and let go. Never raises ``OSError``; safe to cancel."""
        try:
            await self.catch_up()
            if self._writing is not None:
                await asyncio.shield(self._writing)
            self._settle()
            document = self._document(sign)
            # ``replace`` takes one writer at a time: no timer may write while the thread does.
            self._closed = True
            self._rest()
            await asyncio.to_thread(replace, self.path, document.write, durable=True)
        except OSError as error:
            log.warning("the last notebook of session %s can't be written: %s", self._journal.session, error)
        finally:
            self.close()

    def close(self) -> None:
        """Let go without writing: the server stops, or the session is gone. Idempotent."""
        self._closed = True
        self._fresh.clear()
        self._rest()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._catching_up is not None:
            self._catching_up.cancel()
        self._cells.close()


class Document:
    """A notebook at one moment; written or read once, in any thread."""

    def __init__(
        self,
        parent: Path | None,
        cells: Snapshot,
        rest: list[NbCell],
        metadata: dict[str, Any],
        session: str,
        head: Head,
        sign: Signer | None,
    ) -> None:
        self._parent = parent
        self._cells = cells
        self._rest = rest
        self._metadata = metadata
        self._session = session
        self._head = head
        self._sign = sign

    def data(self) -> bytes:
        """The whole document."""
        return b"".join(self._pieces())

    def write(self, fd: int) -> None:
        """Write the whole document to a descriptor.

        Raises:
            OSError: not all of it was written.
        """
        few: list[bytes] = []
        size = 0
        for piece in self._pieces():
            few.append(piece)
            size += len(piece)
            if size >= WRITE_BYTES:
                write_all(fd, b"".join(few))
                few, size = [], 0
        write_all(fd, b"".join(few))

    def _pieces(self) -> Iterator[bytes]:
        yield b'{"cells":[\n'
        last = b""
        with self._cells:
            for piece in self._cell_pieces():
                # The last separator must go: hold one piece back.
                if last:
                    yield last
                last = piece
            yield last.removesuffix(b",\n")
            metadata = {**self._metadata, "kernelsvc": {**self._metadata["kernelsvc"], **self._audit()}}
        yield b'\n],\n"metadata":' + encode(metadata) + b',\n"nbformat":4,"nbformat_minor":5}\n'

    def _cell_pieces(self) -> Iterator[bytes]:
        if self._parent is not None and self._parent.exists():
            with self._parent.open("rb") as file:
                while piece := file.read(1 << 20):
                    yield piece
        yield from self._cells.pieces()
        yield from (encode(cell) + b",\n" for cell in self._rest)

    def _audit(self) -> dict[str, Any]:
        if self._sign is None:
            return {}
        cells = (msgspec.json.decode(line) for line in self._cell_lines())
        return {"audit": msgspec.to_builtins(self._sign(audit(self._session, self._head, cells)))}

    def _cell_lines(self) -> Iterator[bytes]:
        tail = b""
        for piece in self._cell_pieces():
            *lines, tail = (tail + piece).split(b",\n")
            yield from lines


def _settle(fold: NotebookFold, store: CellStore) -> None:
    store.add(fold.take())
    for patch in fold.take_patches():
        store.change(patch.id, patch.apply)


def _decode(line: bytes, seq: int) -> Event:
    try:
        return ev.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        log.warning("entry %d can't be read and is not in the notebook: %s", seq, error)
        return ev.SessionAdopted(seq=seq)


def cells_of(journal: Journal, until: int) -> Iterator[NbCell]:
    """The notebook cells of a session as they were at entry ``until``, in bounded memory.

    Raises:
        OSError: the journal can't be read, or there is no room beside it.
    """
    fold, store = NotebookFold(), CellStore(journal.path.parent)
    try:
        for seq, line in enumerate(journal.lines(1, until), 1):
            fold.feed(_decode(line, seq))
            if fold.heavy or seq % 64 == 0:
                _settle(fold, store)
        _settle(fold, store)
        yield from store
        yield from fold.rest()
    finally:
        store.close()


def write_inherited(path: Path, session: str, cells: Iterable[NbCell], parents: Path | None = None) -> None:
    """Write what a branch's notebook begins with: its parent's cells, marked (and what the parent had inherited).

    Args:
        path: the branch's file for it.
        session: the parent's id.
        cells: the parent's own cells up to the fork (``cells_of``).
        parents: the parent's file of the same kind, if it is a branch itself.

    Raises:
        OSError: nothing was written.
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
