"""After sessions, crashes and restarts nothing is left: processes, sockets, cgroups, mounts, files, descriptors."""

import asyncio
import os

import pytest
from waiting import wait_until

from chaos.arena import counting, descriptors

pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


def footprint(arena):
    """Everything that sessions could have left, by name or number."""
    return {
        "processes": len(arena.processes()),
        "runtime": arena.runtime_files(),
        "cgroups": arena.cgroups(),
        "mounts": arena.mounts(),
        "server": descriptors(arena.served.pid),
        "host": descriptors(arena.host_pid()),
        "temporary": set(os.listdir(arena.temporary)),
    }


async def use(client, n):
    async with await client.create_session() as session:
        assert (await session.run(counting(f"c{n}", 3), cell=f"c{n}")).reason == "ok"


async def rounds(client, count, at_once=8):
    """Make, use and close so many sessions."""
    waiting = iter(range(count))

    async def work():
        for n in waiting:
            await use(client, n)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def settled(arena, before):
    """Wait until nothing is there that was not there before."""

    def clean():
        now = footprint(arena)
        return (
            now["processes"] <= before["processes"]
            and now["runtime"] <= before["runtime"]
            and now["cgroups"] <= before["cgroups"]
            and now["mounts"] == before["mounts"]
            and now["server"] <= before["server"] + 2
            and now["host"] <= before["host"] + 2
            and now["temporary"] <= before["temporary"]
        )

    try:
        await wait_until(clean, deadline=15)
    except AssertionError:
        raise AssertionError(f"before {before}\nnow {footprint(arena)}") from None


async def test_sessions_leave_nothing(arena):
    async with arena.client() as client:
        await rounds(client, 8)
        before = footprint(arena)
        await rounds(client, 40)
        await settled(arena, before)


async def test_a_crash_and_a_restart_leave_nothing(arena):
    async with arena.client() as client:
        await rounds(client, 4)
        before = footprint(arena)
        for kill_host in (False, True):
            sessions = [await client.create_session() for _ in range(4)]
            running = [asyncio.ensure_future(session.run(counting("c", 100, 0.01), cell="c")) for session in sessions]
            await asyncio.sleep(0.2)
            if kill_host:
                arena.kill_host()
            await arena.restart()
            assert [(await one).reason for one in running] == ["ok"] * 4
            for session in sessions:
                await session.close()
        before["server"] = descriptors(arena.served.pid)
        before["host"] += 2
        await settled(arena, before)
