"""The journal of a session: one append-only file of chained lines, from which all other data follows.

Theory of operation
-------------------
``append`` stamps events and passes them to Linux in one ``write``. ``sync`` makes them durable. If ``append`` can't
write a whole batch, it truncates the file (ftruncate(2)) and raises. So the file always ends with a whole entry, and
the caller knows that no event of its batch counts.

**After a failed fsync** the data on disk is unknown. Linux marks the pages clean although they never reached the disk,
reports the error once, and a second fsync succeeds without writing anything (fsync(2)). "Can Applications Recover from
fsync Failures?" (Rebello et al., USENIX ATC 2020) found that ext4 and XFS keep the new content only in the page cache,
that Btrfs reverts to the old content, and that PostgreSQL, LMDB, LevelDB, SQLite and Redis lose data when they retry.
So the journal counts as damaged: ``append`` and ``sync`` refuse, and readers get only entries that were returned
before. ``recover`` writes the unsynced part again (the pages are then dirty, and an fsync is meaningful), syncs,
closes, drops the file's pages from the cache, opens the file again and verifies the whole chain from the disk. Lost
entries are reported.

**The sync is inline**, on the event loop's thread. Measured on 2 cores, ext4 on virtio, four small events at a time,
one and two sessions in parallel: inline 0.16 to 0.22 ms p50 and 0.3 to 0.5 ms p99. Through ``asyncio.to_thread`` 0.25
to 0.43 ms p50 and 0.4 to 5 ms p99: two thread switches cost as much as they hide. A disk with slow flushes would change
that. ``sync`` may run in a thread while no other method is called (``python -m benchmarks.journal``).

**Opening** cuts a torn tail back to the last whole entry (``recovery``). If more than a torn line is cut, it is moved
to ``<journal>.cut-N`` in the same directory for inspection. Unsynced data is limited, so only the end of a long journal
can be in doubt.

**Readers** have a position and no queue. Readers near the end get lines from a small ring of recent lines, others from
the file, which is usually in the page cache. The lines of one append stay in the ring for a moment at any size if there
are listeners: reading 10 MB back would cost four copies.

Only one process writes to a journal (flock(2)). Call methods from one thread at a time. ``lines`` may be iterated in
another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from kernelsvc.store.heads import WATCHED, HeadFile, HeadSlot, Judgement, judge
from kernelsvc.store.recovery import UNSYNCED_BYTES, Recovery, count, cut_tail, last_line, scan

Clock = Callable[[], float]
#: Called after an append with its last line, or with b"" after another change.
LineListener = Callable[[bytes], None]

#: Bytes of recent lines in memory per journal.
RING_BYTES = 32 * 1024
#: Seconds for which longer lines stay in memory, so that listeners need not read them back.
BURST_SECONDS = 0.05
#: More bytes than this, in at most so many lines, are written without a copy (writev(2)).
LARGE_BYTES, FEW_LINES = 256 * 1024, 64
#: Most bytes that one ``JournalReader.next`` returns, except for a single longer line.
BATCH_BYTES = 256 * 1024


class JournalMetrics:
    """Cost of all journals of this process.

    Attributes:
        append_seconds: Time of encoding and writing entries, without syncs.
        bytes: Bytes appended.
        syncs: Seconds of each sync since the last ``take``.
    """

    def __init__(self) -> None:
        self.append_seconds = 0.0
        self.bytes = 0
        self.syncs: list[float] = []

    def take(self) -> JournalMetrics:
        """Return the metrics since the last call, and reset them."""
        taken = JournalMetrics()
        taken.__dict__, self.__dict__ = self.__dict__, taken.__dict__
        return taken


METER = JournalMetrics()

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Journal:
    """One session's journal. Use ``create`` or ``open``.

    Attributes:
        path: The file.
        session: The session's id.
        recovery: Result of opening it.
        judgement: Whether this server's record vouches for it (``heads``).
        damaged: Why it refuses entries until ``recover``, or None.
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
        heads: HeadFile | None = None,
    ) -> None:
        self.path = path
        self.session = session
        self.recovery = Recovery(last_seq=0)
        self.judgement: Judgement = WATCHED
        self.damaged: str | None = None
        self._heads = heads
        self._slot: HeadSlot | None = heads.slot(session) if heads is not None else None
        self._clock = clock
        self._fd = fd
        self._closed = read_only
        self._head = self._durable = Head()
        self._size = 0
        self._synced_size = 0
        self._sync_bytes = sync_bytes
        self._directory_synced = False
        self._index = SparseIndex()
        self._ring: deque[bytes] = deque()
        self._ring_bytes = self._burst_bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners: list[LineListener] = []

    # -- opening ----------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, session_id: str, *, clock: Clock = time.time, heads: HeadFile | None = None) -> Journal:
        """Create an empty journal with mode 0600.

        Args:
            path: The file, which must not exist.
            session_id: The id in every line.
            clock: Returns seconds since the epoch.
            heads: Keeps the head of this journal.

        Raises:
            OSError: The file can't be created.
        """
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(fd, path)
        return cls(path, session_id, fd, clock, heads=heads)

    @classmethod
    def open(
        cls,
        path: Path,
        session_id: str | None = None,
        *,
        clock: Clock = time.time,
        read_only: bool = False,
        heads: HeadFile | None = None,
    ) -> Journal:
        """Open an existing journal and recover it (see ``recovery``).

        Reads the file in pieces: 1 GB takes 0.7 s (long lines) to 2 s (4 million short ones) and 30 MB of memory. Call
        it in a thread if the file is large.

        Args:
            path: The file.
            session_id: The id that every line must have. Default: the name of the file's directory.
            clock: Returns seconds since the epoch.
            read_only: Cut and lock nothing. The journal is closed from the start.
            heads: Keeps the head of this journal. All links are checked, and ``judgement`` is the result.

        Raises:
            OSError: The file can't be opened, or the cut part can't be saved.
            Conflict: Another process has it open.
            NotSupported: A later version wrote it.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW if read_only else _FLAGS)
        if not read_only:
            _lock(fd, path)
        journal = cls(path, session_id or path.absolute().parent.name, fd, clock, read_only=read_only, heads=heads)
        try:
            journal._load()
            journal._judge()
        except BaseException:
            os.close(fd)
            raise
        if read_only:
            os.close(fd)
        return journal

    def _load(self) -> None:
        """Find the end of the whole entries. A read-only journal is only counted."""
        size = os.fstat(self._fd).st_size
        if self._closed:
            self._index, seq, self._size = count(self._fd, size)
            self._head = Head(seq, hash_chain.digest(last_line(self._fd, self._index, seq, self._size)) if seq else "")
            self.recovery = Recovery(last_seq=seq)
        else:
            found = scan(self._fd, size, self.session, check_from=None if self._heads is None else 0)
            self.recovery = cut_tail(self._fd, self.path, found, size)
            self._index, self._head, self._size = found.index, found.head, found.end
        _refuse_newer(read_lines(self._fd, 0, self._size, 1))
        self._synced_size = self._size
        self._durable = self._head
        self._ring.clear()
        self._ring_bytes = 0

    def _judge(self) -> None:
        if self._heads is not None:
            record = self._heads.find(self.session)
            self.judgement = judge(record, self._head, lambda seq: hash_chain.digest(next(self.lines(seq, seq), b"")))
            self._slot = self._heads.slot(self.session, refused=self.refused)

    # -- writing ------------------------------------------------------------------

    @property
    def refused(self) -> bool:
        """Whether the journal is not as this server wrote it, so that it must not be signed."""
        return self.judgement.kind == "mismatch"

    @property
    def last_seq(self) -> int:
        """The last entry's number. 0 in an empty journal."""
        return self._head.seq

    @property
    def head(self) -> Head:
        """The last entry's number and the digest of its line."""
        return self._head

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    @property
    def unsynced(self) -> int:
        """Bytes appended since the last ``sync``."""
        return self._size - self._synced_size

    @property
    def closed(self) -> bool:
        """Whether it refuses all further entries."""
        return self._closed

    def append(self, events: Sequence[Event]) -> None:
        """Stamp these events and write them, all or none, then wake the readers.

        Sets ``session``, ``seq``, ``at`` and ``prev`` of the events in place.

        Raises:
            OSError: No event was appended and the events are unchanged (no space, file size limit, I/O error, or the
                journal is damaged and needs ``recover``).
            SessionClosed: The journal is closed.
        """
        if self._closed or self.damaged:
            self._check_writable()
        if not events:
            return
        began = time.perf_counter()
        lines, head = hash_chain.stamp(events, self.session, self._head, hash_chain.timestamp(self._clock()))
        size = len(lines) + sum(map(len, lines))
        try:
            if self._slot is not None:
                self._slot.advance(self._head, head, self._durable)
            self._write(lines, size)
        except BaseException:
            hash_chain.unstamp(events)
            raise
        self._record_lines(lines, size)
        self._head = head
        METER.append_seconds += time.perf_counter() - began
        METER.bytes += size
        self._wake(lines[-1])

    def _check_writable(self) -> None:
        if self._closed:
            raise SessionClosed()
        if self.damaged:
            raise OSError(errno.EIO, f"the journal is damaged and needs recover(): {self.damaged}")

    def _record_lines(self, lines: list[bytes], size: int) -> None:
        first, index = self._head.seq + 1, self._index
        if first + len(lines) > index.next_seq or self._size + size > index.next_offset:
            index.add_all(first, self._size, lines)
        self._size += size
        self._ring += lines
        self._ring_bytes += size
        if self._ring_bytes > RING_BYTES:
            if size > RING_BYTES:
                self._burst_bytes = size if self._hold_burst() else 0
            # Short lines that follow, such as the end of a cell, displace nothing.
            self._trim(RING_BYTES + self._burst_bytes)

    def _hold_burst(self) -> bool:
        """Keep the present append in memory for ``BURST_SECONDS`` if there are listeners. Return whether it stays."""
        if not self._listeners:
            return False
        try:
            asyncio.get_running_loop().call_later(BURST_SECONDS, self._release_burst)
        except RuntimeError:
            return False
        return True

    def _release_burst(self) -> None:
        self._burst_bytes = 0
        self._trim(RING_BYTES)

    def _trim(self, most: int) -> None:
        while self._ring_bytes > most:
            self._ring_bytes -= len(self._ring.popleft()) + 1

    def _write(self, lines: list[bytes], size: int) -> None:
        """Write all ``lines``, or none and raise (write(2): a short write is no error)."""
        unsynced = self._size - self._synced_size
        if self._sync_bytes is not None and unsynced and unsynced + size > self._sync_bytes:
            self.sync()
        try:
            written = 0
            if size > LARGE_BYTES and len(lines) <= FEW_LINES:  # No copy.
                written = os.writev(self._fd, [part for line in lines for part in (line, b"\n")])
            if written < size:
                self._write_rest(b"\n".join(lines) + b"\n", written)
        except BaseException:
            self._truncate()
            raise

    def _write_rest(self, data: bytes, written: int) -> None:
        while written < len(data):
            step = os.write(self._fd, memoryview(data)[written:] if written else data)
            # Without this check the loop would not end.
            if step == 0:
                raise OSError(errno.EIO, "write() wrote 0 bytes")
            written += step

    def _truncate(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            self.damaged = f"a part of an entry could not be removed ({error})"

    def sync(self) -> None:
        """Make all entries durable (fdatasync(2), inline). The first call also syncs the directory, as fsync(2) asks.

        Raises:
            OSError: The entries may be lost. The journal is damaged from now on, see ``recover``.
        """
        if self.damaged:
            raise OSError(errno.EIO, f"the journal is damaged and needs recover(): {self.damaged}")
        if self._synced_size == self._size or self._closed:
            return
        began = time.perf_counter()
        try:
            # fdatasync(2) also flushes the file size, which is needed to read the data, and skips time stamps.
            os.fdatasync(self._fd)
            if not self._directory_synced:
                # fsync(2): the directory entry of a new file needs an fsync of the directory.
                sync_directory(self.path.parent)
                self._directory_synced = True
        except OSError as error:
            self.damaged = f"a sync failed ({error})"
            raise
        METER.syncs.append(time.perf_counter() - began)
        self._synced_size = self._size
        self._durable = self._head

    def recover(self) -> Recovery:
        """Make a damaged journal usable again. As slow as ``open``.

        Returns:
            The result. ``lost`` entries were appended before and are gone. A reader that has them gets
            ``cursor_unknown``.

        Raises:
            OSError: The disk still fails. The journal stays damaged.
        """
        if not self.damaged:
            return Recovery(last_seq=self.last_seq)
        before = self._head
        self._rewrite_unsynced()
        self._reopen()
        # Dropped pages are read from the disk again, so ``_load`` verifies the disk and not the cache.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._load()
        self.damaged = None
        lost = before.seq - self._head.seq
        if lost:
            text = f"{self.recovery.message} {lost} entries after {self._head.seq} were lost.".strip()
            self.recovery = msgspec.structs.replace(self.recovery, lost=lost, message=text)
        self._wake()
        return self.recovery

    def _reopen(self) -> None:
        fd = os.open(self.path, _FLAGS)
        # flock(2) locks belong to the open file description: unlock the old one before the new one locks.
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
                    raise OSError(errno.ENOSPC, "no space to write the unsynced entries again")
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Refuse further entries and wake the readers, which read to the end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        os.close(self._fd)
        if self._slot is not None and not self.damaged and self._head.seq:
            # Without it, the next server compares with the record of the last append.
            with contextlib.suppress(OSError):
                self._slot.settle(self._head)
        self._wake()

    # -- reading --------------------------------------------------------------------

    def lines(self, first: int = 1, last: int | None = None) -> Iterator[bytes]:
        """Yield lines ``first`` to ``last`` (both included) from the file, in bounded pieces.

        Lines that are appended later are not included. May be iterated in another thread.

        Raises:
            CursorExpired: The file is gone.
        """
        until = self.last_seq if last is None else min(last, self.last_seq)
        return self._lines(max(1, first), until, self._size, self._index)

    def pieces(self) -> Iterator[bytes]:
        """Yield all present lines, many in one piece, each with its newline.

        Raises:
            CursorExpired: The file is gone.
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
        """Return a reader that starts after entry ``after``.

        Raises:
            CursorUnknown: There is no such entry.
        """
        hash_chain.check_cursor(after, self.last_seq)
        return JournalReader(self, after, max_bytes)

    def _recent(self, after: int) -> int | None:
        """Return how many lines of the ring come before the one after ``after``, or None if it is not in the ring."""
        skip = after - (self._head.seq - len(self._ring))
        return skip if skip >= 0 else None

    def _wake(self, line: bytes = b"") -> None:
        for listener in self._listeners:
            listener(line)
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _changed(self) -> None:
        # One future for each waiting reader: cancelling one does not affect the others.
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


class JournalReader:
    """A position in a journal. It costs nothing between calls of ``next``.

    Attributes:
        last_seq: The last entry that was returned.
    """

    def __init__(self, journal: Journal, after: int, max_bytes: int) -> None:
        self.last_seq = after
        self._journal = journal
        self._max_bytes = max_bytes
        self._offset = journal.size if after == journal.last_seq else -1
        self._fd = -1
        self._done = False
        self._listener: LineListener | None = None

    def on_lines(self, listener: LineListener) -> None:
        """Call ``listener`` when there are more lines, until ``close``.

        It is called during an append, before the entry is synced. It must only record the news, and call
        ``next_nowait`` in a later iteration of the loop.
        """
        self._listener = listener
        self._journal._listeners.append(listener)

    @property
    def exhausted(self) -> bool:
        """Whether no lines will follow: the journal is closed and all is read, or the reader is closed."""
        return self._done or (self._journal.closed and self.last_seq == self._journal.last_seq)

    async def next(self) -> list[bytes]:
        """Wait for lines after the cursor and return them. Empty: the journal is closed and all was read.

        Safe to cancel: the cursor moves only when lines are returned.

        Raises:
            CursorUnknown: Entries that were returned are lost (a failed disk).
            CursorExpired: Retention removed the journal meanwhile.
        """
        await self.wait()
        return self.next_nowait()

    async def wait(self) -> int:
        """Wait for lines after the cursor. Return at most how many bytes they have, 0 at the end. Safe to cancel."""
        journal = self._journal
        while not (self._done or journal.closed) and (
            self.last_seq == journal.last_seq or (journal.damaged and self.last_seq < journal.last_seq)
        ):
            await journal._changed()
        if self._done or self.last_seq == journal.last_seq:
            return 0
        if self._offset < 0 and self.last_seq < journal.last_seq:
            self._locate()
        return journal.size - self._offset

    def next_nowait(self) -> list[bytes]:
        """Return the lines that ``next`` would return without waiting, or an empty list.

        Raises:
            CursorUnknown, CursorExpired: See ``next``.
        """
        journal = self._journal
        if self.last_seq > journal.last_seq:
            raise CursorUnknown(after=self.last_seq, last_seq=journal.last_seq)
        # Entries of a damaged journal may not be on disk, so no reader gets them.
        if self._done or journal.damaged or self.last_seq == journal.last_seq:
            return []
        if self._offset < 0:
            self._locate()
        lines = self._from_ring() or self._from_file()
        self.last_seq += len(lines)
        self._offset += sum(map(len, lines)) + len(lines)
        return lines

    def _locate(self) -> None:
        """Find the offset of the next line. In an open journal, that of a recent one follows from the lines in memory.

        Raises:
            CursorExpired: Retention removed the journal.
        """
        journal = self._journal
        skip = None if journal.closed else journal._recent(self.last_seq)
        if skip is None:
            fd = self._own_fd() if journal.closed else journal._fd
            self._offset = journal._index.find(fd, self.last_seq + 1, journal.size)
        else:
            self._offset = journal.size - sum(len(line) + 1 for line in islice(journal._ring, skip, None))

    def _from_ring(self) -> list[bytes]:
        skip = self._journal._recent(self.last_seq)
        if skip is None:
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
        lines = read_lines(fd, self._offset, journal.size, self._max_bytes)
        if not lines:
            raise Internal("The journal file was truncated. Run 'kernelsvc verify' on it.")
        return lines

    def _own_fd(self) -> int:
        if self._fd < 0:
            self._fd = _open_to_read(self._journal.path)
        return self._fd

    def close(self) -> None:
        """Stop reading. A waiting ``next`` returns at the next change. Idempotent."""
        self._done = True
        if self._listener is not None:
            self._journal._listeners.remove(self._listener)
            self._listener = None
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
        raise NotSupported("A later version of kernelsvc wrote this session's journal. Upgrade to read it.")


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Conflict(f"Another process has session {path.parent.name} open. Stop the other server first.") from None


def _open_to_read(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise CursorExpired() from None
