"""A session's journal: one append-only file of chained lines, the truth about the session.

Theory of operation
-------------------
``append`` stamps events and hands them to Linux in one ``write``; ``sync`` makes
them durable. What ``append`` could not write whole it takes back (``ftruncate``)
and raises, so the file always ends with a whole entry and the caller knows that
nothing of its batch counts.

**After a failed fsync** nothing may be believed. Linux marks the pages clean
although they never reached the disk, reports the error once, and a second fsync
succeeds without writing anything: "Can Applications Recover from fsync
Failures?" (Rebello et al., USENIX ATC 2020) found ext4 and XFS to keep the new
content in the page cache only, Btrfs to go back to the old, and PostgreSQL,
LMDB, LevelDB, SQLite and Redis all to lose data by trying again. So the journal
counts as damaged: ``append`` and ``sync`` refuse, and readers get nothing that
was not already handed out. ``recover`` writes the unsynced part again (the pages
are dirty then, and a second fsync means something), syncs, closes, drops the
file's pages from the cache, opens again and verifies the whole chain from the
disk. What could not be saved is reported.

**The sync is inline**, on the event loop's thread. Measured on 2 cores, ext4 on
virtio, four small events at a time, one and two sessions at once: inline 0.16 to
0.22 ms p50 and 0.3 to 0.5 ms p99; through ``asyncio.to_thread`` 0.25 to 0.43 ms
p50 and 0.4 to 5 ms p99: two changes of thread cost as much as what they hide. A
disk with slow flushes would shift that; ``sync`` may be called in a thread as
long as nothing else is called meanwhile. (``python -m benchmarks.journal``.)

**Opening** cuts a torn tail back to the last whole entry (``recovery``). More
than a torn line is never thrown away: it is moved to ``<journal>.cut-N`` beside
it, for whoever wants to know. What is not synced never grows past a bound, so
that only the end of a long journal can be in doubt.

**Readers** hold a position, never a queue. Those that are near the end are
served from a small ring of recent lines, the others from the file (which is in
the page cache as long as it matters). What one append brought is in the ring for a
moment whatever its size, if anybody listens: reading 10 MB back is four copies.

One process at a time writes to a journal: ``flock`` sees to it. Methods are
called from one thread at a time; ``lines`` may be walked in another.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from kernelsvc.errors import Conflict, CursorExpired, CursorUnknown, Internal, NotSupported, SessionClosed
from kernelsvc.linux.atomic_file import sync_directory
from kernelsvc.linux.line_file import CHUNK, SparseIndex, pieces, read_lines, walk
from kernelsvc.model import hash_chain
from kernelsvc.model.events import SCHEMA, Event
from kernelsvc.model.hash_chain import Head
from kernelsvc.store.recovery import UNSYNCED_BYTES, Recovery, count, cut_tail, last_line, scan

Clock = Callable[[], float]
#: Told that there is more, with the last line of it; or with none, when something else has changed.
News = Callable[[bytes], None]

#: Bytes of recent lines kept in memory per journal.
RING_BYTES = 32 * 1024
#: Seconds for which a longer line is there too, so that whoever listens need not read it back.
MOMENT_SECONDS = 0.05
#: More bytes than this, in so few lines, are written from where they are.
LARGE_BYTES, FEW_LINES = 256 * 1024, 64
#: Bytes that one ``JournalReader.next`` gives at most, but for a single longer line.
BATCH_BYTES = 256 * 1024


class JournalMetrics:
    """What all journals of this process cost.

    Attributes:
        append_seconds: making entries and handing them to Linux, without what a sync took.
        bytes: appended.
        syncs: seconds of each sync since the last ``take``.
    """

    def __init__(self) -> None:
        self.append_seconds = 0.0
        self.bytes = 0
        self.syncs: list[float] = []

    def take(self) -> JournalMetrics:
        """What has gathered, and begin anew."""
        taken = JournalMetrics()
        taken.__dict__, self.__dict__ = self.__dict__, taken.__dict__
        return taken


METER = JournalMetrics()

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Journal:
    """One session's journal. Make one with ``create`` or ``open``.

    Attributes:
        path: the file.
        session: the session's id.
        recovery: what opening found and did.
        damaged: why it takes nothing more until ``recover``; None if it does.
    """

    def __init__(
        self,
        path: Path,
        session: str,
        fd: int,
        clock: Clock,
        *,
        read_only: bool = False,
        sync_bytes: int | None = UNSYNCED_BYTES,
    ) -> None:
        self.path = path
        self.session = session
        self.recovery = Recovery(last_seq=0)
        self.damaged: str | None = None
        self._clock = clock
        self._fd = fd
        self._closed = read_only
        self._head = Head()
        self._size = 0
        self._synced_size = 0
        self._sync_bytes = sync_bytes
        self._directory_synced = False
        self._index = SparseIndex()
        self._ring: deque[bytes] = deque()
        self._ring_bytes = self._held = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners: list[News] = []

    # -- making one -------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, session_id: str, *, clock: Clock = time.time) -> Journal:
        """A new, empty journal, mode 0600.

        Args:
            path: where; nothing may be there yet.
            session_id: goes into every line.
            clock: seconds since the epoch.

        Raises:
            OSError: it can't be made there.
        """
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(fd, path)
        return cls(path, session_id, fd, clock)

    @classmethod
    def open(
        cls, path: Path, session_id: str | None = None, *, clock: Clock = time.time, read_only: bool = False
    ) -> Journal:
        """An existing journal, recovered: see ``recovery`` for what was done.

        Reads the file in pieces: 1 GB in 0.7 s (long lines) to 2 s (4 million short
        ones), with 30 MB of memory. Call it in a thread when the file is large.

        Args:
            path: the file.
            session_id: the id that every line must carry; by default the name of
                the directory that the file lies in.
            clock: seconds since the epoch.
            read_only: nothing is cut or locked; the journal is closed from the start.

        Raises:
            OSError: it can't be opened, or what was cut can't be kept.
            Conflict: another process has it open.
            NotSupported: a later version wrote it.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW if read_only else _FLAGS)
        if not read_only:
            _lock(fd, path)
        journal = cls(path, session_id or path.absolute().parent.name, fd, clock, read_only=read_only)
        try:
            journal._load()
        except BaseException:
            os.close(fd)
            raise
        if read_only:
            os.close(fd)
        return journal

    def _load(self) -> None:
        """Find the end of the whole entries; a read-only journal is only counted."""
        size = os.fstat(self._fd).st_size
        if self._closed:
            self._index, seq, self._size = count(self._fd, size)
            self._head = Head(seq, hash_chain.digest(last_line(self._fd, self._index, seq, self._size)) if seq else "")
            self.recovery = Recovery(last_seq=seq)
        else:
            found = scan(self._fd, size, self.session)
            self.recovery = cut_tail(self._fd, self.path, found, size)
            self._index, self._head, self._size = found.index, found.head, found.end
        _refuse_newer(read_lines(self._fd, 0, self._size, 1))
        self._synced_size = self._size
        self._ring.clear()
        self._ring_bytes = 0

    # -- writing ------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """The last entry's number; 0 in an empty journal."""
        return self._head.seq

    @property
    def head(self) -> Head:
        """The last entry's number and the digest of its line."""
        return self._head

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def unsynced(self) -> int:
        """Bytes appended since the last ``sync``."""
        return self._size - self._synced_size

    @property
    def closed(self) -> bool:
        """Whether it takes no more entries."""
        return self._closed

    def append(self, events: Sequence[Event]) -> None:
        """Stamp these events and write them, all or none, then wake the readers.

        The events are given their ``session``, ``seq``, ``at`` and ``prev`` in place.

        Raises:
            OSError: nothing was appended and the events are as before (no room, a
                file-size limit, an I/O error, or the journal is damaged and waits
                for ``recover``).
            SessionClosed: the journal is closed.
        """
        if self._closed or self.damaged:
            self._must_be_writable()
        if not events:
            return
        began = time.perf_counter()
        lines, head = hash_chain.stamp(events, self.session, self._head, hash_chain.timestamp(self._clock()))
        size = len(lines) + sum(map(len, lines))
        try:
            self._write(lines, size)
        except BaseException:
            hash_chain.unstamp(events)
            raise
        self._note(lines, size)
        self._head = head
        METER.append_seconds += time.perf_counter() - began
        METER.bytes += size
        self._wake(lines[-1])

    def _must_be_writable(self) -> None:
        if self._closed:
            raise SessionClosed()
        if self.damaged:
            raise OSError(errno.EIO, f"the journal needs recover() before it takes more: {self.damaged}")

    def _note(self, lines: list[bytes], size: int) -> None:
        self._index.add_all(self._head.seq + 1, self._size, lines, size)
        self._size += size
        self._ring += lines
        self._ring_bytes += size
        if self._ring_bytes > RING_BYTES:
            if size > RING_BYTES:
                self._held = size if self._kept_for_a_moment() else 0
            # Short ones that follow at once, a cell's end say, take nothing away.
            self._trim(RING_BYTES + self._held)

    def _kept_for_a_moment(self) -> bool:
        """See to it that what is appended just now, and too long for the ring, is there for those who listen."""
        if not self._listeners:
            return False
        try:
            asyncio.get_running_loop().call_later(MOMENT_SECONDS, self._let_go)
        except RuntimeError:
            return False
        return True

    def _let_go(self) -> None:
        self._held = 0
        self._trim(RING_BYTES)

    def _trim(self, most: int) -> None:
        while self._ring_bytes > most:
            self._ring_bytes -= len(self._ring.popleft()) + 1

    def _write(self, lines: list[bytes], size: int) -> None:
        """All of ``lines``, or nothing of them and an exception (write(2): a short write is no error)."""
        unsynced = self._size - self._synced_size
        if self._sync_bytes is not None and unsynced and unsynced + size > self._sync_bytes:
            self.sync()
        try:
            written = 0
            if size > LARGE_BYTES and len(lines) <= FEW_LINES:  # not copied
                written = os.writev(self._fd, [part for line in lines for part in (line, b"\n")])
            if written < size:
                self._write_rest(b"\n".join(lines) + b"\n", written)
        except BaseException:
            self._take_back()
            raise

    def _write_rest(self, data: bytes, written: int) -> None:
        while written < len(data):
            step = os.write(self._fd, memoryview(data)[written:] if written else data)
            if step == 0:
                raise OSError(errno.EIO, "write() wrote nothing")
            written += step

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            self.damaged = f"a part of an entry could not be taken back ({error})"

    def sync(self) -> None:
        """Make everything appended durable (fdatasync, inline; the first time also the directory).

        Raises:
            OSError: it may be gone. The journal is damaged from now on; see ``recover``.
        """
        if self.damaged:
            raise OSError(errno.EIO, f"the journal needs recover() first: {self.damaged}")
        if self._synced_size == self._size or self._closed:
            return
        began = time.perf_counter()
        try:
            os.fdatasync(self._fd)
            if not self._directory_synced:
                sync_directory(self.path.parent)
                self._directory_synced = True
        except OSError as error:
            self.damaged = f"a sync failed ({error})"
            raise
        METER.syncs.append(time.perf_counter() - began)
        self._synced_size = self._size

    def recover(self) -> Recovery:
        """Make a damaged journal usable again, or say why not. As slow as ``open``.

        Returns:
            What was found: ``lost`` entries were appended once and are gone; a
            reader that had them gets ``cursor_unknown``.

        Raises:
            OSError: the disk still fails; the journal stays damaged.
        """
        if not self.damaged:
            return Recovery(last_seq=self.last_seq)
        had = self._head
        self._rewrite_unsynced()
        self._reopen()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._load()
        self.damaged = None
        lost = had.seq - self._head.seq
        if lost:
            text = f"{self.recovery.message} {lost} entries after {self._head.seq} were lost.".strip()
            self.recovery = msgspec.structs.replace(self.recovery, lost=lost, message=text)
        self._wake()
        return self.recovery

    def _reopen(self) -> None:
        fd = os.open(self.path, _FLAGS)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        _lock(fd, self.path)
        os.close(self._fd)
        self._fd = fd

    def _rewrite_unsynced(self) -> None:
        os.ftruncate(self._fd, self._size)
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for offset in range(self._synced_size, self._size, CHUNK):
                data = os.pread(fd, min(CHUNK, self._size - offset), offset)
                if os.pwrite(fd, data, offset) != len(data):
                    raise OSError(errno.ENOSPC, "no room to write the unsynced entries again")
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Take no more entries and wake the readers, who read on to the end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        os.close(self._fd)
        self._wake()

    # -- reading --------------------------------------------------------------------

    def lines(self, first: int = 1, last: int | None = None) -> Iterator[bytes]:
        """Lines ``first`` to ``last`` (both included) from the file, in bounded pieces.

        What is appended later is not included. May be walked in another thread.

        Raises:
            CursorExpired: the file is gone.
        """
        until = self.last_seq if last is None else min(last, self.last_seq)
        return self._lines(max(1, first), until, self._size, self._index)

    def pieces(self) -> Iterator[bytes]:
        """Every line that is there now, many in a piece, each with its newline: for whoever can skip a whole one.

        Raises:
            CursorExpired: the file is gone.
        """
        fd, end = _open_to_read(self.path), self._size
        try:
            yield from pieces(fd, 0, end)
        finally:
            os.close(fd)

    def _lines(self, first: int, last: int, end: int, index: SparseIndex) -> Iterator[bytes]:
        if first > last:
            return
        fd = _open_to_read(self.path)
        try:
            yield from islice(walk(fd, index.find(fd, first, end), end, BATCH_BYTES), last - first + 1)
        finally:
            os.close(fd)

    def reader(self, after: int = 0, *, max_bytes: int = BATCH_BYTES) -> JournalReader:
        """A cursor that stands after entry ``after``.

        Raises:
            CursorUnknown: there is no such entry.
        """
        hash_chain.check_cursor(after, self.last_seq)
        return JournalReader(self, after, max_bytes)

    def _recent(self, after: int) -> int | None:
        """How many lines of the ring come before the one that follows ``after``; None if it isn't there."""
        skip = after - (self._head.seq - len(self._ring))
        return skip if skip >= 0 else None

    def _wake(self, line: bytes = b"") -> None:
        for news in self._listeners:
            news(line)
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _changed(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


class JournalReader:
    """A position in a journal. Costs nothing while nobody calls ``next``.

    Attributes:
        last_seq: the last entry that was given.
    """

    def __init__(self, journal: Journal, after: int, max_bytes: int) -> None:
        self.last_seq = after
        self._journal = journal
        self._max_bytes = max_bytes
        self._offset = journal.size if after == journal.last_seq else -1
        self._fd = -1
        self._done = False
        self._news: News | None = None

    def on_lines(self, news: News) -> None:
        """Have ``news`` called when there is more, until ``close``.

        It is called in the middle of an append, before the entry is synced: it
        takes note, and calls ``next_nowait`` in a later turn of the loop.
        """
        self._news = news
        self._journal._listeners.append(news)

    @property
    def exhausted(self) -> bool:
        """Whether nothing follows any more: all is read of a journal that is closed, or nobody wants it."""
        return self._done or (self._journal.closed and self.last_seq == self._journal.last_seq)

    async def next(self) -> list[bytes]:
        """The lines after the cursor, at least one; waits for it. Empty: the journal is closed and all was read.

        Safe to cancel: the cursor moves only when lines are returned.

        Raises:
            CursorUnknown: entries that were given had to be taken back (a failed disk).
            CursorExpired: retention removed the journal meanwhile.
        """
        while True:
            lines = self.next_nowait()
            if lines or self._done or self._journal.closed:
                return lines
            await self._journal._changed()

    def next_nowait(self) -> list[bytes]:
        """What ``next`` would give without waiting; empty if there is nothing yet.

        Raises:
            CursorUnknown, CursorExpired: as ``next``.
        """
        journal = self._journal
        if self.last_seq > journal.last_seq:
            raise CursorUnknown(after=self.last_seq, last_seq=journal.last_seq)
        # Entries of a damaged journal may never have reached the disk: nobody is told of them.
        if self._done or journal.damaged or self.last_seq == journal.last_seq:
            return []
        lines = self._from_ring() or self._from_file()
        self.last_seq += len(lines)
        self._offset += sum(map(len, lines)) + len(lines)
        return lines

    def _from_ring(self) -> list[bytes]:
        skip = self._journal._recent(self.last_seq)
        if skip is None or self._offset < 0:
            return []
        lines: list[bytes] = []
        room = self._max_bytes
        for line in islice(self._journal._ring, skip, None):
            room -= len(line) + 1
            if room < 0 and lines:
                break
            lines.append(line)
        return lines

    def _from_file(self) -> list[bytes]:
        journal = self._journal
        fd = self._own_fd() if journal.closed else journal._fd
        if self._offset < 0:
            self._offset = journal._index.find(fd, self.last_seq + 1, journal.size)
        lines = read_lines(fd, self._offset, journal.size, self._max_bytes)
        if not lines:
            raise Internal("The journal is shorter than it was; run 'kernelsvc verify' on it.")
        return lines

    def _own_fd(self) -> int:
        if self._fd < 0:
            self._fd = _open_to_read(self._journal.path)
        return self._fd

    def close(self) -> None:
        """Let go; a ``next`` that waits returns when something happens. Idempotent."""
        self._done = True
        if self._news is not None:
            self._journal._listeners.remove(self._news)
            self._news = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _First(msgspec.Struct):
    schema: int = SCHEMA


def _refuse_newer(first: list[bytes]) -> None:
    if first and msgspec.json.decode(first[0], type=_First).schema > SCHEMA:
        raise NotSupported("A later version of kernelsvc wrote this session's journal; upgrade to read it.")


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Conflict(f"Another process has session {path.parent.name} open; stop the other server first.") from None


def _open_to_read(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise CursorExpired() from None
