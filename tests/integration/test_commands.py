"""Programs by the native API: ids of the client, output and input by position, on a real server."""

from __future__ import annotations

import asyncio

import pytest
from waiting import wait_until

from kernelsvc import AsyncClient, Conflict, NotFound
from kernelsvc.client import AsyncSession
from kernelsvc.errors import CursorUnknown


@pytest.fixture
async def session(served):
    async with AsyncClient(served.url, served.token) as client, await client.create_session() as session:
        yield session


async def rpc(session: AsyncSession, method: str, **params):
    return await session._rpc.connection.call(method, {"session": session.id, **params})


async def test_a_start_with_a_known_id_starts_nothing(session):
    line = "echo once >> starts; echo done"
    made = await asyncio.gather(*(session.start_program(line, program="mine") for _ in range(3)))
    assert len({program.details.pid for program in made}) == 1
    assert await made[0].wait() == 0
    assert await session.download("starts") == b"once\n"
    with pytest.raises(Conflict, match="Choose a new id"):
        await session.start_program("echo other", program="mine")


async def test_requests_that_arrive_twice_have_one_effect(session):
    cat = await session.start_program(["cat"], program="cat", stdin=True)
    for _ in range(2):
        await rpc(session, "program.write", program="cat", data=b"abc", at=0)
    await rpc(session, "program.write", program="cat", data=b"bcde", at=1, end=True)
    page = await rpc(session, "program.read", program="cat", after=0, wait_seconds=10)
    while page["next"] < 5:
        page = await rpc(session, "program.read", program="cat", after=page["next"], wait_seconds=10)
    assert await cat.wait() == 0
    assert cat.details.written == 5
    with pytest.raises(Conflict, match="got 5 bytes"):
        await rpc(session, "program.write", program="cat", data=b"x", at=9)
    with pytest.raises(CursorUnknown):
        await rpc(session, "program.read", program="cat", after=6)


async def test_output_that_nobody_reads_stops_a_program_or_is_dropped(session):
    waits = await session.start_program("yes | head -c 3000000; echo end >> ended")
    drops = await session.start_program("yes | head -c 3000000; echo last", background=True)

    async def written():
        return (await session.programs())[1].details.written == 3_000_005

    await wait_until(written, what="the end of the program whose output is dropped")
    assert await drops.wait() == 0
    assert drops.dropped > 0
    assert drops.details.written == 3_000_005
    assert [file.path for file in await session.files()] == []
    assert await waits.wait() == 0
    assert waits.details.written == 3_000_000
    assert [file.path for file in await session.files()] == ["ended"]


async def test_programs_are_listed_and_end_with_their_session(session):
    with pytest.raises(NotFound):
        await rpc(session, "program.signal", program="nobody")
    program = await session.start_program(["sleep", "60"])
    assert [each.id for each in await session.programs()] == [program.id]
    reading = asyncio.create_task(program.wait())
    await session.close()
    with pytest.raises(NotFound):
        await reading
    assert await session.programs() == []
