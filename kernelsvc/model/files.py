"""Values about the files of a session's directory. Names are bytes, as in Linux: a cell chooses them freely."""

from __future__ import annotations

import hashlib
import os
import stat
from datetime import UTC, datetime
from typing import Literal

import msgspec

FileKind = Literal["file", "directory", "link", "other"]
FileChange = Literal["create", "write", "remove", "rename", "chmod"]


class FileStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a directory. A link is described, never followed.

    Attributes:
        path: relative to the session's directory, which is b"" itself.
        kind: regular file, directory, symbolic link, or anything else.
        mode: type and permissions, see inode(7).
        size: bytes.
        mtime_ns: the last change of the content, in nanoseconds of Unix time. A cell can set any value.
        atime_ns: the last read, in nanoseconds of Unix time, as exact as the filesystem's options allow (mount(8)).
        ctime_ns: the last change of the inode, in nanoseconds of Unix time.
        etag: differs whenever the content may have changed.
        target: of a link, else None.
        attributes: the extended attributes ``user.*``, if they were requested.
    """

    path: bytes
    kind: FileKind
    mode: int
    size: int
    mtime_ns: int
    atime_ns: int = 0
    ctime_ns: int = 0
    etag: str = ""
    target: bytes | None = None
    attributes: dict[str, bytes] = {}

    @property
    def modified(self) -> str:
        """Time of the last change in UTC, ISO 8601. A time outside of the calendar becomes the epoch."""
        return iso_time(self.mtime_ns)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was written whole: its size in bytes, its SHA-256 in hexadecimal digits, and its ETag."""

    size: int
    sha256: str
    etag: str


class FileEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change below a watched directory.

    Attributes:
        change: its kind.
        path: of the changed entry, relative to the session's directory.
        status: the entry after the change, if it was requested and the entry still exists.
    """

    change: FileChange
    path: bytes
    status: FileStatus | None = None


def iso_time(ns: int) -> str:
    """Return a time in nanoseconds of Unix time as ISO 8601 in UTC. One outside of the calendar becomes the epoch."""
    try:
        at = datetime.fromtimestamp(ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def kind_of(mode: int) -> FileKind:
    """Return the kind of a file from its mode."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def etag_of(info: os.stat_result) -> str:
    """Return a value that changes whenever the file's content may have changed."""
    facts = f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
    return '"' + hashlib.sha256(facts.encode()).hexdigest()[:32] + '"'


def status_of(
    path: bytes,
    info: os.stat_result,
    target: bytes | None = None,
    attributes: dict[str, bytes] | None = None,
) -> FileStatus:
    """Return an entry's description from its status (stat(2)).

    Args:
        path: relative to the session's directory.
        info: of the entry itself. For a link, the link's.
        target: a link's target.
        attributes: its extended attributes.
    """
    return FileStatus(
        path=path,
        kind=kind_of(info.st_mode),
        mode=info.st_mode,
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        atime_ns=info.st_atime_ns,
        ctime_ns=info.st_ctime_ns,
        etag=etag_of(info),
        target=target,
        attributes=attributes or {},
    )
