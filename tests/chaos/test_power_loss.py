"""The power goes: what was not synced is gone, for the whole service, on a real ext4.

The filesystem is stopped where it stands (``disks.RealDisk.lose_power``), every
process is killed, the filesystem is mounted again, which replays its own journal,
and the server starts on what is there.
"""

import asyncio
import os
import random

import pytest

from chaos.arena import Arena, counting, journal_of
from chaos.disks import RealDisk, why_no_disk
from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev
from kernelsvc.store.verify import verify_journal

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_no_disk() is not None, reason=why_no_disk() or ""),
]

ROUNDS = int(os.environ.get("KERNELSVC_POWER_ROUNDS", "6"))
SEED = int(os.environ.get("KERNELSVC_CHAOS_SEED", "1"))


@pytest.fixture
def disk(place):
    disk = RealDisk(place / "data", place / "image")
    yield disk
    disk.close()


async def outage(arena, disk):
    """The power goes and comes back."""
    disk.lose_power()
    arena.power_off()
    disk.power_back()
    await arena.start()


def recorded(arena, session, told):
    """Whether the log holds each cell that was acknowledged, as it was told; and is whole."""
    path = arena.session_path(session)
    events = journal_of(path)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert verify_journal(path / "journal.jsonl").fault is None
    ends = {e.cell: e.reason for e in events if isinstance(e, ev.CellFinished)}
    assert {cell: ends.get(cell) for cell in told} == told, "what was acknowledged is there"
    queued = [e.cell for e in events if isinstance(e, ev.CellQueued)]
    assert len(queued) == len(set(queued))
    for cell in (cell for cell in told if told[cell] == "ok"):
        text = "".join(e.text for e in events if isinstance(e, ev.Stream) and e.cell == cell and e.name == "stdout")
        assert text.split() == [str(n) for n in range(50)]


async def test_what_was_told_is_there_after_the_power_came_back(place, disk):
    """Sessions are made, used and closed all the time; the power goes at any moment, again and again."""
    chance = random.Random(SEED)
    told: dict[str, dict[str, str]] = {}
    closed: set[str] = set()
    async with Arena(place) as arena:

        async def work(n):
            """One client: everything that it is told goes into ``told``."""
            async with arena.client(retry_seconds=0.0) as client:
                while True:
                    session = await client.create_session(name=f"w{n}", keep=True)
                    cells = told.setdefault(session.id, {})
                    for k in range(chance.randint(1, 8)):
                        cell = await session.run(counting(f"c{k}", 50), cell=f"c{k}")
                        cells[cell.id] = cell.reason
                    if chance.random() < 0.5:
                        await session.close()
                        closed.add(session.id)

        for _ in range(ROUNDS):
            workers = [asyncio.ensure_future(work(n)) for n in range(3)]
            await asyncio.sleep(chance.uniform(0.3, 1.2))
            disk.lose_power()  # now: what is told from here on would be a lie
            arena.power_off()
            for worker in workers:
                worker.cancel()
            ends = await asyncio.gather(*workers, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError | KernelsvcError) for end in ends), ends
            disk.power_back()
            await arena.start()
            for session, cells in told.items():
                recorded(arena, session, cells)
            listed = await asyncio.to_thread(arena.served.call, "GET", "/v1/sessions?limit=1000")
            states = {one["id"]: one["state"] for one in listed["sessions"]}
            assert set(told) <= set(states), "a session that was made is known"
            assert {states[one] for one in closed} <= {"closed"}, "one that was closed stays closed"
        assert sum(map(len, told.values())) >= 5 * ROUNDS
        async with arena.client() as client:
            for one in [one for one in told if states[one] != "closed"][:5]:
                session = await client.session(one, keep=False)
                assert (await session.run("6 * 7")).text.strip() == "42"
                await session.close()


async def test_a_cell_that_runs_when_the_power_goes(place, disk):
    """With ``journal_sync = run`` its code is on the disk before it runs, and its end says what became of it."""
    async with Arena(place, "--journal-sync", "run") as arena, arena.client() as client:
        session = await client.create_session(keep=True)
        await session.run(counting("c0", 50), cell="c0")
        running = asyncio.ensure_future(session.run("import time\nprint('on', flush=True)\ntime.sleep(60)", cell="out"))
        async with session.events(0) as events:
            async for event in events:
                if isinstance(event, ev.Stream) and event.cell == "out":
                    break
        await outage(arena, disk)
        cell = await running
        assert cell.reason == "kernel_died"
        assert "time.sleep(60)" in cell.code
        recorded(arena, session.id, {"c0": "ok", "out": "kernel_died"})
        assert (await session.run("6 * 7")).text.strip() == "42"


async def test_the_notebook_and_the_index_are_made_again(place, disk):
    """They are not synced with each cell; they follow from the log."""
    async with Arena(place) as arena, arena.client() as client:
        session = await client.create_session(keep=True, name="kept", labels={"a": "b"})
        for n in range(5):
            await session.run(counting(f"c{n}", 50), cell=f"c{n}")
        await outage(arena, disk)
        listed = await asyncio.to_thread(arena.served.call, "GET", "/v1/sessions?label=a=b")
        assert [one["name"] for one in listed["sessions"]] == ["kept"]
        notebook = (await session.notebook()).decode()
        assert all(f"'c{n}" in notebook or f"c{n}" in notebook for n in range(5))
        recorded(arena, session.id, {f"c{n}": "ok" for n in range(5)})
