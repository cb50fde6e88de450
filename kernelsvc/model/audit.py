"""The audit data of an exported notebook, with which it can be verified without the server.

A notebook's ``metadata.kernelsvc.audit`` has the digest of every cell in order, the head of the journal from which it
was built, and a signature over both. A digest covers a cell's meaning (type, id, source, outputs, count, kernelsvc's
metadata) and not its bytes. So opening and saving the notebook in Jupyter, which formats it differently, changes
nothing. Changing, removing, adding or moving a cell does, and the first such cell is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from kernelsvc.model.hash_chain import Head, Kind

VERSION = 1

_MULTILINE = ("text", "source")


class Audit(msgspec.Struct, kw_only=True):
    """The audit part of a notebook's metadata.

    Attributes:
        cells: ``[id, digest]`` of each cell, in order.
        key: The signer's public key, base64 of its 32 raw bytes.
        signature: Signature of ``statement``, base64. Empty if the notebook is not signed.
    """

    version: int = VERSION
    session: str
    seq: int
    head: str
    cells: list[tuple[str, str]]
    key: str = ""
    signature: str = ""

    def statement(self) -> bytes:
        """Return the signed bytes."""
        root = sha256("\n".join(f"{name} {value}" for name, value in self.cells).encode()).hexdigest()
        return f"kernelsvc notebook {self.version}\n{self.session}\n{self.seq} {self.head}\n{root}\n".encode()


class CellFault(msgspec.Struct, frozen=True, kw_only=True):
    """The first fault in a notebook's cells.

    Attributes:
        kind: The kind of change.
        place: Number of the cell at the time of the export, from 1.
        cell: The cell's id.
        message: The fault in words.
    """

    kind: Kind
    place: int
    cell: str
    message: str


def head_statement(session: str, head: Head) -> bytes:
    """Return the signed bytes for a journal's head."""
    return f"kernelsvc journal {VERSION}\n{session}\n{head.seq} {head.digest}\n".encode()


def cell_digest(cell: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of a notebook cell's meaning."""
    own = cell.get("metadata", {}).get("kernelsvc") if isinstance(cell.get("metadata"), dict) else None
    value = {
        "cell_type": cell.get("cell_type"),
        "execution_count": cell.get("execution_count"),
        "id": cell.get("id"),
        "kernelsvc": own,
        "outputs": [_plain_output(o) for o in cell.get("outputs", ())],
        "source": _joined(cell.get("source", "")),
    }
    # Sorted keys and ASCII: one canonical text for one meaning.
    return sha256(json.dumps(_numbers(value), sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _plain_output(output: Any) -> Any:
    if not isinstance(output, dict):
        return output
    plain = {k: _joined(v) if k in _MULTILINE else v for k, v in output.items()}
    if isinstance(data := plain.get("data"), dict):
        plain["data"] = {mime: value if _is_json(mime) else _joined(value) for mime, value in data.items()}
    return plain


def _is_json(mime: str) -> bool:
    return mime == "application/json" or (mime.startswith("application/") and mime.endswith("+json"))


def _joined(value: Any) -> Any:
    """Join lines: nbformat splits text into lines on disk ("multiline_string") and joins them when it reads."""
    return "".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def _numbers(value: Any) -> Any:
    """Turn floats without a fraction into integers: 1.0 and 1 are the same number in JSON, and writers differ."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list) else value


def audit(session: str, head: Head, cells: Iterable[dict[str, Any]]) -> Audit:
    """Return an unsigned audit of these cells."""
    listed = [(str(cell.get("id", "")), cell_digest(cell)) for cell in cells]
    return Audit(session=session, seq=head.seq, head=head.digest, cells=listed)


def compare(recorded: Audit, cells: Sequence[dict[str, Any]]) -> CellFault | None:
    """Return the first cell that differs from the recorded one, or None."""
    found = [(str(cell.get("id", "")), cell_digest(cell)) for cell in cells]
    names = {name for name, _ in recorded.cells}
    here = {name for name, _ in found}
    for place, (was, now) in enumerate(zip(recorded.cells, found, strict=False), 1):
        if was != now:
            return _diagnose(place, was, now, names, here)
    if len(found) < len(recorded.cells):
        return _cell_fault("removed", len(found) + 1, recorded.cells[len(found)][0])
    if len(found) > len(recorded.cells):
        return _cell_fault("added", len(recorded.cells) + 1, found[len(recorded.cells)][0])
    return None


def _diagnose(place: int, was: tuple[str, str], now: tuple[str, str], names: set[str], here: set[str]) -> CellFault:
    if was[0] == now[0]:
        return _cell_fault("changed", place, was[0])
    if now[0] not in names:
        return _cell_fault("added" if was[0] in here else "changed", place, now[0] if was[0] in here else was[0])
    if was[0] not in here:
        return _cell_fault("removed", place, was[0])
    return _cell_fault("reordered", place, was[0])


def _cell_fault(kind: Kind, place: int, cell: str) -> CellFault:
    verb = {"reordered": "moved"}.get(kind, kind)
    return CellFault(kind=kind, place=place, cell=cell, message=f"Cell {place} ({cell}) was {verb}.")
