"""Directories of the machine that sessions see besides their own: mounts of the settings, and workspaces. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta

from kernelsvc.errors import BadRequest, Forbidden

#: Where mounts are inside.
MOUNTS_DIR = "/data"
#: Where a session's workspace is inside.
WORKSPACE_DIR = "/workspace"
#: Most mounts of one session. Each is a mount(2) in its namespace and a part of a request of 192 KiB.
MAX_MOUNTS = 32

MountName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the machine for sessions that ask for it, read-only at ``/data/NAME``.

    Attributes:
        path: the directory, absolute. It and its files must be readable for every user if the kernel host is root.
        principals: names of the principals that may use it, with * as a wildcard.
    """

    path: Annotated[str, Meta(pattern=r"^/[^\0]*$(?!\n)")]
    principals: list[str] = msgspec.field(default_factory=lambda: ["*"])


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of the machine at a path inside a sandbox.

    Attributes:
        source: absolute path on the machine.
        target: absolute path inside.
        writable: whether the session may write to it.
        link: a further path inside, which is a link to ``target``. Empty for none.
    """

    source: str
    target: str
    writable: bool = False
    link: str = ""


def choose_binds(mounts: Mapping[str, Mount], names: Iterable[str], principal: str) -> list[Bind]:
    """Return the binds of the mounts that a principal's request names, each once.

    Raises:
        BadRequest: there is no mount of a name. The message lists those of the principal.
        Forbidden: the mount is for other principals.
    """
    binds = []
    for name in dict.fromkeys(names):
        mount = mounts.get(name)
        if mount is None:
            known = ", ".join(allowed_mounts(mounts, principal)) or "none: the server's settings define them"
            raise BadRequest(f"There is no mount {name!r}. Those that you may use: {known}.")
        if not _is_for(mount, principal):
            raise Forbidden(
                f"The mount {name!r} is not for {principal!r}. The operator allows it in mounts.{name}.principals."
            )
        binds.append(Bind(source=mount.path, target=f"{MOUNTS_DIR}/{name}"))
    return binds


def allowed_mounts(mounts: Mapping[str, Mount], principal: str) -> list[str]:
    """Return the names of the mounts that a principal may use, sorted."""
    return sorted(name for name, mount in mounts.items() if _is_for(mount, principal))


def _is_for(mount: Mount, principal: str) -> bool:
    return any(fnmatch.fnmatchcase(principal, pattern) for pattern in mount.principals)


def names_of(binds: Sequence[Bind]) -> list[str]:
    """Return the names of the mounts among a session's binds, as its request gave them."""
    above = f"{MOUNTS_DIR}/"
    return [bind.target.removeprefix(above) for bind in binds if bind.target.startswith(above)]


def why_unsafe(path: str, private: Collection[str]) -> str | None:
    """Return why a directory can't be a mount, or None.

    Args:
        path: the directory, without links.
        private: directories and files that no session may see, without links.
    """
    mount = PurePosixPath(path)
    for other in private:
        if PurePosixPath(other).is_relative_to(mount):
            return f"it holds {other}, which no session may see"
        if mount.is_relative_to(other):
            return f"it lies in {other}, which no session may see"
    return None
