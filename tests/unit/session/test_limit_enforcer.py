"""What is done about a cap that was passed: once, and to nobody who does not add to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.state import Running
from kernelsvc.model.stimuli import Interrupt
from kernelsvc.sandbox.watchdog import LimitExceeded
from kernelsvc.session.limit_enforcer import LimitEnforcer

LIMITS = Limits(memory_bytes=512 * MiB, processes=64)


@dataclass
class Machine:
    running: Running | None = None
    last_finished: str | None = None
    last_limits_reached: frozenset[str] = frozenset()


@dataclass
class Session:
    """A session's surface that the guard touches, and what was done to it."""

    machine: Machine = field(default_factory=Machine)
    recorded: list[ev.LimitReached] = field(default_factory=list)
    interrupts: list[Interrupt] = field(default_factory=list)
    kills: int = 0

    @property
    def kernel(self) -> Session:
        return self

    def kill(self, *, everything: bool = False) -> None:
        assert everything
        self.kills += 1

    def handle(self, stimulus: Interrupt) -> None:
        self.interrupts.append(stimulus)

    def try_record(self, event: ev.LimitReached) -> None:
        self.recorded.append(event)


def made() -> tuple[Session, LimitEnforcer]:
    session = Session()
    return session, LimitEnforcer(cast("Any", session), cast("Any", session.machine), LIMITS)


def disk(mebibytes: float) -> list[LimitExceeded]:
    return [
        LimitExceeded(limit="disk_bytes", value=mebibytes * MiB, maximum=100.0 * MiB, message="disk: 100 MiB reached")
    ]


def test_files_that_do_not_grow_are_left_alone() -> None:
    session, guard = made()
    session.machine.running = Running("a", 0.0)
    guard.on_watchdog(disk(150))
    assert (len(session.recorded), len(session.interrupts), session.kills) == (1, 1, 0)
    assert session.recorded[0].cell == "a"
    guard.on_watchdog(disk(150))
    guard.on_watchdog(disk(120))
    assert len(session.recorded) == 1
    guard.on_watchdog(disk(130))
    assert len(session.recorded) == 2
    guard.on_watchdog([])
    guard.on_watchdog(disk(101))
    assert len(session.recorded) == 3, "it was below meanwhile"


def test_what_a_cell_has_written_ends_nobody_after_it() -> None:
    session, guard = made()
    session.machine.last_finished = "a"
    guard.on_watchdog(disk(150))
    assert (len(session.recorded), session.kills) == (1, 0)


def test_a_cell_does_not_pay_for_the_one_before_it() -> None:
    session, guard = made()
    session.machine.last_finished, session.machine.running = "a", Running("b", 0.0)
    guard.on_watchdog(disk(150))
    assert [bool(event.cell) for event in session.recorded] == [False]
    session.machine.last_finished, session.machine.running = "b", Running("c", 0.0)
    guard.on_watchdog(disk(300))
    assert len(session.interrupts) == 1, "short cells, one after the other, are not spared for ever"


def test_what_writes_without_a_cell_is_ended_when_it_goes_on() -> None:
    session, guard = made()
    guard.on_watchdog(disk(150))
    guard.on_watchdog(disk(300))
    assert session.kills == 1


def test_files_that_cannot_be_measured_interrupt_every_cell() -> None:
    session, guard = made()
    (hidden,) = (msgspec.structs.replace(one, value=0.0, unseen=True) for one in disk(150))
    for number, cell in enumerate("abc", 1):
        session.machine.running = Running(cell, 0.0)
        guard.on_watchdog([hidden])
        assert len(session.interrupts) == number
    session.machine.running = None
    guard.on_watchdog([hidden])
    assert session.kills == 1


def test_bytes_and_files_grow_apart() -> None:
    session, guard = made()
    session.machine.running = Running("a", 0.0)
    files = LimitExceeded(limit="files", value=2000.0, maximum=1000.0, message="files: 1000 reached")
    guard.on_watchdog([*disk(150), files])
    guard.on_watchdog([*disk(150), files])
    assert len(session.recorded) == 1
    guard.on_watchdog([*disk(150), msgspec.structs.replace(files, value=2500.0)])
    assert [event.limit for event in session.recorded] == ["disk_bytes", "files"]


def test_memory_ends_the_kernel_and_the_end_is_explained_once() -> None:
    session, guard = made()
    guard.on_watchdog(
        [LimitExceeded(limit="memory_bytes", value=600.0, maximum=512.0, message="memory: 512 MiB reached")]
    )
    assert session.kills == 1
    killed = Exit(cause=Cause.SIGNALLED, message="SIGKILL", signal=9)
    assert guard.explain(killed).message == "memory: 512 MiB reached; the kernel was ended"
    assert guard.explain(killed) is killed


def test_a_cell_that_is_being_stopped_is_not_stopped_again() -> None:
    session, guard = made()
    session.machine.running = Running("a", 0.0, stop=ev.Reason.TIMEOUT)
    guard.on_watchdog([LimitExceeded(limit="cpu_seconds", value=9.0, maximum=3.0, message="CPU")])
    assert (session.recorded, session.interrupts, session.kills) == ([], [], 0)


def test_counters_are_told_once_for_a_cell() -> None:
    session, guard = made()
    session.machine.running = run = Running("a", 0.0)
    guard.on_cgroup_event("processes")
    assert [event.cell for event in session.recorded] == ["a"]
    run.limits_reached["processes"] = "told"
    guard.on_cgroup_event("processes")
    guard.on_cgroup_event("no such limit")
    assert len(session.recorded) == 1


def test_what_a_cell_said_of_itself_and_is_counted_after_its_end_is_not_told_again() -> None:
    session, guard = made()
    session.machine.last_finished, session.machine.last_limits_reached = "a", frozenset({"processes"})
    guard.on_cgroup_event("processes")
    assert session.recorded == []
    guard.on_cgroup_event("processes")  # what it left behind goes on
    assert len(session.recorded) == 1
