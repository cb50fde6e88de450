"""Data of figures and tables next to their pictures, for sessions of E2B's clients.

Two IPython formatters: one reads the series of a matplotlib figure, the other the columns of a data frame. They are
installed only if the session's environment has ``ENVIRONMENT``, so that other sessions pay nothing. The MIME types end
in ``+json``, which keeps notebooks valid. The E2B server translates them to E2B's names.

The structures are those that E2B's clients deserialise. In addition, a series has ``x_errors`` or ``y_errors`` and a
bar has ``error`` if the figure draws error bars: pairs of the distance below and above each point.

No error is raised in a cell: unreadable data is omitted.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

CHART, DATA = "application/vnd.e2b.chart+json", "application/vnd.e2b.data+json"
#: Environment variable that enables the formatters, and its value.
ENVIRONMENT = ("E2B_SANDBOX", "true")
#: Most values of a chart or a table. Larger ones are left out, and the client has the picture or the HTML.
MAX_VALUES = 250_000
#: Distance of two edges that count as equal, as a share of the figure's extent.
_NEAR = 1e-9
_UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")

#: Modules of data frame classes.
_FRAMES = ("pandas.core.frame", "pandas", "polars.dataframe.frame", "polars")

Json = dict[str, Any]


def wanted() -> bool:
    """Whether the session's environment enables the formatters."""
    return os.environ.get(ENVIRONMENT[0]) == ENVIRONMENT[1]


def install(shell: Any) -> None:
    """Add the two formatters to IPython's shell."""
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    for mime, types, extract in _EXTRACTORS:
        kind = type(
            "DataFormatter",
            (BaseFormatter,),
            {
                "format_type": Unicode(mime),
                "print_method": ObjectName("_repr_e2b_data_" if mime == DATA else "_repr_e2b_chart_"),
                "_return_type": dict,
            },
        )
        formatter = kind(parent=shell.display_formatter)
        for module, name in types:
            formatter.for_type_by_name(module, name, _without_errors(extract))
        shell.display_formatter.formatters[mime] = formatter


def _without_errors(extract: Callable[[Any], Json | None]) -> Callable[[Any], Json | None]:
    def guarded(value: Any) -> Json | None:
        try:
            return extract(value)
        except Exception:
            return None

    return guarded


# --- values -----------------------------------------------------------------------------


def plain(value: Any, depth: int = 8) -> Any:
    """Return a value for JSON: times in ISO 8601, NaN and infinity as null, other objects as text."""
    if value is None or isinstance(value, str | bool | int):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if _is_missing(value):
        return None
    if type(value).__name__ == "datetime64":
        return str(value.astype("datetime64[s]"))
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, list | tuple) and depth:
        return [plain(each, depth - 1) for each in value]
    if isinstance(value, dict) and depth:
        return {str(key): plain(each, depth - 1) for key, each in value.items()}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain(value.item(), depth)
    return str(value)


def _is_missing(value: Any) -> bool:
    """Whether the value is NaT, pandas' NA or a missing datetime64, which are not equal to themselves."""
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


# --- tables -------------------------------------------------------------------------------


def table(frame: Any) -> Json | None:
    """Return a data frame by columns, or None if it is too large."""
    rows, columns = frame.shape
    if rows * columns > MAX_VALUES:
        return None
    if hasattr(frame, "iloc"):
        named = ((name, frame.iloc[:, at].tolist()) for at, name in enumerate(frame.columns))
    else:
        named = ((each.name, each.to_list()) for each in frame.get_columns())
    return {_column(name): [plain(value) for value in values] for name, values in named}


def _column(name: Any) -> str:
    return name if isinstance(name, str) else str(plain(name))


# --- figures ------------------------------------------------------------------------------


def chart(figure: Any) -> Json | None:
    """Return the chart of a figure, one chart for each of several axes, or None if it is blank or too large."""
    axes = [each for each in figure.get_axes() if each.get_label() != "<colorbar>"]
    if not any(each.has_data() for each in axes) or _size(axes) > MAX_VALUES:
        return None
    if len(axes) == 1:
        return axes_chart(axes[0])
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    return {"type": "superchart", "title": title, "elements": [axes_chart(each) for each in axes]}


def _size(axes: Iterable[Any]) -> int:
    lines = sum(2 * len(line.get_xdata()) for each in axes for line in each.get_lines())
    spread = sum(2 * len(found.get_offsets()) for each in axes for found in each.collections)
    return lines + spread + sum(len(each.patches) for each in axes)


def axes_chart(ax: Any) -> Json:
    """Return the chart of one pair of axes."""
    errors = _errors(ax)
    kind = _kind(ax, errors)
    return {"type": kind, "title": ax.get_title() or None, **_READERS[kind](ax, errors)}


class _ErrorBars:
    """The error bars of one pair of axes.

    Attributes:
        artists: Ids of the lines and collections that only draw error bars.
        of: By the id of a line or a bar container: (x, y), each a list of (low, high) or None.
        labels: By the id of a line: the name of its series, which is the container's.
    """

    def __init__(self) -> None:
        self.artists: set[int] = set()
        self.of: dict[int, tuple[list[Any] | None, list[Any] | None]] = {}
        self.labels: dict[int, object] = {}


def _errors(ax: Any) -> _ErrorBars:
    found = _ErrorBars()
    bars = [each for each in ax.containers if type(each).__name__ == "BarContainer"]
    for each in ax.containers:
        if type(each).__name__ != "ErrorbarContainer":
            continue
        line, caps, stems = each.lines
        found.artists |= {id(one) for one in (*caps, *stems)}
        owner = next((bar for bar in bars if getattr(bar, "errorbar", None) is each), line)
        if owner is not line and line is not None:
            found.artists.add(id(line))
        found.of[id(owner)] = _spans(each, stems)
        found.labels[id(line)] = each.get_label()
    return found


def _spans(container: Any, stems: Sequence[Any]) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the ends of each bar along x and along y."""
    flags = (bool(container.has_xerr), bool(container.has_yerr))
    waiting = list(stems)
    spans: list[list[Any] | None] = [None, None]
    for axis in (0, 1):
        if flags[axis] and waiting:
            spans[axis] = [_span(path, axis) for path in waiting.pop(0).get_segments()]
    return spans[0], spans[1]


def _span(segment: Any, axis: int) -> list[float | None]:
    return sorted((_number(point[axis]) for point in segment), key=lambda value: (value is None, value))


def _relative(spans: list[Any] | None, centres: Sequence[Any]) -> list[Any] | None:
    if spans is None or len(spans) != len(centres):
        return None
    found: list[Any] = []
    for (low, high), centre in zip(spans, centres, strict=True):
        whole = None not in (low, high, centre)
        found.append([round(centre - low, 12), round(high - centre, 12)] if whole else None)
    return found


def _kind(ax: Any, errors: _ErrorBars) -> str:
    """Return the kind of chart that explains all artists on the axes."""
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch, Rectangle, Wedge

    every = (*ax.lines, *ax.collections, *ax.patches, *ax.images, *ax.tables, *ax.artists)
    drawn = [each for each in every if id(each) not in errors.artists]
    if drawn and all(isinstance(each, Line2D) for each in drawn) and not _is_boxes(ax):
        return "line"
    if drawn and all(isinstance(each, PathPatch | Line2D) for each in drawn):
        return "box_and_whisker"
    drawn = [each for each in drawn if not (isinstance(each, Line2D) and _is_guide(each))]
    for kind, artist in (("scatter", PathCollection), ("pie", Wedge), ("bar", Rectangle)):
        if drawn and all(isinstance(each, artist) for each in drawn):
            return kind
    return "unknown"


def _is_guide(line: Any) -> bool:
    """Whether a line is horizontal or vertical and has two points: a rule across the chart and no series."""
    x, y = list(line.get_xdata()), list(line.get_ydata())
    return len(x) == len(y) == 2 and bool(x[0] == x[1] or y[0] == y[1])


# --- labels, ticks, scales -------------------------------------------------------------------


def _planar(ax: Any, *, horizontal: bool = False) -> Json:
    """Return labels and units, swapped for a horizontal chart."""
    names = [ax.get_xlabel() or None, ax.get_ylabel() or None]
    x, y = reversed(names) if horizontal else names
    return {"x_label": x, "y_label": y, "x_unit": _unit(x), "y_unit": _unit(y)}


def _unit(label: str | None) -> str | None:
    found = _UNIT.search(label or "")
    return (found.group(1) or found.group(2)) if found else None


def _scaled(ax: Any) -> Json:
    return _planar(ax) | _axis("x", ax.xaxis) | _axis("y", ax.yaxis)


def _axis(name: str, axis: Any) -> Json:
    labels = [label.get_text() for label in axis.get_ticklabels()]
    places = list(axis.get_ticklocs())
    dated = _is_dated(axis)
    ticks = [_date(place) for place in places] if dated else [plain(place) for place in places]
    scale = "datetime" if dated else axis.get_scale()
    if scale == "linear" and _is_categorical(ticks, labels):
        scale = "categorical"
    return {f"{name}_ticks": ticks, f"{name}_tick_labels": labels, f"{name}_scale": scale}


def _is_dated(axis: Any) -> bool:
    converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
    return "Date" in type(converter).__name__ or "Datetime" in type(converter).__name__


def _date(place: Any) -> str:
    found: str = sys.modules["matplotlib.dates"].num2date(place).isoformat()
    return found


def _is_categorical(ticks: Sequence[Any], labels: Sequence[str]) -> bool:
    """Whether the ticks are 0 to n-1 and their labels are other texts than these numbers."""
    pairs = list(zip(ticks, labels, strict=False))
    return all(tick == at and label != str(at) for at, (tick, label) in enumerate(pairs))


# --- one reader for each kind -----------------------------------------------------------------


def _lines(ax: Any, errors: _ErrorBars) -> Json:
    elements = []
    for line in ax.get_lines():
        if _is_guide(line) or id(line) in errors.artists:
            continue
        label = errors.labels.get(id(line), line.get_label())
        found = {"label": _series_name(label, "Line"), "points": _points(line.get_xdata(), line.get_ydata())}
        elements.append(found | _point_errors(errors, line))
    return _scaled(ax) | {"elements": elements}


def _points(xs: Iterable[Any], ys: Iterable[Any]) -> list[list[Any]]:
    return [[plain(x), plain(y)] for x, y in zip(_listed(xs), _listed(ys), strict=False)]


def _listed(values: Any) -> Iterable[Any]:
    """Return an array of numbers as a list of Python numbers, which is faster for all than for each."""
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    found: Iterable[Any] = values.tolist() if kind and kind in "fiub" else values
    return found


def _point_errors(errors: _ErrorBars, line: Any) -> Json:
    x, y = errors.of.get(id(line), (None, None))
    centres = {"x": (x, line.get_xdata(orig=False)), "y": (y, line.get_ydata(orig=False))}
    found = {name: _relative(spans, [_number(at) for at in places]) for name, (spans, places) in centres.items()}
    return {f"{name}_errors": value for name, value in found.items() if value is not None}


def _series_name(label: object, kind: str) -> str:
    text = str(label)
    found = re.fullmatch(r"_(?:child|container)(\d+)", text)
    return f"{kind} {found.group(1)}" if found else text


def _scatter(ax: Any, errors: _ErrorBars) -> Json:
    dated = _is_dated(ax.xaxis), _is_dated(ax.yaxis)
    elements = []
    for found in ax.collections:
        if id(found) in errors.artists:
            continue
        points = [
            [_date(value) if is_date else plain(value) for value, is_date in zip(point, dated, strict=True)]
            for point in found.get_offsets().tolist()
        ]
        elements.append({"label": str(found.get_label()), "points": points})
    return _scaled(ax) | {"elements": elements}


def _bars(ax: Any, errors: _ErrorBars) -> Json:
    containers = [each for each in ax.containers if type(each).__name__ == "BarContainer"]
    horizontal = any(getattr(each, "orientation", None) == "horizontal" for each in containers)
    labels = [label.get_text() for label in (ax.get_yticklabels() if horizontal else ax.get_xticklabels())]
    elements = []
    for container in containers:
        elements += _group(container, labels, horizontal, errors)
    return _planar(ax, horizontal=horizontal) | {"elements": elements}


def _group(container: Any, labels: Sequence[str], horizontal: bool, errors: _ErrorBars) -> list[Json]:
    name = str(container.get_label())
    group = f"Group {name.removeprefix('_container')}" if name.startswith("_container") else name
    values = [_number(bar.get_width() if horizontal else bar.get_height()) for bar in container]
    ends = [
        _number(bar.get_x() + bar.get_width() if horizontal else bar.get_y() + bar.get_height()) for bar in container
    ]
    spans = errors.of.get(id(container), (None, None))[0 if horizontal else 1]
    found = _relative(spans, ends) or [None] * len(values)
    names = [*labels, *(str(at) for at in range(len(labels), len(values)))]
    return [
        {"label": label, "group": group, "value": value} | ({"error": error} if error else {})
        for label, value, error in zip(names, values, found, strict=False)
    ]


def _pie(ax: Any, errors: _ErrorBars) -> Json:
    return {
        "elements": [
            {
                "label": str(wedge.get_label()),
                "angle": round(abs(float(wedge.theta2) - float(wedge.theta1)), 6),
                "radius": float(wedge.r),
            }
            for wedge in ax.patches
        ]
    }


def _unknown(ax: Any, errors: _ErrorBars) -> Json:
    return {"elements": []}


# --- boxes ------------------------------------------------------------------------------------


def _is_boxes(ax: Any) -> bool:
    """Whether the lines draw unfilled boxes: closed outlines of five points."""
    outlines = [line for line in ax.get_lines() if _is_outline(line)]
    return bool(outlines) and len(ax.get_lines()) >= 5 * len(outlines)


def _is_outline(line: Any) -> bool:
    x, y = list(line.get_xdata()), list(line.get_ydata())
    return len(x) == 5 and bool(x[0] == x[-1] and y[0] == y[-1] and len(set(x)) == len(set(y)) == 2)


class _Box:
    """One box while its lines are collected: ``low`` and ``high`` along the values, ``side`` and ``far`` across."""

    def __init__(self, across: Sequence[float], along: Sequence[float]) -> None:
        self.side, self.far = min(across), max(across)
        self.low, self.high = min(along), max(along)
        self.median: float | None = None
        self.minimum, self.maximum = self.low, self.high
        self.outliers: list[float] = []

    @property
    def sides(self) -> tuple[float, float]:
        """The box's extent across the values."""
        return self.side, self.far

    def contains(self, across: Sequence[float]) -> bool:
        """Whether a line is above, below or in the box."""
        room = _NEAR * max(1.0, abs(self.far))
        return all(self.side - room <= value <= self.far + room for value in across)

    def add(self, across: Sequence[float], along: Sequence[float], is_marker: bool) -> None:
        """Add a line of this box: outliers, a whisker or a median."""
        if is_marker:
            self.outliers += along
        elif len(along) == 2 and along[0] != along[1]:
            self.minimum, self.maximum = min(self.minimum, *along), max(self.maximum, *along)
        elif len(along) == 2 and self.low <= along[0] <= self.high and self._spans(across):
            self.median = along[0]

    def _spans(self, across: Sequence[float]) -> bool:
        """Whether a line goes from side to side, as a median does and a cap does not."""
        width = self.far - self.side
        return max(across) - min(across) > 0.75 * width


def _boxes(ax: Any, errors: _ErrorBars) -> Json:
    outlines = _outlines(ax)
    horizontal = _is_horizontal(ax, outlines)
    boxes = [_Box(y, x) if horizontal else _Box(x, y) for x, y in outlines]
    parts: dict[tuple[float, float], list[tuple[list[float], list[float], bool]]] = {}
    for line in ax.get_lines():
        x, y = _floats(line.get_xdata(orig=False)), _floats(line.get_ydata(orig=False))
        if not x or _is_outline(line):
            continue
        across, along = (y, x) if horizontal else (x, y)
        is_marker = line.get_linestyle() in ("None", "none", "", " ")
        owner = next((box for box in boxes if box.contains(across)), None)
        if owner is not None:
            parts.setdefault(owner.sides, []).append((across, along, is_marker))
    for sides, drawn in parts.items():
        # Boxes over each other have equal numbers of lines, drawn box after box.
        owners = [box for box in boxes if box.sides == sides]
        for at, part in enumerate(drawn):
            owners[at * len(owners) // len(drawn)].add(*part)
    labels = [label.get_text() for label in (ax.get_yticklabels() if horizontal else ax.get_xticklabels())]
    names = [*labels, *(str(at + 1) for at in range(len(labels), len(boxes)))]
    elements = [_box_shown(name, box) for name, box in zip(names, boxes, strict=False)]
    return _planar(ax, horizontal=horizontal) | {"elements": elements}


def _box_shown(name: str, box: _Box) -> Json:
    return {
        "label": name,
        "min": box.minimum,
        "first_quartile": box.low,
        "median": box.low if box.median is None else box.median,
        "third_quartile": box.high,
        "max": box.maximum,
        "outliers": box.outliers,
    }


def _outlines(ax: Any) -> list[tuple[list[float], list[float]]]:
    """Return the corners of each box, in the order of drawing. Filled boxes are patches, others are lines."""
    patches, lines = set(ax.patches), set(ax.get_lines())
    found = []
    for artist in ax.get_children():
        if artist in patches:
            corners = artist.get_path().vertices
            found.append((_floats(corners[:, 0]), _floats(corners[:, 1])))
        elif artist in lines and _is_outline(artist):
            found.append((_floats(artist.get_xdata(orig=False)), _floats(artist.get_ydata(orig=False))))
    return found


def _is_horizontal(ax: Any, outlines: Sequence[tuple[list[float], list[float]]]) -> bool:
    """Whether the boxes are horizontal: their medians are vertical lines."""
    for line in ax.get_lines():
        x, y = _floats(line.get_xdata(orig=False)), _floats(line.get_ydata(orig=False))
        if len(x) != 2 or (x[0] == x[1]) == (y[0] == y[1]):
            continue
        for xs, ys in outlines:
            if _same(x, (min(xs), max(xs))) and min(ys) <= y[0] <= max(ys):
                return False
            if _same(y, (min(ys), max(ys))) and min(xs) <= x[0] <= max(xs):
                return True
    return False


def _same(ends: Sequence[float], others: tuple[float, float]) -> bool:
    room = _NEAR * max(1.0, *(abs(value) for value in others))
    return abs(min(ends) - others[0]) <= room and abs(max(ends) - others[1]) <= room


def _floats(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values]


_READERS: dict[str, Callable[[Any, _ErrorBars], Json]] = {
    "line": _lines,
    "scatter": _scatter,
    "bar": _bars,
    "pie": _pie,
    "box_and_whisker": _boxes,
    "unknown": _unknown,
}
_EXTRACTORS: tuple[tuple[str, tuple[tuple[str, str], ...], Callable[[Any], Json | None]], ...] = (
    (CHART, (("matplotlib.figure", "Figure"),), chart),
    (DATA, tuple((module, "DataFrame") for module in _FRAMES), table),
)
