"""Charts for a model: the data of matplotlib's figures, of Plotly and of Vega-Lite in one line for each axes."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kernelsvc.guest.model_view import texts

#: Most axes of a figure, most artists of an axes, most bars that are named, most characters of an axes.
MAX_AXES, MAX_ARTISTS, MAX_BARS, MAX_LINE = 16, 12, 12, 360
#: Most values of a series that are read one by one.
MAX_VALUES = 20_000
#: Most characters of HTML in which a chart's JSON is searched.
MAX_PAGE = 4_000_000
#: Altair's default form: a script that calls a function with the JSON.
_VEGA_CALL = re.compile(r"\}\)\((?=\{)")


def figure(fig: Any, plain: object) -> str:
    """Return the title, axes and series of a ``matplotlib.figure.Figure``."""
    every = fig.get_axes()
    lines = [texts.cut("; ".join(_axes(ax)), MAX_LINE) for ax in every[:MAX_AXES]]
    lines = [line for line in lines if line]
    title = getattr(fig, "_suptitle", None)
    if title is not None:
        lines.insert(0, repr(title.get_text()))
    if len(every) > MAX_AXES:
        lines.append(f"{len(every) - MAX_AXES} more axes")
    return f"[picture: {' | '.join(lines)}]" if lines else "[picture]"


def _axes(ax: Any) -> Iterator[str]:
    if ax.get_title():
        yield repr(ax.get_title())
    for name, label in (("x", ax.get_xlabel()), ("y", ax.get_ylabel())):
        if label:
            yield f"{name}: {label}"
    shown = 0
    bars = {id(bar) for container in ax.containers if type(container).__name__ == "BarContainer" for bar in container}
    for container in ax.containers:
        if type(container).__name__ == "BarContainer" and shown < MAX_ARTISTS:
            shown += 1
            yield _bars(ax, container)
    for line in ax.get_lines()[: MAX_ARTISTS - shown]:
        if len(line.get_xdata(orig=False)) > 2 or not str(line.get_label()).startswith("_"):
            shown += 1
            yield f"line{_name(line)} {_points(line.get_ydata(orig=False), 'y')}"
    for each in ax.collections[: MAX_ARTISTS - shown]:
        places = each.get_offsets()
        if type(each).__name__ == "PathCollection" and len(places):
            yield f"scatter{_name(each)} {_points(places[:, 1], 'y')}"
    for image in ax.images[:4]:
        yield f"image {' x '.join(map(str, image.get_array().shape[:2]))}"
    wedges = [each for each in ax.patches if type(each).__name__ == "Wedge"]
    if wedges:
        parts = (f"{each.get_label()} {abs(each.theta2 - each.theta1) / 3.6:.3g} %" for each in wedges[:MAX_BARS])
        yield "pie " + ", ".join(parts)
    others = [each for each in ax.patches if id(each) not in bars and type(each).__name__ == "Rectangle"]
    if others:
        yield f"{len(others)} bars"


def _name(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else f" {label!r}"


def _bars(ax: Any, container: Any) -> str:
    flat = getattr(container, "orientation", None) == "horizontal"
    values = [float(bar.get_width() if flat else bar.get_height()) for bar in container[:MAX_VALUES]]
    if len(values) > MAX_BARS:
        return f"{len(values)} bars{_name(container)} {_points(values, 'height')}"
    axis = ax.yaxis if flat else ax.xaxis
    known: dict[Any, str] = {}
    units = getattr(axis, "units", None)
    if units is not None and hasattr(units, "_mapping"):  # The categories of matplotlib.category.
        known = {place: str(name) for name, place in units._mapping.items()}
    else:
        texts_of = [label.get_text() for label in axis.get_ticklabels()]
        known = {round(float(at), 6): text for at, text in zip(axis.get_ticklocs(), texts_of, strict=False)}
    middles = [bar.get_y() + bar.get_height() / 2 if flat else bar.get_x() + bar.get_width() / 2 for bar in container]
    names = [known.get(round(float(at), 6)) or texts.short_float(float(at)) for at in middles]
    shown = ", ".join(f"{name} {texts.short_float(value)}" for name, value in zip(names, values, strict=False))
    return f"bars{_name(container)} {shown}"


def _points(values: Any, name: str) -> str:
    """Return the number of values of a series, and their range."""
    total = len(values)
    if getattr(getattr(values, "dtype", None), "kind", "") in ("i", "u", "f") and total:
        finite = values[values - values == 0]  # Infinity minus itself is NaN.
        values = [finite.min(), finite.max()] if len(finite) else []
    step = -(-len(values) // MAX_VALUES) or 1
    numbers = [float(each) for each in values[::step] if isinstance(each, int | float) or hasattr(each, "__float__")]
    numbers = [each for each in numbers if each == each and abs(each) != float("inf")]
    ends = f", {name} {texts.short_float(min(numbers))} … {texts.short_float(max(numbers))}" if numbers else ""
    return f"{total} points{ends}"


# --- Plotly and Vega-Lite -----------------------------------------------------------------


def plotly(chart: object) -> str | None:
    """Return the title, axes and traces of a Plotly figure from its JSON."""
    if not isinstance(chart, dict):
        return None
    layout, data = _dict(chart.get("layout")), chart.get("data")
    parts = [_title(layout.get("title"))]
    for name, value in layout.items():
        if name.startswith(("xaxis", "yaxis")) and len(parts) < 8:
            label = _title(_dict(value).get("title"))
            parts.append(f"{name[0]}: {label.strip(chr(39))}" if label else "")
    traces = data if isinstance(data, list | tuple) else []
    parts += [_trace(_dict(each)) for each in traces[:MAX_ARTISTS]]
    if len(traces) > MAX_ARTISTS:
        parts.append(f"{len(traces) - MAX_ARTISTS} more traces")
    return f"[Plotly chart: {texts.cut('; '.join(filter(None, parts)), 4 * MAX_LINE)}]"


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _title(value: object) -> str:
    text = _dict(value).get("text") if isinstance(value, dict) else value
    return repr(text[:200]) if isinstance(text, str) and text else ""


def _trace(trace: Mapping[str, Any]) -> str:
    name = trace.get("name")
    label = f" {name[:60]!r}" if isinstance(name, str) and name else ""
    values = _array(trace.get("y") if trace.get("y") is not None else trace.get("x", trace.get("values")))
    kind = trace.get("type", "scatter")
    if not values:
        return f"{kind}{label}"
    labels = _array(trace.get("x")) if trace.get("y") is not None else _array(trace.get("labels"))
    if kind in ("bar", "pie") and len(values) == len(labels) <= MAX_BARS:
        pairs = (f"{at} {_short(each)}" for at, each in zip(labels, values, strict=False))
        return f"{kind}{label} " + ", ".join(pairs)
    return f"{kind}{label} {_points(values, 'y')}"


def _short(value: object) -> str:
    return texts.short_float(value) if isinstance(value, float) else str(value)[:60]


_FORMATS = {"f8": "d", "f4": "f", "i4": "i", "i2": "h", "i1": "b", "u4": "I", "u2": "H", "u1": "B", "i8": "q"}


def _array(value: object) -> Sequence[Any]:
    """Return an array of Plotly's JSON: a list, or base64 with a type (``bdata``)."""
    if isinstance(value, list | tuple):
        return value
    packed = _dict(value)
    form, data = _FORMATS.get(str(packed.get("dtype"))), packed.get("bdata")
    if form is not None and isinstance(data, str) and len(data) < 16 * MAX_VALUES:
        raw = base64.b64decode(data)
        return struct.unpack(f"<{len(raw) // struct.calcsize(form)}{form}", raw)
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else ()


def vega(spec: object) -> str | None:
    """Return the title, marks and encodings of a Vega-Lite chart from its JSON."""
    if not isinstance(spec, dict):
        return None
    parts = [_title(spec.get("title")), *_marks(spec, 0)]
    data = spec.get("datasets")
    for rows in list(_dict(data).values())[:4]:
        if isinstance(rows, list):
            parts.append(f"{len(rows)} rows")
    return f"[Vega-Lite chart: {texts.cut('; '.join(filter(None, parts)), 4 * MAX_LINE)}]"


def vega_of_html(html: str) -> str | None:
    """Return ``vega`` of the JSON in a page that draws one chart with vega-embed, or None if there is none."""
    call = _VEGA_CALL.search(html, 0, MAX_PAGE) if "vegaEmbed" in html[:20_000] and len(html) <= MAX_PAGE else None
    return vega(json.JSONDecoder().raw_decode(html, call.end())[0]) if call is not None else None


def _marks(spec: Mapping[str, Any], depth: int) -> Iterable[str]:
    mark = spec.get("mark")
    name = _dict(mark).get("type") if isinstance(mark, dict) else mark
    if isinstance(name, str):
        yield f"mark {name[:40]}"
    for channel, how in list(_dict(spec.get("encoding")).items())[:8]:
        field = _dict(how).get("field") or _dict(how).get("aggregate")
        if isinstance(field, str):
            yield f"{channel}: {field[:60]}"
    for several in ("layer", "hconcat", "vconcat", "concat"):
        inner = spec.get(several)
        for each in inner[:MAX_ARTISTS] if isinstance(inner, list) and depth < 3 else ():
            yield from _marks(_dict(each), depth + 1)
