"""A session's directory read back: what it is, and what happened in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.session import About
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectory

log = logging.getLogger(__name__)


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


def life_of(journal: Journal) -> Iterator[Event]:
    """A journal's events without their bulk: enough to rebuild the machine."""
    for line in journal.lines():
        yield ev.decode(line)
