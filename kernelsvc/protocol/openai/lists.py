"""Pages of lists in the format of OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from kernelsvc.errors import BadRequest

#: Most items of a page.
MAX_LIMIT = 10_000


def whole_number(name: str, given: str, most: int) -> int:
    """Return a number of a query.

    Raises:
        BadRequest: It is none, or larger than ``most``.
    """
    # int() takes digits of other scripts, and raises for more than 4300 of them.
    if not given.isascii() or not given.isdecimal() or len(given) > len(str(most)) or int(given) > most:
        raise BadRequest(f"{name!r} is a number from 0 to {most}.", param=name)
    return int(given)


def page_of(
    items: Sequence[Any], asked: Mapping[str, str], show: Callable[[Any], dict[str, Any] | None] = lambda item: item
) -> dict[str, Any]:
    """Return a page of a list.

    Args:
        items: All items, the newest first.
        asked: ``limit``, ``order``, and ``after`` or an empty text.
        show: Returns the form of an item for clients, or None for one that they do not see. It is called for the items
            up to the end of the page.

    Raises:
        BadRequest: One of them is not valid.
    """
    limit, order, after = asked["limit"], asked["order"], asked["after"]
    size = whole_number("limit", limit, MAX_LIMIT)
    if not size or order not in ("asc", "desc"):
        raise BadRequest(f"'limit' is a number from 1 to {MAX_LIMIT}, and 'order' is 'asc' or 'desc'.", param="limit")
    shown = (form for each in (items if order == "desc" else reversed(items)) if (form := show(each)) is not None)
    if after and not any(each["id"] == after for each in shown):
        raise BadRequest("'after' is not the id of an element of the list.", param="after")
    page = [*islice(shown, size)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": next(shown, None) is not None,
    }
