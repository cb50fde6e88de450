"""A backup of a data directory, made while its server runs.

A journal and the file of heads (``store.heads``) change one after the other, so a plain copy can hold a head that
is ahead of its journal, or a journal that is ahead of its head. The next server then can't tell the copy from a
forgery, and signs nothing in that session any more. So the heads are copied first, and of each journal as much as its
head covers.

The last entry is a signed ``Manifest`` with the digest of all bytes before it. So ``restore`` can tell a whole archive
from a half-written one, and the archive of this server from another's.

Sessions choose the names and the kinds of the files in their directories, and may change them meanwhile. So no link is
followed: each directory and each file is opened with ``O_NOFOLLOW``, relative to the directory above it (openat(2)).
A file of a session that can't be read, or not be restored, is left out and counted. It can't stop a backup.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from kernelsvc import __version__
from kernelsvc.errors import BadRequest
from kernelsvc.linux.nofollow import open_directory
from kernelsvc.linux.output_file import output_file
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.store.heads import HeadFile, HeadRecord
from kernelsvc.store.keys import SigningKey
from kernelsvc.store.sessions import BACKUP_MARK

HEADS, SESSIONS, JOURNAL = "heads", "sessions", "journal.jsonl"
#: The name of the last entry, and the form of the archive.
MANIFEST, FORM = ".backup.json", 1
#: What a server makes anew: locks, sockets and the index, which follows from the journals. Also the manifest of an
#: archive that tar(1) unpacked.
_LEFT_OUT = ("server.", "host.", "index.sqlite", "traces.", ".")
#: Where code of sessions writes.
_THEIRS = re.compile(rf"({SESSIONS}/[^/]+/(?:home|files)|workspaces/[^/]+/[^/]+/files)(?:/|$)")
#: The path of a link has more names than this: ``workspaces/OWNER/NAME/files/...``, ``environments/NAME/VENV/...``.
_LINKS_BELOW = {"workspaces": 4, "environments": 3}
#: Directory of the servers of ``serve --workers``, and the links that each has to files of the first one.
_WORKERS, _SHARED = "workers", {"keys/tokens.json": "../../../keys/tokens.json", "environments": "../../environments"}
#: Errors that such code causes with modes, kinds and names of files. Others are the disk's.
_CAUSED = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENXIO}
#: Longest path, in bytes, and most names of one. ``restore`` makes it below another directory, and PATH_MAX is 4096
#: (limits.h). Each level takes a descriptor and two frames of the stack.
_MOST_PATH, _MOST_DEPTH = 3000, 200
#: Most bytes that take no space on the disk, for each session: holes of files (lseek(2), SEEK_HOLE) and further names
#: of a file (link(2)). In an archive they do.
_MOST_HOLES = 1 << 30
#: Latest time of a file, in 2242: 11 octal digits (tar(5)). utime(2) refuses some that a file system has.
_MOST_TIME = 8**11 - 1


def may_be_link(parts: Sequence[str], target: str) -> bool:
    """Return whether a backup may have a link, which ``restore`` makes. Pure.

    Args:
        parts: The names in its path.
        target: Where it leads.

    The server follows no link where sessions or an environment have their files. It follows all others.
    """
    if parts[0] == _WORKERS and len(parts) > 2:
        parts = parts[2:]
        if _SHARED.get("/".join(parts)) == target:
            return True
    if parts[0] != SESSIONS:
        return len(parts) > _LINKS_BELOW.get(parts[0], len(parts))
    if len(parts) != 3:
        return len(parts) > 3
    # A session's ``files`` leads to a directory below one session's own. The server reads its text only, and passes the
    # files below it to the session's clients.
    working = os.path.normpath("/".join((*parts[:2], target))).split("/")
    return parts[2] == "files" and not target.startswith("/") and len(working) > 3 and working[0] == SESSIONS


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The last entry of an archive.

    Attributes:
        form: Form of the archive. A later one is refused.
        version: Release that wrote it.
        at: When.
        data: The data directory, which the sessions' settings name.
        sessions: Number of sessions.
        sha256: Digest of the uncompressed archive before this entry.
        key: The public key of the data directory.
        signature: By this key, over ``statement``.
    """

    form: int
    version: str
    at: str
    data: str
    sessions: int
    sha256: str
    key: str
    signature: str = ""

    def statement(self) -> bytes:
        """Return the bytes that are signed."""
        unsigned = msgspec.structs.replace(self, signature="")
        return b"kernelsvc backup\n" + msgspec.json.encode(unsigned, order="sorted")


class BackupReport(msgspec.Struct, kw_only=True):
    """What a backup holds.

    Attributes:
        sessions: Number of sessions.
        left_out: Ids of sessions that began during the backup.
        skipped: Number of files, links and directories that can't be read or restored.
        first_skipped: Path of the first of them.
        bytes: Size of the backup.
    """

    sessions: int = 0
    left_out: list[str] = []
    skipped: int = 0
    first_skipped: str = ""
    bytes: int = 0


class _FirstEvent(msgspec.Struct):
    at: datetime


class _Hashed(io.RawIOBase):
    """A file that also computes the digest of its bytes."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return self._file.write(data)


class _Padded(io.RawIOBase):
    """A file of which exactly ``size`` bytes are read, whatever becomes of it: tar(5) states the size first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))


def write_backup(data: Path, target: Path, key: SigningKey, *, only: Collection[str] | None = None) -> BackupReport:
    """Write a backup as a compressed tar archive. An existing file is replaced when the new one is complete.

    Args:
        data: The data directory. Its server may run.
        target: The archive. It holds the signing key and what sessions know: mode 0600.
        key: The signing key of the data directory.
        only: The sessions that it holds, and nothing else, also no key. For a move to another server.

    Raises:
        BadRequest: ``target`` is below the data directory, and would be in itself.
        OSError: The archive can't be written. An older one is unchanged.
    """
    if only is None and target.resolve().is_relative_to(data.resolve()):
        raise BadRequest("The backup would be a part of itself. Choose a file outside of the data directory.")
    report = BackupReport()
    started, owner = datetime.now(UTC), data.stat()
    heads = (data / HEADS).read_bytes() if (data / HEADS).exists() else b""
    with output_file(target, mode=0o600) as file, tempfile.TemporaryDirectory() as place:
        copy = Path(place, HEADS)
        copy.write_bytes(heads)
        copied = HeadFile(copy, key.secret("heads"))
        try:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6) as packed:
                hashed = _Hashed(packed)
                with tarfile.open(fileobj=hashed, mode="w:", format=tarfile.PAX_FORMAT) as tar:
                    # The records of heads mean nothing without the key.
                    _add_bytes(tar, HEADS, heads if only is None else b"", owner)
                    _add_all(tar, data, copied, started, report, only)
                    manifest = Manifest(
                        form=FORM,
                        version=__version__,
                        at=timestamp(started.timestamp()),
                        data=str(data.resolve()),
                        sessions=report.sessions,
                        sha256=hashed.digest.hexdigest(),
                        key=key.public,
                    )
                    manifest = msgspec.structs.replace(manifest, signature=key.sign(manifest.statement()))
                    _add_bytes(tar, MANIFEST, msgspec.json.encode(manifest), owner)
        finally:
            copied.close()
        file.flush()
        os.fsync(file.fileno())
        report.bytes = file.tell()
    if only is not None:
        return report
    with contextlib.suppress(OSError):  # A user who may only read the directory can make backups, too.
        (data / BACKUP_MARK).touch()
    return report


def _add_all(
    tar: tarfile.TarFile,
    data: Path,
    heads: HeadFile,
    started: datetime,
    report: BackupReport,
    only: Collection[str] | None,
) -> None:
    tree = _Tree(tar, report)
    top = open_directory(data.resolve(), os.O_RDONLY)
    try:
        names = [name for name in sorted(os.listdir(top)) if not name.startswith(_LEFT_OUT)]
        tree.add(top, "", [name for name in names if only is None and name not in (HEADS, SESSIONS)])
        for name in sorted(os.listdir(data / SESSIONS)):
            if only is not None and name not in only:
                continue
            if _add_journal(tar, data / SESSIONS / name, heads.find(name), started):
                _add_session(tree, data / SESSIONS / name, f"{SESSIONS}/{name}")
                report.sessions += 1
            else:
                report.left_out.append(name)
    finally:
        os.close(top)


def _add_journal(tar: tarfile.TarFile, session: Path, record: HeadRecord | None, started: datetime) -> bool:
    """Add the lines of a journal that its copied head covers. Return False if the session began later or is gone."""
    try:
        file = (session / JOURNAL).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return False
    with file:
        # A log of an earlier release has no head. The next server says so, as this one did.
        if record is None and not _began_before(file.readline(), started):
            return False
        file.seek(0)
        lines = file if record is None else islice(file, record.after.seq)
        size = sum(len(line) for line in lines if line.endswith(b"\n"))
        file.seek(0)
        info = _info(f"{SESSIONS}/{session.name}/{JOURNAL}", os.fstat(file.fileno()))
        info.size = size
        tar.addfile(info, _Padded(file, size))
    return True


def _began_before(line: bytes, moment: datetime) -> bool:
    try:
        return msgspec.json.decode(line, type=_FirstEvent).at < moment
    except msgspec.MsgspecError:
        return False


def _add_session(tree: _Tree, path: Path, name: str) -> None:
    try:
        fd = open_directory(path.resolve(), os.O_RDONLY)
    except FileNotFoundError:
        return  # It was deleted meanwhile.
    try:
        tree.add(fd, f"{name}/", [each for each in sorted(os.listdir(fd)) if each != JOURNAL])
    finally:
        os.close(fd)


class _Tree:
    """Adds directories to an archive."""

    def __init__(self, tar: tarfile.TarFile, report: BackupReport) -> None:
        self._tar, self._report = tar, report
        self._holes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, above: int, prefix: str, names: Iterable[str]) -> None:
        """Add the entries with these names of an open directory, and all below them."""
        for name in names:
            theirs = _THEIRS.match(prefix + name)
            if theirs and theirs[1] == prefix + name:
                self._holes = 0
                self._linked.clear()
            try:
                added = self._add(above, prefix, name)
            except FileNotFoundError:
                continue  # A session may remove its files at any time.
            except OSError as error:
                if not theirs or error.errno not in _CAUSED:
                    raise
                added = False
            if not added:
                self._report.skipped += 1
                self._report.first_skipped = self._report.first_skipped or prefix + name

    def _add(self, above: int, prefix: str, name: str) -> bool:
        """Add an entry. Return whether it can be restored and its holes are few."""
        if len(os.fsencode(prefix + name)) > _MOST_PATH or prefix.count("/") >= _MOST_DEPTH:
            return False
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        info = _info(prefix + name, found)
        if stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=above)
            if not may_be_link(f"{prefix}{name}".split("/"), info.linkname):
                return False
            self._tar.addfile(info)
        elif stat.S_ISDIR(found.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            try:
                info.type = tarfile.DIRTYPE
                self._tar.addfile(info)
                self.add(fd, f"{prefix}{name}/", sorted(os.listdir(fd)))
            finally:
                os.close(fd)
        elif stat.S_ISREG(found.st_mode):
            # O_NONBLOCK: it may have become a FIFO, whose open(2) would wait for a writer.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
            try:
                return self._add_file(fd, prefix + name)
            finally:
                os.close(fd)
        # Sockets, pipes and devices mean nothing elsewhere.
        return True

    def _add_file(self, fd: int, name: str) -> bool:
        opened = os.fstat(fd)
        if not stat.S_ISREG(opened.st_mode):
            return False  # It was a file a moment ago.
        inode = (opened.st_dev, opened.st_ino)
        holes = opened.st_size if inode in self._linked else max(0, opened.st_size - opened.st_blocks * 512)
        if opened.st_nlink > 1:
            self._linked.add(inode)
        if self._holes + holes > _MOST_HOLES and _THEIRS.match(name):
            return False
        self._holes += holes
        info = _info(name, opened)
        info.size = opened.st_size
        with open(fd, "rb", closefd=False) as file:
            self._tar.addfile(info, _Padded(file, opened.st_size))
        return True


def _info(name: str, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), min(max(0, int(found.st_mtime)), _MOST_TIME)
    info.uid, info.gid = found.st_uid, found.st_gid
    return info


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, owner: os.stat_result) -> None:
    info = _info(name, owner)
    info.mode, info.size = 0o600, len(data)
    tar.addfile(info, io.BytesIO(data))
