"""Rendered notebook cells, kept outside of memory, so that a notebook of any length is cheap to write again.

A cell is kept as its JSON, a comma and a newline, so that a run of neighbours can be copied
into a notebook as it lies. The first ``MEMORY_BYTES`` stay in memory; past them
everything lies in a file without a name, which goes when the process goes: there
is nothing to clean up after a crash. A cell that is changed is written again at
the end; when half of the file is such waste, it is packed.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from kernelsvc.linux.atomic_file import write_all
from kernelsvc.model import hash_chain

NbCell = dict[str, Any]

MEMORY_BYTES = 32 * 1024
_COPY = 1 << 20
_SEPARATOR = b",\n"

_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """JSON, with what JSON can't carry replaced."""
    try:
        return _encoder.encode(value)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        return _encoder.encode(hash_chain.sanitize(value))


class Snapshot:
    """Cells as they were at one moment; a context manager that lets go of the file."""

    def __init__(self, fd: int, memory: bytes, runs: list[tuple[int, int]]) -> None:
        self._fd = fd
        self._memory = memory
        self._runs = runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def pieces(self) -> Iterator[bytes]:
        """All of it in pieces of at most a megabyte."""
        for start, size in self._runs:
            for at in range(start, start + size, _COPY):
                step = min(_COPY, start + size - at)
                yield os.pread(self._fd, step, at) if self._fd >= 0 else self._memory[at : at + step]

    def copy(self, out: int) -> None:
        """Append all of it to a descriptor.

        Raises:
            OSError: not all of it was written.
        """
        for piece in self.pieces():
            write_all(out, piece)


class CellStore:
    """Notebook cells by place and id.

    Args:
        directory: where the file without a name lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory = bytearray()
        self._fd = -1
        self._end = 0
        self._live = 0
        self._starts = array("Q")
        self._sizes = array("Q")
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        """Bytes of all cells."""
        return self._live

    def add(self, cells: Iterable[NbCell]) -> None:
        """Put cells at the end.

        Raises:
            OSError: they could not be stored; none was added.
        """
        pieces = [(cell["id"], encode(cell) + _SEPARATOR) for cell in cells]
        start = self._store(b"".join(piece for _, piece in pieces)) if pieces else 0
        for name, piece in pieces:
            self._places[name] = len(self._starts)
            self._starts.append(start)
            self._sizes.append(len(piece))
            start += len(piece)
            self._live += len(piece)

    def change(self, cell: str, how: Callable[[NbCell], None]) -> None:
        """Change one cell; an unknown id changes nothing.

        Raises:
            OSError: it is as it was.
        """
        place = self._places.get(cell)
        if place is None:
            return
        value = self._cell(place)
        how(value)
        piece = encode(value) + _SEPARATOR
        start = self._store(piece)
        self._live += len(piece) - self._sizes[place]
        self._starts[place], self._sizes[place] = start, len(piece)
        if self._fd >= 0 and self._end > 2 * self._live + _COPY:
            self._pack()

    def _cell(self, place: int) -> NbCell:
        data = self._read(self._starts[place], self._sizes[place] - len(_SEPARATOR))
        cell: NbCell = msgspec.json.decode(data)
        return cell

    def __iter__(self) -> Iterator[NbCell]:
        for place in range(len(self)):
            yield self._cell(place)

    def runs(self) -> list[tuple[int, int]]:
        """Start and size of each run of bytes that makes up the cells, in order, all with a separator at the end."""
        runs: list[tuple[int, int]] = []
        for start, size in zip(self._starts, self._sizes, strict=True):
            if runs and sum(runs[-1]) == start:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((start, size))
        return runs

    def snapshot(self) -> Snapshot:
        """What is stored now, to be copied out in another thread; what is stored never changes in place."""
        if self._fd < 0:
            return Snapshot(-1, bytes(self._memory), self.runs())
        return Snapshot(os.dup(self._fd), b"", self.runs())

    def _read(self, start: int, size: int) -> bytes:
        if self._fd < 0:
            return bytes(self._memory[start : start + size])
        return os.pread(self._fd, size, start)

    def _store(self, data: bytes) -> int:
        start = self._end
        if self._fd < 0 and start + len(data) > MEMORY_BYTES:
            fd = _nameless(self._directory)
            try:
                _write_at(fd, bytes(self._memory), 0)
                _write_at(fd, data, start)
            except BaseException:
                os.close(fd)
                raise
            self._fd, self._memory = fd, bytearray()
        elif self._fd < 0:
            self._memory += data
        else:
            _write_at(self._fd, data, start)
        self._end = start + len(data)
        return start

    def _pack(self) -> None:
        fd, old, start = _nameless(self._directory), self._fd, 0
        try:
            with self.snapshot() as snapshot:
                snapshot.copy(fd)
        except BaseException:
            os.close(fd)
            raise
        for place, size in enumerate(self._sizes):
            self._starts[place] = start
            start += size
        self._fd, self._end = fd, start
        os.close(old)

    def close(self) -> None:
        """Forget everything. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._live, self._memory = -1, 0, 0, bytearray()
        self._starts, self._sizes = array("Q"), array("Q")
        self._places.clear()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # a filesystem without O_TMPFILE (open(2) lists which)
        fd, name = tempfile.mkstemp(dir=directory, prefix=".cells-")
        os.unlink(name)
        return fd


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
