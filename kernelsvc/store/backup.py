"""A backup of a data directory, made while its server runs.

A journal and the file of heads (``store.heads``) are written one after the other, so a plain copy can hold a head that
is ahead of its journal, or a journal that is ahead of its head. The next server then can't tell the copy from a
forgery, and signs nothing in that session any more. So the heads are copied first, and of each journal as much as its
head covers.

Sessions choose the names and the kinds of the files in their directories, and may change them meanwhile. So no link is
followed: each directory is opened relative to the one above it (``linux.nofollow``).
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.linux.nofollow import open_directory
from kernelsvc.linux.output_file import output_file
from kernelsvc.store.heads import HeadFile, HeadRecord

_HEADS, _SESSIONS, _JOURNAL = "heads", "sessions", "journal.jsonl"
#: What a server makes anew: locks, sockets and the index, which follows from the journals.
_LEFT_OUT = ("server.", "host.", "index.sqlite", ".")


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


class _Padded(io.RawIOBase):
    """A file of which exactly ``size`` bytes are read, whatever becomes of it: tar(5) states the size first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))


def write_backup(data: Path, target: Path, key: bytes) -> BackupReport:
    """Write a backup as a compressed tar archive. An existing file is replaced when the new one is complete.

    Args:
        data: The data directory. Its server may run.
        target: The archive. It holds the signing key and what sessions know: mode 0600.
        key: The key of the heads.

    Raises:
        BadRequest: ``target`` is below the data directory.
        OSError: The archive can't be written. An older one is unchanged.
    """
    if target.resolve().is_relative_to(data.resolve()):
        raise BadRequest("The backup would be a part of itself. Choose a file outside of the data directory.")
    report = BackupReport()
    started = datetime.now(UTC)
    heads = (data / _HEADS).read_bytes() if (data / _HEADS).exists() else b""
    with output_file(target, mode=0o600) as file, tempfile.TemporaryDirectory() as place:
        copy = Path(place, _HEADS)
        copy.write_bytes(heads)
        copied = HeadFile(copy, key)
        try:
            with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
                _add_bytes(tar, _HEADS, heads)
                _add_all(tar, data, copied, started, report)
        finally:
            copied.close()
        file.flush()
        os.fsync(file.fileno())
        report.bytes = file.tell()
    return report


def _add_all(tar: tarfile.TarFile, data: Path, heads: HeadFile, started: datetime, report: BackupReport) -> None:
    top = open_directory(data.resolve(), os.O_RDONLY)
    try:
        names = [name for name in sorted(os.listdir(top)) if not name.startswith(_LEFT_OUT)]
        _add_entries(tar, top, "", [name for name in names if name not in (_HEADS, _SESSIONS)])
        for name in sorted(os.listdir(data / _SESSIONS)):
            if _add_journal(tar, data / _SESSIONS / name, heads.find(name), started):
                _add_session(tar, data / _SESSIONS / name, f"{_SESSIONS}/{name}")
                report.sessions += 1
            else:
                report.left_out.append(name)
    finally:
        os.close(top)


def _add_journal(tar: tarfile.TarFile, session: Path, record: HeadRecord | None, started: datetime) -> bool:
    """Add the lines of a journal that its copied head covers. Return False if the session began later or is gone."""
    try:
        file = (session / _JOURNAL).open("rb")
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
        info = _info(f"{_SESSIONS}/{session.name}/{_JOURNAL}", os.fstat(file.fileno()))
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
        _add_entries(tar, fd, f"{name}/", [each for each in sorted(os.listdir(fd)) if each != _JOURNAL])
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


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.uid, info.gid = 0o600, len(data), os.geteuid(), os.getegid()
    tar.addfile(info, io.BytesIO(data))
