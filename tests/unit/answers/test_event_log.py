"""Events between an answer and its readers."""

from __future__ import annotations

import asyncio
import sys

import pytest

from kernelsvc.answers import event_log
from kernelsvc.answers.event_log import EventLog


async def test_kept_events_are_read_from_any_position_by_any_number_of_readers() -> None:
    log = EventLog(keep=True)
    waiting = asyncio.ensure_future(log.after(0))
    await asyncio.sleep(0)
    log.add([{"n": 0}, {"n": 1}])
    assert await waiting == [{"n": 0}, {"n": 1}]
    assert await log.after(1) == [{"n": 1}]
    log.close()
    assert await log.after(2) is None
    assert len(log.all()) == 2


async def test_an_answer_waits_for_its_slow_reader() -> None:
    log = EventLog(keep=False)
    log.add([{"n": number} for number in range(event_log.MAX_WAITING + 1)])
    flushing = asyncio.ensure_future(log.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    assert len(await log.after(0) or []) == event_log.MAX_WAITING + 1
    await flushing
    log.add([{"n": "next"}])
    assert await log.after(event_log.MAX_WAITING + 1) == [{"n": "next"}]


async def test_an_answer_waits_for_its_slow_reader_after_few_events_with_much_text() -> None:
    log = EventLog(keep=False)
    log.add([{"n": 0, "choices": [{"delta": {"content": "x" * event_log.MAX_CHARACTERS}}]}])
    await log.flush()
    log.add([{"n": 1, "delta": "y"}])
    order = []

    async def answer() -> None:
        await log.flush()
        order.append("the answer continues")

    async def read() -> None:
        order.append(f"{len(await log.after(0) or [])} events are read")

    await asyncio.gather(answer(), read())
    assert order == ["2 events are read", "the answer continues"]


async def test_a_long_answer_keeps_every_event_but_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_KEPT", 3)
    log = EventLog(keep=True)
    kinds = ["created", "x.delta", "x.delta", "x.delta", "x.delta", "x.done", "completed"]
    for number, kind in enumerate(kinds):
        log.add([{"type": kind, "sequence_number": number}])
    log.close()
    assert [each["sequence_number"] for each in await log.after(0) or []] == [0, 1, 2, 5, 6]
    assert [each["sequence_number"] for each in await log.after(4) or []] == [5, 6]
    assert await log.after(7) is None


def test_a_flood_of_tokens_takes_bounded_memory() -> None:
    """200,000 events took 90 MB, and one principal may have 20 background answers."""
    log = EventLog(keep=True)
    for number in range(200):
        log.add([{"type": "x.delta", "sequence_number": number * 1000 + each} for each in range(1000)])
    assert sum(map(sys.getsizeof, log.all())) < 16 * 1024 * 1024


async def test_a_wake_ends_the_wait_of_a_reader_without_an_event() -> None:
    log = EventLog(keep=False)
    waiting = asyncio.ensure_future(log.after(0))
    await asyncio.sleep(0)
    log.wake()
    assert await waiting == []
    log.add([{"n": 0}])
    assert await log.after(0) == [{"n": 0}]
