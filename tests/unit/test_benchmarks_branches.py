"""What the benchmark of branches says of its samples."""

from __future__ import annotations

from benchmarks import report
from benchmarks.branches import GOALS, Sheet, about, missed, table


def test_the_table_has_the_median_the_goal_and_the_other_ways() -> None:
    row = "16 branches, until each has answered"
    sheet = Sheet()
    for value in (100.0, 300.0, 900.0):
        sheet.add(row, value)
    sheet.beside(row, "dill", 3000.0)
    lines = table(sheet).splitlines()
    assert len(lines) == 3
    assert "**300 ms** | 400 ms |" in lines[2]
    assert "3,000 ms (10x)" in lines[2]
    assert missed(sheet) == []
    sheet.add(row, 5000.0)
    sheet.add(row, 5000.0)
    assert missed(sheet) == [f"missed: {row}: 900 ms, goal 400"]


def test_a_row_without_a_goal_is_never_missed() -> None:
    sheet = Sheet()
    for row in GOALS:
        sheet.add(row, 1e9)
    assert len(missed(sheet)) == sum(1 for goal, _ in GOALS.values() if goal)


def test_the_machine_and_the_other_ways_are_described() -> None:
    here = report.machine()
    text = about(here, 7)
    assert all(str(here[name]) in text for name in ("cpu", "cores", "memory_gib", "system", "python"))
    assert "--rounds 7" in text
    assert "dill" in text
