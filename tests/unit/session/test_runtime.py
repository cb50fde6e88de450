"""The timer of a session."""

from __future__ import annotations

import asyncio

from kernelsvc.session.runtime import DeadlineTimer


async def test_it_fires_at_the_earliest_deadline_and_then_at_the_next() -> None:
    loop = asyncio.get_running_loop()
    deadlines = [loop.time() + 0.02, loop.time() + 0.01]
    fired = asyncio.Event()

    def fire() -> None:
        deadlines.remove(min(deadlines))
        if not deadlines:
            fired.set()

    timer = DeadlineTimer(lambda: min(deadlines, default=None), fire)
    timer.schedule()
    async with asyncio.timeout(5):
        await fired.wait()


async def test_a_deadline_that_can_not_be_journaled_does_not_fire_in_each_turn_of_the_loop() -> None:
    calls = []

    def fire() -> None:
        calls.append(1)
        raise OSError("disk full")

    timer = DeadlineTimer(lambda: 0.0, fire)
    timer.schedule()
    for _ in range(50):
        timer.schedule()
        await asyncio.sleep(0)
    timer.cancel()
    assert len(calls) == 1
