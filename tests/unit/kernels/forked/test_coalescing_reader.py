"""Reading without haste: who is waited for, for how long, and who never is."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import cast

from waiting import wait_until

from kernelsvc.kernels.forked.coalescing_reader import LARGE, PAUSE, QUICK_READS, QUICK_SECONDS, CoalescingReader


class Timer:
    """What ``call_at`` gives."""

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as a reader needs, with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watched: set[int] = set()
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def add_reader(self, fd: int, _read: Callable[[], None]) -> None:
        self.watched.add(fd)

    def remove_reader(self, fd: int) -> None:
        assert fd in self.watched, "a number that may be another's by now"
        self.watched.discard(fd)

    def call_at(self, at: float, act: Callable[[], None]) -> Timer:
        self.timers.append(Timer(at, act))
        return self.timers[-1]


def reader(loop: Loop, reads: list[float]) -> CoalescingReader:
    paced = CoalescingReader(cast("asyncio.AbstractEventLoop", loop), 7, lambda: reads.append(loop.now))
    paced.watch()
    return paced


def hasten(loop: Loop, paced: CoalescingReader, times: int, size: int = 10, every: float = QUICK_SECONDS / 4) -> None:
    for _ in range(times):
        loop.now += every
        paced.took_text(size)


def test_the_first_reads_are_not_waited_for_and_those_of_a_flood_are() -> None:
    loop, reads = Loop(), []
    paced = reader(loop, reads)
    hasten(loop, paced, QUICK_READS)
    assert loop.watched == {7}
    hasten(loop, paced, 1)
    assert not loop.watched
    (timer,) = loop.timers
    assert timer.at == loop.now + PAUSE
    timer.act()
    assert loop.watched == {7}
    assert len(reads) == 1


def test_a_line_now_and_then_is_never_waited_for() -> None:
    loop = Loop()
    hasten(loop, reader(loop, []), 100, every=2 * QUICK_SECONDS)
    assert loop.watched == {7}


def test_a_writer_of_much_is_not_held_up() -> None:
    loop = Loop()
    hasten(loop, reader(loop, []), 100, size=LARGE)
    assert loop.watched == {7}


def test_nothing_is_read_after_the_end_and_no_other_descriptor_is_touched() -> None:
    loop = Loop()
    paced = reader(loop, [])
    hasten(loop, paced, QUICK_READS + 1)
    paced.unwatch()
    paced.unwatch()
    assert loop.timers[0].cancelled
    hasten(loop, paced, 10)
    assert (len(loop.timers), loop.watched) == (1, set())


async def test_all_that_was_written_in_a_pause_comes_at_once() -> None:
    loop, (read, write) = asyncio.get_running_loop(), os.pipe()
    os.set_blocking(read, False)  # as a kernel's socket is: after a pause there may be nothing
    got: list[bytes] = []

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            got.append(os.read(read, 1000))
            paced.took_text(len(got[-1]))

    paced = CoalescingReader(loop, read, take)
    paced.watch()
    try:
        for number in range(1000):
            os.write(write, b"%d\n" % number)
            await asyncio.sleep(0)
        await wait_until(lambda: b"999\n" in got[-1])
    finally:
        paced.unwatch()
        os.close(read)
        os.close(write)
    assert b"".join(got).split() == [b"%d" % number for number in range(1000)]
    assert len(got) < 500
