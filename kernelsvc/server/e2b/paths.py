"""Paths in E2B's format, and descriptions of files.

A path is absolute, or relative to the home directory. The home directory is the
session's directory, which the server can open. All other paths belong to the sandbox's
file system and can be reached only from inside.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from kernelsvc.errors import BadRequest
from kernelsvc.model.files import FileStatus
from kernelsvc.server.e2b import metadata

#: The session's directory inside the sandbox.
HOME = "/home/user"
#: Most characters of a path (PATH_MAX of Linux).
MAX_PATH = 4096
_KINDS = {stat.S_IFREG: "FILE_TYPE_FILE", stat.S_IFDIR: "FILE_TYPE_DIRECTORY", stat.S_IFLNK: "FILE_TYPE_SYMLINK"}


def absolute(path: str) -> str:
    """Return a normalised absolute path.

    Raises:
        BadRequest: It has a ``..`` or a zero byte, or is too long.
    """
    if len(path) > MAX_PATH:
        raise BadRequest(f"The path is too long. At most {MAX_PATH} characters.")
    if "\0" in path:
        raise BadRequest("The path holds a zero byte.")
    pure = PurePosixPath(HOME, path.removeprefix("~/") if path != "~" else "")
    if ".." in pure.parts:
        raise BadRequest("The path has a '..'. Give one without.")
    return "/" + "/".join(pure.parts[1:])


def is_outside_home(path: str) -> bool:
    """Return whether a path leads outside the home directory.

    Raises:
        BadRequest: The path is invalid.
    """
    whole = absolute(path)
    return whole != HOME and not whole.startswith(HOME + "/")


def below_home(path: str) -> bytes:
    """Return a path relative to the home directory, which is b"" itself.

    Raises:
        BadRequest: It leads outside, or is invalid.
    """
    whole = absolute(path)
    if whole == HOME:
        return b""
    if not whole.startswith(HOME + "/"):
        raise BadRequest(
            f"{whole[:200]} is outside {HOME}, where this is not possible. Use a command or code for other paths."
        )
    return os.fsencode(whole.removeprefix(HOME + "/"))


def path_of(path: bytes) -> str:
    """Return the absolute path of a file in the home directory. Bytes that are not UTF-8 become U+FFFD."""
    return f"{HOME}/{path.decode('utf-8', 'replace')}" if path else HOME


def entry(status: FileStatus) -> dict[str, Any]:
    """Describe a file in the home directory, with the metadata in its extended attributes."""
    found = entry_of(path_of(status.path), status.mode, status.size, status.mtime_ns, None)
    if named := metadata.from_attributes(status.attributes):
        found["metadata"] = named
    if status.target is not None:
        found |= {"symlinkTarget": status.target.decode("utf-8", "replace"), "isSymlink": True}
    return found


def entry_of(path: str, mode: int, size: int, modified: int, target: str | None) -> dict[str, Any]:
    """Describe a file at any path.

    Args:
        path: Absolute.
        mode: As in stat(2), with the type.
        size: Bytes.
        modified: Nanoseconds of Unix time.
        target: A link's target.
    """
    found: dict[str, Any] = {
        "name": path.rpartition("/")[2],
        "type": type_of(mode),
        "path": path,
        "size": str(size),
        "mode": stat.S_IMODE(mode & 0xFFFF),
        "permissions": stat.filemode(mode & 0xFFFF),
        "owner": "user",
        "group": "user",
        "modifiedTime": _time_of(modified),
    }
    return found | ({"symlinkTarget": target, "isSymlink": True} if target is not None else {})


def type_of(mode: int) -> str:
    """Return E2B's name for the kind of a file with this mode (stat(2))."""
    return _KINDS.get(stat.S_IFMT(mode & 0xFFFF), "FILE_TYPE_UNSPECIFIED")


def _time_of(nanoseconds: int) -> str:
    try:
        at = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at.year >= 1000 else "1970-01-01T00:00:00Z"
