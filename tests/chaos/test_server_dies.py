"""The server is killed, restarted, stopped: cells go on, each event is seen once, nothing runs twice."""

import asyncio
import os
import random
import signal
import sys

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting, journal_of
from kernelsvc.errors import Conflict
from kernelsvc.model import events as ev

pytestmark = pytest.mark.timeout(180)


async def test_killed_while_a_cell_prints(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run(counting("one", 3000, 0.003), cell="one"))
        for _ in range(3):
            seen = len(witness.seen)
            await wait_until(lambda seen=seen: len(witness.seen) > seen + 3, what="more output")
            await arena.restart()
        cell = await running
        assert cell.reason == "ok"
        assert (await session.run("n")).text.strip() == "2999", "the kernel is the one it was"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 3000}, [witness])
        assert sum(isinstance(e, ev.SessionAdopted) for e in witness.seen) == 3
        assert not any(isinstance(e, ev.KernelDied) for e in witness.seen)


async def test_killed_while_cells_wait(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        cells = {f"c{n}": 40 for n in range(8)}
        await session.run(counting("c0", 40, 0.01), cell="c0", wait="queued")
        waiting = [asyncio.ensure_future(session.run(counting(cell, 40, 0.01), cell=cell)) for cell in list(cells)[1:]]
        await witness.saw(ev.CellStarted, "c1")
        await arena.restart()
        done = await asyncio.gather(*waiting)
        assert [cell.reason for cell in done] == ["ok"] * 7
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), cells, [witness])


async def test_cells_that_end_while_no_server_is_there(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        first = asyncio.ensure_future(session.run(counting("well", 30, 0.01), cell="well", on_error="continue"))
        second = asyncio.ensure_future(session.run("1/0", cell="ill", on_error="continue"))
        await witness.saw(ev.CellStarted, "well")
        arena.kill()
        ran = arena.session_path(session.id) / "files" / "ran"
        await wait_until(ran.exists, what="the first cell's note")
        await asyncio.sleep(0.6)  # the cell takes 0.3 s: it ends while nobody is there
        await arena.start()
        assert (await first).reason == "ok"
        assert (await second).reason == "error"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"well": 30}, [witness])


@pytest.mark.slow
async def test_killed_many_times_at_random(place):
    """Between any two steps of a cell's way, in the end: accept, journal, send, take, write, acknowledge."""
    chance = random.Random(4)
    async with Arena(place) as arena, arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        cells = {}
        for kill in range(12):
            names = [f"r{kill}_{n}" for n in range(6)]
            cells |= dict.fromkeys(names, 25)
            running = [
                asyncio.ensure_future(session.run(counting(name, 25, 0.002 * (n % 2)), cell=name))
                for n, name in enumerate(names)
            ]
            await asyncio.sleep(chance.random() * 0.25)
            await arena.restart()
            assert [(await one).reason for one in running] == ["ok"] * 6
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), cells, [witness])


async def test_a_full_buffer_waits_for_the_next_server(arena):
    """More output than the kernel may hold: it blocks, and nothing is lost."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = counting("big", 0) + "for n in range(400_000):\n    print(n)\n"
        running = asyncio.ensure_future(session.run(code, cell="big"))
        await witness.saw(ev.Stream, "big")
        arena.kill()
        await asyncio.sleep(1.0)
        await arena.start()
        assert (await running).reason == "ok"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {}, [witness])
        text = "".join(e.text for e in witness.seen if isinstance(e, ev.Stream))
        assert [int(n) for n in text.split()] == list(range(400_000))


async def test_interrupted_just_before_the_server_dies(arena):
    """What the client asked for holds: the cell ends as interrupted, not as an error of its own."""
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = "import time\ntry:\n    time.sleep(60)\nfinally:\n    time.sleep(1)\n"
        running = asyncio.ensure_future(session.run(code, cell="slow"))
        await witness.saw(ev.CellStarted, "slow")
        await session.interrupt()
        await arena.restart()
        assert (await running).reason == "interrupted"


@pytest.mark.parametrize("ask", ["input('name? ')", "__import__('getpass').getpass('name? ')"])
async def test_a_cell_that_waits_for_input_is_answered_by_the_next_server(arena, ask):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = f"for _ in range(2):\n    print('hello', {ask})"
        running = asyncio.ensure_future(session.batch([{"code": code, "cell": "asks", "allow_stdin": True}]))

        def asked() -> int:
            return sum(isinstance(event, ev.InputRequested) for event in witness.seen)

        for count, name in enumerate(("Ada", "Grace"), 1):
            await wait_until(lambda count=count: asked() == count, what="the question")
            await arena.restart()
            await session.input("asks", name)
        (cell,) = await running
        assert cell.reason == "ok"
        assert [line for line in cell.text.splitlines() if line.startswith("hello")] == ["hello Ada", "hello Grace"]
        with pytest.raises(Conflict):
            await session.input("asks", "late")


#: A server that dies between the entry of an answer in the journal and its way to the kernel.
DIES_BEFORE_IT_ANSWERS = """
import os, runpy, signal
from kernelsvc.session.runtime import SessionRuntime
SessionRuntime._send_answer = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
runpy.run_module("kernelsvc", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("ask", ["input('name? ')", "__import__('getpass').getpass('name? ')"])
async def test_an_answer_that_is_recorded_and_not_sent_is_sent_by_the_next_server(short_tmp, ask):
    arena = Arena(short_tmp)
    command = arena.served.command
    arena.served.command = lambda: [sys.executable, "-c", DIES_BEFORE_IT_ANSWERS, *command()[3:]]
    async with arena, arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        code = f"names = [{ask}, {ask}]\nprint(names)"
        running = asyncio.ensure_future(session.batch([{"code": code, "cell": "asks", "allow_stdin": True}]))
        await witness.saw(ev.InputRequested, "asks")
        given = asyncio.ensure_future(session.input("asks", "Ada"))
        await wait_until(lambda: arena.served.process.poll() is not None, what="the server's death")
        arena.served.command = command
        await arena.start()
        await asyncio.gather(given, return_exceptions=True)

        def asked() -> int:
            return sum(isinstance(event, ev.InputRequested) for event in witness.seen)

        if "getpass" in ask and asked() == 1 and given.exception() is not None:
            await session.input("asks", "Ada")  # the journal has no passwords
        await wait_until(lambda: asked() == 2, what="the second question")
        await session.input("asks", "Grace")
        (cell,) = await running
        assert cell.text.splitlines()[-1] == "['Ada', 'Grace']"


async def test_the_time_a_cell_may_take_goes_on_without_a_server(arena):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run("import time; time.sleep(30)", cell="long", timeout=4))
        await witness.saw(ev.CellStarted, "long")
        arena.kill()
        await asyncio.sleep(2)
        await arena.start()
        cell = await running
        assert cell.reason == "timeout"
        assert 3500 < cell.usage.wall_ms < 6500


@pytest.mark.parametrize("number", [signal.SIGHUP])
async def test_a_restart_ends_nothing(arena, number):
    async with arena.client() as client, await client.create_session() as session:
        witness = Witness(session)
        running = asyncio.ensure_future(session.run(counting("one", 500, 0.005), cell="one"))
        await witness.saw(ev.CellStarted, "one")
        arena.served.process.send_signal(number)
        assert await asyncio.to_thread(arena.served.process.wait, 20) == 0
        await arena.start()
        assert (await running).reason == "ok"
        await session.close()
        await witness.ended()
        check(arena.session_path(session.id), {"one": 500}, [witness])


async def test_a_clean_stop_ends_everything(place):
    async with Arena(place) as arena, arena.client() as client:
        session = await client.create_session()
        await session.run("x = 1")
        await session.run(counting("cut", 10_000, 0.01), cell="cut", wait="queued")
        host = arena.host_pid()
        await arena.stop()
        await wait_until(lambda: not os.path.exists(f"/proc/{host}"), what="the kernel host's end")
        assert arena.runtime_files() == set()
        assert not arena.mounts()
        last = journal_of(arena.session_path(session.id))
        assert isinstance(last[-1], ev.JournalSigned)
        assert any(isinstance(e, ev.CellFinished) and e.cell == "cut" and e.reason == "session_closed" for e in last)
        check(arena.session_path(session.id), {"cut": 10_000}, broken={"cut"})


async def test_the_same_cell_again_after_a_crash(arena):
    async with arena.client() as client, await client.create_session() as session:
        first = await session.run(counting("once", 5), cell="once")
        await arena.restart()
        again = await session.run(counting("once", 5), cell="once")
        assert (again.id, again.text) == (first.id, first.text)
        await session.close()
        check(arena.session_path(session.id), {"once": 5})


async def test_the_same_creation_again_after_a_crash(arena):
    body = {"idempotency_key": "mine"}
    first = await asyncio.to_thread(arena.served.call, "POST", "/v1/sessions", body)
    await arena.restart()
    again = await asyncio.to_thread(arena.served.call, "POST", "/v1/sessions", body)
    assert again["id"] == first["id"]


async def test_a_kernel_that_no_session_knows_is_ended(arena):
    """The server dies between the start of a kernel and the first entry of its journal."""
    creating = [asyncio.ensure_future(asyncio.to_thread(_create, arena)) for _ in range(6)]
    await asyncio.sleep(0.03)
    arena.kill()
    await asyncio.gather(*creating, return_exceptions=True)
    await arena.start()
    listed = await asyncio.to_thread(arena.served.call, "GET", "/v1/sessions")
    for one in listed["sessions"]:
        assert one["state"] in ("idle", "busy")
        entries = journal_of(arena.session_path(one["id"]))
        assert isinstance(entries[0], ev.SessionStarted)
        await asyncio.to_thread(arena.served.call, "DELETE", f"/v1/sessions/{one['id']}")
    await wait_until(lambda: not arena.runtime_files(), deadline=10, what="the end of kernels that nobody knows")


def _create(arena):
    return arena.served.call("POST", "/v1/sessions", {})
