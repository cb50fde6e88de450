"""Where sessions lie on disk, and how they end there.

::

    <data>/sessions/<id>/journal.jsonl     the truth
                         session.json      what the session is (written atomically)
                         notebook.ipynb    a projection
                         parent.cells      a branch's inheritance for its notebook
                         files/            the working directory; hostile content
    <data>/archive/<id>/journal.jsonl.gz, notebook.ipynb.gz, session.json
    <data>/retention.jsonl                 what was archived or removed, when and why

A session's directory is all its durable state. It goes only on purpose, with a
line in ``retention.jsonl`` that is durable before anything is removed; the lines
are chained like a journal's. ``session.json`` is the caller's: any JSON object.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.linux.atomic_file import replace, replace_bytes, sync_directory, write_all
from kernelsvc.linux.nofollow import make_plain, stat_plain
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model import hash_chain
from kernelsvc.model.hash_chain import Head
from kernelsvc.sandbox.branch_dirs import make_place
from kernelsvc.store.journal import Journal

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

Action = Literal["archived", "removed"]


class Retained(msgspec.Struct, kw_only=True):
    """A line of ``retention.jsonl``: what was done with a session that is no longer there.

    Attributes:
        seq, head: the journal's last entry and the digest of its line, so that a copy
            that turns up later can be told to be genuine.
        prev: SHA-256 of the line before.
    """

    at: str
    action: Action
    session: str
    why: str
    seq: int
    head: str
    about: dict[str, Any] = {}
    prev: str = ""


class SessionDirectory:
    """The paths of one session; nothing is looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.journal = path / "journal.jsonl"
        self.notebook = path / "notebook.ipynb"
        self.about = path / "session.json"
        self.inherited = path / "parent.cells"
        self.files = path / "files"
        self.home = path / "home"
        self.saved = path / "variables.pickle"

    def working(self) -> Path:
        """Where ``files`` leads, told from its text alone.

        The link is ours, what it leads through is the session's: nothing there is
        followed, and whoever opens this must not follow anything either (``sandbox.plain``).
        """
        here = self.path.resolve()
        try:
            return Path(os.path.normpath(here / self.files.readlink()))
        except OSError:  # there is none, or no link
            return here / self.files.name

    def read_about(self) -> dict[str, Any]:
        """``session.json``; empty if it is missing or no JSON object (a crash at the first write)."""
        try:
            value = json.loads(self.about.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write_about(self, about: dict[str, Any], *, durable: bool = False) -> None:
        """Replace ``session.json`` atomically.

        Raises:
            OSError: it is as it was.
        """
        replace_bytes(self.about, msgspec.json.format(msgspec.json.encode(about)) + b"\n", durable=durable)


class SessionDirectories:
    """All sessions of a data directory.

    Args:
        data: the data directory; made with mode 0700 if it is missing.
        clock: seconds since the epoch.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, data: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.data = data
        self.clock = clock
        self.sessions = data / "sessions"
        self.archive_path = data / "archive"
        self._record = data / "retention.jsonl"
        for path in (data, self.sessions):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def directory(self, session: str) -> SessionDirectory:
        """The paths of a session that exists.

        Raises:
            NotFound: no such session, or no id of ours.
        """
        found = self._paths(session)
        if not found.path.is_dir():
            raise NotFound(f"There is no session {session!r}; list your sessions.")
        return found

    def _paths(self, session: str) -> SessionDirectory:
        if not _ID.fullmatch(session):
            raise NotFound("This is not the id of a session; list your sessions.")
        return SessionDirectory(self.sessions / session)

    def create(
        self,
        session: str,
        about: dict[str, Any],
        *,
        parent: Path | None = None,
        place: Path | None = None,
        beside: Path | None = None,
    ) -> tuple[SessionDirectory, Journal]:
        """A new session's directory, its ``session.json``, ``files/`` and empty journal.

        ``files`` is a link: all of a family lie below the first one's ``home/``, which
        is the one directory that its namespace shows. A session's own lies at
        ``user``, those of its branches beside it in ``user.d``, and so on (``sandbox.family``).

        Args:
            session: its id.
            about: for ``session.json``.
            parent: for a branch: its parent's directory (``working``).
            place: for a branch: where its own is made.
            beside: for a session that shares another's directory: that (``working``).

        Raises:
            OSError: nothing was made.
            Conflict: the id is taken.
        """
        made = self._paths(session)
        try:
            made.path.mkdir(mode=0o700)
        except FileExistsError:
            raise Conflict(f"Session {session!r} exists already; choose another id.") from None
        try:
            _make_files(made, session, parent, place, beside)
            made.write_about(about)
            return made, Journal.create(made.journal, session, clock=self.clock)
        except BaseException:
            remove_tree(made.path)
            raise

    def scan(self) -> Iterator[SessionDirectory]:
        """Every session that has a journal, in no order; what a crash left of others is skipped."""
        with os.scandir(self.sessions) as entries:
            for entry in entries:
                if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    found = SessionDirectory(Path(entry.path))
                    if found.journal.is_file():
                        yield found

    # -- the end ----------------------------------------------------------------

    def remove(self, session: str, why: str) -> None:
        """Remove a session for good, on record. Call it in a thread; it must be closed.

        Raises:
            NotFound: no such session.
            OSError: it may be removed in part; calling it again goes on.
        """
        found = self.directory(session)
        self._put_on_record(found, "removed", why)
        self._remove(found)

    def discard(self, session: str) -> None:
        """Remove what is left of a session that never began, with no record. Call it in a thread.

        Raises:
            OSError: it may be removed in part.
        """
        remove_tree(self._paths(session).path)

    def archive(self, session: str, why: str) -> Path:
        """Keep journal, notebook and ``session.json`` compressed, remove the rest, on record. Call it in a thread.

        Raises:
            NotFound: no such session.
            OSError: the session is still there, or removed in part; calling it again goes on.
        """
        found = self.directory(session)
        target = self.archive_path / session
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (found.journal, found.notebook):
            if path.is_file():
                replace(target / f"{path.name}.gz", partial(_compress, path), durable=True)
        replace_bytes(target / found.about.name, json.dumps(found.read_about()).encode(), durable=True)
        self._put_on_record(found, "archived", why)
        self._remove(found)
        return target

    def _remove(self, found: SessionDirectory) -> None:
        # The journal first: without it the rest is no session any more, and a crash leaves only what ``sweep`` takes.
        found.journal.unlink(missing_ok=True)
        remove_tree(found.path)
        sync_directory(self.sessions)

    def sweep(self) -> list[str]:
        """Remove directories without a journal: what a crash left of a creation or a removal. Call it at start only.

        Raises:
            OSError: one could not be removed.
        """
        whole = {found.id for found in self.scan()}
        rest = [path for path in self.sessions.iterdir() if path.name not in whole and path.is_dir()]
        for path in rest:
            remove_tree(path)
        return [path.name for path in rest]

    def retained(self) -> Iterator[Retained]:
        """What is on record, oldest first; a torn last line is left out."""
        if self._record.exists():
            for line in self._record.read_bytes().split(b"\n")[:-1]:
                yield msgspec.json.decode(line, type=Retained)

    def _put_on_record(self, found: SessionDirectory, action: Action, why: str) -> None:
        head = Head()
        if found.journal.is_file():
            head = Journal.open(found.journal, found.id, read_only=True).head
        fd = os.open(self._record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            whole = _cut_torn(fd)
            entry = Retained(
                at=hash_chain.timestamp(self.clock()),
                action=action,
                session=found.id,
                why=why,
                seq=head.seq,
                head=head.digest,
                about=found.read_about(),
                prev=hash_chain.digest(whole) if whole else "",
            )
            write_all(fd, msgspec.json.encode(entry) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self.data)


def _make_files(
    made: SessionDirectory, session: str, parent: Path | None, place: Path | None, beside: Path | None
) -> None:
    if beside is not None:
        made.files.symlink_to(os.path.relpath(beside, made.path), target_is_directory=True)
        return
    if parent is None:
        made.home.mkdir(mode=0o755)
        real = made.home / "user"
        real.mkdir(mode=0o700)
    else:
        real = (place or make_place(parent)) / session
        # A branch's Landlock names the directory of its own branches, so it must be there when that is laid.
        make_plain(real.with_name(f"{session}.d"), 0o755)
        make_plain(real, 0o700, stat_plain(parent))
    made.files.symlink_to(os.path.relpath(real, made.path), target_is_directory=True)


def _cut_torn(fd: int) -> bytes:
    """Cut a torn last line off; returns the last whole one."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    whole, _, torn = data.rpartition(b"\n")
    if torn:
        os.ftruncate(fd, len(data) - len(torn))
    return whole.rpartition(b"\n")[2]


def _compress(source: Path, fd: int) -> None:
    # mtime=0: the same journal gives the same archive.
    with (
        source.open("rb") as plain,
        os.fdopen(os.dup(fd), "wb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)
