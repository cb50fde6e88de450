"""An index over all sessions in SQLite: listing, paging and search.

It is a projection: ``rebuild`` creates it from the journals. So it may fail without harm: a failed write is logged,
discarded, and marks the index as stale. Changes are collected and written in one transaction before the next query, or
when there are many. The changes of many cells to one session's row become one statement, so that a cell costs a few
microseconds. Changes that a crash loses are added again at the next start.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, Timeout
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.model.objects import CellMatch

log = logging.getLogger(__name__)

VERSION = 1
#: Changes that are collected before they are written.
MAX_PENDING = 500
#: Characters of a cell's code that are indexed, and that a search shows.
CODE_CHARACTERS, EXCERPT = 100_000, 80
#: Most different words of a search, its most seconds, and SQLite's steps between two looks at the clock.
MAX_WORDS, SEARCH_SECONDS, PROGRESS_STEPS = 16, 5.0, 100

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
    """Changes of one session's row since the last write."""

    __slots__ = ("at", "cells", "failed", "seq", "state")

    def __init__(self) -> None:
        self.cells = self.failed = 0
        self.state: str | None = None
        self.at: str | None = None
        self.seq: int | None = None

    def values(self, session: str) -> tuple[Any, ...]:
        """Return the values for ``_UPDATE``."""
        return self.cells, self.failed, self.state, self.at, self.seq, session


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A session in the index."""

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


class Index:
    """The index. Use it from one thread, except for ``search``. Every other method is short.

    Args:
        path: The database file. Created if it is missing, replaced if it is broken.
        present_name: Returns the present name of the principal that a journal names.

    Attributes:
        stale: Whether changes are missing and ``rebuild`` should be called.
    """

    def __init__(self, path: Path, *, present_name: Callable[[str], str] = str) -> None:
        self.path = path
        self.stale = False
        self._present_name = present_name
        self._pending: list[tuple[str, Sequence[Any]]] = []
        self._code: list[tuple[str, str, int, str]] = []
        self._changes: dict[str, _Change] = {}
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        fresh = not self.path.exists()
        try:
            return self._connect(fresh=fresh)
        except sqlite3.Error as error:
            log.warning("the index is not usable and will be rebuilt from the journals: %s", error)
            return self._start_over()

    def _start_over(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return self._connect(fresh=True)

    def _connect(self, *, fresh: bool) -> sqlite3.Connection:
        # Autocommit: transactions begin explicitly in ``flush``.
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            if not fresh and db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                raise sqlite3.DatabaseError("it has another version")
            self.path.chmod(0o600)
            # No durability is needed: the journals have all data (SQLite, PRAGMA synchronous).
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            # Deleted rows are overwritten with zeros: a session can be deleted for good.
            db.execute("PRAGMA secure_delete = ON")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            db.close()
            raise
        self.stale = self.stale or fresh
        return db

    # -- writing ------------------------------------------------------------------

    def feed(self, session: str, events: Sequence[Event]) -> None:
        """Add events that were just appended to a session's journal. Never raises."""
        for event in events:
            rule = _RULES.get(type(event))
            if rule is not None:
                rule(self, session, event)
        if events and type(events[-1]) in _ENDS:
            change = self._change(session)
            change.at, change.seq = events[-1].at, events[-1].seq
        if len(self._pending) + len(self._code) >= MAX_PENDING:
            self.flush()

    def _change(self, session: str) -> _Change:
        change = self._changes.get(session)
        if change is None:
            change = self._changes[session] = _Change()
        return change

    def _on_started(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.SessionStarted)
        parent = event.parent or {}
        values = (session, self._present_name(event.principal), event.name, event.template, event.at, event.at)
        labels = json.dumps(event.labels)
        self._pending.append((_INSERT, (*values, parent.get("session"), parent.get("seq"), event.seq, labels)))
        self._pending.extend((_INSERT_LABEL, (session, key, value)) for key, value in event.labels.items())

    def _on_queued(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.CellQueued)
        self._code.append((session, str(event.cell or ""), event.seq, event.code[:CODE_CHARACTERS]))
        self._change(session).cells += 1

    def _on_finished(self, session: str, event: Event) -> None:
        assert isinstance(event, ev.CellFinished)
        change = self._change(session)
        change.state = "idle"
        if event.reason is not ev.Reason.OK:
            change.failed += 1

    def _on_state(self, session: str, event: Event) -> None:
        self._change(session).state = _STATES[type(event)]

    def set_state(self, session: str, state: str) -> None:
        """Note the state of an open session, as its machine knows it. Never raises."""
        self._change(session).state = state

    def set_owner(self, session: str, principal: str) -> None:
        """Change the principal of a session. Never raises."""
        self.flush()
        self._pending.append(("UPDATE session SET principal = ? WHERE id = ?", (principal, session)))

    def remove(self, session: str) -> None:
        """Remove a session that was archived or removed. Never raises."""
        self._remove_rows(session)
        self.flush()

    def erase(self, session: str) -> None:
        """Remove a session so that no file of the database holds its code any more. Never raises.

        Takes time in proportion to the index.
        """
        self.remove(session)
        try:
            # FTS5 keeps the words of a deleted row until its segments are merged, and the write-ahead log old pages.
            self._db.execute("INSERT INTO code (code) VALUES ('optimize')")
            self._db.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            log.warning("session %s: the index may hold words of its code until it is rebuilt: %s", session, error)
            self.stale = True

    def _remove_rows(self, session: str) -> None:
        self.flush()  # Earlier changes of the session must be written first.
        self._pending.extend(_removal(session))

    def flush(self) -> None:
        """Write the collected changes. Never raises: a failure is logged and makes the index ``stale``."""
        pending, code, changes = self._pending, self._code, self._changes
        if not (pending or code or changes):
            return
        self._pending, self._code, self._changes = [], [], {}
        try:
            with self._db:
                # The context manager commits, or rolls back on an exception.
                self._db.execute("BEGIN")
                for statement, values in pending:
                    self._db.execute(statement, values)
                self._db.executemany(_INSERT_CODE, code)
                self._db.executemany(_UPDATE, [change.values(session) for session, change in changes.items()])
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            log.warning("a write of the index failed. The index will be rebuilt from the journals: %s", error)
            self.stale = True

    def close(self) -> None:
        """Write the remaining changes and close. Never raises."""
        self.flush()
        self._db.close()

    def seqs(self) -> dict[str, int]:
        """Return the last indexed entry of each session. Never raises."""
        return {row[0]: row[1] for row in self._query("SELECT id, last_seq FROM session", ())}

    def owners(self) -> dict[str, str]:
        """Return the principal of each session. Never raises."""
        return {row[0]: row[1] for row in self._query("SELECT id, principal FROM session", ())}

    def closed(self) -> set[str]:
        """Return the sessions that are known to be closed. Never raises."""
        return {row[0] for row in self._query("SELECT id FROM session WHERE state = 'closed'", ())}

    def rebuild(self, sessions: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Rebuild the index from journals. Takes time in proportion to their size: call it in a thread at start.

        Args:
            sessions: Each session's id and its journal's lines.
        """
        self._pending, self._code, self._changes = [], [], {}
        try:
            self._db.close()
            self._db = self._start_over()
        except (sqlite3.Error, OSError) as error:
            log.warning("the index can't be rebuilt. Lists and searches of sessions are incomplete: %s", error)
            self.stale = True
            return
        self.stale = False
        for session, lines in sessions:
            self.learn(session, lines)
        self.flush()

    def learn(self, session: str, lines: Iterable[bytes]) -> None:
        """Rebuild one session's rows from its journal."""
        events = (_event(line) for line in lines if not line.startswith(_OUTPUT))
        self.learn_events(session, (event for event in events if event is not None), anew=True)

    def learn_events(self, session: str, events: Iterable[Event], *, anew: bool) -> None:
        """Add a part of a session's past. With ``anew``, remove its present rows first. Never raises."""
        if anew:
            self._remove_rows(session)
        for event in events:
            self.feed(session, [event])

    # -- queries ---------------------------------------------------------------------

    def page(
        self,
        principal: str | None,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int = 100,
        page: str | None = None,
    ) -> tuple[list[SessionRow], str | None]:
        """Return one page of a principal's sessions, newest first, and the cursor of the next page.

        The cursor is a position and not a count, so sessions that are created or closed meanwhile neither repeat nor
        hide others.

        Args:
            principal: The owner. None means any.
            state: Only sessions in this state.
            label: ``key=value``, or ``key`` with any value.
            limit: Sessions on a page.
            page: The cursor of the previous page.

        Raises:
            BadRequest: The cursor is not valid.
        """
        where: list[str] = ["TRUE"]
        values: list[Any] = []
        if principal is not None:
            where.append("principal = ?")
            values.append(principal)
        if state is not None:
            where.append("state = ?")
            values.append(state)
        if label is not None:
            key, equals, value = label.partition("=")
            where.append(f"id IN (SELECT session FROM label WHERE key = ?{' AND value = ?' if equals else ''})")
            values += [key, value] if equals else [key]
        if page is not None:
            # A row value comparison, which can use the index ``by_age``.
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
        """Return ``page`` with ids only.

        Raises:
            BadRequest: The cursor is not valid.
        """
        rows, more = self.page(principal, state=state, label=label, limit=limit, page=page)
        return [row.id for row in rows], more

    def children(self, session: str) -> list[SessionRow]:
        """Return the branches of a session, oldest first."""
        sql = f"SELECT {_COLUMNS} FROM session WHERE parent = ? ORDER BY created_at, id"
        return [_row(r) for r in self._query(sql, (session,))]

    def search(self, principal: str | None, text: str, *, limit: int = 50) -> list[CellMatch]:
        """Return cells whose code has all of these words as prefixes, best match first.

        Ranking takes seconds for hostile code. So call this in a thread, after ``flush``. It has its own connection.

        Args:
            principal: The owner of their sessions. None means any.
            text: The words.
            limit: Most cells.

        Raises:
            BadRequest: There are too many words.
            Timeout: It takes too long.
        """
        words = [*dict.fromkeys(text.lower().split())]
        if len(words) > MAX_WORDS:
            raise BadRequest(f"A search has at most {MAX_WORDS} different words. Leave some out.")
        if not words:
            return []
        # FTS5 string syntax: a quote is doubled, and * after the string matches a prefix.
        match = " ".join('"' + w.replace('"', '""') + '"*' for w in words)
        sql = """SELECT code.session, cell, seq, text FROM code JOIN session ON session.id = code.session
                 WHERE code MATCH ? AND (? IS NULL OR principal = ?) ORDER BY rank LIMIT ?"""
        end = time.monotonic() + SEARCH_SECONDS
        try:
            with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.set_progress_handler(lambda: time.monotonic() > end, PROGRESS_STEPS)
                rows = db.execute(sql, (match, principal, principal, limit)).fetchall()
        except (sqlite3.Error, UnicodeEncodeError) as error:
            if time.monotonic() > end:
                raise Timeout("The search took too long. Use other words.") from None
            log.warning("a search of the index failed. The index will be rebuilt from the journals: %s", error)
            self.stale = True
            return []
        return [CellMatch(session=r[0], cell=r[1], seq=r[2], snippet=_excerpt(r[3], words)) for r in rows]

    def _query(self, sql: str, values: Sequence[Any]) -> list[Any]:
        self.flush()
        try:
            return self._db.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            log.warning("a query of the index failed. The index will be rebuilt from the journals: %s", error)
            self.stale = True
            return []


def _excerpt(text: str, words: Sequence[str]) -> str:
    """Return the surroundings of the first word in a text. FTS5's snippet() takes seconds where a word is frequent."""
    lower = text.lower()
    found = min((at for word in words if (at := lower.find(word)) >= 0), default=0)
    start = max(0, found - EXCERPT // 2)
    return f"{'…' if start else ''}{text[start : start + EXCERPT]}{'…' if start + EXCERPT < len(text) else ''}"


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
#: Events whose time and position the session's row gets.
_ENDS = frozenset((ev.CellFinished, ev.SessionClosed))


Rule = Callable[[Index, str, Event], None]
#: Rules by event type. Other events change nothing.
_RULES: dict[type[Event], Rule] = {
    ev.SessionStarted: Index._on_started,
    ev.CellQueued: Index._on_queued,
    ev.CellFinished: Index._on_finished,
    **dict.fromkeys(_STATES, Index._on_state),
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
    """Return a cursor for the sessions after this one."""
    return base64.urlsafe_b64encode(json.dumps([created_at, session]).encode()).decode().rstrip("=")


def decode_page(page: str) -> list[str]:
    """Return the position of a cursor.

    Raises:
        BadRequest: The cursor is not valid.
    """
    try:
        value = json.loads(base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)))
    except ValueError:
        value = None
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
        raise BadRequest("There is no such page. Use the cursor of the previous page, or none for the first page.")
    return value
