"""Rollback to a state without a checkpoint, and checkpoints after every cell."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from served import Served
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.errors import Conflict, NotFound
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def session(served: Served) -> AsyncIterator[AsyncSession]:
    async with AsyncClient(served.url, served.token) as client, await client.create_session() as made:
        yield made


async def value(session: AsyncSession, code: str) -> str:
    return (await session.run(code)).raise_for_error().text.strip()


async def without_checkpoints(session: AsyncSession, besides: str | None = None) -> None:
    """Drop all checkpoints, when the automatic one of the last cell is there."""

    async def there() -> bool:
        info, cells = await session.info(), await session.cells()
        return any(one.after_cell == cells[-1].id for one in info.checkpoints)

    await wait_until(there, what="the checkpoint of the last cell")
    for one in await session.checkpoints():
        if besides is None or one.name != besides:
            await session.drop_checkpoint(one.id)


async def events_of(session: AsyncSession, kind: type[ev.Event]) -> list[ev.Event]:
    async with session.events(0, follow=False) as events:
        return [event async for event in events if isinstance(event, kind)]


async def test_six_of_six_rollbacks_work_between_cells_that_follow_without_a_pause(session: AsyncSession) -> None:
    for n in range(6):
        await session.run(f"x = {n}")
        await session.run("y = [x]")
        await session.run("y.append(x + 1)")
        await session.rollback()
        assert await value(session, "x, y") == f"({n}, [{n}])"
        await session.rollback()  # the cell that looked
        await session.rollback()
        assert await value(session, "x") == str(n)
    assert len(await events_of(session, ev.RolledBack)) == 18


async def test_the_cells_in_between_run_again_and_the_event_names_them(session: AsyncSession) -> None:
    await session.run("x = 1\nx")
    await session.run("print('hello')\nx += 1\nx")
    failing = await session.run("y = x\n1 / 0")
    last = await session.run("x = 'gone'; y = 'gone'")
    await without_checkpoints(session)
    info = await session.rollback()
    (event,) = await events_of(session, ev.RolledBack)
    assert isinstance(event, ev.RolledBack)
    cells = [cell.id for cell in await session.cells()]
    assert event.replayed == cells[:3]
    assert (event.to, event.after_cell, event.undone) == ("", failing.id, [last.id])
    assert info.execution_count == 4
    looked = await session.run("x, y, Out[2], In[3].splitlines()[0], len(In)")
    assert looked.text.strip() == "(2, 2, 2, 'y = x', 6)"
    assert looked.execution_count == 5
    outputs = [e for e in await events_of(session, ev.Stream) if isinstance(e, ev.Stream)]
    assert "".join(e.text for e in outputs) == "hello\n", "a replay shows no output"


async def test_a_crash_after_a_replay_returns_to_the_state_of_the_replay(session: AsyncSession) -> None:
    await session.run("x = 1")
    await session.run("x = 2")
    await session.run("x = 3")
    await without_checkpoints(session)
    await session.rollback()
    cell = await session.run("x = 4; import os; os._exit(1)")
    assert cell.variables_kept
    assert await value(session, "x") == "2"


async def test_a_cell_that_fails_when_it_runs_again_changes_nothing(session: AsyncSession) -> None:
    first = await session.run("x = 1")
    once = await session.run("open('once', 'x').close(); x = 2")
    last = await session.run("x = 3")
    await without_checkpoints(session)
    with pytest.raises(Conflict, match=f"{once.id} failed .FileExistsError") as refused:
        await session.rollback()
    assert refused.value.details["cell"] == once.id
    assert await value(session, "x") == "3"
    await without_checkpoints(session)
    await session.rollback(once.id)
    assert await value(session, "x") == "1"
    (event,) = await events_of(session, ev.RolledBack)
    assert isinstance(event, ev.RolledBack)
    assert event.replayed == [first.id]
    assert last.id in event.undone


async def test_a_cell_that_ends_the_kernel_when_it_runs_again_changes_nothing(session: AsyncSession) -> None:
    await session.run("import os\nos.path.exists('once') and os._exit(7)\nopen('once', 'w').close()")
    await session.run("x = 3")
    await without_checkpoints(session)
    with pytest.raises(Conflict, match="status 7"):
        await session.rollback()
    assert await value(session, "x") == "3"


async def test_without_replay_such_a_state_is_refused(session: AsyncSession) -> None:
    await session.run("x = 1")
    await session.run("x = 2")
    await without_checkpoints(session)
    with pytest.raises(NotFound, match="replay=true"):
        await session.rollback(replay=False)
    assert await value(session, "x") == "2"


async def test_the_replay_begins_at_the_newest_checkpoint_and_keeps_it(session: AsyncSession) -> None:
    await session.run("open('ran', 'a').write('1'); x = 1")
    await session.checkpoint("named")
    second = await session.run("open('ran', 'a').write('2'); x = 2")
    await session.run("x = 3")
    await without_checkpoints(session, besides="named")
    await session.rollback()
    assert await value(session, "x, open('ran').read()") == "(2, '122')"
    (event,) = await events_of(session, ev.RolledBack)
    assert isinstance(event, ev.RolledBack)
    assert event.replayed == [second.id]
    await session.rollback("named")
    assert await value(session, "x") == "1"


async def test_a_branch_without_a_checkpoint_has_no_earlier_state(session: AsyncSession) -> None:
    await session.run("x = 1")
    (branch,) = await session.branch()
    await branch.run("x = 2")
    await branch.run("x = 3")
    await without_checkpoints(branch)
    with pytest.raises(NotFound, match="none before it"):
        await branch.rollback()
    await branch.close()


@pytest.mark.parametrize("whose", ["session", "cell"])
async def test_every_cell_has_a_checkpoint_before_the_next_one(served: Served, whose: str) -> None:
    mode = "every" if whose == "session" else None
    client = AsyncClient(served.url, served.token)
    async with client, await client.create_session(checkpoint=mode) as session:
        more = {} if whose == "session" else {"checkpoint": "every"}
        cells = await session.batch([{"code": f"x = {n}", **more} for n in range(6)])
        await session.rollback(replay=False)
        assert await value(session, "x") == "4"
        made = [e for e in await events_of(session, ev.CheckpointMade) if isinstance(e, ev.CheckpointMade)]
        # The rollback takes the place of the last one.
    assert [e.after_cell for e in made][:5] == [cell.id for cell in cells[:5]]
