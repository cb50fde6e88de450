"""Pages of several nodes' lists as one page.

A cursor is a position in the order of the list, the same on each node, so a front keeps no state between two pages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
#: Position of an item: time of creation, id.
Position = tuple[str, str]


def encode_position(position: Position) -> str:
    """Return the cursor of a position, in the form of a single server's."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def share(limit: int, nodes: int) -> int:
    """Return how many items to ask each node for, for one page of ``limit``: a few more than its share."""
    return min(limit, 2 * limit // max(1, nodes) + 4)


@dataclass
class Source(Generic[Item]):
    """The list of one node, as far as it was read.

    Attributes:
        read: Returns the page of a cursor, and the next cursor or None.
        items: Items that were read and are not taken, in the order of the list.
        cursor: Of the next page. None: there is none.
    """

    read: Callable[[str | None], Awaitable[tuple[Sequence[Item], str | None]]]
    items: list[Item] = field(default_factory=list)
    cursor: str | None = None

    async def fill(self) -> None:
        """Read the next page."""
        found, self.cursor = await self.read(self.cursor)
        self.items = [*found]

    @property
    def dry(self) -> bool:
        """Whether the next item is on a page that was not read."""
        return not self.items and self.cursor is not None


async def merge(
    sources: Sequence[Source[Item]], limit: int, position: Callable[[Item], Position]
) -> tuple[list[Item], str | None]:
    """Take the first ``limit`` items of lists that are sorted by position, the newest first.

    Args:
        sources: The lists, each with its first page.
        limit: Most items.
        position: Returns the position of an item.

    Returns:
        The items, and the cursor of the page after them or None.
    """
    taken: list[Item] = []
    while len(taken) < limit:
        for source in sources:
            while source.dry:
                await source.fill()
        full = [source for source in sources if source.items]
        if not full:
            return taken, None
        taken.append(max(full, key=lambda source: position(source.items[0])).items.pop(0))
    more = any(source.items or source.cursor is not None for source in sources)
    return taken, encode_position(position(taken[-1])) if more and taken else None
