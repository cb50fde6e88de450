"""Verify that a journal or an exported notebook is as the server wrote it. Works without the server.

A journal's chain shows any entry that was changed, removed, added or moved (``model.hash_chain``). Its signatures show
that the chain was not computed again. A notebook has the digests of its cells under a signature (``model.audit``). With
the journal, each cell is also compared with the journal's entries.

Three results, so that "no fault was found" can't pass for a proof: ``verified`` if a signature of the key that the
caller named covers every entry, ``not_as_written`` if there is a fault, and ``not_proven`` otherwise. An unsigned
journal may have lost its end, entries after the last signature may be forged, and anyone can sign with their own key.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.audit import VERSION, Audit, CellFault, audit, compare, compare_cells, head_statement
from kernelsvc.model.hash_chain import ChainFault, Head
from kernelsvc.store.journal import Journal
from kernelsvc.store.keys import is_good
from kernelsvc.store.notebook_file import cells_of

Signature = Literal["good", "bad", "none"]
Result = Literal["verified", "not_proven", "not_as_written"]

_SIGNED = b'{"type":"journal_signed"'
_OF_SIGNATURE = frozenset(("type", "session", "seq", "at", "prev", "head", "key", "signature"))
_GZIP = b"\x1f\x8b"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a verification.

    Attributes:
        ok: Whether the result is ``verified``.
        result: ``verified``: a signature of the named key covers everything. ``not_as_written``: a fault was found.
            ``not_proven``: neither.
        what: Kind of the file.
        session: The session's id.
        entries: Whole entries of the journal, or cells of the notebook, before the fault.
        head: Digest of the last of these entries, or the head that the notebook names.
        fault: The first fault.
        signature: Whether it is signed, and whether the signature is valid.
        key: The signer's public key.
        trusted: Whether the named key signed it. None if no key was named.
        signed: Entries (cells) that the last valid signature of the named key covers, or of any key if none was named.
        uncovered: First and last entry that this signature does not cover. None if it covers all.
        closed: Whether the session was closed.
        torn_bytes: Bytes after the last whole entry.
        message: The verdict in words.
    """

    ok: bool
    result: Result
    what: Literal["journal", "notebook"]
    session: str
    entries: int
    head: str
    fault: ChainFault | CellFault | None = None
    signature: Signature = "none"
    key: str | None = None
    trusted: bool | None = None
    signed: int = 0
    uncovered: tuple[int, int] | None = None
    closed: bool = False
    torn_bytes: int = 0
    message: str = ""


class _Signatures(msgspec.Struct):
    anchors: list[Head] = []
    state: Signature = "none"
    key: str | None = None
    bad_seq: int = 0


def verify(path: Path, *, public_key: str | None = None, journal: Path | None = None) -> Verdict:
    """Verify a journal or a notebook.

    Args:
        path: A journal (also compressed by gzip) or a notebook.
        public_key: The key that must have signed it (``/v1/info`` shows a server's).
        journal: For a notebook, the journal that it must agree with.

    Raises:
        OSError: The file can't be read.
        BadRequest: It is neither, or its compression is damaged.
    """
    with _open(path) as file:
        start = file.read(4096)
    if start[:1] == b"{" and not start.startswith(b'{"type":"'):
        return verify_notebook(path, public_key=public_key, journal=journal)
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise BadRequest("An HTML page has no signature. Verify the notebook (.ipynb) or the log (.jsonl).")
    return verify_journal(path, public_key=public_key)


# --- journals ------------------------------------------------------------------


def verify_journal(source: Path | Iterable[bytes], *, public_key: str | None = None) -> Verdict:
    """Verify a journal.

    Args:
        source: The file (read twice, in bounded memory), or its lines without newlines.
        public_key: The key that must have signed it.

    Raises:
        OSError: The file can't be read.
        BadRequest: Its compression is damaged.
    """
    lines = source if isinstance(source, Path) else list(source)
    signatures = _signatures(_lines_of(lines), public_key)
    torn: list[int] = []
    found = hash_chain.check(_lines_of(lines, torn), anchors=signatures.anchors)
    closed = _is_closed(found, signatures)
    sound = found.fault is None and signatures.state != "bad" and not sum(torn) and found.head.seq > 0
    signed = max((a.seq for a in signatures.anchors if a.seq <= found.head.seq), default=0)
    # The entry after the signed ones is the signature.
    first = signed + 2 if signed else 1
    uncovered = (first, found.head.seq) if first <= found.head.seq else None
    result = _result(sound=sound, covered=uncovered is None, named=public_key is not None)
    verdict = Verdict(
        ok=result == "verified",
        result=result,
        what="journal",
        session=found.session,
        entries=found.head.seq,
        head=found.head.digest,
        fault=found.fault,
        signature=signatures.state,
        key=signatures.key,
        trusted=None if public_key is None else bool(signatures.anchors),
        signed=signed,
        uncovered=uncovered,
        closed=closed,
        torn_bytes=sum(torn),
    )
    return msgspec.structs.replace(verdict, message=_journal_message(verdict, signatures))


def _result(*, sound: bool, covered: bool, named: bool) -> Result:
    if not sound:
        return "not_as_written"
    return "verified" if covered and named else "not_proven"


def _is_closed(found: hash_chain.ChainReport, signatures: _Signatures) -> bool:
    if found.last_type == "session_closed":
        return True
    return found.last_type == "journal_signed" and found.fault is None and bool(signatures.anchors)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file that may be compressed. Damage is found where it is read: after a part of the lines."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadRequest(
                f"The gzip compression of {path} is damaged: {error}. Copy the file again. Or unpack its readable "
                "part with 'gzip -dc', and verify that part."
            ) from error


def _lines_of(source: Path | list[bytes], torn: list[int] | None = None) -> Iterator[bytes]:
    if not isinstance(source, Path):
        yield from source
        return
    with _open(source) as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]
            elif torn is not None:
                torn.append(len(line))


def _signatures(lines: Iterable[bytes], public_key: str | None) -> _Signatures:
    """Return all valid signatures as anchors, and the first invalid one."""
    result = _Signatures(anchors=[])
    for line in lines:
        if not line.startswith(_SIGNED):
            continue
        event = _signed_event(line)
        if event is None:
            continue
        head = Head(event.seq - 1, event.head)
        good = is_good(head_statement(event.session, head), event.key, event.signature)
        if good and public_key in (None, event.key):
            result.anchors.append(head)
        if not good and result.state != "bad":
            result.state, result.bad_seq, result.key = "bad", event.seq, event.key
        elif result.state != "bad" and (public_key is None or result.key != public_key):
            result.state, result.key = "good", event.key
    return result


def _signed_event(line: bytes) -> ev.JournalSigned | None:
    """Return the signature that a line is. None if it is none, or has more: a signature does not cover its own line."""
    try:
        event, fields = ev.decode(line), msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    # A name that is there twice, or written in another way, would make another text.
    plain = fields.keys() <= _OF_SIGNATURE and msgspec.json.encode(fields) == line
    return event if isinstance(event, ev.JournalSigned) and plain else None


def _journal_message(verdict: Verdict, signatures: _Signatures) -> str:
    if verdict.fault is not None:
        return verdict.fault.message
    if not verdict.entries:
        return "It holds no entry; every session's journal begins with one."
    sentences = [f"{verdict.entries} entries, chain unbroken."]
    if verdict.torn_bytes:
        sentences.append(f"{verdict.torn_bytes} bytes at the end are not a whole entry.")
    if verdict.signature == "bad":
        sentences.append(
            f"The signature in entry {signatures.bad_seq} is not good: the entries before it are not those signed."
        )
    elif verdict.signature == "none":
        sentences.append("It is not signed: entries may be missing from its end, or all may be forged.")
    elif verdict.trusted is False:
        sentences.append(f"It is signed by {verdict.key}. That is not the key you named, so no entry is covered.")
    else:
        sentences.append(f"Signed up to entry {verdict.signed} by {verdict.key}.")
        if verdict.uncovered is not None:
            first, last = verdict.uncovered
            which = f"Entry {first} is" if first == last else f"Entries {first} to {last} are"
            sentences.append(f"{which} not covered by a signature and may be forged.")
        sentences += _unnamed(verdict.trusted)
    return " ".join(sentences)


def _unnamed(trusted: bool | None) -> list[str]:
    return ["Name the server's key to prove who signed it (--key, see /v1/info)."] if trusted is None else []


# --- notebooks --------------------------------------------------------------------


def verify_notebook(
    source: Path | bytes | dict[str, Any], *, public_key: str | None = None, journal: Path | None = None
) -> Verdict:
    """Verify an exported notebook.

    Args:
        source: The file, its bytes, or the parsed document.
        public_key: The key that must have signed it.
        journal: The journal that its cells must agree with (not compressed).

    Raises:
        OSError: A file can't be read.
        BadRequest: It is no notebook, or no export of this service.
    """
    document = _document(source)
    recorded = _audit_of(document)
    cells = document["cells"]
    fault: CellFault | None = compare(recorded, document)
    state: Signature = "none"
    if recorded.signature:
        state = "good" if is_good(recorded.statement(), recorded.key, recorded.signature) else "bad"
    trusted = None if public_key is None else state == "good" and recorded.key == public_key
    against = _against_journal(recorded, cells, journal) if journal is not None and fault is None else ""
    message = fault.message if fault else _notebook_message(recorded, len(cells), state, trusted, against)
    sound = fault is None and state != "bad" and not against
    result = _result(sound=sound, covered=bool(trusted), named=public_key is not None)
    return Verdict(
        ok=result == "verified",
        result=result,
        what="notebook",
        session=recorded.session,
        entries=fault.place - 1 if fault and fault.place else len(cells),
        head=recorded.head,
        fault=fault,
        signature=state,
        key=recorded.key or None,
        trusted=trusted,
        signed=len(recorded.cells) if state == "good" and trusted is not False else 0,
        closed=bool(document["metadata"]["kernelsvc"].get("closed")),
        message=message,
    )


def _bytes_of(path: Path) -> bytes:
    with _open(path) as file:
        return bytes(file.read())


def _document(source: Path | bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(source, dict):
        document: Any = source
    else:
        try:
            data = _bytes_of(source) if isinstance(source, Path) else source
            document = json.loads(data, object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError):
            raise BadRequest("This is not a notebook: it is not JSON.") from None
    cells = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(cells, list) or not all(isinstance(c, dict) for c in cells):
        raise BadRequest("This is not a notebook: it has no list of cells.")
    return dict(document)


def _without_doubles(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Of a name that is there twice, one program takes the first value and another one the last."""
    if len(found := dict(fields)) < len(fields):
        raise BadRequest("This is not a notebook as the server writes it: an object has two fields of one name.")
    return found


def _audit_of(document: dict[str, Any]) -> Audit:
    try:
        recorded = msgspec.convert(document["metadata"]["kernelsvc"]["audit"], Audit)
    except (KeyError, TypeError, msgspec.ValidationError):
        raise BadRequest("The notebook has no audit data to verify. Export it again with 'kernelsvc export'.") from None
    if recorded.version > VERSION:
        raise BadRequest(f"A later version of kernelsvc exported it (form {recorded.version}). Upgrade to verify it.")
    return recorded


def _notebook_message(recorded: Audit, count: int, state: Signature, trusted: bool | None, against: str) -> str:
    sentences = [f"{count} cells as they were exported."]
    if state == "bad":
        sentences = ["The list of cells, or the signature over it, was changed."]
    elif state == "none":
        sentences.append("It is not signed: anybody could have made it so.")
    elif trusted is False:
        sentences.append(f"It is signed by {recorded.key}. That is not the key you named.")
    else:
        sentences += [f"Signed by {recorded.key}.", *_unnamed(trusted)]
    if recorded.version == 1:
        sentences.append(
            "Its digests have the earlier form 1: tags, attachments and the notebook's metadata are not covered."
        )
    return " ".join([*sentences, *([against] if against else [])])


def _against_journal(recorded: Audit, cells: list[dict[str, Any]], path: Path) -> str:
    """Return how the journal contradicts the notebook, or ""."""
    found = hash_chain.check(_lines_of(path), anchors=[Head(recorded.seq, recorded.head)])
    if found.session not in ("", recorded.session):
        return f"The journal is that of another session, {found.session}."
    if found.fault is not None:
        return f"It is not of this journal: {found.fault.message}"
    own = [c for c in cells if not _inherited(c)]
    journal = Journal.open(path, recorded.session, read_only=True)
    written = audit(recorded.session, Head(), cells_of(journal, recorded.seq), {}, recorded.version)
    fault = compare_cells(written, own)
    return f"The journal says otherwise: {fault.message}" if fault else ""


def _inherited(cell: dict[str, Any]) -> bool:
    own = cell.get("metadata", {}).get("kernelsvc", {})
    return isinstance(own, dict) and "parent" in own
