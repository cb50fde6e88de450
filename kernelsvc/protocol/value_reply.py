"""The kernel's reply to a request for a variable's data. The kernel is not trusted: each field is checked."""

from __future__ import annotations

from typing import Any

import msgspec

from kernelsvc.errors import Internal, KernelsvcError, NotFound, NotSupported, TooLarge
from kernelsvc.model.objects import ValueData

#: Most bytes of data in a reply. The kernel sends at most 4 MiB.
MAX_BYTES = 6 * 1024 * 1024
_MAX_MESSAGE = 500
_ERRORS: dict[str, type[KernelsvcError]] = {"not_found": NotFound, "too_large": TooLarge}


def value_data(reply: dict[str, Any], wanted: str) -> ValueData:
    """Return the data of a reply. They are never interpreted here.

    Args:
        reply: its content.
        wanted: the format that was asked for.

    Raises:
        NotFound: there is no such variable or column.
        TooLarge: the rows do not fit into a reply.
        NotSupported: the value can't be converted.
        Internal: the reply is not valid.
    """
    if reply.get("status") != "ok":
        kind = _ERRORS.get(str(reply.get("ename")), NotSupported)
        raise kind(str(reply.get("evalue"))[:_MAX_MESSAGE])
    try:
        found = msgspec.convert({**reply, "name": str(reply.get("name"))[:200]}, ValueData)
    except (msgspec.ValidationError, ValueError) as error:
        raise Internal(f"The kernel sent data that are not valid: {error}. Restart the session.") from None
    moved = found.next_row is not None and found.next_row <= found.from_row
    if len(found.data) > MAX_BYTES or len(found.type) > 500 or moved or wanted not in ("best", found.format):
        raise Internal("The kernel sent data that were not asked for. Restart the session.")
    return found
