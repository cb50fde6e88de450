"""A client behind a link that breaks: each printed line carries a number, none missing, none twice."""

import asyncio
import random
from urllib.parse import urlsplit

import pytest
from faulty_proxy import FaultyProxy
from served import serving_on_one_port

from kernelsvc import AsyncClient
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)

LINES = """
for number in range({count}):
    print(number)
"""


def numbers(events):
    text = "".join(event.text for event in events if isinstance(event, ev.Stream))
    return [int(line) for line in text.split()]


@pytest.fixture
async def proxy(served):
    async with FaultyProxy(urlsplit(served.url).port) as proxy:
        yield proxy


async def test_cuts_at_random_bytes_lose_and_repeat_nothing(served, proxy):
    chance = random.Random(7)
    proxy.cut_after = [chance.randrange(200, 60_000) for _ in range(12)]
    async with AsyncClient(proxy.url, served.token) as client, await client.create_session() as session:
        stream = session.stream(LINES.format(count=30_000), timeout=100)
        events = [event async for event in stream]
        assert numbers(events) == list(range(30_000))
        assert proxy.cuts >= 3
        seqs = [event.seq for event in events]
        assert seqs == sorted(set(seqs))
        assert (await session.run("number")).text.strip() == "29999"
        assert len(await session.cells()) == 2


async def test_the_stream_the_log_and_the_cell_agree(served, proxy):
    async with AsyncClient(proxy.url, served.token) as client, await client.create_session() as session:
        stream = session.stream(LINES.format(count=2000))
        seen = []
        async for event in stream:
            seen.append(event)
            if len(seen) % 3 == 0:
                proxy.cut()
        cell = await stream.cell()
        log = [ev.decode(line) for line in (await session.journal()).splitlines()]
        assert [event for event in log if event.cell == stream.id] == seen
        assert numbers(log) == [int(line) for line in cell.text.split()] == list(range(2000))


async def test_a_cell_that_waits_goes_on_while_nobody_is_there(served, proxy):
    code = "import time\nfor n in range(20):\n    print(n, flush=True)\n    time.sleep(0.03)\n"
    async with AsyncClient(proxy.url, served.token) as client, await client.create_session() as session:
        stream = session.stream(code)
        events = [await anext(stream)]
        while not any(isinstance(event, ev.Stream) for event in events):
            events.append(await anext(stream))
        proxy.cut()
        events += [event async for event in stream]
        assert numbers(events) == list(range(20))
        assert client.reconnects == 1


@pytest.fixture
def own_server(short_tmp):
    with serving_on_one_port(short_tmp) as server:
        yield server


async def test_the_server_is_killed_in_mid_stream_and_comes_back(own_server):
    code = "import time\nfor number in range(4000):\n    print(number)\n    time.sleep(0.0005)\n"
    async with AsyncClient(own_server.url, own_server.token) as client, await client.create_session() as session:
        await session.run("kept = 1")
        stream = session.stream(code)
        events = []
        async for event in stream:
            events.append(event)
            if len(numbers(events)) > 300 and own_server.process.poll() is None and not client.reconnects:
                own_server.kill()
                await asyncio.to_thread(own_server.start)
        assert numbers(events) == list(range(4000))
        assert client.reconnects == 1
        assert (await stream.cell()).ok
        assert (await session.run("kept + number")).text.strip() == "4000"


async def test_a_run_that_waits_outlives_the_server(own_server):
    async with AsyncClient(own_server.url, own_server.token) as client, await client.create_session() as session:
        waiting = asyncio.create_task(session.run("import time; time.sleep(3); 'slept'"))
        while session.details.state != "busy":
            await session.info()
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        assert (await waiting).text.strip() == "'slept'"
        assert len(await session.cells()) == 1


async def test_many_sessions_on_one_broken_link(served, proxy):
    async with AsyncClient(proxy.url, served.token) as client:
        sessions = [await client.create_session() for _ in range(4)]

        async def read(session, count):
            return numbers([event async for event in session.stream(LINES.format(count=count))])

        reading = [asyncio.create_task(read(session, 3000 + n)) for n, session in enumerate(sessions)]
        while not all(task.done() for task in reading):
            await asyncio.wait(reading, timeout=0.05)
            proxy.cut()
            # Time to come back and read on; a link that never stands for a moment can carry nothing.
            await asyncio.wait(reading, timeout=0.3)
        assert [task.result() for task in reading] == [list(range(3000 + n)) for n in range(4)]
        for session in sessions:
            await session.close()


async def test_files_come_whole_through_a_cut(served, proxy, tmp_path):
    data = random.Random(3).randbytes(3_000_000)
    async with AsyncClient(proxy.url, served.token) as client, await client.create_session() as session:
        await session.upload(data, "big.bin")
        proxy.cut_after = [1_000_000]
        target = await session.save("big.bin", tmp_path)
        assert target.read_bytes() == data
        assert proxy.cuts == 1
