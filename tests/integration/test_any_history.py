"""Any sequence of cells, checkpoints, rollbacks, branches and crashes gives the variables that its cells give.

For each session of a family a list is kept of the cells whose effects stand. In the
end those cells are run straight in a fresh session, and both must show the same.
``KERNELSVC_EXAMPLES=20`` tries more.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from examples import MORE, examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served import Served
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.errors import NotFound

EXAMPLES = examples(8)
#: At most so many sessions in one family.
MOST_SESSIONS = 5

BEGIN = """
import numpy as np, random
x, items, table, array = 1, [], {}, np.zeros(1000)
alias = items
class Thing: total = 0
thing = Thing(); table['thing'] = thing
random.seed(3)
def step(n):
    global x
    x = (x * 31 + n) % 1_000_003
    return x
"""
#: Cells that depend on all that was before; some fail half-way, some rename, some delete.
CELLS = [
    "step({n})",
    "items.append(({n}, x)); alias",
    "array[{n} % 1000:] += x; array *= 1.5",
    "table[{n} % 7] = len(items) + x; thing.total += {n}",
    "drawn = random.random(); x += int(drawn * {n})",
    "step({n}); 1 / 0; step({n})",
    "items = items[:-1] if len(items) > 2 else items + [{n}]; alias is items",
    "table.pop({n} % 7, None); late = [t for t in table]",
    "def step(n, old=step): return old(n + {n})",
    "open('file.txt', 'a').write(f'{{x}} '); written = True",
]
SHOW = (
    "(x, items, alias, alias is items, {k: v for k, v in table.items() if k != 'thing'}, thing.total, "
    "table['thing'] is thing, float(array.sum()), globals().get('drawn'), globals().get('late'), random.random())"
)
CRASHES = ["os._exit(1)", "os.abort()", "os.kill(os.getpid(), 9)", "__import__('ctypes').string_at(0)"]

which = st.integers(0, MOST_SESSIONS - 1)
operations = st.one_of(
    st.tuples(st.just("cell"), which, st.sampled_from(CELLS), st.integers(0, 999)),
    st.tuples(st.just("cell"), which, st.sampled_from(CELLS), st.integers(0, 999)),
    st.tuples(st.just("checkpoint"), which, st.integers(0, 2)),
    st.tuples(st.just("rollback"), which, st.one_of(st.none(), st.integers(0, 2))),
    st.tuples(st.just("branch"), which, st.one_of(st.none(), st.integers(0, 2))),
    st.tuples(st.just("crash"), which, st.sampled_from(CRASHES), st.sampled_from(CELLS)),
    st.tuples(st.just("close"), which),
)


class Model:
    """One session and what must be in it.

    Attributes:
        cells: code whose effects stand, and the id of each cell of this session's own.
        kept: the same at the time of each named checkpoint.
    """

    def __init__(self, session: AsyncSession, cells: list[str]) -> None:
        self.session = session
        self.cells: list[tuple[str, str | None]] = [(code, None) for code in cells]
        self.kept: dict[str, list[tuple[str, str | None]]] = {}

    @property
    def code(self) -> list[str]:
        return [code for code, _ in self.cells]

    async def cell(self, code: str, n: int) -> None:
        code = code.format(n=n)
        self.cells.append((code, (await self.session.run(code)).id))

    async def checkpoint(self, number: int) -> None:
        name = f"c{number}"
        if name not in self.kept:
            await self.session.checkpoint(name)
            self.kept[name] = [*self.cells]

    async def rollback(self, number: int | None) -> None:
        name = f"c{number}"
        if number is not None and name not in self.kept:
            return
        try:
            await self.session.rollback(None if number is None else name)
        except NotFound:
            return  # the last automatic copy is of another moment; the session says so and nothing changed
        self.cells = [*self.kept[name]] if number is not None else self.cells[:-1]

    async def branch(self, number: int | None) -> Model | None:
        name = f"c{number}"
        if number is not None and name not in self.kept:
            return None
        (made,) = await self.session.branch(at=None if number is None else name)
        return Model(made, [code for code, _ in (self.cells if number is None else self.kept[name])])

    async def crash(self, code: str, before: str) -> None:
        await self.rested()
        cell = await self.session.run(f"{before.format(n=5)}\nimport os; {code}", on_error="continue")
        if cell.reason == "error":  # it failed before it could crash
            self.cells.append((cell.code, cell.id))
        else:
            assert (cell.reason, cell.variables_kept) == ("kernel_died", True), cell.message

    async def rested(self) -> None:
        """Until there is a copy of the present: who crashes sooner goes back further, and is told so."""

        async def there() -> bool:
            newest = max((await self.session.info()).checkpoints, key=lambda one: one.seq, default=None)
            return newest is not None and newest.after_cell == (self.cells[-1][1] if self.cells else None)

        await wait_until(there, deadline=60, what="the automatic checkpoint")


async def show(session: AsyncSession) -> str:
    cell = await session.run(SHOW)
    if cell.error is not None:  # the very first cell was undone, and with it what the others build on
        assert cell.error.ename == "NameError", cell.text
        return cell.error.evalue
    assert cell.ok, cell.text
    return " ".join(cell.text.split())


async def act(models: list[Model], operation: tuple[Any, ...]) -> None:
    verb, number, *given = operation
    model = models[number % len(models)]
    if verb == "close":
        if len(models) > 1:
            await model.session.close()
            models.remove(model)
    elif verb != "branch":
        await getattr(model, verb)(*given)
    elif len(models) < MOST_SESSIONS and (made := await model.branch(*given)) is not None:
        models.append(made)


async def straight(client: AsyncClient, cells: list[str]) -> str:
    """The same cells in a fresh session."""
    async with await client.create_session() as session:
        for code in cells:
            await session.run(code)
        return await show(session)


async def history(served: Served, operations: list[tuple[Any, ...]]) -> None:
    async with AsyncClient(served.url, served.token) as client:
        models = [Model(await client.create_session(), [])]
        try:
            await models[0].cell(BEGIN.replace("{", "{{").replace("}", "}}"), 0)
            for operation in operations:
                await act(models, operation)
            for model in models:
                assert await show(model.session) == await straight(client, model.code), model.code
        finally:
            await asyncio.gather(*(model.session.close() for model in models))


@pytest.mark.timeout(60 + 15 * EXAMPLES)
@given(st.lists(operations, min_size=4, max_size=14))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not MORE,
    database=None,
    phases=[Phase.generate, Phase.shrink] if MORE else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_any_history_gives_what_its_cells_give(served: Served, operations: list[tuple[Any, ...]]) -> None:
    asyncio.run(history(served, operations))


@pytest.mark.timeout(90)
def test_a_long_history_of_every_kind(served: Served) -> None:
    steps: list[tuple[Any, ...]] = [("cell", 0, CELLS[n], 10 + n) for n in range(5)]
    steps += [("checkpoint", 0, 0), ("cell", 0, CELLS[8], 7), ("branch", 0, None), ("crash", 1, CRASHES[0], CELLS[0])]
    steps += [
        ("cell", 1, CELLS[0], 3),
        ("crash", 1, CRASHES[3], CELLS[2]),
        ("branch", 1, None),
        ("crash", 2, CRASHES[1], CELLS[1]),
    ]
    steps += [("rollback", 0, 0), ("cell", 0, CELLS[5], 4), ("branch", 0, 0), ("rollback", 1, None), ("close", 0)]
    steps += [("cell", n, CELLS[4], n) for n in range(3)] + [("rollback", 0, None), ("crash", 0, CRASHES[2], CELLS[3])]
    asyncio.run(history(served, steps))
