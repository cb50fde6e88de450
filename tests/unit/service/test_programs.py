"""Programs beside a kernel, as the machine sees them: a session is not at rest while one runs."""

from __future__ import annotations

from kernelsvc.model import events as ev
from kernelsvc.model.machine import Hibernate, KernelReady, Machine, RecordEvents, Tick
from kernelsvc.model.objects import SessionState
from kernelsvc.model.state import Policy
from kernelsvc.service import programs


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
