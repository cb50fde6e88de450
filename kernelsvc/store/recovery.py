"""Finding where a journal's whole entries end, and cutting off what comes after.

A crash of the server can tear the last line. A crash of the machine can garble
whatever was not synced, in any order of blocks, so there may be rubbish before
good-looking lines. ``Journal`` never lets more than ``UNSYNCED_BYTES`` (or one
larger batch) go unsynced, so only the end of a long journal can be in doubt:
``scan`` checks every link of the last ``DOUBT_BYTES`` and merely counts the
lines before them (a gigabyte takes about a second). Tampering is not what this
looks for; ``store.verify`` is.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kernelsvc.linux.line_file import CHUNK, SparseIndex, read_lines, walk
from kernelsvc.model import hash_chain
from kernelsvc.model.events import Event, decode
from kernelsvc.model.hash_chain import Head

#: A journal syncs by itself when this much is waiting for it.
UNSYNCED_BYTES = 8 << 20
#: The part at the end whose links are checked when a journal is opened.
DOUBT_BYTES = 16 * UNSYNCED_BYTES


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """What opening a journal found and did.

    Attributes:
        last_seq: entries that are there now.
        cut_bytes: how much was cut from the end.
        cut_lines: whole lines among it (0 for an ordinary torn tail).
        kept_as: the file that holds what was cut, if it was more than a torn line.
        lost: entries that had been appended and are gone (after a failed sync).
        message: the same in words; empty if there was nothing to do.
    """

    last_seq: int
    cut_bytes: int = 0
    cut_lines: int = 0
    kept_as: str | None = None
    lost: int = 0
    message: str = ""


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole entries of a file: where they end, the head there, and where to find them."""

    head: Head
    end: int
    index: SparseIndex


def scan(fd: int, size: int, session: str, *, check_from: int | None = None) -> Scan:
    """Walk a journal; check the links of what lies after ``check_from`` (default: the last ``DOUBT_BYTES``)."""
    wanted = max(0, size - DOUBT_BYTES) if check_from is None else check_from
    index, head, offset = SparseIndex(), Head(), 0
    if wanted:
        index, seq, offset = count(fd, wanted)
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
    """Count whole lines in the first ``end`` bytes, unread: index, how many, and where the next begins."""
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
    """Line ``seq``, or nothing if there is none."""
    return next(walk(fd, index.find(fd, seq, end), end), b"") if seq else b""


def end_of(path: Path) -> Event | None:
    """A journal's last entry; None if it ends with anything else, and must be recovered. Reads the end alone.

    Raises:
        OSError: it can't be read.
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
    """Cut a file back to its whole entries, durably; what was more than a torn line is kept beside it.

    Raises:
        OSError: nothing was cut.
    """
    good, seq = found.end, found.head.seq
    if size <= good:
        return Recovery(last_seq=seq)
    lines = sum(1 for _ in walk(fd, good, size))
    kept = _keep(fd, good, size, path) if lines > 1 else None
    os.ftruncate(fd, good)
    os.fsync(fd)
    text = f"{size - good} bytes after entry {seq} were not a whole entry and were cut"
    return Recovery(
        last_seq=seq,
        cut_bytes=size - good,
        cut_lines=lines,
        kept_as=kept.name if kept else None,
        message=f"{text}; they hold {lines} lines and are kept in {kept.name}." if kept else f"{text}.",
    )


def _keep(fd: int, start: int, end: int, path: Path) -> Path:
    """Copy a part of a journal to the first free ``<journal>.cut-N`` and make it durable."""
    n = 1
    while (target := path.with_name(f"{path.name}.cut-{n}")).exists():
        n += 1
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(out, "wb") as file:
        for offset in range(start, end, CHUNK):
            file.write(os.pread(fd, min(CHUNK, end - offset), offset))
        file.flush()
        os.fsync(file.fileno())
    return target
