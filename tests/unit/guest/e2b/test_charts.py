"""Figures and tables read back as data."""

from __future__ import annotations

import datetime
import decimal
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")

import matplotlib.pyplot as plt

from kernelsvc.guest.e2b import charts as e2b_charts


@pytest.fixture
def ax() -> Any:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def chart(ax: Any) -> dict[str, Any]:
    ax.figure.canvas.draw()
    found = e2b_charts.chart(ax.figure)
    assert found is not None
    return found


def test_a_line_chart_has_its_points_labels_units_and_ticks(ax: Any) -> None:
    ax.plot([1, 2, 3], [1, 4, 9], label="a")
    ax.plot([1, 2], [float("nan"), 2])
    ax.axhline(2)
    ax.set(title="T", xlabel="time (s)", ylabel="way [m]")
    found = chart(ax)
    assert (found["type"], found["title"]) == ("line", "T")
    assert [found[name] for name in ("x_label", "x_unit", "y_unit")] == ["time (s)", "s", "m"]
    assert found["elements"] == [
        {"label": "a", "points": [[1, 1], [2, 4], [3, 9]]},
        {"label": "Line 1", "points": [[1, None], [2, 2.0]]},
    ]
    assert len(found["x_ticks"]) == len(found["x_tick_labels"])
    assert found["x_scale"] == found["y_scale"] == "linear"


@pytest.mark.parametrize("scale", ["log", "symlog", "logit", "asinh"])
def test_scales_have_their_names(ax: Any, scale: str) -> None:
    ax.plot([0.1, 0.2], [0.1, 0.3])
    ax.set_xscale(scale)
    assert chart(ax)["x_scale"] == scale


def test_dates_are_dates_on_lines_and_points(ax: Any) -> None:
    days = [datetime.datetime(2026, 1, day) for day in (1, 2)]
    ax.plot(days, [1, 2])
    found = chart(ax)
    assert found["x_scale"] == "datetime"
    assert found["elements"][0]["points"] == [["2026-01-01T00:00:00", 1], ["2026-01-02T00:00:00", 2]]
    assert found["x_ticks"][0].startswith("202")
    ax.clear()
    ax.scatter(np.array(days, "datetime64[s]"), [1, 2])
    assert chart(ax)["elements"][0]["points"][0] == ["2026-01-01T00:00:00+00:00", 1.0]


def test_categories_are_told_from_numbers(ax: Any) -> None:
    ax.plot(["x", "y"], [1, 2])
    found = chart(ax)
    assert found["x_scale"] == "categorical"
    assert found["elements"][0]["points"] == [["x", 1], ["y", 2]]


def test_scattered_points(ax: Any) -> None:
    ax.scatter([1, 2], [3, 4], label="s")
    found = chart(ax)
    assert found["type"] == "scatter"
    assert found["elements"] == [{"label": "s", "points": [[1.0, 3.0], [2.0, 4.0]]}]


def test_bars_by_group_and_on_their_side(ax: Any) -> None:
    ax.bar(["a", "b"], [2, 2], label="g")
    ax.bar(["a", "b"], [1, 3], bottom=2)
    found = chart(ax)
    assert found["type"] == "bar"
    assert [(bar["group"], bar["label"], bar["value"]) for bar in found["elements"]] == [
        ("g", "a", 2.0), ("g", "b", 2.0), ("Group 1", "a", 1.0), ("Group 1", "b", 3.0),
    ]  # fmt: skip
    ax.clear()
    ax.barh(["a", "b"], [1, 2])
    ax.set_xlabel("much")
    found = chart(ax)
    assert found["y_label"] == "much"
    assert [(bar["label"], bar["value"]) for bar in found["elements"]] == [("a", 1.0), ("b", 2.0)]


def test_a_pie(ax: Any) -> None:
    ax.pie([1, 3], labels=["x", "y"])
    found = chart(ax)
    assert found["type"] == "pie"
    assert found["elements"] == [
        {"label": "x", "angle": 90.0, "radius": 1.0}, {"label": "y", "angle": 270.0, "radius": 1.0},
    ]  # fmt: skip


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("vert", [True, False])
def test_boxes_filled_or_not_upright_or_not(ax: Any, filled: bool, vert: bool) -> None:
    how = {"orientation": "vertical" if vert else "horizontal"}
    ax.boxplot([[1, 2, 3, 4, 20], [2, 3, 4, 5, 6]], patch_artist=filled, tick_labels=["p", "q"], **how)
    found = chart(ax)
    assert found["type"] == "box_and_whisker"
    names = ("label", "min", "first_quartile", "median", "third_quartile", "max", "outliers")
    assert [[box[name] for name in names] for box in found["elements"]] == [
        ["p", 1.0, 2.0, 3.0, 4.0, 4.0, [20.0]], ["q", 2.0, 3.0, 4.0, 5.0, 6.0, []],
    ]  # fmt: skip


def test_error_bars_stand_with_what_they_belong_to(ax: Any) -> None:
    ax.errorbar([1, 2], [1, 2], yerr=[[0.1, 0.2], [0.3, 0.4]], xerr=0.5, capsize=3, label="e")
    found = chart(ax)
    assert found["type"] == "line"
    assert found["elements"] == [
        {
            "label": "e", "points": [[1, 1], [2, 2]], "x_errors": [[0.5, 0.5], [0.5, 0.5]],
            "y_errors": [[0.1, 0.3], [0.2, 0.4]],
        }
    ]  # fmt: skip
    ax.clear()
    ax.bar(["a", "b"], [1, 2], yerr=[0.1, 0.2], capsize=2)
    found = chart(ax)
    assert found["type"] == "bar"
    assert [bar["error"] for bar in found["elements"]] == [[0.1, 0.1], [0.2, 0.2]]


def test_several_axes_make_one_chart_of_charts() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2, 3], [1, 2, 4])
    right.pie([1, 1])
    figure.suptitle("both")
    found = e2b_charts.chart(figure)
    plt.close(figure)
    assert (found["type"], found["title"]) == ("superchart", "both")
    assert [each["type"] for each in found["elements"]] == ["line", "pie"]


def test_a_colour_bar_is_no_chart(ax: Any) -> None:
    ax.figure.colorbar(ax.scatter([1, 2], [1, 2], c=[1, 2]))
    assert chart(ax)["type"] == "scatter"


def test_what_is_none_of_these_is_unknown_and_what_is_blank_nothing(ax: Any) -> None:
    assert e2b_charts.chart(ax.figure) is None
    ax.imshow([[1, 2], [3, 4]])
    assert chart(ax)["type"] == "unknown"


def test_what_is_too_large_is_left_out(ax: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e2b_charts, "MAX_VALUES", 5)
    ax.plot([1, 2, 3], [1, 2, 3])
    assert e2b_charts.chart(ax.figure) is None
    assert e2b_charts.table(pd.DataFrame({"a": range(6)})) is None


def test_a_table_by_columns() -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2], "f": [1.5, float("nan")], "d": pd.to_datetime(["2026-01-01", None]), "o": [{"a": (1,)}, None],
            3: [decimal.Decimal("1.5"), b"x"],
        }
    )  # fmt: skip
    assert e2b_charts.table(frame) == {
        "n": [1, 2], "f": [1.5, None], "d": ["2026-01-01T00:00:00", None], "o": [{"a": [1]}, None],
        "3": ["1.5", "b'x'"],
    }  # fmt: skip


def test_a_table_of_another_library_by_columns() -> None:
    column = SimpleNamespace(name="a", to_list=lambda: [1, None])
    assert e2b_charts.table(SimpleNamespace(shape=(2, 1), get_columns=lambda: [column])) == {"a": [1, None]}


def test_values_become_plain() -> None:
    nested: list[Any] = []
    nested.append(nested)
    assert e2b_charts.plain([np.float64(1.5), np.int32(2), np.bool_(True), np.datetime64("NaT"), pd.NA, pd.NaT]) == [
        1.5, 2, True, None, None, None,
    ]  # fmt: skip
    assert e2b_charts.plain(float("inf")) is None
    assert "..." in str(e2b_charts.plain(nested))


def test_it_is_installed_where_it_is_wanted_and_raises_nothing(monkeypatch: pytest.MonkeyPatch, ax: Any) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.delenv("E2B_SANDBOX", raising=False)
    assert not e2b_charts.wanted()
    monkeypatch.setenv("E2B_SANDBOX", "true")
    assert e2b_charts.wanted()
    shell = InteractiveShell()
    e2b_charts.install(shell)
    show = shell.display_formatter.format
    assert show(pd.DataFrame({"a": [1]}))[0][e2b_charts.DATA] == {"a": [1]}
    ax.plot([1, 2], [1, 2])
    assert show(ax.figure)[0][e2b_charts.CHART]["type"] == "line"
    monkeypatch.setattr(ax, "get_title", lambda: 1 / 0)
    assert e2b_charts.CHART not in show(ax.figure)[0]
    assert e2b_charts.DATA not in show(1)[0]


@pytest.mark.parametrize(("first", "second"), [(True, True), (False, True), (True, False), (False, False)])
def test_boxes_over_each_other_keep_their_own_lines(ax: Any, first: bool, second: bool) -> None:
    one, two = [1, 2, 3, 4, 20], [11, 12, 13, 14, 50]
    ax.boxplot([one], patch_artist=first)
    ax.boxplot([two], patch_artist=second)
    shown = [(box["min"], box["median"], box["max"], box["outliers"]) for box in chart(ax)["elements"]]
    assert shown == [(1, 3, 4, [20]), (11, 13, 14, [50])]
