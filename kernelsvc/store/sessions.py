"""Directories of sessions: layout, creation, archive and removal.

::

    <data>/sessions/<id>/journal.jsonl     the journal, from which the rest follows
                         session.json      the session's settings (written atomically)
                         notebook.ipynb    a projection
                         parent.cells      a branch's inherited cells for its notebook
                         archived          names the archive that has a copy of the record
                         files/            the working directory, with hostile content
    <data>/archive/<id>/journal.jsonl.gz, notebook.ipynb.gz, session.json
    <data>/retention.jsonl                 archived and removed sessions, with time and reason

A session's directory has all its durable state. It is removed only by request, after a durable line in
``retention.jsonl``. These lines are chained like a journal's. ``session.json`` is any JSON object of the caller.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import Conflict, NotFound
from kernelsvc.linux.atomic_file import replace, replace_bytes, sync_directory, write_all
from kernelsvc.linux.nofollow import make_directory, open_directory, stat_directory
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model import hash_chain
from kernelsvc.model.hash_chain import Head
from kernelsvc.model.objects import Deletion
from kernelsvc.sandbox.branch_dirs import make_branches_dir
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.journal import Journal

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

#: An empty file in the data directory whose time is that of the last backup.
BACKUP_MARK = "server.backup"

Action = Literal["archived", "removed", "deleted"]


#: Fields of ``session.json`` that may hold secrets, and digests over them. They are removed when the session ends.
_SECRET = ("env", "request_digest")


class RetentionRecord(msgspec.Struct, kw_only=True):
    """A line of ``retention.jsonl``: an archived, removed or deleted session.

    Attributes:
        why: The reason. Of a deleted session: empty.
        about: ``session.json`` without secrets. Of a deleted session: empty.
        deletion: The signed record of a deletion.
        seq, head: The journal's last entry and the digest of its line, so that a copy can be verified later.
        prev: SHA-256 of the previous line.
    """

    at: str
    action: Action
    session: str
    why: str
    seq: int
    head: str
    about: dict[str, Any] = {}
    deletion: Deletion | None = None
    prev: str = ""


class SessionDirectory:
    """The paths of one session. Reads nothing from disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.journal = path / "journal.jsonl"
        self.notebook = path / "notebook.ipynb"
        self.about = path / "session.json"
        self.inherited = path / "parent.cells"
        self.archived = path / "archived"
        self.files = path / "files"
        self.home = path / "home"
        self.saved = path / "variables.pickle"

    def working(self) -> Path:
        """Return the target of the link ``files``, from its text only.

        The server owns the link, but the session controls the directories on the way. So no link there is followed, and
        the caller must follow none either (``linux.nofollow``).
        """
        here = self.path.resolve()
        try:
            return Path(os.path.normpath(here / self.files.readlink()))
        except OSError:  # Missing, or no link.
            return here / self.files.name

    def read_about(self) -> dict[str, Any]:
        """Return ``session.json``, or {} if it is missing or no JSON object (after a crash at the first write)."""
        try:
            value = json.loads(self.about.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def forget_secrets(self) -> None:
        """Remove environment variables from ``session.json``: an ended session needs them no more.

        Raises:
            OSError: The file is unchanged.
        """
        about = self.read_about()
        if any(about.get(name) for name in _SECRET):
            self.write_about(_without_secrets(about))

    def write_about(self, about: dict[str, Any], *, durable: bool = False) -> None:
        """Replace ``session.json`` atomically.

        Raises:
            OSError: The file is unchanged.
        """
        replace_bytes(self.about, msgspec.json.format(msgspec.json.encode(about)) + b"\n", durable=durable)


class SessionDirectories:
    """All sessions of a data directory.

    Args:
        data: The data directory. Created with mode 0700 if it is missing.
        clock: Returns seconds since the epoch.

    Raises:
        OSError: The directory can't be created.
    """

    def __init__(self, data: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.data = data
        self.clock = clock
        self.sessions = data / "sessions"
        self.archive_path = data / "archive"
        self._record_path = data / "retention.jsonl"
        self._heads: HeadFile | None = None
        for path in (data, self.sessions):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def use_heads(self, heads: HeadFile) -> None:
        """Record the heads of all journals here from now on."""
        self._heads = heads

    def open_journal(self, directory: SessionDirectory) -> Journal:
        """Open a session's journal for writing, and judge whether it is as the server wrote it.

        Raises:
            OSError, Conflict, NotSupported: See ``Journal.open``.
        """
        return Journal.open(directory.journal, directory.id, clock=self.clock, heads=self._heads)

    def directory(self, session: str) -> SessionDirectory:
        """Return the paths of an existing session.

        Raises:
            NotFound: There is no such session, or the id is invalid.
        """
        found = self._paths(session)
        if not found.path.is_dir():
            raise NotFound(f"There is no session {session!r}. List your sessions.")
        return found

    def _paths(self, session: str) -> SessionDirectory:
        if not _ID.fullmatch(session):
            raise NotFound("This is not the id of a session. List your sessions.")
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
        """Create a session's directory, its ``session.json``, ``files/`` and empty journal.

        ``files`` is a link: the directories of a session and all its branches are below the first session's ``home/``,
        the only directory that their mount namespace shows. A session's own directory is ``user``, those of its
        branches are in ``user.d``, and so on (``sandbox.branch_dirs``).

        Args:
            session: The id.
            about: Contents of ``session.json``.
            parent: For a branch: its parent's directory (``working``).
            place: For a branch: the directory in which its own is created.
            beside: For a session that shares another session's directory: that directory (``working``).

        Raises:
            OSError: Nothing was created.
            Conflict: The id exists already.
        """
        directory = self._paths(session)
        try:
            # mkdir(2) is atomic: of two sessions with one id, one fails.
            directory.path.mkdir(mode=0o700)
        except FileExistsError:
            raise Conflict(f"Session {session!r} exists already. Choose another id.") from None
        try:
            _make_files(directory, session, parent, place, beside)
            directory.write_about(about)
            return directory, Journal.create(directory.journal, session, clock=self.clock, heads=self._heads)
        except BaseException:
            remove_tree(directory.path)
            raise

    def take_in(self, stage: Path, heads: Mapping[str, Head]) -> list[SessionDirectory]:
        """Move directories of sessions from another server here, with the heads of their logs.

        Args:
            stage: A directory in the data directory, whose ``sessions`` has them.
            heads: By session, the head of its checked log.

        Raises:
            Conflict: One of them is here already. Nothing was moved.
            OSError: Some were moved.
        """
        for session in heads:
            if self._paths(session).path.exists():
                raise Conflict(f"Session {session!r} exists already.")
        for session, head in heads.items():
            if self._heads is not None:
                self._heads.slot(session).settle(head)
            (stage / self.sessions.name / session).rename(self._paths(session).path)
        if self._heads is not None:
            self._heads.sync()
        sync_directory(self.sessions)
        return [self._paths(session) for session in heads]

    def scan(self) -> Iterator[SessionDirectory]:
        """Yield all sessions that have a journal, in no order. Remains of a crash are skipped."""
        with os.scandir(self.sessions) as entries:
            for entry in entries:
                if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    found = SessionDirectory(Path(entry.path))
                    if found.journal.is_file():
                        yield found

    # -- archive and removal ----------------------------------------------------

    def remove(self, session: str, why: str) -> None:
        """Remove a closed session and record it. Call it in a thread.

        Raises:
            NotFound: There is no such session.
            OSError: Some files may be removed. Call it again to continue.
        """
        found = self.directory(session)
        self._append_record(found, "removed", why)
        self._remove(found)

    def discard(self, session: str) -> None:
        """Remove the remains of a session that never started, without a record. Call it in a thread.

        Raises:
            OSError: Some files may be removed.
        """
        remove_tree(self._paths(session).path)
        self._forget_head(session)

    def archive(self, session: str, why: str) -> Path:
        """Compress journal, notebook and ``session.json``, remove the rest and record it. Call it in a thread.

        Raises:
            NotFound: There is no such session.
            OSError: Nothing or some files may be removed. Call it again to continue.
        """
        found = self.directory(session)
        target = self.archive_path / session
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (found.journal, found.notebook):
            if path.is_file():
                replace(target / f"{path.name}.gz", partial(_compress, path), durable=True)
        replace_bytes(
            target / found.about.name, json.dumps(_without_secrets(found.read_about())).encode(), durable=True
        )
        self._append_record(found, "archived", why)
        self._remove(found)
        return target

    def delete(self, session: str, record: Callable[[Head], Deletion], *, elsewhere: bool = False) -> Deletion:
        """Delete everything of a closed session for good, also its archive. Call it in a thread.

        The record is durable before any file is deleted.

        Args:
            session: The id.
            record: Makes the record from the head of the log.
            elsewhere: Whether a copy is known to be elsewhere, so that the session need not be here.

        Raises:
            NotFound: There is no such session, also not in the archive.
            OSError: Some files may be deleted, or a link lies on the way to them. Call it again to continue.
        """
        found, archived = self._paths(session), self.archive_path / session
        if not elsewhere and not found.path.is_dir() and not archived.is_dir():
            raise NotFound(f"There is no session {session!r}. List your sessions.")
        head = Head()
        if found.journal.is_file():
            head = Journal.open(found.journal, found.id, read_only=True).head
        deletion = record(head)
        self._append(
            RetentionRecord(
                at=deletion.at, action="deleted", session=session, why="", seq=head.seq, head=head.digest,
                deletion=deletion,
            )
        )  # fmt: skip
        self._delete_branch_files(found)
        self._remove(found)
        remove_tree(archived)
        return deletion

    def _delete_branch_files(self, found: SessionDirectory) -> None:
        """Delete the directory of a branch, which lies in its first ancestor's. A sidecar has none of its own."""
        working, about = found.working(), found.read_about()
        below = self.sessions.resolve()
        if about.get("beside") or working.name != found.id or not working.is_relative_to(below):
            return
        try:
            # The ancestor's kernel controls the directories on the way, and may put a link there at any moment.
            parent = open_directory(working.parent)
        except FileNotFoundError:
            return
        try:
            for name in (found.id, f"{found.id}.d"):
                # proc(5): the link leads to the opened directory, whatever its path names by now.
                remove_tree(Path(f"/proc/self/fd/{parent}/{name}"))
        finally:
            os.close(parent)

    def archived_owner(self, session: str) -> str | None:
        """Return the principal of an archived session, or None if there is none in the archive."""
        if not _ID.fullmatch(session):
            return None
        principal = SessionDirectory(self.archive_path / session).read_about().get("principal")
        return principal if isinstance(principal, str) else None

    def _remove(self, found: SessionDirectory) -> None:
        # The journal first: a directory without a journal is no session, and ``sweep`` removes it after a crash.
        found.journal.unlink(missing_ok=True)
        remove_tree(found.path)
        sync_directory(self.sessions)
        self._forget_head(found.id)

    def _forget_head(self, session: str) -> None:
        if self._heads is not None:
            self._heads.forget(session)

    def sweep(self) -> list[str]:
        """Remove directories without a journal: remains of a crash. Call it at start only.

        Raises:
            OSError: A directory could not be removed.
        """
        whole = {found.id for found in self.scan()}
        rest = [path for path in self.sessions.iterdir() if path.name not in whole and path.is_dir()]
        for path in rest:
            remove_tree(path)
        return [path.name for path in rest]

    def _append_record(self, found: SessionDirectory, action: Action, why: str) -> None:
        head = Head()
        if found.journal.is_file():
            head = Journal.open(found.journal, found.id, read_only=True).head
        self._append(
            RetentionRecord(
                at=hash_chain.timestamp(self.clock()),
                action=action,
                session=found.id,
                why=why,
                seq=head.seq,
                head=head.digest,
                about=_without_secrets(found.read_about()),
            )
        )

    def _append(self, record: RetentionRecord) -> None:
        fd = os.open(self._record_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            whole = _cut_torn(fd)
            entry = msgspec.structs.replace(record, prev=hash_chain.digest(whole) if whole else "")
            write_all(fd, msgspec.json.encode(entry) + b"\n")
            # The record must be durable before any file is removed.
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self.data)


def _without_secrets(about: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name not in _SECRET}


def _make_files(
    directory: SessionDirectory, session: str, parent: Path | None, place: Path | None, beside: Path | None
) -> None:
    if beside is not None:
        directory.files.symlink_to(os.path.relpath(beside, directory.path), target_is_directory=True)
        return
    if parent is None:
        directory.home.mkdir(mode=0o755)
        target = directory.home / "user"
        target.mkdir(mode=0o700)
    else:
        target = (place or make_branches_dir(parent)) / session
        # A branch's Landlock rules name the directory of its own branches, so it must exist before them.
        make_directory(target.with_name(f"{session}.d"), 0o755)
        make_directory(target, 0o700, stat_directory(parent))
    directory.files.symlink_to(os.path.relpath(target, directory.path), target_is_directory=True)


def _cut_torn(fd: int) -> bytes:
    """Cut a torn last line. Return the last whole one."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    whole, _, torn = data.rpartition(b"\n")
    if torn:
        os.ftruncate(fd, len(data) - len(torn))
    return whole.rpartition(b"\n")[2]


def _compress(source: Path, fd: int) -> None:
    # mtime=0: the same journal gives the same archive (RFC 1952, MTIME).
    with (
        source.open("rb") as plain,
        os.fdopen(os.dup(fd), "wb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)
