"""Pages of several lists as one list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.cluster import paging
from kernelsvc.store.index import decode_page, encode_page

Item = tuple[str, str]


class Node:
    """A list with pages of its own. Counts what is read."""

    def __init__(self, items: Sequence[Item], size: int) -> None:
        self.items = sorted(items, reverse=True)
        self.size, self.read_items = size, 0

    async def read(self, cursor: str | None) -> tuple[Sequence[Item], str | None]:
        after = tuple(decode_page(cursor)) if cursor else None
        left = [each for each in self.items if after is None or each < after]
        page = left[: self.size]
        self.read_items += len(page)
        return page, paging.encode_position(page[-1]) if len(left) > self.size else None


@given(
    lists=st.lists(st.lists(st.integers(0, 50), max_size=30), min_size=1, max_size=5),
    limit=st.integers(1, 12),
)
def test_the_pages_of_all_nodes_together_are_the_sorted_list(lists: list[list[int]], limit: int) -> None:
    items = [[(f"{at:03}", f"s_{n}_{i}") for i, at in enumerate(ats)] for n, ats in enumerate(lists)]

    async def pages() -> list[Item]:
        found: list[Item] = []
        cursor: str | None = None
        while True:
            nodes = [Node(each, paging.share(limit, len(items))) for each in items]
            sources = [paging.Source(node.read, cursor=cursor) for node in nodes]
            for source in sources:
                await source.fill()
            some, cursor = await paging.merge(sources, limit, lambda item: item)
            assert len(some) == limit or cursor is None
            found += some
            if cursor is None:
                return found

    assert asyncio.run(pages()) == sorted((item for each in items for item in each), reverse=True)


def test_a_cursor_has_the_form_of_a_single_servers() -> None:
    assert paging.encode_position(("2026-01-01T00:00:00Z", "s_1")) == encode_page("2026-01-01T00:00:00Z", "s_1")


def test_each_node_is_asked_for_little_more_than_its_share() -> None:
    assert paging.share(100, 100) == 6
    assert paging.share(100, 1) == 100
    assert paging.share(3, 2) == 3
