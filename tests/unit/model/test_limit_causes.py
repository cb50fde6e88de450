"""Which cap struck, in words with the figure, and how a cell ends of it."""

from __future__ import annotations

import pytest

from kernelsvc.model import events as ev
from kernelsvc.model import limit_causes
from kernelsvc.model.events import Reason
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import CellRequest
from kernelsvc.model.state import Policy
from kernelsvc.model.stimuli import (
    CellBegan,
    Interrupt,
    KernelExited,
    KernelIdle,
    KernelReady,
    KernelReplied,
    RecordEvents,
    Submit,
)

LIMITS = Limits(memory_bytes=512 * MiB, processes=64, open_files=256, disk_bytes=200 * MiB, cpu_seconds=3)


def failed(ename: str, evalue: str = "", **said: object) -> KernelReplied:
    return KernelReplied("a", "error", ename=ename, evalue=evalue, **said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "limit", "words"),
    [
        (failed("MemoryError"), "memory_bytes", "memory: 512 MiB reached"),
        (failed("_ArrayMemoryError", "Unable to allocate"), "memory_bytes", "memory: 512 MiB reached"),
        (failed("OSError", "[Errno 12] Cannot allocate memory"), "memory_bytes", "memory: 512 MiB reached"),
        (failed("OSError", "[Errno 24] Too many open files: 'x'"), "open_files", "open files: 256 reached"),
        (failed("OSError", "[Errno 27] File too large"), "disk_bytes", "disk: 200 MiB in one file reached"),
        (failed("OSError", "[Errno 122] Disk quota exceeded"), "disk_bytes", "disk: 200 MiB reached"),
        (failed("RuntimeError", "can't start new thread"), "processes", "processes: 64 reached"),
        (failed("BlockingIOError", "[Errno 11] x", struck="processes"), "processes", "processes: 64 reached"),
        (failed("OSError", "[Errno 28] x", struck="scratch", room=128 * MiB), "disk_bytes", "128 MiB of scratch space"),
    ],
)
def test_an_exception_tells_of_a_cap(reply: KernelReplied, limit: str, words: str) -> None:
    found = limit_causes.of_reply(reply, LIMITS)
    assert found is not None
    assert (found.limit, found.enforced_by) == (limit, "linux")
    assert words in found.message


@pytest.mark.parametrize(
    "reply",
    [
        failed("BlockingIOError", "[Errno 11] Resource temporarily unavailable"),
        failed("ValueError", "[Errno 24]"),
        failed("OSError", "no number"),
        failed("OSError", "[Errno 28] No space left", struck="scratch"),
        KernelReplied("a", "ok", struck="processes"),
    ],
)
def test_other_exceptions_tell_of_none(reply: KernelReplied) -> None:
    assert limit_causes.of_reply(reply, LIMITS) is None


def test_a_cap_that_is_not_set_is_not_named() -> None:
    assert limit_causes.of_reply(failed("MemoryError"), Limits(memory_bytes=None)) is None
    assert limit_causes.of_counters("memory_bytes", Limits(memory_bytes=None)) is None
    assert limit_causes.of_exit(KernelExited("signalled", "SIGXCPU", 24), Limits()) is None


# --- in the machine --------------------------------------------------------------------


def running() -> Machine:
    machine = Machine(Policy(limits=LIMITS))
    for stimulus in (KernelReady(ev.SessionStarted()), Submit((CellRequest(code="x"),), ("a",)), CellBegan("a", 1)):
        machine.commit(machine.decide(stimulus, 0.0), 0.0)
    return machine


def drive(machine: Machine, *stimuli: object) -> list[ev.Event]:
    events = []
    for stimulus in stimuli:
        outcome = machine.decide(stimulus, 1.0)  # type: ignore[arg-type]
        machine.commit(outcome, 1.0)
        events += outcome.events
    return events


def finished(events: list[ev.Event]) -> ev.CellFinished:
    (found,) = [event for event in events if isinstance(event, ev.CellFinished)]
    return found


def test_the_cell_ends_with_the_figure_and_an_event_goes_before_it() -> None:
    events = drive(running(), failed("MemoryError"), KernelIdle("a"))
    assert [event.limit for event in events if isinstance(event, ev.LimitReached)] == ["memory_bytes"]
    assert finished(events).reason is Reason.MEMORY
    assert finished(events).message == (
        "memory: 512 MiB reached; an allocation was refused; variables kept. Use less at once."
    )


def test_what_fails_inside_the_cell_stays_its_error() -> None:
    end = finished(drive(running(), failed("OSError", "[Errno 24] Too many open files"), KernelIdle("a")))
    assert end.reason is Reason.ERROR
    assert end.message == "open files: 256 reached; another was refused; variables kept."


def test_a_limit_is_told_once_for_a_cell() -> None:
    told = ev.LimitReached(cell="a", limit="processes", message="processes: 64 reached")
    events = drive(running(), RecordEvents((told,)), failed("RuntimeError", "can't start new thread"), KernelIdle("a"))
    assert [event for event in events if isinstance(event, ev.LimitReached)] == [told]


@pytest.mark.parametrize(
    ("limit", "reason", "words"),
    [
        ("memory_bytes", Reason.MEMORY, "600 MiB used; the kernel was ended;"),
        ("cpu_seconds", Reason.TIMEOUT, "600 MiB used; the kernel was ended;"),
        ("disk_bytes", Reason.INTERRUPTED, "600 MiB used; the interrupt was ignored and the kernel killed;"),
    ],
)
def test_what_the_watchdog_ended_says_so(limit: str, reason: Reason, words: str) -> None:
    told = ev.LimitReached(cell="a", limit=limit, message="600 MiB used")
    asked = Interrupt(why=limit, reason=reason)
    end = finished(drive(running(), RecordEvents((told,)), asked, KernelExited("signalled", "SIGKILL", 9)))
    assert end.reason is reason
    assert end.message is not None
    assert end.message.startswith(words)


def test_an_interrupt_that_somebody_asked_for_is_not_put_down_to_a_cap_that_struck_before() -> None:
    told = ev.LimitReached(cell="a", limit="processes", message="processes: 64 reached")
    machine = running()
    end = finished(drive(machine, RecordEvents((told,)), Interrupt(), failed("KeyboardInterrupt"), KernelIdle("a")))
    assert end.message == "Interrupted; variables kept."


def test_the_end_of_its_cpu_time_is_a_timeout_with_the_figure() -> None:
    events = drive(running(), KernelExited("signalled", "The kernel was ended by SIGXCPU", 24))
    assert finished(events).reason is Reason.TIMEOUT
    assert finished(events).message == "CPU: 3 s reached; the kernel was ended by Linux; variables are lost."
    assert [event.limit for event in events if isinstance(event, ev.LimitReached)] == ["cpu_seconds"]
