"""What a session may hold when it is branched: the rows that need nothing but the standard library and numpy's family.

The others are in ``tests/matrix``; both are the table of ``docs/reference/branching.md``.
"""

from __future__ import annotations

import pytest
from matrix.check import check
from matrix.rows import ROWS, Row
from served import Served

from kernelsvc import AsyncClient

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("row", [row for row in ROWS if not (row.packages or row.debian)], ids=lambda row: row.what)
async def test_a_row(served: Served, row: Row) -> None:
    async with AsyncClient(served.url, served.token) as client:
        await check(client, "python3", row)
