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
from kernelsvc.session import About
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Bytes of a journal above which it is read in a thread when the server starts.
LARGE_BYTES = 1 << 20


def about_of(directory: SessionDirectory, journal: Journal) -> About:
    """What a session is, from ``session.json``, or from its first entry if a crash left that empty.

    Raises:
        msgspec.ValidationError: neither says.
    """
    try:
        return msgspec.convert(directory.read_about(), About)
    except msgspec.ValidationError:
        first = next(iter(journal.lines(1, 1)), None)
        started = ev.decode(first) if first else None
        if not isinstance(started, ev.SessionStarted):
            raise
        log.warning("session %s: session.json was lost; made again from the journal", directory.id)
        about = About(
            id=directory.id,
            principal=started.principal,
            template=started.template,
            workdir=str(directory.files.resolve()),
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
    for line in journal.lines():
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


#: How lines of outputs begin.
_BULK = (b'{"type":"stream"', b'{"type":"display', b'{"type":"result"', b'{"type":"error"')
#: What stands before the cell's id; and what stands before that, in every line. What the kernel made comes before both.
_CELL, _AT = b'"cell":"', b'"at":"'


def _cell_of(line: bytes) -> bytes:
    """The cell that a line names in its envelope, which comes after everything else; empty if it names none."""
    start = line.find(_CELL, line.rfind(_AT))
    return line[start + len(_CELL) : line.find(b'"', start + len(_CELL))] if start >= 0 else b""
