"""The position in each journal up to which a receiver has all spans, on disk.

A crash between a request and the note of its success sends spans again, with the same ids. Nothing is left out.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: Position in a journal that is complete.
COMPLETE = -1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS position (session TEXT PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spans (outcome TEXT PRIMARY KEY, number INTEGER NOT NULL);
"""
_MOVE = "INSERT INTO position VALUES (?, ?) ON CONFLICT DO UPDATE SET size = excluded.size"
_COUNT = "INSERT INTO spans VALUES (?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number"


class Cursor:
    """All positions of a data directory, and how many spans had which outcome.

    Args:
        path: the database. Created with mode 0600 if it is missing.

    Attributes:
        fresh: whether the database did not exist.

    Raises:
        sqlite3.Error, OSError: it can't be used.
    """

    def __init__(self, path: Path) -> None:
        self.fresh = not path.exists()
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # A position that a loss of power takes back sends spans again (SQLite, PRAGMA synchronous).
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def positions(self) -> dict[str, int]:
        """Return the position in each journal, in bytes, or ``COMPLETE``."""
        return dict(self._db.execute("SELECT session, size FROM position"))

    def counts(self) -> dict[str, int]:
        """Return the number of spans by outcome, over the life of the database."""
        return dict(self._db.execute("SELECT outcome, number FROM spans"))

    def advance(self, moves: Mapping[str, int], counts: Mapping[str, int]) -> None:
        """Note that a receiver has the spans up to these positions. All or nothing."""
        with self._transaction():
            self._db.executemany(_MOVE, [*moves.items()])
            self._db.executemany(_COUNT, [(outcome, number) for outcome, number in counts.items() if number])

    def forget(self, sessions: Iterable[str]) -> None:
        """Drop journals that do not exist any more."""
        with self._transaction():
            self._db.executemany("DELETE FROM position WHERE session = ?", [(each,) for each in sessions])

    def close(self) -> None:
        """Close the database."""
        self._db.close()
