"""A session's directory, read back: the specification, and the events that rebuild the state machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.session import SessionSpec
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Bytes of a journal above which it is read in a thread, while others are served.
LARGE_BYTES = 1 << 20


def read_spec(directory: SessionDirectory, journal: Journal) -> SessionSpec:
    """Return a session's specification, from ``session.json`` or, if a crash left that empty, from the journal.

    Raises:
        msgspec.ValidationError: neither holds it.
    """
    try:
        return msgspec.convert(directory.read_about(), SessionSpec)
    except msgspec.ValidationError:
        first = next(iter(journal.lines(1, 1)), None)
        started = ev.decode(first) if first else None
        if not isinstance(started, ev.SessionStarted):
            raise
        log.warning("session %s: session.json was empty. Writing it again from the journal", directory.id)
        spec = SessionSpec(
            id=directory.id,
            principal=started.principal,
            template=started.template,
            workdir=str(directory.working()),
            family="" if started.parent and not started.parent.get("isolated") else str(directory.home.resolve()),
            kernel=started.kernel.id if started.kernel else "",
            created_at=started.at,
            limits=started.limits,
            name=started.name,
            labels=started.labels,
            parent=started.parent,
        )
        directory.write_about(msgspec.to_builtins(spec))
        return spec


def first_event(spec: SessionSpec) -> ev.SessionStarted:
    """Return the first entry that the journal of such a session has, for the index. Pure."""
    started = ev.SessionStarted(
        principal=spec.principal,
        template=spec.template,
        name=spec.name,
        labels=spec.labels,
        limits=spec.limits,
        parent=spec.parent,
    )
    started.session, started.seq, started.at = spec.id, 1, spec.created_at
    return started


def is_large(path: Path) -> bool:
    """Whether this journal is too large to be read in the event loop. False if it does not exist."""
    try:
        return path.stat().st_size > LARGE_BYTES
    except OSError:
        return False


class _Reading(Protocol):
    async def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


def reader_for(path: Path) -> _Reading:
    """Return the function that runs a reader of this journal: directly, or in a thread if the journal is large.

    Raises:
        OSError: the journal does not exist.
    """
    return asyncio.to_thread if path.stat().st_size > LARGE_BYTES else _run_directly


async def _run_directly(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    return work(*args, **kwargs)


def machine_events(journal: Journal) -> Iterator[Event]:
    """Yield the events of a journal that the state machine needs.

    Output of cells that have ended is skipped without decoding, which is most of a
    large journal. Of output that came after its cell's end, only the last event is
    yielded, because it holds the position. The output of the running cell comes last.
    """
    running, since = b"", 0
    late: dict[bytes, bytes] = {}
    for line in _without_long_prints(journal):
        if line.startswith(_OUTPUT):
            cell = _cell_of(line)
            if cell != running:
                late[cell] = line
            continue
        yield from map(ev.decode, late.values())
        late.clear()
        event = ev.decode(line)
        if isinstance(event, ev.CellStarted) and isinstance(event.cell, str):
            running, since = event.cell.encode(), event.seq
        elif isinstance(event, ev.CellFinished):
            running = b""
        yield event
    yield from map(ev.decode, late.values())
    for line in journal.lines(since) if running else ():
        if line.startswith(_OUTPUT) and _cell_of(line) == running:
            yield ev.decode(line)


def _without_long_prints(journal: Journal) -> Iterator[bytes]:
    """Yield a journal's lines. Of a piece that holds only prints of one cell, yield only the last line.

    Most of a large journal consists of such pieces. To check each line on its own takes twice as long.
    """
    last = b""
    for piece in journal.pieces():
        count, mark = piece.count(b"\n"), _PRINTED_BY % _cell_of(last)
        last = piece[piece.rfind(b"\n", 0, -1) + 1 : -1]
        if piece.count(mark) == count == piece.count(_PRINTED, 1) + piece.startswith(_PRINTED[1:]):
            yield last
        else:
            yield from piece.split(b"\n")[:-1]


#: The start of a line that a cell printed, and a mark near its end. No text contains the mark: its quotes are escaped.
_PRINTED, _PRINTED_BY = b'\n{"type":"stream"', b'Z","cell":"%s",'
#: The starts of lines with output.
_OUTPUT = (b'{"type":"stream"', b'{"type":"display', b'{"type":"result"', b'{"type":"error"')
#: The mark before the cell's id, and an earlier mark in every line. Content from the kernel comes before both.
_CELL, _AT = b'"cell":"', b'"at":"'


def _cell_of(line: bytes) -> bytes:
    """Return the cell in a line's envelope, which comes last in the line, or b"" if there is none."""
    start = line.find(_CELL, line.rfind(_AT))
    return line[start + len(_CELL) : line.find(b'"', start + len(_CELL))] if start >= 0 else b""
