"""The disk fills or becomes read-only: nothing unrecorded is acknowledged, and it goes on when there is room."""

import asyncio
import os

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, check_notebook, counting, journal_of
from chaos.disks import RealDisk, SmallDisk, why_no_disk
from kernelsvc.errors import AtCapacity
from kernelsvc.model import events as ev
from kernelsvc.store.verify import verify_journal

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem"),
]


async def notebook_made_again(path, cells):
    """One that a full disk refused follows within seconds."""

    def agrees():
        try:
            check_notebook(path, journal_of(path), cells)
        except AssertionError:
            return False
        return True

    await wait_until(agrees, what="the notebook")


@pytest.fixture
async def small(place):
    disk = SmallDisk(place / "data")
    try:
        async with Arena(place) as arena:
            yield arena, disk
    finally:
        disk.close()


async def use_up(session):
    """Run cells until the last page that had begun is full too."""
    for n in range(10_000):
        await session.run(f"y = {n}  # {'x' * 2000}", cell=f"fill{n}")


async def test_the_disk_fills_and_is_freed(small):
    arena, disk = small
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run(counting("one", 10), cell="one")
        disk.fill()
        with pytest.raises(AtCapacity, match="disk space"):
            await use_up(session)
        with pytest.raises(AtCapacity):
            await session.run(counting("two", 10), cell="two")
        with pytest.raises(AtCapacity):
            await client.create_session()
        assert (await session.cell("one")).text.split() == [str(n) for n in range(10)], "what is recorded is readable"
        disk.free()

        async def accepted():
            try:
                return await session.run(counting("two", 10), cell="two")
            except AtCapacity:
                return None

        cell = await wait_until(accepted, deadline=10, what="it goes on by itself")
        assert cell.reason == "ok"
        await session.close()
        await witness.ended()
        await notebook_made_again(arena.session_path(session.id), {"one": 10, "two": 10})
        check(arena.session_path(session.id), {"one": 10, "two": 10}, [witness])


async def test_it_fills_while_a_cell_prints(small):
    """The kernel is not acknowledged, blocks, and loses nothing."""
    arena, disk = small
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = "for n in range(150_000):\n    print(n)\n"
        running = asyncio.ensure_future(session.run(code, cell="big", timeout=100))
        await witness.saw(ev.Stream, "big")
        disk.fill()
        size = (arena.session_path(session.id) / "journal.jsonl").stat().st_size
        await wait_until(lambda: "can't be written" in arena.served.output(), what="the refusal")
        await asyncio.sleep(0.5)
        assert not running.done()
        disk.free()
        assert (await running).reason == "ok"
        await session.close()
        await witness.ended()
        assert (arena.session_path(session.id) / "journal.jsonl").stat().st_size > size
        check(arena.session_path(session.id), {}, [witness])
        text = "".join(e.text for e in witness.seen if isinstance(e, ev.Stream))
        assert [int(n) for n in text.split()] == list(range(150_000))


async def test_the_kernel_dies_while_the_disk_is_full(small):
    """What it said last waits with the server and is in the log before its end."""
    arena, disk = small
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = (
            "import os, time\nfor n in range(100_000):\n    print(n)\n"
            "    if n == 2000:\n        open('go', 'w').close()\n"
        )
        running = asyncio.ensure_future(session.run(code, cell="big", timeout=100))
        await witness.saw(ev.Stream, "big")
        disk.fill()
        await wait_until(lambda: "can't be written" in arena.served.output(), what="the refusal")
        os.kill((await session.info()).kernel.pid, 9)
        await asyncio.sleep(2.5)
        disk.free()
        assert (await running).reason == "kernel_died"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {}, [witness])
        text = "".join(e.text for e in witness.seen if isinstance(e, ev.Stream))
        told = [int(n) for n in text.split("\n")[:-1]]
        assert told == list(range(len(told)))


async def test_killed_and_started_on_a_full_disk(small):
    arena, disk = small
    async with arena.client() as client, await client.create_session() as session:
        await session.run(counting("one", 10), cell="one")
        await session.run("x = 5")
        disk.fill()
        await arena.restart()
        assert (await session.cell("one")).text.split() == [str(n) for n in range(10)]
        disk.free()

        async def answer():
            try:
                return (await session.run("x", cell="after")).text.strip()
            except AtCapacity:
                return None

        assert await wait_until(answer, deadline=15) == "5", "the kernel is the one it was"
        await session.close()
        await notebook_made_again(arena.session_path(session.id), {"one": 10})
        check(arena.session_path(session.id), {"one": 10})


async def test_a_clean_stop_on_a_full_disk_ends_every_process(place):
    disk = SmallDisk(place / "data")
    try:
        async with Arena(place) as arena, arena.client() as client:
            session = await client.create_session()
            await session.run("x = 1")
            disk.fill()
            await arena.stop()
            assert not arena.processes()
            disk.free()
    finally:
        disk.close()


async def test_a_session_closed_on_a_full_disk(small):
    """The close is refused, says why, and nothing of the session is lost; when there is room it succeeds."""
    arena, disk = small
    async with arena.client() as client:
        session = await client.create_session(keep=True)
        witness = Witness(session)
        await session.run(counting("one", 10), cell="one")
        disk.fill()
        with pytest.raises(AtCapacity):
            await use_up(session)
        with pytest.raises(AtCapacity, match="Free disk space"):
            await session.close()
        assert (await session.info()).state in ("idle", "busy")
        disk.free()

        async def closed():
            try:
                await session.close()
            except AtCapacity:
                return False
            return True

        await wait_until(closed, deadline=10)
        await witness.ended()
        await notebook_made_again(arena.session_path(session.id), {"one": 10})
        check(arena.session_path(session.id), {"one": 10}, [witness])


# -- a disk that fails as hardware does ------------------------------------------------------------

real = pytest.mark.skipif(why_no_disk() is not None, reason=why_no_disk() or "")


@pytest.fixture
async def failing(place):
    disk = RealDisk(place / "data", place / "image")
    try:
        async with Arena(place) as arena:
            yield arena, disk
    finally:
        disk.close()


async def refused(work):
    """Await something that must be refused for want of a disk, and return what the client is told."""
    with pytest.raises(AtCapacity) as told:
        await work
    return str(told.value)


@real
async def test_the_filesystem_becomes_read_only(failing):
    """ext4 does so when it finds itself damaged. What is recorded can be read, and is there after the repair."""
    arena, disk = failing
    async with arena.client() as client:
        session = await client.create_session(keep=True)
        witness = Witness(session)
        await session.run(counting("one", 10), cell="one")
        await session.run("x = 5")
        running = asyncio.ensure_future(session.run("import time\ntime.sleep(1.5)\nprint(x)", cell="across"))
        await witness.saw(ev.CellStarted, "across")
        witness.stop()
        disk.become_read_only()
        await refused(session.run(counting("two", 10), cell="two"))
        await refused(client.create_session())
        assert (await session.cell("one")).text.split() == [str(n) for n in range(10)], "what is recorded is readable"
        await asyncio.sleep(1.5)
        assert not running.done(), "an end that is not recorded is not told"
        assert (await session.cell("one")).reason == "ok"
        arena.power_off()
        disk.power_back()
        await arena.start()
        await running  # not yet synced when the disk failed, so the client's repeat may have been the first that counts
        assert (await session.cell("one")).text.split() == [str(n) for n in range(10)]
        assert (await session.run(counting("two", 10), cell="two")).reason == "ok"
        await session.close()
        assert verify_journal(arena.session_path(session.id) / "journal.jsonl").fault is None


@real
async def test_every_write_and_sync_fails(failing):
    """EIO for good: nothing more is told as done; with the disk back, after a restart, all that was told is there."""
    arena, disk = failing
    async with arena.client() as client:
        session = await client.create_session(keep=True)
        witness = Witness(session)
        await session.run(counting("one", 10), cell="one")
        running = asyncio.ensure_future(session.run("import time; time.sleep(1)", cell="across"))
        await witness.saw(ev.CellStarted, "across")
        disk.lose_power()
        await refused(session.run("1 + 1", cell="two"))
        await refused(client.create_session())
        await refused(session.close())
        await asyncio.sleep(2)
        assert not running.done()
        witness.stop()
        arena.power_off()
        disk.power_back()
        await arena.start()
        assert (await session.cell("one")).reason == "ok"
        running.cancel()
        assert (await session.run("6 * 7")).text.strip() == "42"
        await session.close()


@real
async def test_started_on_a_disk_that_fails(place):
    """The server says so and ends, without a traceback."""
    disk = RealDisk(place / "data", place / "image")
    try:
        disk.lose_power()
        arena = Arena(place)
        with pytest.raises(AssertionError, match="can't be"):
            await arena.start()
        assert "Traceback" not in arena.served.output()
    finally:
        disk.close()
