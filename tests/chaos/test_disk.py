"""The disk fills or becomes read-only: nothing unrecorded is acknowledged, and it goes on when there is room."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting
from kernelsvc.errors import AtCapacity
from kernelsvc.model import events as ev

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem"),
]


class SmallDisk:
    """A filesystem of a few MiB at the server's data directory."""

    def __init__(self, path: Path, size: str = "12m") -> None:
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "small", path], check=True)

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.path / "fill").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Make room again."""
        (self.path / "fill").unlink()

    def remount(self, how: str) -> None:
        """``ro`` or ``rw``. Fails while a file is open for writing, so a bind of it is not enough: use force."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.path], check=True)

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["umount", "-l", self.path], check=True)


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
