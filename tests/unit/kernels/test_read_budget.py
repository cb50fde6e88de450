"""The share of the event loop that each kernel gets."""

from __future__ import annotations

import pytest

from kernelsvc.kernels.read_budget import (
    ALONE_SECONDS,
    BURST_SECONDS,
    MAX_PAUSE_SECONDS,
    MAX_READ,
    MIN_READ,
    QUANTUM_SECONDS,
    REPORT_AFTER,
    SHARE,
    TOTAL_SHARE,
    ReadBudget,
    ReadBudgets,
    ReadPauses,
)

READ = 0.01


def flood(budgets: ReadBudgets, count: int, seconds: float, *, quiet: bool = True) -> dict[str, float]:
    """Kernels that always have output, in turns, and one that has some twice a second. Return the time of each."""
    now = 100.0
    flooders = [budgets.open(f"k{n}") for n in range(count)]
    other = budgets.open("other")
    used = dict.fromkeys([each.kernel for each in flooders], 0.0)
    free_at = dict.fromkeys(used, now)
    end, spoke = now + seconds, 0.0
    while now < end:
        if quiet and now - spoke > ALONE_SECONDS / 2:
            spoke = now
            now += 0.0002
            assert other.charge(0.0002, now) == 0.0, "a kernel that sends little never waits"
        ready = [each for each in flooders if free_at[each.kernel] <= now]
        for each in ready:
            now += READ
            used[each.kernel] += READ
            free_at[each.kernel] = now + each.charge(READ, now)
        if not ready:
            now += 0.001
    return used


def test_a_flood_gets_its_share_while_another_kernel_is_active() -> None:
    used = flood(ReadBudgets(), 1, 20)
    assert used["k0"] == pytest.approx(20 * SHARE, abs=BURST_SECONDS + READ + 0.3)


@pytest.mark.parametrize("count", [2, 4, 10])
def test_all_floods_together_leave_half_of_the_thread(count: int) -> None:
    used = flood(ReadBudgets(), count, 40)
    assert sum(used.values()) <= 40 * TOTAL_SHARE * 1.1 + count * (BURST_SECONDS + READ)
    assert max(used.values()) < 2 * min(used.values())


def test_a_kernel_alone_is_read_without_pauses() -> None:
    budgets = ReadBudgets()
    used = flood(budgets, 1, 5, quiet=False)
    assert used["k0"] == pytest.approx(5, abs=2 * READ)
    assert not budgets.pauses


def test_an_earlier_flood_alone_is_no_debt_when_another_kernel_comes() -> None:
    budgets = ReadBudgets()
    first, other = budgets.open("first"), budgets.open("other")
    now = 0.0
    for _ in range(1000):
        now += READ
        assert not first.charge(READ, now)
    other.charge(0.001, now)
    assert first.charge(READ, now + READ) == pytest.approx(READ / SHARE - READ, abs=READ)


def test_a_read_that_takes_long_is_paid_in_full() -> None:
    """Its pause is limited, and the rest of the debt is kept."""
    budgets = ReadBudgets()
    budget, other = budgets.open("k"), budgets.open("other")
    other.charge(0.001, 1.0)
    assert budget.charge(3.0, 4.1) == MAX_PAUSE_SECONDS
    other.charge(0.001, 9.0)
    rest = (3.0 - BURST_SECONDS) / SHARE - MAX_PAUSE_SECONDS
    assert budget.charge(0.0, 4.1 + MAX_PAUSE_SECONDS) == pytest.approx(min(MAX_PAUSE_SECONDS, rest))


def test_reads_shrink_while_they_take_long_and_grow_again() -> None:
    budget = ReadBudgets().open("k")
    for _ in range(20):
        budget.charge(2 * QUANTUM_SECONDS, 1.0)
    assert budget.read_size == MIN_READ
    for _ in range(20):
        budget.charge(QUANTUM_SECONDS / 10, 1.0)
    assert budget.read_size == MAX_READ


def test_pauses_are_counted_and_reported_once_a_minute() -> None:
    reports: list[ReadPauses] = []
    budgets = ReadBudgets(reports.append)
    flood(budgets, 1, 50)
    assert [each.kernel for each in reports] == ["k0"]
    assert reports[0].paused_seconds >= REPORT_AFTER
    found = budgets.statistics()
    assert found["kernel_read_pauses"] == budgets.pauses > 10
    assert found["kernel_read_seconds"] > 50 * SHARE * 0.8
    assert found["kernel_read_paused_seconds"] == pytest.approx(50 * (1 - SHARE), rel=0.2)


def test_a_kernel_that_has_ended_takes_no_share() -> None:
    budgets = ReadBudgets()
    ended = [budgets.open(f"k{n}") for n in range(8)]
    other, last = budgets.open("other"), budgets.open("last")

    def debt(budget: ReadBudget, now: float) -> float:
        other.charge(0.0001, now)
        return budget.charge(1.0, now)

    for each in ended:
        debt(each, 1.0)
        each.close()
    assert debt(last, 1.1) == pytest.approx((1.0 - BURST_SECONDS) / SHARE)
