"""Decide whether one more session may be created."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kernelsvc.errors import AtCapacity, QuotaExceeded
from kernelsvc.model.limits import Limits
from kernelsvc.model.objects import is_user_of


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the server over all sessions. ``None`` means no limit.

    Attributes:
        sessions: Live sessions of all principals.
        sessions_per_principal: Live sessions of one principal.
        memory_bytes: Sum of the memory limits of all live sessions. Limits count, not present use, since a session may
            use its whole limit.
    """

    sessions: int | None = None
    sessions_per_principal: int | None = None
    memory_bytes: int | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A live session's share of the ceilings."""

    principal: str
    memory_bytes: int | None


def admit(live: Iterable[Reservation], ceilings: Ceilings, principal: str, limits: Limits, *, count: int = 1) -> None:
    """Return if ``count`` more sessions with these limits fit.

    Raises:
        QuotaExceeded: The principal has as many sessions as it may have.
        AtCapacity: The server has as many sessions, or as much memory reserved, as it may have.
    """
    sessions = own = reserved = 0
    for one in live:
        sessions += 1
        own += one.principal == principal or is_user_of(one.principal, principal)
        reserved += one.memory_bytes or 0
    allowed = ceilings.sessions_per_principal
    if allowed is not None and own + count > allowed:
        raise QuotaExceeded(
            f"You have {own} live sessions and may have {allowed}. Close one first.", live=own, allowed=allowed
        )
    if ceilings.sessions is not None and sessions + count > ceilings.sessions:
        raise AtCapacity(
            f"The server has {sessions} live sessions and may have {ceilings.sessions}. Try again later.",
            live=sessions,
            allowed=ceilings.sessions,
        )
    wanted = (limits.memory_bytes or 0) * count
    if ceilings.memory_bytes is not None and reserved + wanted > ceilings.memory_bytes:
        raise AtCapacity(
            f"{reserved} of {ceilings.memory_bytes} bytes of memory are reserved and {wanted} more are needed. "
            "Lower limits.memory_bytes or try again later.",
            promised_bytes=reserved,
            wanted_bytes=wanted,
            allowed_bytes=ceilings.memory_bytes,
        )
