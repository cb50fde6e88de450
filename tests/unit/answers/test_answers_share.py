"""The time of the event loop that the answers of one principal take."""

from __future__ import annotations

import asyncio
import itertools
import time

from kernelsvc.answers import answers_share
from kernelsvc.answers.answers_share import AnswersShare, LoopTurn


def work(seconds: float) -> None:
    """Keep the loop busy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def test_short_work_needs_no_pause() -> None:
    turn = LoopTurn(AnswersShare())
    began = asyncio.get_running_loop().time()
    for _ in range(20):
        await turn.begin()
        turn.end()
    assert asyncio.get_running_loop().time() - began < answers_share.BURST_SECONDS


async def test_answers_work_one_after_the_other_and_pause_as_long_as_they_worked() -> None:
    share, long = AnswersShare(), 2 * answers_share.BURST_SECONDS
    turns = 0
    worked: list[int] = []

    async def answer() -> None:
        turn = LoopTurn(share)
        for _ in range(3):
            await turn.begin()
            work(long)
            worked.append(turns)
            turn.end()

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    began = time.monotonic()
    counting = asyncio.ensure_future(others())
    await asyncio.gather(*(answer() for _ in range(4)))
    counting.cancel()
    assert time.monotonic() - began > 22 * long  # 12 times of work, and 11 pauses
    # Other clients had many turns of the loop between two of them.
    assert all(after - before > 10 for before, after in itertools.pairwise(worked))


async def test_a_very_long_work_has_a_shorter_pause() -> None:
    share = AnswersShare()
    share.charge(1000.0)
    async with asyncio.timeout(10 * answers_share.MAX_PAUSE_SECONDS):
        await share.wait()
