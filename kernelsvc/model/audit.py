"""The audit data of an exported notebook, with which it can be verified without the server.

A notebook's ``metadata.kernelsvc.audit`` has the digest of every cell in order, the digest of the notebook's metadata,
the head of the journal from which it was built, and a signature over all of it. A digest covers the meaning of a cell
and not its bytes, so opening and saving the notebook in Jupyter, which formats it differently, changes nothing.
Changing, removing, adding or moving a cell does, and the first such cell is named.

**Form 2** covers all of a cell and all of the notebook's metadata, with the exception of the fields that Jupyter
rewrites when a user only opens and saves a notebook (``_REWRITTEN_IN_CELL`` and the other tables). A field that this
module does not know is covered. **Form 1** covers of a cell its type, id, source, outputs, count and
``metadata.kernelsvc``, and nothing of the notebook's metadata: tags that hide a cell, attachments and the principal
could change. Notebooks of form 1 still verify. The form is signed, so form 2 can't become form 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from kernelsvc.model.hash_chain import Head, Kind

#: The form of new notebooks' digests.
VERSION = 2

#: nbformat's ``strip_transient`` removes ``trusted`` on save, and Jupyter writes it back on load. ``scrolled`` limits
#: the height of an output and hides nothing.
_REWRITTEN_IN_CELL = ("trusted", "scrolled")
#: nbformat's ``strip_transient`` removes these from the notebook's metadata.
_REWRITTEN_IN_NOTEBOOK = ("orig_nbformat", "orig_nbformat_minor", "signature")
#: JupyterLab replaces these with the reply of the kernel that it starts to show the notebook. Only the language stays.
_REWRITTEN_LANGUAGE = {"language_info": ("name",), "kernelspec": ("language",)}
_FORMAT = ("nbformat", "nbformat_minor")

_MULTILINE = ("text", "source")


class Audit(msgspec.Struct, kw_only=True):
    """The audit part of a notebook's metadata.

    Attributes:
        version: The form of the digests.
        cells: ``[id, digest]`` of each cell, in order.
        metadata: Digest of all but the cells. Empty in form 1.
        key: The signer's public key, base64 of its 32 raw bytes.
        signature: Signature of ``statement``, base64. Empty if the notebook is not signed.
    """

    version: int = VERSION
    session: str
    seq: int
    head: str
    cells: list[tuple[str, str]]
    metadata: str = ""
    key: str = ""
    signature: str = ""

    def statement(self) -> bytes:
        """Return the signed bytes."""
        root = sha256("\n".join(f"{name} {value}" for name, value in self.cells).encode()).hexdigest()
        lines = [f"kernelsvc notebook {self.version}", self.session, f"{self.seq} {self.head}", root]
        if self.version > 1:
            lines.append(self.metadata)
        return "".join(f"{line}\n" for line in lines).encode()


class CellFault(msgspec.Struct, frozen=True, kw_only=True):
    """The first fault in a notebook.

    Attributes:
        kind: The kind of change.
        place: Number of the cell at the time of the export, from 1. 0 for the notebook's metadata.
        cell: The cell's id. Empty for the notebook's metadata.
        message: The fault in words.
    """

    kind: Kind
    place: int
    cell: str
    message: str


def head_statement(session: str, head: Head) -> bytes:
    """Return the signed bytes for a journal's head."""
    return f"kernelsvc journal 1\n{session}\n{head.seq} {head.digest}\n".encode()


def cell_digest(cell: dict[str, Any], version: int = VERSION) -> str:
    """Return the SHA-256 (hex) of a notebook cell's meaning, in a form."""
    return _digest(_whole_cell(cell) if version > 1 else _first_form(cell))


def metadata_digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of all of a notebook but its cells and its own audit data (form 2)."""
    rest = {name: value for name, value in document.items() if name not in ("cells", *_FORMAT)}
    metadata = rest.get("metadata")
    if isinstance(metadata, dict):
        metadata = {name: value for name, value in metadata.items() if name not in _REWRITTEN_IN_NOTEBOOK}
        for name, kept in _REWRITTEN_LANGUAGE.items():
            about = metadata.pop(name, None)
            metadata[name] = {k: about.get(k) for k in kept} if isinstance(about, dict) else about
        if isinstance(own := metadata.get("kernelsvc"), dict):
            metadata["kernelsvc"] = {name: value for name, value in own.items() if name != "audit"}
        rest["metadata"] = metadata
    return _digest(rest)


def _digest(value: Any) -> str:
    # Sorted keys and ASCII: one canonical text for one meaning.
    return sha256(json.dumps(_numbers(value), sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _whole_cell(cell: dict[str, Any]) -> dict[str, Any]:
    value = {**cell, "outputs": [_plain_output(o) for o in _list(cell.get("outputs"))]}
    value["source"] = _joined(cell.get("source", ""))
    metadata = cell.get("metadata")
    if isinstance(metadata, dict):
        value["metadata"] = {name: each for name, each in metadata.items() if name not in _REWRITTEN_IN_CELL}
    if isinstance(attached := value.pop("attachments", None), dict) and attached:
        value["attachments"] = {name: _plain_bundle(bundle) for name, bundle in attached.items()}
    elif attached:
        value["attachments"] = attached
    return value


def _first_form(cell: dict[str, Any]) -> dict[str, Any]:
    own = cell.get("metadata", {}).get("kernelsvc") if isinstance(cell.get("metadata"), dict) else None
    return {
        "cell_type": cell.get("cell_type"),
        "execution_count": cell.get("execution_count"),
        "id": cell.get("id"),
        "kernelsvc": own,
        "outputs": [_plain_output(o) for o in _list(cell.get("outputs"))],
        "source": _joined(cell.get("source", "")),
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _plain_output(output: Any) -> Any:
    if not isinstance(output, dict):
        return output
    plain = {k: _joined(v) if k in _MULTILINE else v for k, v in output.items()}
    if isinstance(data := plain.get("data"), dict):
        plain["data"] = _plain_bundle(data)
    return plain


def _plain_bundle(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {mime: value if _is_json(mime) else _joined(value) for mime, value in data.items()}


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


def audit(
    session: str, head: Head, cells: Iterable[dict[str, Any]], document: dict[str, Any], version: int = VERSION
) -> Audit:
    """Return an unsigned audit.

    Args:
        session: The session's id.
        head: The head of the journal.
        cells: The notebook's cells.
        document: The notebook, with or without its cells.
        version: The form of the digests.
    """
    listed = [(str(cell.get("id", "")), cell_digest(cell, version)) for cell in cells]
    metadata = metadata_digest(document) if version > 1 else ""
    return Audit(version=version, session=session, seq=head.seq, head=head.digest, cells=listed, metadata=metadata)


def compare(recorded: Audit, document: dict[str, Any]) -> CellFault | None:
    """Return the first difference between a notebook and its recorded audit, or None."""
    fault = compare_cells(recorded, document["cells"])
    if fault is None and document.get("nbformat") != 4:
        text = "The notebook's format was changed: programs would look for its cells at another place."
        return CellFault(kind="changed", place=0, cell="", message=text)
    if fault is None and recorded.version > 1 and metadata_digest(document) != recorded.metadata:
        text = "The notebook's metadata was changed: who ran it, where, when, or how it is shown."
        return CellFault(kind="changed", place=0, cell="", message=text)
    return fault


def compare_cells(recorded: Audit, cells: Sequence[dict[str, Any]]) -> CellFault | None:
    """Return the first cell that differs from the recorded one, or None."""
    found = [(str(cell.get("id", "")), cell_digest(cell, recorded.version)) for cell in cells]
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
