"""What the benchmarks say of their samples; that they run is ``tests/acceptance/test_benchmarks_run.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.figures import MEASURES, Measure, Samples, percentile, ratio, shown
from benchmarks.subjects import JupyterCell


def test_percentiles_are_samples() -> None:
    samples = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(samples, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_no_samples_give_no_figure() -> None:
    assert Samples().figure(MEASURES[0]) is None
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_a_ratio_says_how_many_times_better_we_are() -> None:
    low, high = Measure("a", "a"), Measure("b", "b", higher_is_better=True)
    assert ratio(2.0, 50.0, low) == 25
    assert ratio(500.0, 50.0, high) == 10
    assert ratio(None, 50.0, low) is None
    assert ratio(0.0, 50.0, low) is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (1.2345, "1.23"), (47.81, "47.8"), (1234.5, "1,234")]
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_the_table_has_the_ratio_to_the_rival_and_leaves_out_what_nobody_measured() -> None:
    subjects = {report.OURS: Samples({"cell": [2.0]}), report.RIVAL: Samples({"cell": [48.0]})}
    lines = report.table(subjects, {"cell": 0.2}).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("| **2** | 48 | 24.0x | 0.2 |")


def test_goals_are_told_met_or_missed() -> None:
    told = report.goals(Samples({"cell": [2.0], "create": [21.0]}))
    assert [(line.split()[0], "p50" in line) for line in told] == [("MISSED", True), ("met", False), ("met", True)]


def test_the_page_keeps_all_but_the_part_between_its_markers() -> None:
    page = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    assert report.between(page, "new\n") == f"above\n{report.BEGIN}\nnew\n{report.END}\nbelow\n"
    with pytest.raises(ValueError, match="markers"):
        report.between("no markers here", "new")


def message(kind: str, parent: str, **content: object) -> dict[str, object]:
    return {"header": {"msg_type": kind}, "parent_header": {"msg_id": parent}, "content": content}


def test_a_peers_cell_has_ended_with_its_reply_and_idle_whichever_is_first() -> None:
    cell = JupyterCell("me", keep=True)
    assert not cell.saw(message("status", "me", execution_state="idle"))
    assert not cell.saw(message("execute_reply", "another", status="ok"))
    assert not cell.saw(message("stream", "me", name="stdout", text="1\n2\n"))
    assert cell.saw(message("execute_reply", "me", status="ok"))
    ran = cell.result()
    assert (ran.ended, ran.lines, ran.output) == (True, 2, "1\n2\n")


def test_the_readme_has_a_place_for_the_table() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert "new figures" in report.between(readme, "new figures")
