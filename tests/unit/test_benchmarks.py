"""What the benchmarks say of their samples; that they run is ``tests/acceptance/test_benchmarks_run.py``."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.counts import Counts
from benchmarks.distance import far
from benchmarks.figures import MEASURES, Measure, Samples, figure, percentile, ratio, shown
from benchmarks.sections import SECTIONS
from benchmarks.subjects import JupyterCell


def test_percentiles_are_samples() -> None:
    samples = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(samples, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_no_samples_give_no_figure() -> None:
    assert figure(Samples().summary(), MEASURES[0]) is None
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


def data(**subjects: dict[str, list[float]]) -> dict[str, Any]:
    """A run's document; the subjects are ours and the rival."""
    names = {"ours": report.OURS, "rival": report.RIVAL}
    found = {names[name]: Samples(values).summary() for name, values in subjects.items()}
    facts = {"date": "2026-01-01", "machine": report.machine(), "versions": {}, "settings": "a few"}
    return report.document(found, {"cell": 0.2}, facts)


def test_the_table_has_the_ratio_to_the_rival_and_leaves_out_what_nobody_measured() -> None:
    lines = report.table(data(ours={"cell": [2.0]}, rival={"cell": [48.0]})).splitlines()
    assert len(lines) == 5, "p50, p99 and p99.9"
    assert lines[2].endswith("| **2** | 48 | 24.0x | 0.2 |")


def test_the_readme_shows_the_headline_rows_and_one_peer() -> None:
    found = data(ours={"cell": [2.0], "first_cell": [3.0]}, rival={"cell": [48.0]})
    rows = report.headlines(found).splitlines()
    assert rows[2:] == ["| round trip of the cell `1+1`, p50 (ms) | **2** | 48 |"]
    assert "docs/benchmarks/latest.md" in report.excerpt(found)


def test_five_measures_are_headlines() -> None:
    assert sum(bool(measure.headline) for measure in MEASURES) == 5


def test_goals_are_told_met_or_missed() -> None:
    told = report.goals(Samples({"cell": [1.0], "create": [26.0]}).summary())
    assert [(line.split()[0], "p50" in line) for line in told] == [
        ("MISSED", True),
        ("met", False),
        ("met", True),
        ("met", False),
    ]


def test_a_part_that_is_measured_again_is_put_over_the_rest_and_said() -> None:
    old = data(ours={"cell": [2.0], "create": [20.0]}, rival={"cell": [48.0]})
    new = data(ours={"cell": [1.0]})
    both = report.merged(old, new, ["cells"])
    assert both["subjects"][report.OURS]["cell"]["p50"] == 1.0
    assert both["subjects"][report.OURS]["create"]["p50"] == 20.0
    assert both["subjects"][report.RIVAL]["cell"]["p50"] == 48.0
    assert "cells again on 2026-01-01" in report.conditions(both)
    with pytest.raises(ValueError, match="another machine"):
        report.merged({**old, "machine": {**old["machine"], "cores": 999}}, new, ["cells"])


def test_plots_are_drawn_from_the_document_alone(tmp_path: Path) -> None:
    found = data(
        ours={"cell": [1.0, 2.0], "busy_10": [500.0], "dense_10": [20.0], "dense_100": [12.0]},
        rival={"cell": [48.0], "idle_session": [90.0]},
    )
    for path in report.draw(json.loads(json.dumps(found)), tmp_path):
        assert "<svg" in path.read_text()


def test_every_measure_has_a_name_of_its_own() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)


def test_sections_have_names_of_their_own_and_counts_for_their_rounds() -> None:
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    assert all(hasattr(Counts(), section.rounds) for section in SECTIONS if section.rounds)


async def test_a_far_client_is_as_far_as_it_should_be() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, far(server.sockets[0].getsockname()[1], 40) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.perf_counter()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert time.perf_counter() - begun >= 0.04
        writer.close()


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
