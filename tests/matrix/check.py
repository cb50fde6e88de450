"""One row of the matrix against a served instance."""

from __future__ import annotations

import asyncio
import re

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.errors import CannotFork
from matrix.rows import Row

#: Longer than any first use of a library takes; a branch that hangs is found by it.
CELL_SECONDS = 60.0


async def check(client: AsyncClient, template: str, row: Row) -> None:
    """Run the row's setup, branch, and see that both copies do as the row says, also after a crash."""
    parent = await client.create_session(template=template)
    family = [parent]
    try:
        await run(parent, row.setup)
        if row.refused:
            await refused(parent, row)
            if not row.undo:
                return
            await run(parent, row.undo)
        family += await parent.branch()
        info = await family[1].info()
        warnings = (info.parent or {}).get("warnings", [])
        assert not row.told or any(re.search(row.told, said) for said in warnings), warnings
        shown = await asyncio.gather(*(run(one, row.use) for one in family))
        assert shown == [row.expected] * 2
    finally:
        await asyncio.gather(*(one.close() for one in family))


async def refused(parent: AsyncSession, row: Row) -> None:
    """It is refused in words, at once, and the session goes on."""
    async with asyncio.timeout(10):
        try:
            (unwanted,) = await parent.branch()
        except CannotFork as error:
            reasons = error.details["reasons"]
            assert any(re.search(row.refused, said) for said in reasons), reasons
        else:
            await unwanted.close()
            raise AssertionError(f"{row.what} was not refused")
    assert await run(parent, "1 + 1") == "2"


async def run(session: AsyncSession, code: str) -> str:
    """What a cell shows."""
    cell = await session.run(code, timeout=CELL_SECONDS)
    assert cell.ok, (code, cell.reason, cell.text)
    return " ".join(cell.text.split())
