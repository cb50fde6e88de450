"""The machine as values: legal moves, illegal moves, and any sequence of stimuli at all."""

import copy

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.errors import CellExists, Conflict, KernelDead, KernelsvcError, QuotaExceeded, SessionClosed
from kernelsvc.model import events as ev
from kernelsvc.model.events import Reason
from kernelsvc.model.machine import Machine
from kernelsvc.model.objects import CellRequest, SessionState
from kernelsvc.model.state import MAX_WAITING_BYTES, MOVES, Policy, Waiting
from kernelsvc.model.stimuli import (
    AbortSwitch,
    Answer,
    AnswerLost,
    AttachKernel,
    BeginProgram,
    BeginSwitch,
    CellBegan,
    CheckOutputLimit,
    Close,
    DecideCells,
    DeliveryKnown,
    EndKernel,
    Hibernate,
    Hold,
    Interrupt,
    InterruptKernel,
    JournalReplayed,
    KernelExited,
    KernelIdle,
    KernelReady,
    KernelReplied,
    KillKernel,
    ProgramBegun,
    RecordEvents,
    Restart,
    Resume,
    ResumeSaved,
    SendAnswer,
    SendCell,
    StartFailed,
    StartKernel,
    StateSaved,
    Submit,
    Tick,
    WakeCheckpoint,
)
from kernelsvc.model.story import InvariantError, Story


def drive(machine, *stimuli, now=0.0):
    """Decide and commit each; return all events and effects, but not that a kernel is attached, as each is."""
    events, effects = [], []
    for stimulus in stimuli:
        outcome = machine.decide(stimulus, now)
        machine.commit(outcome, now)
        events += outcome.events
        effects += [effect for effect in outcome.effects if not isinstance(effect, AttachKernel)]
    return events, effects


def ready(policy=None, *, ordered=False):
    machine = Machine(policy or Policy())
    drive(machine, KernelReady(ev.SessionStarted(), ordered=ordered))
    return machine


def submit(*cells, **options):
    return Submit(tuple(CellRequest(code=f"code {c}", **options) for c in cells), cells)


def types(events):
    return [type(e).__name__ for e in events]


NAME_ERROR = KernelReplied("c", "error", ename="NameError", evalue="name 'x' is not defined")


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ([], None),
        ([Restart(), KernelReady(ev.KernelRestarted(why="asked"))], "The kernel was restarted after earlier cells"),
        ([KernelExited("signalled", "SIGSEGV"), KernelReady(ev.KernelRestarted(why="died"))], "The kernel was rest"),
    ],
)
def test_an_unknown_name_after_a_restart_says_that_the_variables_are_gone(between, message):
    machine = ready()
    drive(machine, submit("a"), CellBegan("a", 1), KernelReplied("a", "ok"), KernelIdle("a"), *between)
    drive(machine, submit("c"), CellBegan("c", 2))
    events, _ = drive(machine, NAME_ERROR, KernelIdle("c"))
    end = next(event for event in events if isinstance(event, ev.CellFinished))
    assert end.reason is Reason.ERROR
    assert (end.message or "").startswith(message or "")
    assert bool(end.message) is bool(message)


def test_a_cell_goes_from_queued_to_finished():
    machine = ready()
    events, effects = drive(
        machine, submit("a"), CellBegan("a", 1), KernelReplied("a", "ok", 1), KernelIdle("a", frame=5), now=10.0
    )
    assert types(events) == ["CellQueued", "CellStarted", "CellFinished"]
    assert effects[0] == SendCell("a")
    assert events[-1].reason is Reason.OK
    assert events[-1].frame == 5
    assert machine.state is SessionState.IDLE
    assert machine.execution_count == 1


def ordered():
    return ready(ordered=True)


def counts(events):
    return [(type(e).__name__, e.execution_count) for e in events if isinstance(e, ev.CellStarted | ev.CellFinished)]


def test_with_an_ordered_kernel_a_cell_begins_when_it_is_sent_and_ends_on_its_reply():
    machine = ordered()
    events, effects = drive(machine, submit("a", "b"), now=10.0)
    assert types(events) == ["CellQueued", "CellQueued", "CellStarted"]
    assert (effects, machine.running.id, machine.state) == ([SendCell("a")], "a", SessionState.BUSY)
    shown = ev.Result(cell="a", data={"text/plain": "12345"})
    events, effects = drive(machine, KernelReplied("a", "ok", 1, outputs=(shown,), frame=2), now=11.0)
    assert types(events) == ["Result", "CellFinished", "CellStarted"]
    assert (events[1].usage.output_bytes, events[1].usage.wall_ms, events[1].frame) == (5, 1000.0, 2)
    assert (effects, machine.running.id, machine.running.began) == ([SendCell("b")], "b", True)
    drive(machine, KernelReplied("b", "ok", 2))
    assert (machine.state, machine.running, machine.execution_count) == (SessionState.IDLE, None, 2)


def test_the_events_carry_the_traceback_for_models_and_the_changes():
    machine = ordered()
    reply = KernelReplied("a", "error", 1, "E", "x", ("tb",), model=("short",), changes={"new": ["v"]})
    events, _ = drive(machine, submit("a"), reply)
    assert (events[-2].traceback, events[-2].model, events[-1].changes) == (["tb"], ["short"], {"new": ["v"]})


def test_an_ordered_kernel_says_nothing_new_when_it_says_that_a_cell_began():
    machine = ordered()
    drive(machine, submit("a"))
    events, _ = drive(machine, CellBegan("a", 7), KernelIdle("a"))
    assert (events, machine.running.id) == ([], "a")


def test_cells_are_numbered_as_the_kernel_will_number_them():
    machine = ordered()
    requests = (CellRequest(code="1"), CellRequest(code="2", store_history=False), CellRequest(code="3", silent=True))
    events, _ = drive(
        machine,
        Submit((*requests, CellRequest(code="4")), ("a", "b", "c", "d")),
        KernelReplied("a", "ok", 1),
        KernelReplied("b", "ok", 1),
        KernelReplied("c", "ok", 1),
        KernelReplied("d", "ok", 100),  # its code moved the count
        submit("e"),
    )
    assert counts(events) == [
        ("CellStarted", 1),
        ("CellFinished", 1),
        ("CellStarted", 2),
        ("CellFinished", 1),
        ("CellStarted", None),
        ("CellFinished", 1),
        ("CellStarted", 2),
        ("CellFinished", 100),
        ("CellStarted", 101),
    ]


def test_a_cell_that_waits_for_another_kernel_is_the_first_that_this_one_counts():
    machine = ordered()
    drive(
        machine, submit("a"), KernelReplied("a", "ok", 1), submit("b"), KernelExited("signalled", "gone"), submit("c")
    )
    events, effects = drive(machine, KernelReady(ev.KernelRestarted(why="died"), ordered=True))
    assert types(events) == ["KernelRestarted", "CellStarted"]
    assert (events[1].cell, events[1].execution_count, effects[-1]) == ("c", 1, SendCell("c"))


def test_a_cell_that_never_reached_the_kernel_is_sent_again_and_begins_once():
    machine = ordered()
    drive(machine, submit("a"))
    drive(machine, DeliveryKnown(frozenset(), ordered=True))  # after a restart: the kernel does not know it
    events, effects = drive(machine, KernelReady(ev.SessionAdopted(), ordered=True))
    assert (types(events), effects[-1], machine.running.id) == (["SessionAdopted"], SendCell("a"), "a")


def test_idle_before_reply_ends_the_cell_too():
    machine = ready()
    events, _ = drive(machine, submit("a"), CellBegan("a", 1), KernelIdle("a"), KernelReplied("a", "ok", 1))
    assert types(events)[-1] == "CellFinished"


@pytest.mark.parametrize(
    "forged", [KernelReplied("b", "ok"), KernelIdle("b"), CellBegan("b", 7), KernelReplied("zzz", "ok")]
)
def test_messages_about_other_cells_change_nothing(forged):
    machine = ready()
    drive(machine, submit("a"), submit("b"))
    assert machine.decide(forged, 0.0).events == []
    assert machine.decide(forged, 0.0).effects == []


def test_the_same_id_again_runs_nothing():
    machine = ready()
    drive(machine, submit("a"))
    assert machine.decide(submit("a"), 0.0).events == []


def test_the_same_id_with_other_code_is_refused():
    machine = ready()
    drive(machine, submit("a"))
    with pytest.raises(CellExists):
        machine.decide(Submit((CellRequest(code="other"),), ("a",)), 0.0)


def test_an_error_cancels_what_waits_behind_it():
    machine = ready()
    events, _ = drive(
        machine, submit("a"), submit("b", "c"), CellBegan("a", 1), KernelReplied("a", "error"), KernelIdle("a")
    )
    ends = {e.cell: e.reason for e in events if isinstance(e, ev.CellFinished)}
    assert ends == {"a": Reason.ERROR, "b": Reason.CANCELLED, "c": Reason.CANCELLED}
    assert machine.state is SessionState.IDLE


def test_a_cell_that_was_sent_after_the_failure_was_told_is_not_cancelled():
    machine = ready()
    failed = RecordEvents((ev.Error(cell="a", ename="ValueError", evalue="no", traceback=[]),))
    events, effects = drive(
        machine,
        submit("a"),
        submit("b"),
        CellBegan("a", 1),
        failed,
        submit("c"),
        KernelReplied("a", "error"),
        KernelIdle("a"),
    )
    ends = {e.cell: e.reason for e in events if isinstance(e, ev.CellFinished)}
    assert ends == {"a": Reason.ERROR, "b": Reason.CANCELLED}
    assert effects[-1] == SendCell("c")


def test_on_error_continue_goes_on_with_the_next():
    machine = ready()
    _, effects = drive(
        machine, submit("a", on_error="continue"), submit("b"), KernelReplied("a", "error"), KernelIdle("a")
    )
    assert effects[-1] == SendCell("b")


def test_an_error_that_was_not_published_is_taken_from_the_reply():
    machine = ready()
    events, _ = drive(
        machine, submit("a"), KernelReplied("a", "error", 1, "ValueError", "no", ("tb",)), KernelIdle("a")
    )
    assert types(events) == ["CellQueued", "Error", "CellFinished"]


def test_the_time_limit_interrupts_then_kills():
    machine = ready(Policy(cell_seconds=2.0, grace_seconds=1.5))
    drive(machine, submit("a"), CellBegan("a", 1), now=100.0)
    assert machine.next_deadline() == 102.0
    events, effects = drive(machine, Tick(), now=102.0)
    assert types(events) == ["LimitReached", "Interrupted"]
    assert effects == [InterruptKernel(Reason.TIMEOUT, 103.5)]
    assert drive(machine, Tick(), now=103.4)[1] == []
    assert drive(machine, Tick(), now=103.5)[1] == [KillKernel()]
    events, effects = drive(machine, KernelExited("signalled", "killed"), now=103.6)
    assert [e.reason for e in events if isinstance(e, ev.CellFinished)] == [Reason.TIMEOUT]
    assert isinstance(effects[-1], StartKernel)


def test_a_limit_is_the_reason_also_when_the_code_has_caught_it():
    machine = ready(Policy(cell_seconds=2.0, grace_seconds=1.5))
    drive(machine, submit("a"), CellBegan("a", 1), now=100.0)
    drive(machine, Tick(), now=102.0)
    events, _ = drive(machine, KernelReplied("a", "ok", 1), KernelIdle("a"), now=102.1)
    (finished,) = (e for e in events if isinstance(e, ev.CellFinished))
    assert (finished.reason, finished.variables_kept) == (Reason.TIMEOUT, True)
    assert finished.message.startswith("cell_seconds: 2 s reached; the code caught the interrupt")


def test_an_interrupt_that_the_code_has_caught_is_no_failure():
    machine = ready()
    events, _ = drive(
        machine, submit("a"), CellBegan("a", 1), Interrupt(), KernelReplied("a", "ok", 1), KernelIdle("a")
    )
    assert [e.reason for e in events if isinstance(e, ev.CellFinished)] == [Reason.OK]


def test_an_interrupted_cell_keeps_its_variables():
    machine = ready()
    events, _ = drive(
        machine,
        submit("a"),
        CellBegan("a", 1),
        Interrupt(),
        KernelReplied("a", "error", 1, "KeyboardInterrupt"),
        KernelIdle("a"),
    )
    assert events[-1].reason is Reason.INTERRUPTED
    assert events[-1].variables_kept is True


ASK = Hold("ask", 60.0, "refuse", "ada")


def test_a_person_takes_over_decides_about_cells_and_lets_go():
    """The running cell ends as it would. Those behind it and new ones wait until somebody decides."""
    machine = ready(ordered=True)
    drive(machine, submit("a", "b"))
    events, effects = drive(machine, ASK)
    assert [(type(e), e.cell) for e in events[1:]] == [(ev.CellHeld, "b")]
    assert (events[0].mode, events[0].by, effects) == ("ask", "ada", [])
    _, effects = drive(machine, KernelReplied("a", "ok", 1), submit("c", "d"))
    assert effects == []
    assert [*machine.held] == ["b", "c", "d"]
    # The person's own cell is approved out of turn. A refused one never runs.
    events, effects = drive(machine, DecideCells(("c",), "approve", by="ada"))
    assert effects == [SendCell("c")]
    assert machine.queue.keys() == {"c"}
    events, _ = drive(machine, DecideCells(("b",), "refuse", "too slow", "ada"))
    assert [(type(e), e.cell) for e in events] == [(ev.CellDecided, "b"), (ev.CellFinished, "b")]
    assert (events[1].reason, events[1].message) == (Reason.CANCELLED, "Refused by ada: too slow")
    # Letting go runs what waits.
    events, _ = drive(machine, Hold("off", 60.0, "refuse", "bob"))
    assert [(type(e), e.by) for e in events] == [(ev.CellDecided, "bob"), (ev.SessionHeld, "bob")]
    assert [*machine.queue] == ["c", "d"]
    assert machine.held == {}
    events, effects = drive(machine, KernelReplied("c", "ok", 2))
    assert effects == [SendCell("d")]
    assert [e.execution_count for e in events if isinstance(e, ev.CellStarted)] == [3]


def test_a_failed_cell_cancels_the_held_cells_that_came_after_it():
    """Otherwise letting go runs a cell whose client had asked for it only if the one before it ends well."""
    machine = ready(ordered=True)
    drive(machine, submit("a", "b"), ASK, submit("c"))
    events, _ = drive(machine, KernelReplied("a", "error", 1, ename="E"))
    assert [(e.cell, e.reason) for e in events if isinstance(e, ev.CellFinished)] == [
        ("a", Reason.ERROR), ("b", Reason.CANCELLED), ("c", Reason.CANCELLED),
    ]  # fmt: skip
    # A cell of the person, sent last and approved first, cancels none of the cells that it overtook.
    drive(machine, submit("d", "own"), DecideCells(("own",), "approve"), KernelReplied("own", "error", 2, ename="E"))
    assert [*machine.held] == ["d"]


def test_no_held_cell_runs_or_is_forgotten_if_a_crash_cuts_off_the_events_of_a_request():
    for stimuli, last in (
        ([ASK], submit("a")),
        ([ASK, submit("a")], DecideCells(("a",), "refuse")),
        ([ASK, submit("a", "b"), DecideCells(("b",), "approve")], Hold("off", 60.0, "refuse")),
    ):
        machine = ready()
        drive(machine, *stimuli)
        decided = machine.decide(last, 0.0).events[0]
        machine.evolve(decided, 0.0)
        released = isinstance(last, Hold)
        assert ("a" in machine.queue, "a" in machine.held) == (released, not released)
        assert machine.hold is not None


def test_an_approved_cell_has_its_execution_count():
    machine = ready(ordered=True)
    events, _ = drive(machine, ASK, submit("a"), DecideCells(("a",), "approve"))
    assert [e.execution_count for e in events if isinstance(e, ev.CellStarted)] == [1]


@pytest.mark.parametrize(("then", "ends"), [("refuse", [Reason.CANCELLED]), ("approve", [])])
def test_a_cell_about_which_nobody_decides_is_decided_by_the_server(then, ends):
    machine = ready(Policy(idle_seconds=30.0))
    drive(machine, Hold("ask", 60.0, then, "ada"), submit("a"))
    assert machine.next_deadline() == 60.0  # and not 30: what waits for a person is not idle
    assert drive(machine, Tick(), now=59.0) == ([], [])
    events, effects = drive(machine, Tick(), now=60.0)
    assert (type(events[0]), events[0].decision, events[0].by) == (ev.CellDecided, then, "")
    assert [e.reason for e in events[1:]] == ends
    assert effects == ([SendCell("a")] if then == "approve" else [])


def test_a_hibernated_session_wakes_for_an_approved_cell_and_not_for_a_held_one():
    machine = ready()
    drive(machine, BeginSwitch(), StateSaved(ev.Hibernated()))
    assert drive(machine, ASK, submit("a"))[1] == []
    assert drive(machine, DecideCells(("a",), "approve"))[1] == [ResumeSaved()]


@pytest.mark.parametrize("end", [Close("x"), Restart(), StartFailed("m")])
def test_held_cells_end_with_their_kernel(end):
    machine = ready() if not isinstance(end, StartFailed) else Machine(Policy())
    drive(machine, ASK, submit("a"))
    events, _ = drive(machine, end)
    assert [e.cell for e in events if isinstance(e, ev.CellFinished)] == ["a"]
    assert machine.held == {}


def test_a_decision_about_a_cell_that_is_not_held_changes_nothing():
    machine = ready()
    drive(machine, ASK, submit("a"))
    with pytest.raises(Conflict, match="not held"):
        machine.decide(DecideCells(("a", "z"), "approve"), 0.0)
    assert [*machine.held] == ["a"]
    drive(machine, Close("x"))
    for stimulus in (ASK, DecideCells(("a",), "approve")):
        with pytest.raises(SessionClosed):
            machine.decide(stimulus, 0.0)
    assert drive(ready(), Hold("off", 1.0, "refuse")) == ([], [])


def test_a_cell_that_ends_well_in_spite_of_an_interrupt_is_ok():
    machine = ready()
    events, _ = drive(machine, submit("a"), Interrupt(), KernelReplied("a", "ok"), KernelIdle("a"))
    assert events[-1].reason is Reason.OK


def test_death_ends_the_cell_with_its_cause_and_starts_a_new_kernel():
    machine = ready()
    drive(machine, submit("a"), CellBegan("a", 1))
    events, effects = drive(machine, KernelExited("signalled", "segmentation fault", signal=11))
    assert types(events) == ["KernelDied", "CellFinished"]
    assert events[1].reason is Reason.KERNEL_DIED
    assert events[1].variables_kept is False
    assert isinstance(effects[-1], StartKernel)
    assert machine.state is SessionState.STARTING
    _, effects = drive(machine, submit("b"), KernelReady(ev.KernelRestarted()))
    assert effects == [SendCell("b")]


def test_death_with_a_checkpoint_wakes_it():
    machine = ready()
    drive(machine, RecordEvents((ev.CheckpointMade(checkpoint="p"),)), submit("a"), CellBegan("a", 1))
    events, effects = drive(machine, KernelExited("memory", "512 MiB reached", restorable=True))
    assert types(events) == ["LimitReached", "KernelDied", "CellFinished"]
    assert (events[0].limit, events[0].cell, events[0].enforced_by) == ("memory_bytes", "a", "linux")
    assert events[-1].reason is Reason.MEMORY
    assert events[-1].variables_kept is True
    assert effects == [WakeCheckpoint()]
    assert machine.state is SessionState.RESTORING


def test_a_death_names_the_cells_that_have_no_checkpoint():
    machine = ready()
    for cell, kind in (("a", "made"), ("b", "none"), ("c", "none")):
        drive(machine, submit(cell), CellBegan(cell, 1), KernelReplied(cell, "ok", 1), KernelIdle(cell))
        if kind == "made":
            drive(machine, RecordEvents((ev.CheckpointMade(checkpoint="p", after_cell="a"),)))
    events, _ = drive(machine, submit("d"), CellBegan("d", 4), KernelExited("signalled", "died", restorable=True))
    assert events[-1].variables_kept is True
    assert events[-1].message == (
        "died; variables are those of an earlier checkpoint, without the effects of these cells: b, c."
    )


def test_a_dead_session_says_so_and_can_be_restarted():
    machine = ready()
    drive(machine, submit("a"), KernelExited("lost", "gone"), StartFailed("no host"))
    assert machine.state is SessionState.DEAD
    with pytest.raises(KernelDead):
        machine.decide(submit("b"), 0.0)
    drive(machine, Restart(), KernelReady(ev.KernelRestarted()))
    assert machine.state is SessionState.IDLE


def test_close_ends_every_cell_and_then_nothing_is_taken():
    machine = ready()
    drive(machine, submit("a"), submit("b"), CellBegan("a", 1))
    events, effects = drive(machine, Close("done"))
    assert [e.reason for e in events[:2]] == [Reason.SESSION_CLOSED] * 2
    assert types(events)[-1] == "SessionClosed"
    assert effects == [EndKernel()]
    with pytest.raises(SessionClosed):
        machine.decide(submit("c"), 0.0)
    assert machine.decide(submit("a"), 0.0).events == []


def test_the_queue_is_bounded_and_a_batch_is_taken_whole_or_not():
    machine = ready(Policy(max_queued=3))
    drive(machine, submit("a", "b"))
    before = copy.deepcopy(machine.__dict__)
    with pytest.raises(QuotaExceeded):
        machine.decide(submit("c", "d"), 0.0)
    assert machine.__dict__ == before


def test_the_bytes_of_the_queue_are_bounded():
    def large(cell, code="", **more):
        return Submit((CellRequest(code=code, **more),), (cell,), "p")

    machine = ready()
    half = "#" * (MAX_WAITING_BYTES // 2 + 1)
    drive(machine, large("a", half), large("b", "1"))
    for request in ({"code": half}, {"metadata": {"x": half}}, {"user_expressions": {"x": half}}):
        with pytest.raises(QuotaExceeded, match="bytes"):
            machine.decide(large("c", **request), 0.0)
    drive(machine, ASK)
    with pytest.raises(QuotaExceeded, match="bytes"):
        machine.decide(large("c", half), 0.0)
    drive(machine, CellBegan("a", 1), KernelReplied("a", "ok", 1), KernelIdle("a"))
    drive(machine, DecideCells(("b",), "refuse"))
    assert machine.waiting_bytes == 0
    drive(machine, large("d", half * 3))


def test_idle_and_lifetime_expire():
    machine = ready(Policy(idle_seconds=10, lifetime_seconds=100))
    events, _ = drive(machine, Tick(), now=10.0)
    assert events[-1].reason == "idle"
    machine = ready(Policy(idle_seconds=None, lifetime_seconds=100))
    drive(machine, submit("a"), now=99.0)
    events, _ = drive(machine, Tick(), now=100.0)
    assert events[-1].reason == "lifetime"


def state_of(machine):
    return copy.deepcopy({name: value for name, value in machine.__dict__.items() if name != "story"})


def asking(secret=False):
    machine = ordered()
    drive(machine, submit("a"), RecordEvents((ev.InputRequested(cell="a", seq=5, prompt="? ", password=secret),)))
    return machine


def test_a_cell_that_waits_is_answered_once():
    machine = asking()
    assert machine.waiting_for == Waiting("input", "5", "a")
    events, effects = drive(machine, Answer("a", "ada"))
    assert (types(events), events[0].text, effects) == (["InputGiven"], "ada", [SendAnswer("a", "ada", "i_5")])
    assert machine.waiting_for is None
    with pytest.raises(Conflict):
        machine.decide(Answer("a", "again"), 0.0)


def test_an_answer_that_the_kernel_did_not_get_is_sent_again_while_its_cell_waits():
    machine = asking()
    assert drive(machine, AnswerLost()) == ([], []), "nothing was answered"
    drive(machine, Answer("a", "ada"))
    assert drive(machine, AnswerLost()) == ([], [SendAnswer("a", "ada", "i_5")])
    drive(machine, RecordEvents((ev.InputRequested(cell="a", seq=9, prompt="? "),)))
    assert drive(machine, AnswerLost()) == ([], []), "it asks again, so it has the answer"


def test_a_secret_answer_that_the_kernel_did_not_get_is_asked_for_again():
    machine = asking(secret=True)
    drive(machine, Answer("a", "hunter2"))
    drive(machine, AnswerLost())
    assert machine.waiting_for == Waiting("input", "5", "a", secret=True)
    assert drive(machine, Answer("a", "hunter2"))[1] == [SendAnswer("a", "hunter2", "i_5")]


def test_a_secret_answer_is_sent_and_not_recorded():
    events, effects = drive(asking(secret=True), Answer("a", "hunter2"))
    assert (events[0].text, effects) == (None, [SendAnswer("a", "hunter2", "i_5")])


@pytest.mark.parametrize(
    "end", [KernelReplied("a", "ok", 1), KernelExited("signalled", "gone"), Restart(), Close("done")]
)
def test_a_cell_that_has_ended_waits_for_no_answer(end):
    machine = asking()
    drive(machine, end)
    assert machine.waiting_for is None
    with pytest.raises(Conflict):
        machine.decide(Answer("a", "late"), 0.0)


def test_only_the_running_cell_can_ask():
    machine = ordered()
    drive(machine, submit("a", "b"), RecordEvents((ev.InputRequested(cell="b", seq=5),)))
    assert machine.waiting_for is None


def test_what_a_cell_waits_for_is_rebuilt_from_the_log():
    machine, journal = ready(ordered=True), [ev.SessionStarted()]
    for stimulus in (submit("a"), RecordEvents((ev.InputRequested(cell="a", seq=5),))):
        journal += drive(machine, stimulus)[0]
    again = Machine(machine.policy)
    for event in journal:
        again.evolve(event, 0.0)
    drive(again, JournalReplayed(), DeliveryKnown(frozenset("a"), ordered=True))
    assert again.waiting_for == machine.waiting_for is not None


def hibernated():
    machine = ready()
    drive(machine, BeginSwitch(), StateSaved(ev.Hibernated(saved=1)))
    return machine


def test_a_hibernated_session_resumes_for_a_cell():
    machine = hibernated()
    assert (machine.state, machine.decide(Tick(), 1.0).effects) == (SessionState.HIBERNATED, [])
    assert drive(machine, submit("a"))[1] == [ResumeSaved()]
    assert machine.state is SessionState.RESTORING
    assert SendCell("a") in drive(machine, KernelReady(ev.Woken()))[1]


def test_a_hibernated_session_resumes_on_demand_and_only_then():
    machine = hibernated()
    assert drive(machine, Resume())[1] == [ResumeSaved()]
    assert drive(machine, Resume(), KernelReady(ev.Woken()), Resume())[1] == []
    assert machine.state is SessionState.IDLE


def test_a_lease_decides_whether_a_hibernated_session_is_paused():
    machine = hibernated()
    drive(machine, RecordEvents((ev.Leased(seconds=9, paused=True),)))
    assert machine.state is SessionState.PAUSED
    drive(machine, RecordEvents((ev.Leased(seconds=9),)))
    assert machine.state is SessionState.HIBERNATED
    machine = ready()
    drive(machine, RecordEvents((ev.Leased(seconds=9, paused=True),)))
    assert machine.state is SessionState.IDLE, "its variables are in memory still"
    drive(machine, BeginSwitch(), StateSaved(ev.Hibernated()))
    assert machine.state is SessionState.PAUSED


def test_a_paused_session_hibernates_only_without_programs():
    machine = ready()
    drive(machine, RecordEvents((ev.ProgramStarted(program=7), ev.Leased(seconds=9, paused=True))))
    assert drive(machine, Tick(), now=1.0)[1] == []
    drive(machine, RecordEvents((ev.ProgramEnded(program=7),)), now=2.0)
    assert drive(machine, Tick(), now=2.0)[1] == [Hibernate()]


@pytest.mark.parametrize(
    ("after", "state"),
    [
        ([], SessionState.HIBERNATED),
        ([ev.Woken()], SessionState.IDLE),
        ([ev.KernelRestarted()], SessionState.IDLE),
        ([ev.KernelDied(cause="start")], SessionState.DEAD),
        ([ev.KernelDied(cause="start"), ev.KernelRestarted()], SessionState.IDLE),
        ([ev.Leased(seconds=9, paused=True)], SessionState.PAUSED),
        ([ev.Leased(seconds=9, paused=True), ev.Leased(seconds=9), ev.Woken()], SessionState.IDLE),
        ([ev.CellQueued(cell="a", code="")], SessionState.HIBERNATED),
        ([ev.SessionClosed()], SessionState.CLOSED),
    ],
)
def test_a_journal_with_a_hibernation_replays_into_its_state(after, state):
    machine = Machine(Policy())
    for event in (ev.SessionStarted(), ev.Hibernated(), *after):
        machine.evolve(event, 0.0)
    assert machine.state is state


def test_an_invariant_that_is_broken_is_named():
    machine = ready()
    machine.waiting_for = Waiting("input", "1", "a")
    with pytest.raises(InvariantError, match="only the running cell waits"):
        drive(machine, Tick())


def test_a_story_tells_each_transition_without_what_it_carries():
    machine = ready()
    machine.story = Story()
    drive(machine, submit("a"), Interrupt())
    first, second = str(machine.story).splitlines()
    assert first == "1 Submit: idle -> busy, events CellQueued, effects SendCell"
    assert second == "2 Interrupt: busy -> busy, events Interrupted, effects InterruptKernel"


STIMULI = st.one_of(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True).map(lambda cs: submit(*cs)),
    st.sampled_from("abcdef").map(lambda c: submit(c, on_error="continue")),
    st.builds(CellBegan, st.sampled_from("abcdef"), st.integers(0, 9)),
    st.builds(KernelReplied, st.sampled_from("abcdef"), st.sampled_from(["ok", "error", "aborted"])),
    st.builds(KernelIdle, st.sampled_from("abcdef")),
    st.builds(KernelExited, st.just("signalled"), st.just("m"), restorable=st.booleans()),
    st.just(KernelReady(ev.KernelRestarted())),
    st.just(StartFailed("m")),
    st.just(Interrupt()),
    st.builds(Hold, st.sampled_from(["ask", "off"]), st.just(60.0), st.sampled_from(["refuse", "approve"])),
    st.builds(lambda c, d: DecideCells((c,), d), st.sampled_from("abcdef"), st.sampled_from(["approve", "refuse"])),
    st.just(BeginSwitch()),
    st.just(AbortSwitch()),
    st.just(StateSaved(ev.Hibernated())),
    st.just(KernelReady(ev.Woken())),
    st.just(Resume()),
    st.builds(lambda paused: RecordEvents((ev.Leased(seconds=400, paused=paused),)), st.booleans()),
    st.builds(lambda c: RecordEvents((ev.InputRequested(cell=c, seq=7),)), st.sampled_from("abcdef")),
    st.builds(Answer, st.sampled_from("abcdef"), st.just("text")),
    st.builds(BeginProgram, st.integers(-3, -1)),
    st.builds(ProgramBegun, st.integers(-3, -1)),
    st.just(Restart()),
    st.just(Close("x")),
    st.just(Tick()),
)


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(STIMULI, st.floats(0, 500)), max_size=40))
def test_whatever_happens_each_cell_ends_at_most_once_and_replay_agrees(steps):
    policy = Policy(max_queued=4, cell_seconds=20, idle_seconds=300, lifetime_seconds=2000)
    machine, story = ready(policy), Story()
    machine.story = story
    now, journal = 0.0, []
    for stimulus, passed in steps:
        now += passed
        before = state_of(machine)
        state = machine.state
        try:
            outcome = machine.decide(stimulus, now)
        except KernelsvcError:
            assert state_of(machine) == before
            continue
        assert state_of(machine) == before, "decide changed the machine"
        if isinstance(stimulus, KernelReady) and state not in (SessionState.STARTING, SessionState.RESTORING):
            continue  # the session starts kernels only when the machine asked for one
        machine.commit(outcome, now)
        journal += outcome.events
    queued = [e.cell for e in journal if isinstance(e, ev.CellQueued)]
    ended = [e.cell for e in journal if isinstance(e, ev.CellFinished)]
    assert len(queued) == len(set(queued))
    assert len(ended) == len(set(ended))
    assert set(queued) - set(ended) == {*machine.queue, *machine.held}
    again = Machine(machine.policy)
    again.evolve(ev.SessionStarted(), 0.0)
    for event in journal:
        again.evolve(event, 0.0)
    assert list(again.queue) == list(machine.queue)
    assert list(again.held) == list(machine.held)
    assert {c: r.reason for c, r in again.cells.items()} == {c: r.reason for c, r in machine.cells.items()}
    assert again.waiting_for == machine.waiting_for
    assert machine.state is not SessionState.CLOSED or not machine.queue
    if machine.state is SessionState.CLOSED or machine.hibernated:
        assert again.state is machine.state
    replayed = ready(policy)
    replayed.replay(story.transitions)
    assert state_of(replayed) == state_of(machine)


def test_every_state_has_a_row():
    assert set(MOVES) == set(SessionState)


def print_some(machine, size, cell="a"):
    return drive(machine, RecordEvents((ev.Stream(cell=cell, name="stdout", text="x" * size),)), CheckOutputLimit())


def test_output_without_end_is_interrupted_and_then_killed():
    machine = ready(Policy(max_cell_output_bytes=100, grace_seconds=1.0))
    drive(machine, submit("a"), CellBegan("a", 1, 1))
    assert print_some(machine, 100) == ([machine_last(100)], [])
    events, effects = print_some(machine, 1)
    assert types(events) == ["Stream", "LimitReached", "Interrupted"]
    assert (events[1].limit, events[1].value, events[1].bound) == ("max_cell_output_bytes", 101, 100)
    assert types(effects) == ["InterruptKernel"]
    assert print_some(machine, 500)[1] == [], "said once"
    assert types(drive(machine, Tick(), now=2.0)[1]) == ["KillKernel"]
    events, _ = drive(machine, KernelExited("signalled", "SIGKILL"), now=2.0)
    end = next(e for e in events if isinstance(e, ev.CellFinished))
    assert end.reason is Reason.INTERRUPTED
    assert "max_cell_output_bytes: 100 bytes" in end.message


def machine_last(size):
    return ev.Stream(cell="a", name="stdout", text="x" * size)


def test_output_between_cells_without_end_ends_the_kernel():
    machine = ready(Policy(max_cell_output_bytes=100))
    events, effects = print_some(machine, 101, cell="nobody's")
    assert types(events) == ["Stream", "LimitReached"]
    assert types(effects) == ["KillKernel"]
    assert print_some(machine, 101, cell="nobody's")[1] == []


def test_each_cell_may_print_as_much_as_the_log_takes():
    machine = ready(Policy(max_cell_output_bytes=100))
    for cell in "abc":
        drive(machine, submit(cell), CellBegan(cell, 1, 1))
        assert print_some(machine, 90, cell)[1] == []
        drive(machine, KernelReplied(cell, "ok", 1, None), KernelIdle(cell, None))
