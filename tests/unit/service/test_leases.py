"""Time that a session's owner sets, and sessions beside others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from kernelsvc.errors import LimitTooHigh, SessionClosed
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.model import events as ev
from kernelsvc.model.limits import Limits
from kernelsvc.model.machine import PAUSED_SECONDS, Machine
from kernelsvc.model.objects import Principal, SessionState
from kernelsvc.model.state import Policy
from kernelsvc.model.stimuli import Close, Hibernate, KernelReady, RecordEvents, Tick
from kernelsvc.service.leases import Leases
from kernelsvc.service.loading.background_loading import BackgroundLoads
from kernelsvc.service.loading.closed_sessions import ClosedSessions
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.service.session_factory import SessionFactory
from kernelsvc.session import Session, SessionSpec
from kernelsvc.settings import Settings
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectories

ME = Principal(name="p")
LIMITS = Limits(lifetime_seconds=100.0)


class House:
    """A few sessions over scripted kernels, and their leases."""

    def __init__(self, path: Path) -> None:
        self.path, self.launcher = path, FakeLauncher()
        loads, factory = BackgroundLoads(1.0), cast("SessionFactory", None)
        closed = ClosedSessions(SessionDirectories(path / "data"), factory, loads)
        self.registry = SessionRegistry(Settings(), closed, loads)
        self.leases = Leases(self.registry, LIMITS)

    async def open(self, id: str, beside: str | None = None) -> Session:
        about = SessionSpec(
            id=id, principal="p", template="t", workdir=str(self.path), kernel=f"k_{id}", limits=LIMITS,
            created_at="2026-01-01T00:00:00Z", beside=beside,
        )  # fmt: skip
        made = Session(about, Journal.create(self.path / f"{id}.jsonl", id), self.launcher, Policy())
        await made.start()
        self.registry.add(made)
        self.leases.began(made)
        return made


@pytest.fixture
async def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    for session in made.registry.open_sessions():
        await session.close("test over")
    made.launcher.close()


def left(session: Session) -> float:
    return round(session.machine.leased_until - asyncio.get_running_loop().time())


async def test_a_lease_is_renewed_within_the_servers_lifetime(house: House) -> None:
    session = await house.open("s_1")
    assert house.leases.grant(ME, "s_1", 50).expires_at is not None
    assert left(session) == 50
    house.leases.grant(ME, "s_1", 20, at_least=True)
    assert left(session) == 50
    house.leases.grant(ME, "s_1", 20)
    assert left(session) == 20
    session.machine.started_at -= 90
    house.leases.grant(ME, "s_1", 60)
    assert left(session) == 10
    with pytest.raises(LimitTooHigh):
        house.leases.grant(ME, "s_1", 101)


async def test_after_a_pause_its_lifetime_begins_anew(house: House) -> None:
    session = await house.open("s_1")
    session.machine.started_at -= 95
    assert (await house.leases.pause(ME, "s_1")).paused
    assert left(session) == PAUSED_SECONDS
    assert not house.leases.grant(ME, "s_1", 60, at_least=True).paused
    assert left(session) == 60


async def test_who_lives_beside_has_as_much_time_and_ends_too(house: House) -> None:
    await house.open("s_1")
    house.leases.grant(ME, "s_1", 50, then="pause")
    beside = await house.open("s_2", beside="s_1")
    assert (left(beside), beside.machine.lease.then) == (50, "pause")
    assert [each.id for each in house.leases.sidecars(ME, "s_1")] == ["s_2"]
    house.leases.grant(ME, "s_1", 20)
    assert left(beside) == 20
    assert (await house.leases.pause(ME, "s_1")).paused
    assert beside.machine.lease.paused
    house.leases.keep(ME, "s_1")
    assert not beside.machine.lease.paused
    house.leases.ended("s_1")
    async with asyncio.timeout(5):
        await beside.closed.wait()


async def test_what_has_ended_gets_no_time(house: House) -> None:
    session = await house.open("s_1")
    await session.close("over")
    with pytest.raises(SessionClosed):
        house.leases.grant(ME, "s_1", 1)
    with pytest.raises(SessionClosed):
        await house.leases.pause(ME, "s_1")


async def test_a_lease_outlives_the_server(house: House) -> None:
    session = await house.open("s_1")
    house.leases.grant(ME, "s_1", 50, then="pause")
    again = Session(session.spec, session.log, None, Policy())
    again.rebuild(ev.decode(line) for line in session.log.lines(1, session.log.last_seq))
    assert msgspec.structs.astuple(again.machine.lease) == msgspec.structs.astuple(session.machine.lease)
    assert left(again) == 50


def machine(lease: ev.Leased) -> Machine:
    made = Machine(Policy(idle_seconds=5, lifetime_seconds=10))
    for stimulus in (KernelReady(ev.SessionStarted()), RecordEvents((lease,))):
        made.commit(made.decide(stimulus, 0.0), 0.0)
    return made


def test_a_lease_stands_in_for_lifetime_and_idle_time() -> None:
    made = machine(ev.Leased(seconds=50))
    assert (made.expires_at(), made.next_deadline()) == (50, 50)
    assert made.decide(Tick(), 49).events == []
    (closed,) = made.decide(Tick(), 50).events
    assert closed == ev.SessionClosed(reason="lifetime")


def test_at_its_end_a_session_may_be_paused_instead() -> None:
    made = machine(ev.Leased(seconds=50, then="pause"))
    out = made.decide(Tick(), 50)
    assert out.events == [ev.Leased(seconds=PAUSED_SECONDS, paused=True)]
    made.commit(out, 50)
    out = made.decide(Tick(), 50)
    assert out.effects == [Hibernate()]
    made.commit(out, 50)
    assert made.next_deadline() == 50 + PAUSED_SECONDS
    assert made.decide(Close("x"), 60).events[-1].reason == "x"
    made.commit(made.decide(Tick(), 60 + PAUSED_SECONDS), 60 + PAUSED_SECONDS)
    assert made.state is SessionState.CLOSED
