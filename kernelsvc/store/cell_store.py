"""Rendered notebook cells outside of memory, so that a long notebook is cheap to write again.

A cell is stored as its JSON, a comma and a newline, so that a run of adjacent cells can be copied into a notebook
unchanged. The first ``MEMORY_BYTES`` stay in memory. Beyond that all cells are in an unnamed file (open(2), O_TMPFILE),
which disappears with the process: a crash leaves nothing to clean up. A changed cell moves to the end. When
half of the file is unused, it is compacted.
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
    """Return JSON. Text that JSON can't hold is replaced."""
    try:
        return _encoder.encode(value)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        return _encoder.encode(hash_chain.sanitize(value))


class Snapshot:
    """Cells at one moment. A context manager that closes the file."""

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
        """Yield all bytes in pieces of at most a megabyte."""
        for start, size in self._runs:
            for at in range(start, start + size, _COPY):
                step = min(_COPY, start + size - at)
                yield os.pread(self._fd, step, at) if self._fd >= 0 else self._memory[at : at + step]

    def copy(self, out: int) -> None:
        """Append all bytes to a descriptor.

        Raises:
            OSError: The disk refused. A part may be there.
        """
        for piece in self.pieces():
            write_all(out, piece)


class CellStore:
    """Notebook cells by place and id.

    Args:
        directory: The directory of the unnamed file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory = bytearray()
        self._fd = -1
        self._end = 0
        self._live_bytes = 0
        self._starts = array("Q")
        self._sizes = array("Q")
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        """Size of all cells in bytes."""
        return self._live_bytes

    def add(self, cells: Iterable[NbCell]) -> None:
        """Append cells.

        Raises:
            OSError: The disk refused. No cell was added.
        """
        pieces = [(cell["id"], encode(cell) + _SEPARATOR) for cell in cells]
        start = self._store(b"".join(piece for _, piece in pieces)) if pieces else 0
        for name, piece in pieces:
            self._places[name] = len(self._starts)
            self._starts.append(start)
            self._sizes.append(len(piece))
            start += len(piece)
            self._live_bytes += len(piece)

    def change(self, cell: str, edit: Callable[[NbCell], None]) -> None:
        """Change one cell by calling ``edit``. An unknown id changes nothing.

        Raises:
            OSError: The disk refused. The cell is unchanged.
        """
        place = self._places.get(cell)
        if place is None:
            return
        value = self._cell(place)
        edit(value)
        piece = encode(value) + _SEPARATOR
        start = self._store(piece)
        self._live_bytes += len(piece) - self._sizes[place]
        self._starts[place], self._sizes[place] = start, len(piece)
        if self._fd >= 0 and self._end > 2 * self._live_bytes + _COPY:
            self._pack()

    def _cell(self, place: int) -> NbCell:
        data = self._read(self._starts[place], self._sizes[place] - len(_SEPARATOR))
        cell: NbCell = msgspec.json.decode(data)
        return cell

    def __iter__(self) -> Iterator[NbCell]:
        for place in range(len(self)):
            yield self._cell(place)

    def runs(self) -> list[tuple[int, int]]:
        """Return start and size of each contiguous run of the cells, in order, each with a separator at the end."""
        runs: list[tuple[int, int]] = []
        first = end = 0
        for start, size in zip(self._starts, self._sizes, strict=True):
            if start != end:
                runs.append((first, end - first))
                first = start
            end = start + size
        return [run for run in (*runs, (first, end - first)) if run[1]]

    def snapshot(self) -> Snapshot:
        """Return the present cells, to copy in another thread. Stored bytes never change in place."""
        if self._fd < 0:
            return Snapshot(-1, bytes(self._memory), self.runs())
        # A duplicate stays valid when compaction replaces the file.
        return Snapshot(os.dup(self._fd), b"", self.runs())

    def _read(self, start: int, size: int) -> bytes:
        if self._fd < 0:
            return bytes(self._memory[start : start + size])
        return os.pread(self._fd, size, start)

    def _store(self, data: bytes) -> int:
        start = self._end
        if self._fd < 0 and start + len(data) > MEMORY_BYTES:
            fd = _open_unnamed(self._directory)
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
        fd, old, start = _open_unnamed(self._directory), self._fd, 0
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
        """Remove all cells. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._live_bytes, self._memory = -1, 0, 0, bytearray()
        self._starts, self._sizes = array("Q"), array("Q")
        self._places.clear()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _open_unnamed(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # A filesystem without O_TMPFILE (open(2) lists those with it).
        fd, name = tempfile.mkstemp(dir=directory, prefix=".cells-")
        os.unlink(name)
        return fd


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        # pwrite(2) may write less than asked, without an error.
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
