"""May one more session be made? A decision on values; effects are the service's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kernelsvc.errors import AtCapacity, QuotaExceeded
from kernelsvc.model.limits import Limits


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What the server promises at most. ``None`` means no ceiling of ours.

    Attributes:
        sessions: live sessions of everybody.
        sessions_per_principal: live sessions of one principal.
        memory_bytes: sum of the memory limits of all live sessions. A session may
            use what it was promised, so promises are added up, not present use.
    """

    sessions: int | None = None
    sessions_per_principal: int | None = None
    memory_bytes: int | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A session that counts."""

    principal: str
    memory_bytes: int | None


def admit(live: Iterable[Reservation], ceilings: Ceilings, principal: str, limits: Limits, *, count: int = 1) -> None:
    """Return if ``count`` more sessions with these limits fit.

    Raises:
        QuotaExceeded: the principal has as many as it may.
        AtCapacity: the server has.
    """
    sessions = own = promised = 0
    for one in live:
        sessions += 1
        own += one.principal == principal
        promised += one.memory_bytes or 0
    allowed = ceilings.sessions_per_principal
    if allowed is not None and own + count > allowed:
        raise QuotaExceeded(
            f"You have {own} live sessions and may have {allowed}; close one first.", live=own, allowed=allowed
        )
    if ceilings.sessions is not None and sessions + count > ceilings.sessions:
        raise AtCapacity(
            f"The server has {sessions} live sessions and may have {ceilings.sessions}; try again later.",
            live=sessions,
            allowed=ceilings.sessions,
        )
    wanted = (limits.memory_bytes or 0) * count
    if ceilings.memory_bytes is not None and promised + wanted > ceilings.memory_bytes:
        raise AtCapacity(
            f"{promised} of {ceilings.memory_bytes} bytes of memory are promised and {wanted} more were asked for; "
            "lower limits.memory_bytes or try again later.",
            promised_bytes=promised,
            wanted_bytes=wanted,
            allowed_bytes=ceilings.memory_bytes,
        )
