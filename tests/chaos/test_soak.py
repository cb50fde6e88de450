"""A day of work in minutes: everything that a server holds stays as it was, and it is as quick at the end.

2,000 sessions made, used and closed; 500 clients that connect, follow sessions and
drop at random. Progress is printed. ``KERNELSVC_SOAK`` scales both: 0.1 for a tenth.
"""

import asyncio
import os
import random
import time

import psutil
import pytest
from waiting import wait_until

from chaos.arena import Arena, Witness, check, counting, descriptors, resident
from chaos.test_clean_up import MIB, footprint, rounds, settled
from kernelsvc.errors import KernelsvcError

pytestmark = [pytest.mark.timeout(3000), pytest.mark.slow]

SCALE = float(os.environ.get("KERNELSVC_SOAK", "1"))
SEED = int(os.environ.get("KERNELSVC_CHAOS_SEED", "1"))


@pytest.fixture
def tell(capfd):
    """Print progress, past pytest's capture."""

    def say(text):
        with capfd.disabled():
            print(text, flush=True)

    return say


async def effort(arena, client):
    """What 100 trivial cells take in a session of its own: milliseconds of the server's processor, and on the clock.

    The first is what may not grow; the second says more about who else uses this machine.
    """
    server = psutil.Process(arena.served.pid)
    async with await client.create_session() as session:
        cpu, began = sum(server.cpu_times()[:2]), time.perf_counter()
        for _ in range(100):
            await session.run("1 + 1")
        return (sum(server.cpu_times()[:2]) - cpu) * 10, (time.perf_counter() - began) * 10


async def test_two_thousand_sessions(place, tell):
    count, step = int(2000 * SCALE), 10
    async with Arena(place) as arena, arena.client() as client:
        await rounds(client, count // 5)  # 10,000 keys of creations and 64 closed sessions are kept, caches fill
        before, quick = footprint(arena), await effort(arena, client)
        memory = resident(arena.served.pid), resident(arena.host_pid())
        for part in range(step):
            began = time.monotonic()
            await rounds(client, count // step)
            took = (time.monotonic() - began) / (count // step) * 1000
            server, host = resident(arena.served.pid) / MIB, resident(arena.host_pid()) / MIB
            tell(
                f"{(part + 1) * count // step:5} sessions: {took:.0f} ms each, server {server:.1f} MiB and "
                f"{descriptors(arena.served.pid)} descriptors, host {host:.1f} MiB and "
                f"{descriptors(arena.host_pid())}, {len(arena.processes())} processes, {len(arena.cgroups())} cgroups"
            )
        await settled(arena, before)
        after = resident(arena.served.pid), resident(arena.host_pid())
        slow = await effort(arena, client)
        tell(f"a trivial cell: {quick[0]:.2f} ms of processor before, {slow[0]:.2f} after ({slow[1]:.1f} on the clock)")
        assert (after[0] - memory[0]) / MIB < 6 + 8 * count / 2000, "the server's memory is flat"
        assert (after[1] - memory[1]) / MIB < 6, "the kernel host's memory is flat"
        assert slow[0] < 1.5 * quick[0] + 1


async def drop_in(arena, session, chance, seen):
    """One client: comes, reads from somewhere, may run a cell, and goes in one way or another."""
    async with arena.client(retry_seconds=20.0) as client:
        mine = await client.session(session.id, keep=True)
        after = chance.randint(0, seen)
        got = []
        async with mine.events(after) as events:
            try:
                async with asyncio.timeout(chance.uniform(0.01, 0.5)):
                    async for event in events:
                        got.append(event.seq)
            except TimeoutError:
                pass
        assert got == list(range(after + 1, after + 1 + len(got))), "no gap, no repeat"
        if chance.random() < 0.3:
            await mine.run(f"{chance.random()}")
        if chance.random() < 0.3:
            arena.proxy.cut()


async def test_five_hundred_clients(place, tell):
    """At most 60 at once, each on one of 8 sessions; now and then every link is cut at once."""
    count, chance = int(500 * SCALE), random.Random(SEED)
    async with Arena(place) as arena, arena.client() as client:
        sessions = [await client.create_session(keep=True) for _ in range(8)]
        witnesses = [Witness(session) for session in sessions]
        for n, session in enumerate(sessions):
            await session.run(counting(f"first{n}", 200), cell=f"first{n}")
        quick = await effort(arena, client)
        before, memory = footprint(arena), resident(arena.served.pid)
        at_once, failures, done = asyncio.Semaphore(60), [], 0

        async def one():
            nonlocal done
            async with at_once:
                try:
                    await drop_in(arena, chance.choice(sessions), chance, 3)
                except KernelsvcError as error:
                    failures.append(error)
                done += 1
                if done % max(1, count // 10) == 0:
                    tell(f"{done:5} clients, server {resident(arena.served.pid) / MIB:.1f} MiB")

        await asyncio.gather(*(one() for _ in range(count)))
        assert not failures
        most = before["processes"] + 2 * len(sessions)  # how many copies are parked varies
        await wait_until(
            lambda: descriptors(arena.served.pid) <= before["server"] + 2 and len(arena.processes()) <= most
        )
        assert footprint(arena)["temporary"] <= before["temporary"]
        grown, slow = (resident(arena.served.pid) - memory) / MIB, await effort(arena, client)
        tell(f"server grew by {grown:.1f} MiB; a trivial cell: {quick[0]:.2f} ms of processor, then {slow[0]:.2f}")
        assert grown < 12
        assert slow[0] < 1.5 * quick[0] + 1
        for n, (session, witness) in enumerate(zip(sessions, witnesses, strict=True)):
            await session.close()
            await witness.ended()
            check(arena.session_path(session.id), {f"first{n}": 200}, [witness])
