"""When an automatic copy is made."""

from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.checkpoint_policy import (
    ACTIVE_SECONDS,
    BURST_SECONDS,
    COST,
    MAX_STRETCH,
    PAUSE,
    REST,
    SHARE,
    SHORT_CELL,
    STREAK,
    WORTH,
    CheckpointBudget,
    CheckpointSchedule,
)

CORES = 2
FULL = SHARE * CORES * BURST_SECONDS


def account() -> CheckpointBudget:
    return CheckpointBudget(CORES, 0.0)


def loaded(sessions: int) -> CheckpointBudget:
    made = account()
    for number in range(sessions):
        made.sent(f"s{number}", 0.0)
    return made


# --- one who thinks -----------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(PAUSE, 60.0), st.floats(0.0, 1.0)), min_size=1, max_size=200))
def test_a_lone_user_who_thinks_between_cells_has_a_copy_after_each(cells: list[tuple[float, float]]) -> None:
    made, habit, now = account(), CheckpointSchedule(), 0.0
    for thinks, runs in cells:
        now += thinks
        habit.sent(now, made.load(now))
        made.sent("s", now)
        now += runs
        habit.ended(now, runs, runs, made.load(now))
        assert habit.idle_delay(made.load(now)) == 0.0
        assert made.reserve(now, habit.cost) == 0.0
        habit.saved(0.005)


def test_the_first_cells_in_a_row_are_copied_and_then_it_is_a_stream() -> None:
    habit = CheckpointSchedule()
    rests = []
    for number in range(STREAK + 2):
        habit.sent(number * 0.002, 1.0)
        habit.ended(number * 0.002 + 0.001, 0.001, 0.001, 1.0)
        rests.append(habit.idle_delay(1.0))
    assert rests == [0.0] * STREAK + [REST] * 2
    habit.sent(10.0, 1.0)
    assert habit.idle_delay(1.0) == 0.0


# --- crowds ---------------------------------------------------------------------------------


def test_on_a_crowded_machine_a_stream_shows_sooner_and_rests_are_longer() -> None:
    made = loaded(100)
    assert made.load(0.5) == 50.0
    habit = CheckpointSchedule()
    habit.ended(0.0, 0.05, 0.001, 50.0)
    habit.sent(0.3, 50.0)  # a pause, but everything takes longer here
    assert habit.idle_delay(50.0) == REST * MAX_STRETCH
    assert habit.idle_delay(1.0) == 0.0
    habit.sent(5.0, 50.0)
    assert habit.idle_delay(50.0) == 0.0


def test_who_has_not_asked_lately_makes_no_crowd() -> None:
    made = loaded(100)
    assert made.load(ACTIVE_SECONDS) == 50.0
    for number in range(10):
        made.sent(f"s{number}", ACTIVE_SECONDS)
    assert made.load(ACTIVE_SECONDS + 0.1) == 5.0
    assert made.load(3 * ACTIVE_SECONDS) == 1.0


# --- worth ----------------------------------------------------------------------------------


def test_long_work_is_worth_a_copy_at_once() -> None:
    habit = CheckpointSchedule()
    habit.ended(100.0, WORTH * COST, None, 1.0)
    assert habit.worth_it
    habit.saved(0.1)
    assert not habit.worth_it
    habit.ended(200.0, WORTH * COST, None, 1.0)
    assert not habit.worth_it, "this kernel's copies are dearer"


def test_a_stream_of_trivial_cells_is_copied_once_in_hundreds() -> None:
    habit, copies, now = CheckpointSchedule(), 0, 0.0
    for _ in range(3000):
        now += 0.003
        habit.ended(now, 0.0025, 0.0006, 1.0)
        if habit.worth_it:
            copies += 1
            habit.saved(0.005)
    assert 5 <= copies <= 15
    habit.ended(now, SHORT_CELL, 0.0006, 1.0)
    assert habit.unsaved >= SHORT_CELL, "a cell that waits for something was worth its time"


def test_standing_in_a_queue_is_no_work() -> None:
    habit = CheckpointSchedule()
    habit.ended(100.0, 1.0, 0.0005, 50.0)
    assert habit.unsaved == 0.02


def test_a_kernel_that_lies_about_its_time_gains_nothing() -> None:
    habit = CheckpointSchedule()
    habit.ended(0.0, 0.001, 1e9, 1.0)
    assert habit.unsaved == 0.001
    habit.saved(-5.0)
    assert habit.cost == COST


# --- the account ------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.001, 0.5), st.booleans(), st.booleans()), max_size=300)


@given(steps)
def test_copies_never_take_more_than_their_share(moves: list[tuple[float, float, bool, bool]]) -> None:
    """Whatever sessions ask for, at any moment no more than the share of the past, and what was saved up, twice over
    for those that are worth it, is spent."""
    made, now, spent = account(), 0.0, []
    for passes, cost, worth, gives_back in moves:
        now += passes
        if worth:
            if made.try_spend(now, cost):
                spent.append((now, cost))
            continue
        wait = made.reserve(now, cost)
        assert wait >= 0.0
        if gives_back:
            made.refund(cost)
        else:
            spent.append((now + wait, cost))
    for moment, _ in spent:
        taken = sum(cost for at, cost in spent if at <= moment)
        assert taken <= SHARE * CORES * moment + 2 * FULL + 1e-6


@given(st.integers(1, 400))
def test_turns_come_in_order_and_none_is_forgotten(sessions: int) -> None:
    made = account()
    waits = [made.reserve(0.0, COST) for _ in range(sessions)]
    assert waits == sorted(waits)
    assert waits[-1] <= max(0.0, (sessions * COST - FULL) / (SHARE * CORES)) + 1e-9
    assert made.reserve(waits[-1] + COST / (SHARE * CORES) + 1e-9, COST) == 0.0


def test_a_clock_that_stands_still_pays_nothing_and_the_account_has_a_top() -> None:
    made = account()
    assert made.credit(1e6) == FULL
    made.reserve(1e6, FULL)
    assert made.credit(1e6) == 0.0
    assert made.credit(1e6 - 5) == 0.0
    made.refund(10 * FULL)
    assert made.credit(1e6) == FULL
