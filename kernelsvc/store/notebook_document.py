"""A notebook document at one moment: its bytes in pieces, with the audit data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.linux.atomic_file import write_all
from kernelsvc.model.audit import Audit, audit
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.notebook import NbCell
from kernelsvc.store.cell_store import Snapshot, encode

#: Bytes in one write to the file.
WRITE_BYTES = 64 * 1024
#: Most bytes of a document's metadata that are read from its end. They have about 100 for each cell.
METADATA_BYTES = 16 << 20
_METADATA = b'\n],\n"metadata":'

Signer = Callable[[Audit], Audit]


class _Own(msgspec.Struct):
    audit: Audit


class _Metadata(msgspec.Struct):
    kernelsvc: _Own


class _End(msgspec.Struct):
    metadata: _Metadata


def audit_in(end: bytes) -> Audit | None:
    """Return the audit data of a document from its last ``METADATA_BYTES``. None if they are not there."""
    _, found, metadata = end.rpartition(_METADATA)  # No JSON text has a line feed inside.
    try:
        return msgspec.json.decode(b'{"metadata":' + metadata, type=_End).metadata.kernelsvc.audit if found else None
    except (msgspec.DecodeError, RecursionError):
        return None


class NotebookDocument:
    """A notebook at one moment. Write or read it once, in any thread."""

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
        """Return the whole document."""
        return b"".join(self._pieces())

    def write(self, fd: int) -> None:
        """Write the whole document to a descriptor.

        Raises:
            OSError: The disk refused. A part may be there.
        """
        buffered: list[bytes] = []
        size = 0
        for piece in self._pieces():
            buffered.append(piece)
            size += len(piece)
            if size >= WRITE_BYTES:
                write_all(fd, b"".join(buffered))
                buffered, size = [], 0
        write_all(fd, b"".join(buffered))

    def _pieces(self) -> Iterator[bytes]:
        yield b'{"cells":[\n'
        last = b""
        with self._cells:
            for piece in self._cell_pieces():
                # The last separator must be removed, so one piece is held back.
                if last:
                    yield last
                last = piece
            yield last.removesuffix(b",\n")
            metadata = {**self._metadata, "kernelsvc": {**self._metadata["kernelsvc"], **self._audit()}}
        yield _METADATA + encode(metadata) + b',\n"nbformat":4,"nbformat_minor":5}\n'

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
        # As a reader will find it, after the encoder.
        document = {"metadata": msgspec.json.decode(encode(self._metadata))}
        return {"audit": msgspec.to_builtins(self._sign(audit(self._session, self._head, cells, document)))}

    def _cell_lines(self) -> Iterator[bytes]:
        tail = b""
        for piece in self._cell_pieces():
            *lines, tail = (tail + piece).split(b",\n")
            yield from lines
