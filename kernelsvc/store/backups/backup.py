"""A backup of a data directory, made while its server runs.

A journal and the file of heads (``store.heads``) change one after the other, so a plain copy can hold a head that
is ahead of its journal, or a journal that is ahead of its head. The next server then can't tell the copy from a
forgery, and signs nothing in that session any more. So the heads are copied first, and of each journal as much as its
head covers.

The last entry is a signed ``Manifest`` with the digest of all bytes before it. So ``restore`` can tell a whole archive
from a half-written one, and the archive of this server from another's.

Sessions choose the names and the kinds of the files in their directories, and may change them meanwhile. So no link is
followed: each directory is opened relative to the one above it (``linux.nofollow``).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable
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
        bytes: Size of the backup.
    """

    sessions: int = 0
    left_out: list[str] = []
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


def write_backup(data: Path, target: Path, key: SigningKey) -> BackupReport:
    """Write a backup as a compressed tar archive. An existing file is replaced when the new one is complete.

    Args:
        data: The data directory. Its server may run.
        target: The archive. It holds the signing key and what sessions know: mode 0600.
        key: The signing key of the data directory.

    Raises:
        BadRequest: ``target`` is below the data directory.
        OSError: The archive can't be written. An older one is unchanged.
    """
    if target.resolve().is_relative_to(data.resolve()):
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
                    _add_bytes(tar, HEADS, heads, owner)
                    _add_all(tar, data, copied, started, report)
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
    with contextlib.suppress(OSError):  # A user who may only read the directory can make backups, too.
        (data / BACKUP_MARK).touch()
    return report


def _add_all(tar: tarfile.TarFile, data: Path, heads: HeadFile, started: datetime, report: BackupReport) -> None:
    top = open_directory(data.resolve(), os.O_RDONLY)
    try:
        names = [name for name in sorted(os.listdir(top)) if not name.startswith(_LEFT_OUT)]
        _add_entries(tar, top, "", [name for name in names if name not in (HEADS, SESSIONS)])
        for name in sorted(os.listdir(data / SESSIONS)):
            if _add_journal(tar, data / SESSIONS / name, heads.find(name), started):
                _add_session(tar, data / SESSIONS / name, f"{SESSIONS}/{name}")
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


def _add_session(tar: tarfile.TarFile, path: Path, name: str) -> None:
    try:
        fd = open_directory(path.resolve(), os.O_RDONLY)
    except FileNotFoundError:
        return  # It was deleted meanwhile.
    try:
        _add_entries(tar, fd, f"{name}/", [each for each in sorted(os.listdir(fd)) if each != JOURNAL])
    finally:
        os.close(fd)


def _add_entries(tar: tarfile.TarFile, above: int, prefix: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            _add_entry(tar, above, prefix, name)
        except FileNotFoundError:
            continue  # A session may remove its files at any time.


def _add_entry(tar: tarfile.TarFile, above: int, prefix: str, name: str) -> None:
    found = os.stat(name, dir_fd=above, follow_symlinks=False)
    info = _info(prefix + name, found)
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=above)
        tar.addfile(info)
    elif stat.S_ISDIR(found.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
            _add_entries(tar, fd, f"{prefix}{name}/", sorted(os.listdir(fd)))
        finally:
            os.close(fd)
    elif stat.S_ISREG(found.st_mode):
        # O_NONBLOCK: it may have become a FIFO, whose open(2) would wait for a writer.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        with os.fdopen(fd, "rb") as file:
            opened = os.fstat(fd)
            if stat.S_ISREG(opened.st_mode):
                info = _info(prefix + name, opened)
                info.size = opened.st_size
                tar.addfile(info, _Padded(file, opened.st_size))
    # Sockets, pipes and devices mean nothing elsewhere.


def _info(name: str, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    info.uid, info.gid = found.st_uid, found.st_gid
    return info


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, owner: os.stat_result) -> None:
    info = _info(name, owner)
    info.mode, info.size = 0o600, len(data)
    tar.addfile(info, io.BytesIO(data))
