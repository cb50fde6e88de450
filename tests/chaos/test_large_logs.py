"""While a large log is read back, others are served; who asks for its session waits, and nothing of it is forgotten.

The reading is held for as long as a test wants: who holds a lease on a file (fcntl(2),
``F_SETLEASE``) makes Linux let everybody else wait who opens it.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from functools import partial

import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting
from kernelsvc.errors import Recovering
from kernelsvc.service.loading.session_loading import LARGE_BYTES

pytestmark = pytest.mark.timeout(120)

#: Prints more than is read before the server answers, fast, and sets a variable.
MUCH = f"x = 41; print('x' * {LARGE_BYTES // 4}); " * 5


@contextlib.contextmanager
def held(path):
    """Nobody can open this file until the end of the ``with``, or for 45 s (/proc/sys/fs/lease-break-time)."""
    before = signal.signal(signal.SIGIO, lambda *_: None)  # how Linux asks for the lease back
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


async def states(client):
    return {each.id: str(each.state) for each in await client.sessions()}


async def test_others_are_served_while_a_large_log_is_read(arena):
    async with arena.client() as client:
        keyed = partial(arena.served.call, "POST", "/v1/sessions", {"idempotency_key": "large"})
        large = await client.session((await asyncio.to_thread(keyed))["id"])
        small = await client.create_session(keep=True)
        await large.run(MUCH, cell="much")
        witness = Witness(large)
        running = asyncio.ensure_future(large.run(counting("one", 200, 0.01), cell="one"))
        await small.run("y = 1")
        arena.kill()
        with held(arena.session_path(large.id) / "journal.jsonl"):
            await arena.start()
            began = asyncio.get_running_loop().time()
            assert (await small.run("y + 1")).text.strip() == "2"
            assert asyncio.get_running_loop().time() - began < 5
            assert await states(client) == {large.id: "restoring", small.id: "idle"}
            keyed = partial(arena.served.call, "POST", "/v1/sessions", {"idempotency_key": "large"})
            again = asyncio.ensure_future(asyncio.to_thread(keyed))
            waits = asyncio.ensure_future(large.run("x + 1", cell="two"))
            for n in range(20):
                assert (await small.run(f"y + {n}")).text.strip() == str(1 + n)
            assert not waits.done()
            assert not again.done()
            assert not running.done()
        assert (await running).reason == "ok"
        assert (await waits).text.strip() == "42", "the kernel is the one it was"
        assert (await again)["id"] == large.id, "its key was not forgotten"
        await large.close()
        await small.close()
        await witness.ended()
        check(arena.session_path(large.id), {"one": 200}, [witness])


async def test_the_large_log_of_a_closed_session_is_read_without_the_others(arena):
    async with arena.client() as client:
        async with await client.create_session() as large:
            await large.run(MUCH, cell="much")
        small = await client.create_session(keep=True)
        assert (await states(client))[large.id] == "closed", "and so the index has it on disk"
        await arena.restart()
        await small.run("1")
        with held(arena.session_path(large.id) / "journal.jsonl"):
            asked = asyncio.ensure_future(large.cell("much"))
            for _ in range(20):
                assert (await small.run("1 + 1")).text.strip() == "2"
            assert (await states(client))[large.id] == "closed"
            assert not asked.done()
        assert (await asked).reason == "ok"
        await small.close()


async def test_what_takes_too_long_is_told(place):
    async with Arena(place, env={"KERNELSVC_START_SECONDS": "2"}) as arena, arena.client() as client:
        large = await client.create_session(keep=True)
        await large.run(MUCH)
        arena.kill()
        with held(arena.session_path(large.id) / "journal.jsonl"):
            await arena.start()
            with pytest.raises(Recovering) as told:
                await large.run("x + 1", cell="later")
            assert told.value.retryable
        assert (await wait_until(lambda: large.run("x + 1", cell="later"), deadline=20)).text.strip() == "42"
        await large.close()
