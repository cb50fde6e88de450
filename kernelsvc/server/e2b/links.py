"""Links in a sandbox's home directory, followed as the sandbox's own kernel would follow them.

The service follows no link. This module reads each link's target and returns a path without links. That path is a hint
and no permission: the service checks it again when it opens the file, because a cell may change links at any time.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.model.files import FileStatus
from kernelsvc.model.objects import Principal
from kernelsvc.server.e2b import paths

if TYPE_CHECKING:
    from kernelsvc.service.api import FilesApi

#: Most links on one path, as in path_resolution(7), and most names that are looked up for it.
MAX_LINKS, MAX_NAMES = 40, 512
#: Most links of one listing whose final target is looked up. Later ones show the link's own text.
MAX_FOLLOWED = 256


class HomeLinks:
    """The links in one sandbox's home directory.

    Args:
        files: reads links.
        who: the sandbox's owner.
        sandbox: its id.
    """

    def __init__(self, files: FilesApi, who: Principal, sandbox: str) -> None:
        self._files, self._who, self._sandbox = files, who, sandbox

    async def resolve(self, path: str, *, last: bool = True) -> str:
        """Return an absolute path without links below the home directory. Safe to cancel.

        The result may be outside the home directory, where the sandbox follows links itself.

        Args:
            path: as a client gave it.
            last: whether to follow a link at the path's end, as open(2) does and rename(2) does not.

        Raises:
            BadRequest: the path is invalid, or has too many links.
        """
        done: list[bytes] = []
        pending = _names_at_home(os.fsencode(paths.absolute(path)))
        if pending is None:
            return paths.absolute(path)
        links = names = 0
        while pending:
            names += 1
            if links > MAX_LINKS or names > MAX_NAMES:
                raise BadRequest("There are too many links on this path (ELOOP). Name the file itself.")
            name = pending.pop(0)
            if name == b"..":
                leaves = None if done else b"/".join([os.path.dirname(os.fsencode(paths.HOME)), *pending])
                done = done[:-1]
            else:
                target = await self._target(b"/".join([*done, name])) if pending or last else None
                if target is None:
                    done.append(name)
                    continue
                links += 1
                leaves = b"/".join([target, *pending]) if target.startswith(b"/") else None
                pending = [*_names(target), *pending]
            if leaves is not None:
                outside = _normalized(leaves)
                inside = _names_at_home(outside)
                if inside is None:
                    return os.fsdecode(outside)
                done, pending = [], inside
        return os.fsdecode(b"/".join([os.fsencode(paths.HOME), *done]))

    async def entry(self, status: FileStatus) -> dict[str, Any]:
        """Describe a file. A link has its final target and, if that is in the home directory, the target's type."""
        found = paths.entry(status)
        if status.target is None:
            return found
        try:
            final = await self.resolve(os.fsdecode(b"/".join([os.fsencode(paths.HOME), status.path])))
            found["symlinkTarget"] = os.fsencode(final).decode("utf-8", "replace")
            if not paths.is_outside_home(final):
                there = await self._files.stat(self._who, self._sandbox, paths.below_home(final))
                found["type"] = paths.type_of(there.mode)
        except KernelsvcError:
            pass  # a loop, or a target that does not exist: the type stays that of a link
        return found

    async def entries(self, listing: Iterable[FileStatus]) -> list[dict[str, Any]]:
        """Describe the files of a listing. Other requests are served between two links. Safe to cancel."""
        found, followed = [], 0
        for status in listing:
            if status.target is None or followed >= MAX_FOLLOWED:
                found.append(paths.entry(status))
                continue
            followed += 1
            found.append(await self.entry(status))
            await asyncio.sleep(0)
        return found

    async def _target(self, path: bytes) -> bytes | None:
        """Return the text of a link. None for any other file, and for a path that does not exist."""
        try:
            found = await self._files.stat(self._who, self._sandbox, path)
        except KernelsvcError:
            return None
        return found.target if stat.S_ISLNK(found.mode) else None


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _normalized(path: bytes) -> bytes:
    """Return an absolute path without "." and "..". Links outside the home directory are unknown here."""
    return os.path.normpath(b"/" + path.lstrip(b"/"))


def _names_at_home(path: bytes) -> list[bytes] | None:
    """Return the names of an absolute path below the home directory. None for a path outside."""
    names, home = _names(path), _names(os.fsencode(paths.HOME))
    return names[len(home) :] if names[: len(home)] == home else None
