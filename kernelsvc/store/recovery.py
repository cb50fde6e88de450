"""Find where a journal's whole entries end, and cut off the rest.

A crash of the server can tear the last line. A crash of the machine can damage all unsynced data, in any order of
blocks, so invalid data may precede valid lines. ``Journal`` leaves at most ``UNSYNCED_BYTES`` (or one larger batch)
unsynced, so only the end of a long journal can be in doubt: ``scan`` checks every link of the last ``DOUBT_BYTES`` and
only counts the lines before them (a gigabyte takes about a second). ``store.verify`` detects tampering. This module
does not.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kernelsvc.linux.atomic_file import replace, write_all
from kernelsvc.linux.line_file import CHUNK, SparseIndex, read_lines, walk
from kernelsvc.model import hash_chain
from kernelsvc.model.events import Event, decode
from kernelsvc.model.hash_chain import Head

#: A journal syncs by itself before more bytes than this are unsynced.
UNSYNCED_BYTES = 8 << 20
#: Bytes at the end whose links are checked when a journal is opened.
DOUBT_BYTES = 16 * UNSYNCED_BYTES


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """Result of opening a journal.

    Attributes:
        last_seq: Present entries.
        cut_bytes: Bytes that were cut from the end.
        cut_lines: Whole lines among them (0 for an ordinary torn tail).
        kept_as: The file that holds the cut part, if it was more than a torn line.
        lost: Entries that had been appended and are gone (after a failed sync).
        message: The result in words. Empty if nothing was done.
    """

    last_seq: int
    cut_bytes: int = 0
    cut_lines: int = 0
    kept_as: str | None = None
    lost: int = 0
    message: str = ""


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole entries of a file: their end, the head there, and an index of positions."""

    head: Head
    end: int
    index: SparseIndex


def scan(fd: int, size: int, session: str, *, check_from: int | None = None) -> Scan:
    """Read a journal and check the links after ``check_from`` (default: the last ``DOUBT_BYTES``)."""
    start = max(0, size - DOUBT_BYTES) if check_from is None else check_from
    index, head, offset = SparseIndex(), Head(), 0
    if start:
        index, seq, offset = count(fd, start)
        entry = read_lines(fd, offset, size, 1)
        env = hash_chain.envelope(entry[0]) if entry else None
        if env is None or env.seq != seq + 1:
            return scan(fd, size, session, check_from=0)
        head = Head(seq, env.prev)
    for line in walk(fd, offset, size):
        after = hash_chain.follow(head, line, session)
        if after is None:
            break
        index.add(after.seq, offset)
        head = after
        offset += len(line) + 1
    return Scan(head=head, end=offset, index=index)


def count(fd: int, end: int) -> tuple[SparseIndex, int, int]:
    """Count whole lines in the first ``end`` bytes without parsing. Return index, count and the offset after them."""
    index, seq, offset, step = SparseIndex(), 0, 0, SparseIndex.EVERY_BYTES
    while offset < end:
        data = os.pread(fd, min(step, end - offset), offset)
        whole = data.rfind(b"\n") + 1
        if not whole:
            if len(data) < step:
                break
            step *= 4
            continue
        index.add(seq + 1, offset)
        seq += data.count(b"\n")
        offset += whole
        step = SparseIndex.EVERY_BYTES
    return index, seq, offset


def last_line(fd: int, index: SparseIndex, seq: int, end: int) -> bytes:
    """Return line ``seq``, or b"" if ``seq`` is 0."""
    return next(walk(fd, index.find(fd, seq, end), end), b"") if seq else b""


def end_of(path: Path) -> Event | None:
    """Return a journal's last entry, or None if its end needs recovery. Reads only the end.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        size, want = os.fstat(file.fileno()).st_size, CHUNK // 4
        while True:
            data = os.pread(file.fileno(), want, max(0, size - want))
            line, newline, rest = data[:-1].rpartition(b"\n")[-1], data[-1:], want < size
            if newline != b"\n":
                return None
            if len(line) < len(data) - 1 or not rest:
                break
            want *= 4
    try:
        return decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None


def cut_tail(fd: int, path: Path, found: Scan, size: int) -> Recovery:
    """Cut a file back to its whole entries, durably. More than a torn line is saved to another file first.

    Raises:
        OSError: Nothing was cut.
    """
    good, seq = found.end, found.head.seq
    if size <= good:
        return Recovery(last_seq=seq)
    lines = sum(1 for _ in walk(fd, good, size))
    # Saved before it is cut: a crash between the two loses nothing.
    kept = _keep(fd, good, size, path) if lines > 1 else None
    # The fsync makes the new size durable, so that a second crash can't bring the tail back.
    os.ftruncate(fd, good)
    os.fsync(fd)
    text = f"{size - good} bytes after entry {seq} were no whole entry and were cut"
    return Recovery(
        last_seq=seq,
        cut_bytes=size - good,
        cut_lines=lines,
        kept_as=kept.name if kept else None,
        message=f"{text}. They have {lines} lines and were moved to {kept.name}." if kept else f"{text}.",
    )


def _keep(fd: int, start: int, end: int, path: Path) -> Path:
    """Copy a part of a journal to the first free ``<journal>.cut-N``, durably."""
    n = 1
    while (target := path.with_name(f"{path.name}.cut-{n}")).exists():
        n += 1

    def fill(out: int) -> None:
        for offset in range(start, end, CHUNK):
            write_all(out, os.pread(fd, min(CHUNK, end - offset), offset))

    replace(target, fill, durable=True)
    return target
