"""Clients drop, fall silent, don't read, come back anywhere: no gap, no repeat, and no memory for those who wait."""

import asyncio
import contextlib
import json
import random

import pytest
import websockets
from tornado.httpclient import AsyncHTTPClient
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting, descriptors, journal_of, resident
from kernelsvc import AsyncClient
from kernelsvc.model import events as ev
from kernelsvc.testing import InProcessServer

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20


@contextlib.asynccontextmanager
async def socket_of(arena, **more):
    """A plain WebSocket, so that a test decides what is read and when."""
    url = arena.served.url.replace("http", "ws") + "/v1/ws"
    headers = {"Authorization": f"Bearer {arena.served.token}"}
    async with websockets.connect(url, additional_headers=headers, max_size=None, **more) as link:
        yield link


async def ask(link, method, **params):
    await link.send(json.dumps({"jsonrpc": "2.0", "id": method, "method": method, "params": params}))
    while True:
        answer = json.loads(await link.recv())
        if answer.get("id") == method:
            return answer["result"]


async def test_a_reader_that_does_not_read_costs_no_memory(arena):
    async with (
        arena.client() as client,
        await client.create_session() as session,
        socket_of(arena, max_queue=1) as one,
        socket_of(arena, max_queue=1) as two,
    ):
        for link in (one, two):
            await ask(link, "session.attach", session=session.id, after=0)
        before = resident(arena.served.pid)
        cell = await session.run("for n in range(60):\n    print('x' * 1_000_000)", cell="big")
        assert cell.reason == "ok"
        grown = resident(arena.served.pid) - before
        assert grown < 40 * MIB, f"{grown / MIB:.0f} MiB for 60 MB that nobody read"
        seqs = []
        while True:
            message = json.loads(await one.recv())
            found = message.get("params", {})
            events = found.get("events") or ([found["event"]] if "event" in found else [found])
            seqs += [e["seq"] for e in events if "seq" in e]
            if any(e.get("type") == "cell_finished" for e in events):
                break
        assert seqs == list(range(1, len(seqs) + 1)), "who reads late reads all of it"


async def test_100000_events_arrive_in_order():
    """Of fake kernels: they send an event for each line, where a real kernel joins lines."""
    async with (
        InProcessServer() as server,
        AsyncClient(server.url, server.token) as client,
        await client.create_session() as session,
    ):
        witness = Witness(session)
        await session.run("for n in range(100_000): print(n)", cell="many")
        await witness.saw(ev.CellFinished, "many", deadline=120)
        assert [int(e.text) for e in witness.seen if isinstance(e, ev.Stream)] == list(range(100_000))
        witness.stop()


async def test_attach_after_every_position(arena):
    async with arena.client() as client, await client.create_session() as session:
        for n in range(6):
            await session.run(counting(f"c{n}", 30), cell=f"c{n}")
        await session.close()
        log = journal_of(arena.session_path(session.id))
        assert isinstance(log.pop(), ev.JournalSigned), "what is behind the session's end is for who verifies"
        for after in range(len(log)):
            assert [e async for e in session.events(after)] == log[after:]


async def test_last_event_id(arena):
    async with arena.client() as client, await client.create_session() as session:
        await session.run(counting("one", 300), cell="one")
        await session.close()
        log = journal_of(arena.session_path(session.id))
        for after in (0, 1, len(log) // 2, len(log) - 1):
            headers = {
                "Authorization": f"Bearer {arena.served.token}",
                "Accept": "text/event-stream",
                "Last-Event-ID": str(after),
            }
            answer = await AsyncHTTPClient().fetch(
                f"{arena.served.url}/v1/sessions/{session.id}/events", headers=headers, request_timeout=20
            )
            ids = [int(line[3:]) for line in answer.body.decode().splitlines() if line.startswith("id:")]
            assert ids == list(range(after + 1, len(log) + 1))


async def test_a_half_open_link(place):
    """Silence is not an end: the cell goes on; when the link is found dead, what asked for it is interrupted."""
    async with (
        Arena(place, "--ping-seconds", "0.5", "--ping-timeout-seconds", "1") as arena,
        arena.client() as sure,
        await sure.create_session() as session,
    ):
        witness = Witness(await sure.session(session.id))
        async with asyncio.timeout(60):
            url = arena.url.replace("http", "ws") + "/v1/ws"
            headers = {"Authorization": f"Bearer {arena.served.token}"}
            async with websockets.connect(url, additional_headers=headers, close_timeout=0.1) as link:
                for cell, then in (("goes_on", "keep"), ("ends", "interrupt")):
                    code = counting(cell, 60, 0.05) if then == "keep" else "import time; time.sleep(50)"
                    params = {
                        "session": session.id,
                        "cell": cell,
                        "code": code,
                        "on_disconnect": then,
                        "on_error": "continue",
                    }
                    body = {"jsonrpc": "2.0", "id": cell, "method": "session.execute", "params": params}
                    await link.send(json.dumps(body))
                await witness.saw(ev.CellStarted, "ends")
                arena.proxy.silent = True
                await asyncio.sleep(2.5)
                arena.proxy.silent = False
        done = await witness.saw(ev.CellFinished, "ends")
        assert done.reason == "interrupted"
        assert (await witness.saw(ev.CellFinished, "goes_on")).reason == "ok"
        await session.close()
        check(arena.session_path(session.id), {"goes_on": 60}, [witness])


@pytest.mark.slow
async def test_many_clients_come_and_go(arena):
    """Memory and descriptors are where they were, and every account of every cell agrees."""
    chance = random.Random(11)
    async with arena.client() as client:
        sessions = [await client.create_session() for _ in range(4)]
        witnesses = [Witness(session) for session in sessions]
        cells = [{} for _ in sessions]

        async def visit(n):
            which = chance.randrange(len(sessions))
            cell = f"v{n}"
            cells[which][cell] = 20
            with contextlib.suppress(websockets.ConnectionClosed):
                async with socket_of(arena) as link:
                    await ask(link, "session.attach", session=sessions[which].id, after=0)
                    params = {"session": sessions[which].id, "cell": cell, "code": counting(cell, 20)}
                    await link.send(
                        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "session.execute", "params": params})
                    )
                    for _ in range(chance.randrange(6)):
                        await link.recv()
                    if chance.random() < 0.7:
                        await wait_until(lambda: link.transport.get_write_buffer_size() == 0)
                        link.transport.abort()

        await asyncio.gather(*(visit(n) for n in range(20)))
        before = descriptors(arena.served.pid), resident(arena.served.pid)
        for start in range(20, 160, 20):
            await asyncio.gather(*(visit(n) for n in range(start, start + 20)))
        for session, mine in zip(sessions, cells, strict=True):
            queued = {c.id for c in await session.cells()}
            for cell in queued:
                mine.setdefault(cell, 20)
            for cell in set(mine) - queued:
                del mine[cell]  # dropped before it was sent
        await wait_until(lambda: descriptors(arena.served.pid) <= before[0] + 3, what="descriptors given back")
        for session, witness, mine in zip(sessions, witnesses, cells, strict=True):
            for cell in mine:
                await witness.saw(ev.CellFinished, cell)
            await session.close()
            await witness.ended()
            check(arena.session_path(session.id), mine, [witness])
        grown = resident(arena.served.pid) - before[1]
        assert grown < 24 * MIB, f"{grown / MIB:.1f} MiB"
