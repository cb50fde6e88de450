"""What is asked of sessions that are being read back."""

import asyncio

import pytest

from kernelsvc.errors import Recovering
from kernelsvc.service.loading.background_loading import BackgroundLoads, ids_in

ONE, OTHER = "s_0123456789abcdef", "s_fedcba9876543210"


@pytest.fixture
async def held():
    """Two under way, the first held until its event is set."""
    recoveries, gate, order = BackgroundLoads(5.0), asyncio.Event(), []

    async def first():
        order.append("first begins")
        await gate.wait()
        order.append("first ends")

    async def second():
        order.append("second")

    recoveries.begin(ONE, "alice", first)
    recoveries.begin(OTHER, None, second)
    await asyncio.sleep(0)
    yield recoveries, gate, order
    gate.set()
    await recoveries.all(5.0)


async def test_one_is_read_at_a_time(held):
    recoveries, gate, order = held
    await asyncio.sleep(0)
    assert order == ["first begins"]
    assert ONE in recoveries
    gate.set()
    await recoveries.all(5.0)
    assert order == ["first begins", "first ends", "second"]
    assert ONE not in recoveries


async def test_its_owner_is_told_and_nobody_else(held):
    recoveries, _, _ = held
    with pytest.raises(Recovering) as told:
        recoveries.check(ONE, "alice")
    assert told.value.details == {"session": ONE}
    recoveries.check(ONE, "bob")
    with pytest.raises(Recovering):
        recoveries.check(OTHER, "bob")  # whose it is, only its log says
    recoveries.check("s_0000000000000000", "alice")


@pytest.mark.parametrize("text", [f"/v1/sessions/{ONE}/cells", "/api/kernels/6b730000-0000-4000-0123-456789abcdef"])
async def test_who_names_it_waits(held, text):
    recoveries, gate, _ = held
    waiting = asyncio.ensure_future(recoveries.named(text))
    await recoveries.named("/v1/sessions/s_0000000000000000")
    assert not waiting.done()
    gate.set()
    await waiting
    assert ONE not in recoveries


async def test_nobody_waits_for_ever(held):
    recoveries, _, _ = held
    recoveries._seconds = 0.01
    await recoveries.named(ONE)
    assert ONE in recoveries


async def test_a_failure_is_logged_and_over(caplog):
    recoveries = BackgroundLoads(5.0)

    async def fails():
        raise OSError("gone")

    recoveries.begin(ONE, None, fails)
    await recoveries.all(5.0)
    assert ONE not in recoveries
    assert "can't be read: gone" in caplog.text


def test_ids_are_found_in_a_path():
    assert ids_in(f"host /v1/sessions/{ONE}/cells?x={OTHER}") == [ONE, OTHER]
    assert ids_in("/v1/sessions") == []
