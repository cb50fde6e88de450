"""A session's directory read back: what it is, and what happened in it."""

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


def about_of(directory: SessionDirectory, journal: Journal) -> SessionSpec:
    """What a session is, from ``session.json``, or from its first entry if a crash left that empty.

    Raises:
        msgspec.ValidationError: neither says.
    """
    try:
        return msgspec.convert(directory.read_about(), SessionSpec)
    except msgspec.ValidationError:
        first = next(iter(journal.lines(1, 1)), None)
        started = ev.decode(first) if first else None
        if not isinstance(started, ev.SessionStarted):
            raise
        log.warning("session %s: session.json was lost; made again from the journal", directory.id)
        about = SessionSpec(
            id=directory.id,
            principal=started.principal,
            template=started.template,
            workdir=str(directory.working()),
            family="" if started.parent else str(directory.home.resolve()),
            kernel=started.kernel.id if started.kernel else "",
            created_at=started.at,
            limits=started.limits,
            name=started.name,
            labels=started.labels,
            parent=started.parent,
        )
        directory.write_about(msgspec.to_builtins(about))
        return about


def beginning_of(about: SessionSpec) -> ev.SessionStarted:
    """What the first entry of such a session's log tells those who list it. Pure."""
    started = ev.SessionStarted(
        principal=about.principal,
        template=about.template,
        name=about.name,
        labels=about.labels,
        limits=about.limits,
        parent=about.parent,
    )
    started.session, started.seq, started.at = about.id, 1, about.created_at
    return started


def is_large(path: Path) -> bool:
    """Whether reading this journal would keep others waiting; no for one that is not there."""
    try:
        return path.stat().st_size > LARGE_BYTES
    except OSError:
        return False


class _Reading(Protocol):
    async def __call__(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


def reading_of(path: Path) -> _Reading:
    """How to read a journal: here and now, or, if it is large, in a thread, so that others are not kept waiting.

    Raises:
        OSError: it is not there.
    """
    return asyncio.to_thread if path.stat().st_size > LARGE_BYTES else _at_once


async def _at_once(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    return work(*args, **kwargs)


def life_of(journal: Journal) -> Iterator[Event]:
    """A journal's events without their bulk: enough to rebuild the machine.

    What a cell has put out that has ended is skipped unread, which is nearly all of
    a large journal; of what came after its end, the last tells where that lies. What
    the running one has put out comes last.
    """
    running, since = b"", 0
    late: dict[bytes, bytes] = {}
    for line in _but_long_runs(journal):
        if line.startswith(_BULK):
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
        if line.startswith(_BULK) and _cell_of(line) == running:
            yield ev.decode(line)


def _but_long_runs(journal: Journal) -> Iterator[bytes]:
    """A journal's lines; where a whole piece of it is what one cell has printed, only the last of them.

    That is how a journal becomes large, and looking at each line on its own takes twice as long.
    """
    last = b""
    for piece in journal.pieces():
        count, mark = piece.count(b"\n"), _PRINTED_BY % _cell_of(last)
        last = piece[piece.rfind(b"\n", 0, -1) + 1 : -1]
        if piece.count(mark) == count == piece.count(_PRINTED, 1) + piece.startswith(_PRINTED[1:]):
            yield last
        else:
            yield from piece.split(b"\n")[:-1]


#: How a line begins that a cell printed, and what it holds near its end. No text can hold that: its quotes are escaped.
_PRINTED, _PRINTED_BY = b'\n{"type":"stream"', b'Z","cell":"%s",'
#: How lines of outputs begin.
_BULK = (b'{"type":"stream"', b'{"type":"display', b'{"type":"result"', b'{"type":"error"')
#: What stands before the cell's id; and what stands before that, in every line. What the kernel made comes before both.
_CELL, _AT = b'"cell":"', b'"at":"'


def _cell_of(line: bytes) -> bytes:
    """The cell that a line names in its envelope, which comes after everything else; empty if it names none."""
    start = line.find(_CELL, line.rfind(_AT))
    return line[start + len(_CELL) : line.find(b'"', start + len(_CELL))] if start >= 0 else b""
