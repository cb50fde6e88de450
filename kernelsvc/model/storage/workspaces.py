"""Workspaces: named folders that outlive sessions. Their names, owners and quotas. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kernelsvc.errors import BadRequest

WorkspaceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)")]
#: ``NAME`` of the caller's own, or ``OWNER/NAME``.
WorkspaceAddress = Annotated[str, Meta(pattern=r"^(.{1,128}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)")]
Pattern = Annotated[str, Meta(min_length=1, max_length=128)]
#: Most entries of a list of principals, and those of them with a wildcard. Each list of workspaces looks at all.
MAX_SHARES, MAX_WILDCARDS = 1000, 50


class WorkspaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace, as it is on disk.

    Attributes:
        owner: The principal that made it.
        name: Unique among those of its owner.
        created_at: UTC.
        shared_with: Names of other principals that may use it, with * as a wildcard.
        max_bytes: Quota. None takes the server's setting.
    """

    owner: str
    name: str
    created_at: str
    shared_with: list[str] = []
    max_bytes: int | None = None

    @property
    def address(self) -> str:
        """Its name for every principal."""
        return f"{self.owner}/{self.name}"


class WorkspaceInfo(msgspec.Struct, kw_only=True):
    """A workspace as the API shows it.

    Attributes:
        workspace: ``OWNER/NAME``, which every principal that may use it can give.
        max_bytes: Quota. None means no limit.
        used_bytes: Size of its files. Only in the answer about one workspace.
        sessions: Number of open sessions that have it.
    """

    workspace: str
    owner: str
    name: str
    created_at: str
    shared_with: list[str]
    max_bytes: int | None
    sessions: int = 0
    used_bytes: int | UnsetType = UNSET


def parse_address(address: str, who: str) -> tuple[str, str]:
    """Return owner and name of a workspace that a principal names.

    >>> parse_address("report", "ann")
    ('ann', 'report')
    >>> parse_address("team-a/report", "ann")
    ('team-a', 'report')

    Raises:
        BadRequest: it has another form.
    """
    try:
        msgspec.convert(address, WorkspaceAddress)
    except msgspec.ValidationError:
        raise BadRequest(
            f"{address!r} is no name of a workspace. Use letters, digits, '.', '_' and '-', and OWNER/ before it for "
            "another principal's."
        ) from None
    owner, slash, name = address.rpartition("/")
    return (owner if slash else who), name


def may_use(record: WorkspaceRecord, principal: str) -> bool:
    """Return whether a principal may read and write a workspace."""
    return principal == record.owner or any(_fits(principal, each) for each in record.shared_with)


def _fits(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern. A regular expression for each would take 100 times as long to compile."""
    first, *parts = pattern.split("*")
    if not parts:
        return name == pattern
    last = parts.pop()
    at, end = len(first), len(name) - len(last)
    if at > end or not (name.startswith(first) and name.endswith(last)):
        return False
    for part in parts:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def check_shares(shared_with: Iterable[str]) -> None:
    """Check the principals that a workspace is shared with.

    Raises:
        BadRequest: too many have a wildcard.
    """
    count = sum("*" in each for each in shared_with)
    if count > MAX_WILDCARDS:
        raise BadRequest(
            f"'shared_with' has {count} patterns and may have {MAX_WILDCARDS}. Name the other principals without '*'."
        )
