"""Restore a backup into a new data directory: all of it, checked, or nothing.

It first reads the archive twice, and writes nothing: each entry must be one that a backup has, and the digest and the
signature of the manifest must fit. Then the entries are written into ``.restore`` of the target. There each journal is
compared with its head, and at the end the entries get their places. ``sessions`` is the last one.

The archive may be hostile. Names lead nowhere else: a file's directory must be an earlier entry of the archive, so no
link is ever on the way. Only directories, files and symbolic links are made, without special permission bits.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kernelsvc.errors import BadRequest, Conflict, NotSupported
from kernelsvc.linux.atomic_file import sync_directory, sync_filesystem
from kernelsvc.linux.remove_tree import remove_tree
from kernelsvc.model.hash_chain import Head
from kernelsvc.store.backups.backup import FORM, HEADS, JOURNAL, MANIFEST, SESSIONS, Manifest, may_be_link
from kernelsvc.store.heads import HeadFile
from kernelsvc.store.journal import Journal
from kernelsvc.store.keys import NAME as KEY_NAME
from kernelsvc.store.keys import SigningKey, is_good
from kernelsvc.store.verify import verify_journal

log = logging.getLogger(__name__)

_STAGE, _ABOUT = ".restore", "session.json"
#: How the name of a directory begins that holds an archive of sessions for another server.
SENDING = ".move-"
#: Names in a directory that counts as empty: mke2fs(8) creates lost+found in the root of a new file system.
_EMPTY = {"lost+found"}
#: Most bytes that are read at once, and of a file that is read whole. A pax header states its own size.
_MOST = 16 << 20
#: Errors that tarfile raises for headers that state impossible values, or that follow each other without end.
_BY_HEADERS = (ValueError, OverflowError, RecursionError)
#: Directories that have no entry of their own.
_IMPLIED = 2


class RestoreReport(msgspec.Struct, kw_only=True):
    """What was restored.

    Attributes:
        manifest: Of the archive.
        unproven: Ids of the sessions whose log the server had no record of, or had found changed before.
    """

    manifest: Manifest
    unproven: list[str] = []


class _Unpacked(gzip.GzipFile):
    """An archive without its compression, which is never read into memory whole."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST:
            raise tarfile.ReadError("an entry states an impossible size")
        return super().read(size)


def restore_backup(
    archive: Path, target: Path, *, key: SigningKey | None = None, public_key: str | None = None
) -> RestoreReport:
    """Restore an archive of ``write_backup``.

    Args:
        archive: A regular file.
        target: A directory that is empty or does not exist. It gets the mode 0700. As root, the owners of the files
            are those of the backup.
        key: The signing key, if the archive has none because the key lies elsewhere (setting ``signing_key``).
        public_key: The key that must have signed the archive (``/v1/info`` shows a server's).

    Raises:
        BadRequest: The archive is no whole backup, is of another key, or a log is not as the server wrote it.
        Conflict: ``target`` is not empty.
        NotSupported: A later release wrote the archive.
        OSError: The archive can't be read, or the target can't be written.

    After an error the target is as it was.
    """
    with _regular(archive) as file:
        manifest, size = _check(archive, file)
        if public_key not in (None, manifest.key):
            raise BadRequest(f"{archive} is signed by {manifest.key}. That is not the key that you named.")
        made = _make_target(target, size)
        try:
            stage = target / _STAGE
            stage.mkdir(mode=0o700)
            with _reading(archive):
                _unpack(file, stage, manifest.data, target.resolve())
            report = RestoreReport(manifest=manifest, unproven=_verify(stage, manifest, key))
            _move(stage, target)
        except BaseException:
            _undo(target, made)
            raise
    return report


def unpack_sessions(archive: Path, data: Path, public_key: str) -> tuple[Path, dict[str, Head]]:
    """Unpack an archive of sessions that another server gives to this one. Call it in a thread.

    Args:
        archive: A regular file, of ``write_backup`` with ``only``.
        data: This server's data directory.
        public_key: The key of the other server.

    Returns:
        A new directory in the data directory with the sessions' directories, and the heads of their logs. They are
        durable. The caller removes the directory.

    Raises:
        BadRequest: The archive is not whole, of another key, or a log is not as the server wrote it.
        OSError: The archive can't be read, or the directory can't be written.
    """
    with _regular(archive) as file:
        manifest, size = _check(archive, file)
        if manifest.key != public_key:
            raise BadRequest(f"The sessions are signed by {manifest.key}, and not by {public_key}.")
        _check_space(data, size)
        stage = data / f"{_STAGE}-{secrets.token_hex(8)}"
        stage.mkdir(mode=0o700)
        try:
            with _reading(archive):
                _unpack(file, stage, manifest.data, data.resolve())
            _require_own(stage, data.resolve())
            heads = {}
            for session in _sessions(stage):
                _require_unchanged(session / JOURNAL, session.name, manifest.key)
                heads[session.name] = Journal.open(session / JOURNAL, read_only=True).head
        except BaseException:
            remove_tree(stage)
            raise
    sync_filesystem(stage)
    return stage, heads


# --- checks of the archive ---------------------------------------------------


def remove_unfinished(data: Path) -> None:
    """Remove copies of sessions that a crash interrupted. Call it with the lock of the data directory.

    The sessions are also in the place that they were copied from. A directory that can't be removed is logged.

    Args:
        data: The data directory.
    """
    for path in (*data.glob(f"{_STAGE}-*"), *data.glob(f"{SENDING}*")):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            remove_tree(path)
        except OSError as error:
            log.warning("can't remove %s, an unfinished copy of sessions: %s", path, error.strerror)
        else:
            log.info("removed %s, an unfinished copy of sessions", path)


@contextlib.contextmanager
def _regular(archive: Path) -> Iterator[BinaryIO]:
    # O_NONBLOCK: open(2) of a FIFO would wait for a writer.
    with open(os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadRequest(f"{archive} is no regular file. Copy the archive to a file: it is read more than once.")
        yield file


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Refuse an archive that is damaged."""
    try:
        yield
    # tarfile raises the last three for headers that state impossible values, or that follow each other without end.
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BadRequest(f"{archive} is no whole backup: {error}. Take another one.") from None


def _entries(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the entries of an archive, each of which is one that a backup may have.

    Raises:
        tarfile.TarError: An entry is not.
    """
    file.seek(0)
    seen: dict[str, bool] = {}
    with _Unpacked(fileobj=file, mode="rb") as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
        last = -1
        for entry in tar:
            parts = entry.name.split("/")
            above = "/".join(parts[:-1])
            if entry.offset <= last or entry.size < 0:
                raise tarfile.ReadError("its entries are not one after the other")
            if any(part in ("", ".", "..") for part in parts) or entry.name in seen or parts[0] == _STAGE:
                raise tarfile.ReadError(f"the name {entry.name[:200]!r} is not one of a backup's")
            if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE):
                raise tarfile.ReadError(f"{entry.name[:200]!r} is neither a file, a directory nor a symbolic link")
            implied = parts[0] == SESSIONS and len(parts) - 1 <= _IMPLIED
            if above and not seen.get(above, implied):
                raise tarfile.ReadError(f"{entry.name[:200]!r} is in no directory of the backup")
            if parts[0] == SESSIONS and len(parts) <= _IMPLIED and not entry.isdir():
                raise tarfile.ReadError(f"{entry.name[:200]!r} is no directory")
            if entry.issym() and not may_be_link(parts, entry.linkname):
                raise tarfile.ReadError(f"{entry.name[:200]!r} is a link that no backup has")
            seen[entry.name] = entry.isdir()
            if implied:
                seen |= {"/".join(parts[:count]): True for count in range(1, len(parts))}
            last = entry.offset
            yield tar, entry
            # tarfile keeps each entry, and an archive may have millions.
            tar.members.clear()  # type: ignore[attr-defined]


def _check(archive: Path, file: BinaryIO) -> tuple[Manifest, int]:
    """Return the manifest of a whole archive, and the bytes that its files take."""
    size, end, raw = 0, 0, b""
    with _reading(archive):
        for tar, entry in _entries(file):
            if raw:
                raise tarfile.ReadError("it has entries after its end")
            size += -(-entry.size // 4096) * 4096 + 4096
            if entry.name == MANIFEST:
                raw, end = _content(tar, entry), entry.offset
        if not raw:
            raise tarfile.ReadError("its end is missing, or 'kernelsvc backup' did not write it")
        digest = _digest(file, end)
    try:
        form = msgspec.json.decode(raw, type=dict[str, Any]).get("form")
        if isinstance(form, int) and form > FORM:
            raise NotSupported(f"A later release wrote {archive}. Restore it with that release.")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"{archive} is no backup: {error}. Take another one.") from None
    if manifest.sha256 != digest or not is_good(manifest.statement(), manifest.key, manifest.signature):
        raise BadRequest(f"{archive} is not as it was written: its digest or signature is wrong. Take another one.")
    return manifest, size


def _digest(file: BinaryIO, end: int) -> str:
    """Return the digest of the first bytes, and read all of it, so that gzip checks its own sum (RFC 1952)."""
    file.seek(0)
    digest = hashlib.sha256()
    with _Unpacked(fileobj=file, mode="rb") as unpacked:
        while chunk := unpacked.read(min(end, 1 << 20)):
            digest.update(chunk)
            end -= len(chunk)
        while unpacked.read(1 << 20):
            pass
    return digest.hexdigest()


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(entry)
    if source is None or entry.size > _MOST:
        raise tarfile.ReadError(f"{entry.name[:200]!r} is too large")
    return source.read()


def _make_target(target: Path, size: int) -> bool:
    """Make the target or check that it is empty, and that there is space. Return whether it was made."""
    made = False
    try:
        target.mkdir(mode=0o700)
        made = True
    except FileExistsError:
        if target.is_symlink() or not target.is_dir():
            raise Conflict(f"{target} is no directory. Name a new one.") from None
        if names := {each.name for each in target.iterdir()} - _EMPTY:
            raise Conflict(f"{target} is not empty: it has {min(names)!r}. Name a new directory.") from None
    try:
        _check_space(target, size)
    except BadRequest:
        if made:
            target.rmdir()
        raise
    return made


def _check_space(target: Path, size: int) -> None:
    free = os.statvfs(target)
    if free.f_bavail * free.f_frsize < size:
        raise BadRequest(f"The backup takes {size} bytes, and {target} has {free.f_bavail * free.f_frsize} bytes free.")


# --- writing ----------------------------------------------------------------------


def _unpack(file: BinaryIO, stage: Path, old: str, new: Path) -> None:
    """Write all entries below ``stage``. The settings of sessions name the new data directory instead of the old."""
    directories: list[tuple[Path, tarfile.TarInfo]] = []
    for tar, entry in _entries(file):
        path = stage / entry.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if entry.isdir():
            path.mkdir(mode=0o700, exist_ok=True)
            # Later: a directory without the permission to write would refuse its files.
            directories.append((path, entry))
            continue
        if entry.issym():
            path.symlink_to(entry.linkname)
        else:
            with path.open("xb") as out:
                if path.name == _ABOUT and path.parent.parent == stage / SESSIONS:
                    out.write(_moved(_content(tar, entry), old, str(new), entry.name))
                elif (source := tar.extractfile(entry)) is not None:
                    shutil.copyfileobj(source, out, 1 << 20)
        _set_status(path, entry)
    for path, entry in reversed(directories):
        _set_status(path, entry)
    # The directories without an entry belong to the server, as its heads do. A backup without sessions has none.
    (stage / SESSIONS).mkdir(mode=0o700, exist_ok=True)
    owner = (stage / HEADS).stat()
    for path in (stage, stage / SESSIONS, *_sessions(stage)):
        _own(path, owner.st_uid, owner.st_gid)
        path.chmod(0o700)


def _sessions(data: Path) -> list[Path]:
    return sorted((data / SESSIONS).iterdir()) if (data / SESSIONS).is_dir() else []


def _set_status(path: Path, entry: tarfile.TarInfo) -> None:
    _own(path, entry.uid, entry.gid)
    if not entry.issym():
        # After chown(2), and without set-user-id bits, which no file of a data directory has.
        path.chmod(entry.mode & 0o777)
        os.utime(path, (entry.mtime, entry.mtime))


def _own(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def _moved(about: bytes, old: str, new: str, name: str) -> bytes:
    """Return a session's settings with the paths of the new data directory. Pure.

    Raises:
        BadRequest: A directory of the session would be outside of it.
    """
    found = _settings(about)
    if not found:
        return about  # Damaged by a crash. The server writes it again from the journal.

    def moved(path: str) -> str:
        return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path

    for field in ("workdir", "family"):
        if path := str(found.get(field) or ""):
            found[field] = moved(path)
            if not os.path.normpath(found[field]).startswith(f"{new}/{SESSIONS}/"):
                raise BadRequest(f"{name}: {field} is outside of the data directory. Nothing was restored.")
    try:
        for bind in found.get("binds") or []:
            bind["source"] = moved(str(bind["source"]))
    except (TypeError, KeyError):
        raise BadRequest(f"{name}: binds are none. Nothing was restored.") from None
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def _settings(about: bytes) -> dict[str, Any]:
    """Return the settings of a session, as ``SessionDirectory.read_about`` reads them. {}: they are damaged."""
    try:
        found = json.loads(about)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_own(stage: Path, data: Path) -> None:
    """Check that the sessions of an archive have their own names, and no directory of a session of this server.

    Raises:
        BadRequest: One has.
    """
    sessions, place = {each.name for each in _sessions(stage)}, data / SESSIONS
    for session in _sessions(stage):
        about = session / _ABOUT
        found = _settings(about.read_bytes()) if about.is_file() else {}
        named = [str(found.get(field) or "") for field in ("workdir", "family")]
        with contextlib.suppress(OSError):
            named.append(str(place / session.name / os.readlink(session / "files")))
        outside = [
            path
            for path in filter(None, named)
            if Path(os.path.normpath(path)).relative_to(place).parts[0] not in sessions
        ]
        if outside or found.get("id", session.name) != session.name:
            raise BadRequest(f"{session.name} has the name or the directory of a session that is not in the archive.")


def _verify(stage: Path, manifest: Manifest, key: SigningKey | None) -> list[str]:
    """Compare each journal with its head, and return the sessions of which the server had no good record.

    Raises:
        BadRequest: A journal is not as the server wrote it, or the key is not the archive's.
    """
    own = stage / "keys" / KEY_NAME
    key = SigningKey.load(own) if own.is_file() else key
    if key is None or key.public != manifest.key:
        which = "has no signing key" if key is None else f"is of another key than {key.public}"
        raise BadRequest(
            f"The backup {which}, and it was signed by {manifest.key}. Name settings whose signing_key is that key: "
            "--config FILE."
        )
    unproven: list[str] = []
    sessions = _sessions(stage)
    heads = HeadFile(stage / HEADS, key.secret("heads"))
    try:
        for session in sessions:
            record = heads.find(session.name)
            if record is None or record.refused:
                unproven.append(session.name)
                continue
            _require_unchanged(session / JOURNAL, session.name, manifest.key)
            judgement = Journal.open(session / JOURNAL, read_only=True, heads=heads).judgement
            if judgement.kind == "mismatch":
                raise BadRequest(f"The log of {session.name} is not as the server wrote it. {judgement.message}")
    finally:
        heads.close()
    for archived in sorted(stage.glob(f"archive/*/{JOURNAL}.gz")):
        _require_unchanged(archived, archived.parent.name, manifest.key)
    if len(sessions) != manifest.sessions:
        raise BadRequest(f"The backup has {len(sessions)} sessions, and its manifest says {manifest.sessions}.")
    return unproven


def _require_unchanged(journal: Path, session: str, public_key: str) -> None:
    verdict = verify_journal(journal, public_key=public_key)
    if verdict.result == "not_as_written":
        raise BadRequest(f"The log of {session} is not as the server wrote it. {verdict.message}")


def _move(stage: Path, target: Path) -> None:
    # One call for all files, which are new.
    sync_filesystem(stage)
    status = stage.stat()
    (stage / MANIFEST).unlink()
    # Until ``sessions`` is there, a server that starts finds no session that is incomplete.
    for path in sorted(stage.iterdir(), key=lambda path: (path.name == SESSIONS, path.name)):
        path.rename(target / path.name)
    stage.rmdir()
    target.chmod(0o700)
    _own(target, status.st_uid, status.st_gid)
    sync_directory(target)


def _undo(target: Path, made: bool) -> None:
    with contextlib.suppress(OSError):
        for path in target.iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name not in _EMPTY:
                    remove_tree(path)
            else:
                path.unlink()
        if made:
            target.rmdir()
