"""Turns of the event loop: in order, one at a time, and no work is left out."""

from __future__ import annotations

import asyncio

import pytest
from waiting import wait_until

from kernelsvc.linux import turns
from kernelsvc.linux.turns import Turns


async def test_work_takes_turns_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, order = Turns(), []
    left = {"a": 3, "b": 3}

    def step(name: str) -> None:
        order.append((name, asyncio.get_running_loop().time()))
        left[name] -= 1
        if left[name]:
            taken.wait(lambda _: step(name))

    monkeypatch.setattr(turns, "REST", 0)
    for name in left:
        taken.wait(lambda _, name=name: step(name))
    assert not order, "not in the call that asks for it"
    await wait_until(lambda: len(order) == 6, what="all turns")
    assert [name for name, _ in order] == ["a", "b"] * 3


async def test_the_rest_is_as_long_as_the_turn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, at = Turns(), []
    loop = asyncio.get_running_loop()

    def busy(until: float) -> None:
        at.append(loop.time())
        while loop.time() < until:
            pass
        at.append(loop.time())

    taken.wait(busy)
    taken.wait(busy)
    await wait_until(lambda: len(at) == 4, what="both turns")
    assert at[2] - at[1] >= turns.REST * (at[1] - at[0]) * 0.9


async def test_an_error_ends_only_its_own_turn() -> None:
    taken, order = Turns(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: order.append(type(context["exception"])))
    taken.wait(lambda _: 1 / 0)
    taken.wait(order.append)
    await wait_until(lambda: len(order) == 2, what="both turns")
    assert order[0] is ZeroDivisionError
