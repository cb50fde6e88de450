"""Programs beside a kernel, as the machine sees them: a session is not at rest while one runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kernelsvc import AsyncClient
from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model.machine import Hibernate, KernelReady, Machine, RecordEvents, Tick
from kernelsvc.model.objects import Principal, SessionState
from kernelsvc.model.state import Policy
from kernelsvc.service import programs
from kernelsvc.testing import InProcessServer


def machine(*events: ev.Event, at: float = 0.0) -> Machine:
    made = Machine(Policy(idle_seconds=50, hibernate_seconds=5, lifetime_seconds=1000))
    for stimulus in (KernelReady(ev.SessionStarted()), RecordEvents(events)):
        made.commit(made.decide(stimulus, at), at)
    return made


def test_a_session_whose_program_runs_neither_sleeps_nor_ends_for_idleness() -> None:
    made = machine(ev.ProgramStarted(program=3, argv=["server"]), ev.ProgramStarted(program=4))
    assert made.next_deadline() == 1000
    assert made.decide(Tick(), 500).effects == []
    made.commit(made.decide(RecordEvents((ev.ProgramEnded(program=3),)), 600), 600)
    assert made.next_deadline() == 1000
    made.commit(made.decide(RecordEvents((ev.ProgramEnded(program=4),)), 700), 700)
    assert made.next_deadline() == 705
    assert made.decide(Tick(), 705).effects == [Hibernate()]


def test_a_pause_leaves_a_session_with_programs_in_memory() -> None:
    made = machine(ev.ProgramStarted(program=3), ev.Leased(seconds=900, paused=True))
    assert made.decide(Tick(), 1).effects == []


def test_what_is_logged_of_a_program_is_bounded() -> None:
    assert programs.MAX_LOGGED * programs.MAX_LOGGED_TEXT < 1 << 20
    assert machine().state is SessionState.IDLE


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": ["a\0b"]},
        {"argv": [""]},
        {"argv": ["true", "\0"]},
        {"argv": ["true"], "env": {"A": "\0"}},
        {"argv": ["true"], "cwd": "/\0"},
    ],
    ids=str,
)
async def test_texts_that_no_process_can_have_are_refused(wrong: dict[str, Any]) -> None:
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        session = await client.create_session()
        with pytest.raises(BadRequest):
            await asyncio.wait_for(session.start_program(wrong.pop("argv"), **wrong), 30)


async def test_a_tag_is_bounded() -> None:
    registry: Any = SimpleNamespace(find=lambda *_: None)
    started = programs.Programs(registry, None, None)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="tag"):
        await started.start(Principal(name="ann"), "s_1", ["true"], tag="x" * (programs.MAX_TAG + 1))


async def test_no_session_starts_with_such_a_variable() -> None:
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        with pytest.raises(BadRequest, match="zero byte"):
            await client.create_session(env={"A": "\0"})
