"""An index over all sessions, in SQLite: listing, paging and search.

A projection: everything in it comes from the journals and can be made again
(``rebuild``). It may therefore fail without harm: a write that fails is logged,
marks the index as in need of a rebuild, and is forgotten. Writes are gathered
and put into one transaction before the next query, or when many have gathered;
what many cells change in one session's row is one statement then, so that a cell
costs a few microseconds here. What a crash loses, ``rebuild`` at the next start
brings back for the sessions that had changed.
"""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event

log = logging.getLogger(__name__)

VERSION = 1
#: Changes that are gathered before they are written.
GATHERED = 500
#: Characters of a cell's code that can be searched.
CODE_CHARACTERS = 100_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS session (
  id TEXT PRIMARY KEY, principal TEXT NOT NULL, name TEXT, template TEXT NOT NULL, state TEXT NOT NULL,
  created_at TEXT NOT NULL, last_activity_at TEXT NOT NULL, parent TEXT, parent_seq INTEGER,
  cells INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, last_seq INTEGER NOT NULL DEFAULT 0,
  labels TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON session (principal, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS by_parent ON session (parent);
CREATE TABLE IF NOT EXISTS label (session TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (key, value, session)) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS code USING fts5 (session UNINDEXED, cell UNINDEXED, seq UNINDEXED, text);
"""

_INSERT = """
INSERT INTO session (id, principal, name, template, state, created_at, last_activity_at, parent, parent_seq,
  last_seq, labels) VALUES (?, ?, ?, ?, 'idle', ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""
_INSERT_LABEL = "INSERT OR IGNORE INTO label VALUES (?, ?, ?)"
_INSERT_CODE = "INSERT INTO code (session, cell, seq, text) VALUES (?, ?, ?, ?)"
_UPDATE = """
UPDATE session SET cells = cells + ?, failed = failed + ?, state = coalesce(?, state),
  last_activity_at = coalesce(?, last_activity_at), last_seq = coalesce(?, last_seq) WHERE id = ?
"""
_COLUMNS = (
    "id, principal, name, template, state, created_at, last_activity_at, "
    "parent, parent_seq, cells, failed, last_seq, labels"
)


class _Change:
    """What the events since the last write change in one session's row."""

    __slots__ = ("at", "cells", "failed", "seq", "state")

    def __init__(self) -> None:
        self.cells = self.failed = 0
        self.state: str | None = None
        self.at: str | None = None
        self.seq: int | None = None

    def values(self, session: str) -> tuple[Any, ...]:
        """For ``_UPDATE``."""
        return self.cells, self.failed, self.state, self.at, self.seq, session


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A session as the index knows it."""

    id: str
    principal: str
    name: str | None
    template: str
    state: str
    created_at: str
    last_activity_at: str
    parent: str | None
    parent_seq: int | None
    cells: int
    failed: int
    last_seq: int
    labels: dict[str, str]


class CellMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A cell whose code matches a search."""

    session: str
    cell: str
    seq: int
    snippet: str


class Index:
    """The index. Used from one thread; every method is short.

    Args:
        path: the database's file; made if it is missing, made anew if it is broken.

    Attributes:
        stale: whether something is missing and ``rebuild`` should be called.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stale = False
        self._pending: list[tuple[str, Sequence[Any]]] = []
        self._code: list[tuple[str, str, int, str]] = []
        self._changes: dict[str, _Change] = {}
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        fresh = not self.path.exists()
        try:
            return self._connect(fresh=fresh)
        except sqlite3.Error as error:
            log.warning("the index is made anew: %s", error)
            return self._start_over()

    def _start_over(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return self._connect(fresh=True)

    def _connect(self, *, fresh: bool) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            if not fresh and db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                raise sqlite3.DatabaseError("it is of another version")
            self.path.chmod(0o600)
            # Durability isn't needed here: the journals have it all.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            db.close()
            raise
        self.stale = self.stale or fresh
        return db

    # -- writing ------------------------------------------------------------------

    def feed(self, session: str, events: Sequence[Event]) -> None:
        """Take in what was just appended to a session's journal. Never raises."""
        for event in events:
            note = _NOTES.get(type(event))
            if note is not None:
                note(self, session, event)
        if events and isinstance(events[-1], ev.CellFinished | ev.SessionClosed):
            change = self._change(session)
            change.at, change.seq = events[-1].at, events[-1].seq
        if len(self._pending) + len(self._code) >= GATHERED:
            self.flush()

    def _change(self, session: str) -> _Change:
        change = self._changes.get(session)
        if change is None:
            change = self._changes[session] = _Change()
        return change

    def _note_started(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.SessionStarted)
        parent = event.parent or {}
        values = (session, event.principal, event.name, event.template, event.at, event.at)
        labels = json.dumps(event.labels)
        self._pending.append((_INSERT, (*values, parent.get("session"), parent.get("seq"), event.seq, labels)))
        self._pending.extend((_INSERT_LABEL, (session, key, value)) for key, value in event.labels.items())

    def _note_queued(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.CellQueued)
        self._code.append((session, str(event.cell or ""), event.seq, event.code[:CODE_CHARACTERS]))
        self._change(session).cells += 1

    def _note_finished(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.CellFinished)
        change = self._change(session)
        change.state = "idle"
        if event.reason is not ev.Reason.OK:
            change.failed += 1

    def _note_state(self, session: str, event: Event) -> None:
        self._change(session).state = _STATES[type(event)]

    def set_state(self, session: str, state: str) -> None:
        """Note the state of an open session, as its machine knows it. Never raises."""
        self._change(session).state = state

    def remove(self, session: str) -> None:
        """Forget a session that was archived or removed. Never raises."""
        self._forget(session)
        self.flush()

    def _forget(self, session: str) -> None:
        self.flush()  # what was noted of it must not come after this
        self._pending.extend(_removal(session))

    def flush(self) -> None:
        """Write what has gathered. Never raises: a failure is logged and makes the index ``stale``."""
        pending, code, changes = self._pending, self._code, self._changes
        if not (pending or code or changes):
            return
        self._pending, self._code, self._changes = [], [], {}
        try:
            with self._db:
                self._db.execute("BEGIN")
                for statement, values in pending:
                    self._db.execute(statement, values)
                self._db.executemany(_INSERT_CODE, code)
                self._db.executemany(_UPDATE, [change.values(session) for session, change in changes.items()])
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            log.warning("the index could not be written and must be rebuilt: %s", error)
            self.stale = True

    def close(self) -> None:
        """Write the rest and close. Never raises."""
        self.flush()
        self._db.close()

    def seqs(self) -> dict[str, int]:
        """The last entry of each session that the index has seen. Never raises."""
        return {row[0]: row[1] for row in self._query("SELECT id, last_seq FROM session", ())}

    def closed(self) -> set[str]:
        """Sessions that are known to be closed. Never raises."""
        return {row[0] for row in self._query("SELECT id FROM session WHERE state = 'closed'", ())}

    def rebuild(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Make everything anew from journals; takes their sizes' time, call it in a thread at start.

        Args:
            sessions: each session's id and its journal's lines.
        """
        self._pending, self._code, self._changes = [], [], {}
        try:
            self._db.close()
            self._db = self._start_over()
        except (sqlite3.Error, OSError) as error:
            log.warning("the index can't be made anew: %s", error)
            self.stale = True
            return
        self.stale = False
        for session, lines in sessions:
            self.learn(session, lines)
        self.flush()

    def learn(self, session: str, lines: Iterable[bytes]) -> None:
        """Make one session's part anew from its journal."""
        events = (_event(line) for line in lines if not line.startswith(_OUTPUT))
        self.learn_events(session, (event for event in events if event is not None), anew=True)

    def learn_events(self, session: str, events: Iterable[Event], *, anew: bool) -> None:
        """Take in a part of a session's past, the first one ``anew``: what was known is forgotten. Never raises."""
        if anew:
            self._forget(session)
        for event in events:
            self.feed(session, [event])

    # -- asking ---------------------------------------------------------------------

    def page(
        self,
        principal: str,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
    ) -> tuple[list[SessionRow], str | None]:
        """One page of a principal's sessions, newest first, and the cursor of the next page.

        The cursor is a position among the sessions, not a count: sessions that are made
        or closed meanwhile neither repeat nor hide others.

        Args:
            principal: whose.
            state: only those in this state.
            label: ``key=value``, or ``key`` with any value.
            limit: sessions on a page.
            page: the cursor that the page before gave.

        Raises:
            BadRequest: the page is not one that was given out.
        """
        where, values = ["principal = ?"], [principal]
        if state is not None:
            where.append("state = ?")
            values.append(state)
        if label is not None:
            key, equals, value = label.partition("=")
            where.append(f"id IN (SELECT session FROM label WHERE key = ?{' AND value = ?' if equals else ''})")
            values += [key, value] if equals else [key]
        if page is not None:
            where.append("(created_at, id) < (?, ?)")
            values += decode_page(page)
        sql = f"SELECT {_COLUMNS} FROM session WHERE {' AND '.join(where)} ORDER BY created_at DESC, id DESC LIMIT ?"
        rows = [_row(r) for r in self._query(sql, (*values, limit + 1))]
        more = encode_page(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit > 0 else None
        return rows[:limit], more

    def find(
        self,
        *,
        principal: str,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
    ) -> tuple[list[str], str | None]:
        """``page``, ids only.

        Raises:
            BadRequest: the page is not one that was given out.
        """
        rows, more = self.page(principal, state=state, label=label, limit=limit, page=page)
        return [row.id for row in rows], more

    def children(self, session: str) -> list[SessionRow]:
        """The branches of a session, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM session WHERE parent = ? ORDER BY created_at, id"
        return [_row(r) for r in self._query(sql, (session,))]

    def search(self, principal: str, text: str, *, limit: int = 50) -> list[CellMatch]:
        """Cells of a principal whose code has all of these words (as prefixes), best first."""
        words = [w for w in text.split() if w]
        if not words:
            return []
        match = " ".join('"' + w.replace('"', '""') + '"*' for w in words)
        sql = """SELECT code.session, cell, seq, snippet(code, 3, '', '', '…', 12) FROM code
                 JOIN session ON session.id = code.session
                 WHERE code MATCH ? AND principal = ? ORDER BY rank LIMIT ?"""
        return [
            CellMatch(session=r[0], cell=r[1], seq=r[2], snippet=r[3])
            for r in self._query(sql, (match, principal, limit))
        ]

    def _query(self, sql: str, values: Sequence[Any]) -> list[Any]:
        self.flush()
        try:
            return self._db.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            log.warning("the index could not be read and must be rebuilt: %s", error)
            self.stale = True
            return []


_OUTPUT = (b'{"type":"stream"', b'{"type":"display', b'{"type":"result"', b'{"type":"comm"', b'{"type":"error"')


def _event(line: bytes) -> Event | None:
    try:
        return ev.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None


#: The state that an event leads to, for a journal that is read without a machine. Of an open session ``set_state``
#: says more: a pause and a failed start have no event of their own.
_STATES: dict[type[Event], str] = {
    ev.CellStarted: "busy",
    ev.KernelDied: "restoring",
    ev.KernelRestored: "idle",
    ev.KernelRestarted: "idle",
    ev.Hibernated: "hibernated",
    ev.Woken: "idle",
    ev.SessionClosed: "closed",
}


Note = Callable[[Index, str, Event], None]
#: What events change here; all others nothing.
_NOTES: dict[type[Event], Note] = {
    ev.SessionStarted: Index._note_started,
    ev.CellQueued: Index._note_queued,
    ev.CellFinished: Index._note_finished,
    **dict.fromkeys(_STATES, Index._note_state),
}


def _removal(session: str) -> list[tuple[str, Sequence[Any]]]:
    return [
        ("DELETE FROM session WHERE id = ?", (session,)),
        ("DELETE FROM label WHERE session = ?", (session,)),
        ("DELETE FROM code WHERE session = ?", (session,)),
    ]


def _row(values: Sequence[Any]) -> SessionRow:
    *plain, labels = values
    names = _COLUMNS.split(", ")[:-1]
    return SessionRow(**dict(zip(names, plain, strict=True)), labels=json.loads(labels))


def encode_page(created_at: str, session: str) -> str:
    """A cursor that stands after this session."""
    return base64.urlsafe_b64encode(json.dumps([created_at, session]).encode()).decode().rstrip("=")


def decode_page(page: str) -> list[str]:
    """The position of a cursor.

    Raises:
        BadRequest: it is none of ours.
    """
    try:
        value = json.loads(base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)))
    except ValueError:
        value = None
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
        raise BadRequest("There is no such page; take the cursor of the page before, or leave it out for the first.")
    return value
