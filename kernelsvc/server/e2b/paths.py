"""Paths as E2B's clients write them, and files as they are described to them.

A path is absolute, or relative to the home directory. What lies at home is the
session's directory, which the server can open; everything else is the sandbox's
own and can be reached from inside alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from kernelsvc.errors import BadRequest
from kernelsvc.linux.rooted_dir import RootedDirectory, parse_path
from kernelsvc.server.e2b import metadata

#: The session's directory as its cells see it.
HOME = "/home/user"
_KINDS = {stat.S_IFREG: "FILE_TYPE_FILE", stat.S_IFDIR: "FILE_TYPE_DIRECTORY", stat.S_IFLNK: "FILE_TYPE_SYMLINK"}


def absolute(path: str) -> str:
    """A path from the root, without what means nothing.

    Raises:
        BadRequest: it climbs, or holds a zero byte.
    """
    if "\0" in path:
        raise BadRequest("The path holds a zero byte.")
    pure = PurePosixPath(HOME, path.removeprefix("~/") if path != "~" else "")
    if ".." in pure.parts:
        raise BadRequest("The path has a '..'; give one without.")
    return "/" + "/".join(pure.parts[1:])


def is_outside_home(path: str) -> bool:
    """Whether a path leads outside the home directory.

    Raises:
        BadRequest: it can't be a path.
    """
    whole = absolute(path)
    return whole != HOME and not whole.startswith(HOME + "/")


def parts_of(path: str) -> tuple[bytes, ...]:
    """The part of a path below the home directory; empty for that itself.

    Raises:
        BadRequest: it leads elsewhere, or can't be a path.
    """
    whole = absolute(path)
    if whole == HOME:
        return ()
    if not whole.startswith(HOME + "/"):
        raise BadRequest(
            f"{whole[:200]} lies outside {HOME}; this can be done there alone. "
            "Reach what lies elsewhere by a command or by code."
        )
    return parse_path(os.fsencode(whole.removeprefix(HOME + "/")))


def path_of(parts: tuple[bytes, ...]) -> str:
    """The absolute path of what lies below the home directory; what is not UTF-8 becomes U+FFFD."""
    return "/".join([HOME, *(part.decode("utf-8", "replace") for part in parts)])


def entry(directory: RootedDirectory, parts: tuple[bytes, ...]) -> dict[str, Any]:
    """What E2B's clients are told of what lies somewhere below the home directory.

    Raises:
        KernelsvcError: it isn't there.
    """
    return home_entry(parts, *directory.look(parts), metadata=metadata.from_attributes(directory.attributes(parts)))


def home_entry(
    parts: tuple[bytes, ...],
    info: os.stat_result,
    target: bytes | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What E2B's clients are told of a file.

    Args:
        parts: where it lies below the home directory.
        info: what it is; of a link, of the link itself.
        target: where a link leads.
        metadata: what its owner wrote on it.
    """
    found = entry_of(path_of(parts), info.st_mode, info.st_size, info.st_mtime_ns, None)
    if metadata:
        found["metadata"] = dict(metadata)
    if target is not None:
        found |= {"symlinkTarget": target.decode("utf-8", "replace"), "isSymlink": True}
    return found


def entry_of(path: str, mode: int, size: int, modified: int, target: str | None) -> dict[str, Any]:
    """What E2B's clients are told of a file that lies anywhere.

    Args:
        path: absolute.
        mode: as stat(2) has it, with its kind.
        size: bytes.
        modified: nanoseconds of Unix time.
        target: where a link leads.
    """
    found: dict[str, Any] = {
        "name": path.rpartition("/")[2],
        "type": _KINDS.get(stat.S_IFMT(mode & 0xFFFF), "FILE_TYPE_UNSPECIFIED"),
        "path": path,
        "size": str(size),
        "mode": stat.S_IMODE(mode & 0xFFFF),
        "permissions": stat.filemode(mode & 0xFFFF),
        "owner": "user",
        "group": "user",
        "modifiedTime": _time_of(modified),
    }
    return found | ({"symlinkTarget": target, "isSymlink": True} if target is not None else {})


def _time_of(nanoseconds: int) -> str:
    try:
        at = datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at.year >= 1000 else "1970-01-01T00:00:00Z"
