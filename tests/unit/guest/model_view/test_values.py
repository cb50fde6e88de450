"""Forms of values for a model: their facts are in them, they are short, and no user code runs."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from kernelsvc.guest.model_view import charts, frames, texts, values


class Trap:
    """An object whose methods end the test."""

    def __repr__(self) -> str:
        raise SystemExit("repr")

    __str__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = __repr__  # type: ignore[assignment]


def form(value: Any, plain: str = "plain") -> str:
    found = values.form(value, {"text/plain": plain})
    assert found is not None
    assert len(found) <= values.MAX_FORM + 100
    return found


def sales(rows: int = 5000) -> pd.DataFrame:
    number = np.arange(rows)
    return pd.DataFrame(
        {
            "id": number,
            "price": np.where(number % 10 == 0, np.nan, number / 4),
            "region": np.where(number % 3 == 0, "North", "South"),
            "day": pd.date_range("2024-01-01", periods=rows),
            "objects": [Trap()] * rows,
        }
    )


def test_a_small_frame_is_csv_with_all_columns() -> None:
    frame = pd.DataFrame({f"c{n}": [n / 3, None] for n in range(20)} | {"day": pd.to_datetime(["2024-01-01"] * 2)})
    lines = form(frame).splitlines()
    assert lines[0] == "DataFrame, 2 rows x 21 columns"
    assert lines[1] == ",".join([*(f"c{n}" for n in range(20)), "day"])
    assert lines[2].startswith("0,0.333333,0.666667,1,")
    assert lines[3] == "," * 20 + "2024-01-01"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("frame", "lines"),
    [
        (pd.DataFrame({"a": [1]}, index=["x"]), [",a", "x,1"]),
        (pd.DataFrame({"a": ['say "hi", twice\n']}), ["a", '"say ""hi"", twice\\n"']),
        (pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("b", 1)])), ["a/x,b/1", "1,2"]),
        (pd.DataFrame({"a": [Trap(), "y" * 100]}), ["a", "<Trap>", "y" * 59 + "…"]),
        (pd.DataFrame({"a": [1, 2, 3]}).iloc[1:2], [",a", "1,2"]),
        (pd.DataFrame({"a": pd.Series([1, None], dtype="Int64"), "b": [1, 2]}), ["a,b", "1,1", ",2"]),
    ],
)
def test_lines_of_small_frames(frame: pd.DataFrame, lines: list[str]) -> None:
    assert form(frame).splitlines()[1:] == lines


def test_a_large_frame_is_a_schema_and_some_rows() -> None:
    text = form(sales())
    assert (
        text.splitlines()[:7]
        == [
            "DataFrame, 5000 rows x 5 columns",
            "id: int64, 0 … 4999, mean 2499.5",
            "price: float64, 500 nulls, 0.25 … 1249.75, mean 625",
            f"region: {sales(1).region.dtype}, 2 distinct: South 3333, North 1667",
            "day: datetime64[us], 2024-01-01 … 2037-09-08",
            "objects: object, values of Trap 5000",
            "rows 0-2 and the last 2:",
        ]
        or pd.__version__ < "3"
    )
    assert text.splitlines()[-1] == "4999,1249.75,South,2037-09-08,<Trap>"


def test_columns_with_numbers_are_one_line_of_the_schema() -> None:
    wide = pd.DataFrame(np.zeros((800, 64)), columns=[f"feature_{n:02d}" for n in range(64)])
    text = form(wide)
    assert "feature_00 … feature_63 (64): float64" in text
    assert "rows 0-2 and the last 2, 24 columns:" in text
    huge = pd.DataFrame(np.zeros((3, 4000)), columns=[chr(65 + n % 20) * (n // 20 + 1) for n in range(4000)])
    assert len(form(huge)) < 12_000
    assert "more columns" in form(huge)


def test_series_and_arrays() -> None:
    assert form(pd.Series([1.5, 2], name="w")).splitlines() == ["Series 'w', 2 values, float64", "0,1.5", "1,2"]
    long = form(sales().price).splitlines()
    assert long[0] == "Series 'price', 5000 values, float64: 500 nulls, 0.25 … 1249.75, mean 625"
    assert len(long) == 10
    assert values.form(np.arange(10), {"text/plain": "array(...)"}) is None
    assert form(np.append(np.arange(999.0), np.inf)).startswith("array 1000, float64, 0 … 998, mean 499, 1 not finite")
    assert form(np.array([Trap()] * 300), "array([<x>])").startswith("array 300, object: array([<x>])")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (list(range(30)), repr(list(range(30)))),
        (list(range(20_000)), "list of 20000 int: [0, 1, 2"),
        ([{"id": n, "tags": ["x"]} for n in range(200)], "list of 200, each {id: int, tags: [str]}\nfirst: {'id': 0"),
        ({f"k{n}": {"port": [n]} for n in range(99)}, "dict of 99, each value {port: [int]}\nkeys: 'k0', 'k1'"),
        ("x" * 5000, "str, 5000 characters: 'xxx"),
        (b"\x89PNG" + b"x" * 5000, "bytes, 5004 long, PNG: b'\\x89PNGxxx"),
        ([f"name{n}" for n in range(300)] + ["_a"], "list of 301 names, without 1 that start with _: name0, name1"),
        ({"a": "y" * 100_000}, "dict of 1, each value str"),
        ([[["z" * 99] * 99] * 99] * 99, "list of 99 [[str]]: [[['zzz"),
        ({n: set(range(50)) for n in range(50)}, "dict of 50, each value [int]"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_builtin_values(value: Any, text: str) -> None:
    found = form(value)
    assert found.startswith(text)
    assert len(found) <= 7000


@pytest.mark.parametrize("value", [3, "short", [1, 2], {"a": 1}, (1,), None, b"x", {1, 2}])
def test_a_value_with_a_good_plain_text_has_no_other_form(value: Any) -> None:
    assert values.form(value, {"text/plain": repr(value)}) is None


def test_objects_have_no_addresses_and_are_never_called() -> None:
    plain = "[<__main__.Trap at 0x7f12345678>]"
    assert form([Trap()], plain) == "[<__main__.Trap at 0x…>]"
    assert form(Trap(), "<Trap at 0x7f12345678>") == "<Trap at 0x…>"

    class MyFrame(pd.DataFrame):
        @property
        def shape(self) -> Any:
            raise SystemExit("shape")

    assert values.form(MyFrame(), {"text/plain": "mine"}) is None


PLACE = {"text/plain": "<IPython.core.display.X object>"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({**PLACE, "text/markdown": "## Found"}, "## Found"),
        ({**PLACE, "text/latex": "$x^2$"}, "$x^2$"),
        ({"text/plain": "2\nx", "text/latex": "$x^2$", "image/png": "..."}, "$x^2$"),
        ({**PLACE, "image/svg+xml": "<svg><text x='1'>Flow</text></svg>"}, "[SVG drawing: Flow]"),
        ({**PLACE, "text/html": "<audio src=x></audio>"}, "[audio]"),
        (
            {
                **PLACE,
                "text/html": "<style>p{}</style><h3>T</h3><table><tr><th>a<th>b</tr><tr><td></td><td>1</table>",
            },
            "T\na | b\n | 1",
        ),
        ({"text/plain": "good", "text/html": "<b>x</b>"}, None),
        (
            {"text/plain": "IntSlider(value=7)", "application/vnd.jupyter.widget-view+json": {}},
            "IntSlider(value=7)\n[a widget, which can't be operated here]",
        ),
        (
            {
                "text/plain": "Figure(...)",
                "application/vnd.plotly.v1+json": {
                    "data": [
                        {"type": "bar", "name": "n", "x": ["a", "b"], "y": [1, 2.5]},
                        {"type": "scatter", "y": {"dtype": "f8", "bdata": "AAAAAAAA8D8AAAAAAAAAQA=="}},
                    ],
                    "layout": {"title": {"text": "Life"}, "xaxis": {"title": {"text": "gdp"}}},
                },
            },
            "[Plotly chart: 'Life'; x: gdp; bar 'n' a 1, b 2.5; scatter 2 points, y 1 … 2]",
        ),
        (
            {
                "text/plain": "alt.Chart(...)",
                "application/vnd.vegalite.v5+json": {
                    "title": "T",
                    "mark": {"type": "circle"},
                    "encoding": {"x": {"field": "a"}, "y": {"aggregate": "mean"}},
                    "datasets": {"d": [{"a": 1}]},
                },
            },
            "[Vega-Lite chart: 'T'; mark circle; x: a; y: mean; 1 rows]",
        ),
        (
            {
                "text/plain": "alt.Chart(...)",
                "text/html": "<script>(function(spec) { vegaEmbed(div, spec); })"
                '({"title": "T", "mark": "bar", "encoding": {"x": {"field": "a"}}}, {"mode": "vega-lite"});</script>',
            },
            "[Vega-Lite chart: 'T'; mark bar; x: a]",
        ),
        ({"text/plain": "<x.Y object>", "text/html": "<script>vegaEmbed})({not JSON</script>"}, None),
    ],
)
def test_bundles(data: dict[str, Any], text: str | None) -> None:
    assert values.form_of_bundle(data) == text


def test_tables_of_html_are_limited() -> None:
    text = texts.text_of_html("<table>" + "<tr><td>1</td><td>2</td></tr>" * 100 + "</table>")
    assert text.splitlines()[-2:] == ["1 | 2", "[… 60 more rows …]"]
    assert len(text.splitlines()) == texts.MAX_ROWS + 1


@pytest.mark.parametrize("rows", [1_000, 100_000])
def test_rows_of_a_long_table_are_counted_without_a_parser(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    feed = HTMLParser.feed

    def counted(self: HTMLParser, text: str) -> None:
        parsed.append(len(text))
        feed(self, text)

    monkeypatch.setattr(HTMLParser, "feed", counted)
    html = "<table>" + "<tr><td>1</td><td>2</td></tr>" * rows + "</table><p>a footer</p>"
    text = texts.text_of_html(html)
    assert text.splitlines()[-2:] == ["a footer", f"[… {rows - texts.MAX_ROWS} more rows …]"]
    assert sum(parsed) < 50_000


def test_a_figure_has_a_line_of_data() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.bar(["一月", "二月"], [120, 150])
    left.set_title("Sales")
    right.plot([0, 1, 2], [5, 7, 6], label="sin")
    right.scatter([1, 2, 3], [3, 4, 5], label="dots")
    right.set_xlabel("t")
    assert form(figure) == (
        "[picture: 'Sales'; bars 一月 120, 二月 150 | x: t; line 'sin' 3 points, y 5 … 7; "
        "scatter 'dots' 3 points, y 3 … 5]"
    )
    many = Figure()
    for ax in many.subplots(5, 5).flat:
        ax.plot(range(1000))
    assert len(form(many)) < 1500
    assert "9 more axes" in form(many)


def test_hostile_sizes_take_a_bounded_time() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    started = time.process_time()
    for value in ([[0] * 10] * 1_000_000, deep, {n: n for n in range(1_000_000)}, ["x" * 10_000_000] * 50):
        values.form(value, {"text/plain": "x"})
    charts.plotly({"data": [{"y": [1] * 1_000_000}] * 1000})
    assert frames.MAX_SCHEMA < 1000
    assert time.process_time() - started < 5
