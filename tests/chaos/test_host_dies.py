"""The template and the kernel host die: sessions run on, new ones wait, the next host finds the old ones."""

import asyncio
import os
import signal

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting
from kernelsvc.errors import Internal
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(120)


async def test_the_template_is_killed(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run(counting("one", 200, 0.005), cell="one"))
        await witness.saw(ev.CellStarted, "one")
        template = arena.template_pid()
        os.kill(template, signal.SIGKILL)
        async with await client.create_session() as other:
            assert (await other.run("1 + 1")).text.strip() == "2"
        assert arena.template_pid() not in (0, template)
        assert (await running).reason == "ok"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 200}, [witness])


async def test_the_host_is_killed(arena):
    """Sessions don't notice, new ones wait for the next host, and the next host ends the old ones when told."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 41")
        running = asyncio.ensure_future(session.run(counting("one", 300, 0.005), cell="one"))
        await witness.saw(ev.CellStarted, "one")
        host = arena.kill_host()
        try:
            other = await client.create_session()
        except Internal:  # asked in the very moment of its death: "try again", it says
            other = await client.create_session()
        async with other:
            assert (await other.run("2 + 2")).text.strip() == "4"
        assert arena.host_pid() not in (0, host)
        assert (await running).reason == "ok"
        assert (await session.run("x + 1")).text.strip() == "42"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 300}, [witness])
        assert not any(isinstance(e, ev.KernelDied | ev.SessionAdopted) for e in witness.seen)
    await wait_until(lambda: not arena.runtime_files(), what="the end of every kernel")


async def test_a_woken_copy_is_found_by_the_next_host_and_the_next_server(arena):
    """The kernel that a session has after a crash is a copy, made by the dead one: it must be found too."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        await session.run("x = 1")
        await witness.saw(ev.CheckpointMade)
        assert (await session.run("import os; os._exit(3)")).reason == "kernel_died"
        await witness.saw(ev.KernelRestored)
        assert (await session.run("x")).text.strip() == "1"
        arena.kill_host()
        await arena.restart()
        assert (await session.run("x + 1")).text.strip() == "2"
        arena.kill()
        arena.kill_host()
        await arena.start()
        assert (await session.run("x + 2")).text.strip() == "3"
        assert sum(isinstance(e, ev.KernelDied) for e in witness.seen) == 1
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {}, [witness])


async def test_both_are_killed_while_a_cell_runs(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run(counting("one", 600, 0.005), cell="one"))
        for _ in range(2):
            await witness.saw(ev.Stream, "one")
            arena.kill_host()
            await arena.restart()
        assert (await running).reason == "ok"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 600}, [witness])
        assert not any(isinstance(e, ev.KernelDied) for e in witness.seen)


async def test_a_kernel_that_dies_while_there_is_no_host(arena):
    async with arena.client() as client, await client.create_session() as session:
        await session.run("x = 1")
        arena.kill_host()
        cell = await session.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert cell.reason == "kernel_died"
        assert (await session.run("x")).text.strip() in ("1", ""), "restored, or empty and said so"


@pytest.mark.parametrize("host_too", [False, True], ids=["server", "both"])
async def test_nobody_comes_back(place, host_too):
    """Without a server, and without a host, everything ends by itself after the grace time."""
    async with Arena(place, "--adoption-seconds", "1.5") as arena, arena.client() as client:
        session = await client.create_session()
        await session.run("x = 1")
        kernels = len(arena.processes())
        assert kernels >= 3
        host = arena.host_pid()
        arena.kill()
        if host_too:
            os.kill(host, signal.SIGKILL)
        await wait_until(lambda: not arena.processes(), deadline=15, what="the end of what nobody adopts")
        if not host_too:
            await wait_until(lambda: not os.path.exists(f"/proc/{host}"), what="the end of the host")
        await arena.start()
        assert (await session.run("'x' in globals()")).text.strip() == "False"
        texts = [e.message for e in [e async for e in session.events(0, follow=False)] if isinstance(e, ev.KernelDied)]
        assert texts, "the loss is on record"
        await session.close()
