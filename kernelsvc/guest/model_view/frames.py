"""Data frames, series and arrays for a model: small ones as CSV, large ones as a schema with some rows.

pandas aligns columns with spaces and hides some of them. CSV needs fewer tokens and hides nothing.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kernelsvc.guest.model_view import collections, texts

#: A data frame of at most so many values and rows is shown in full.
SMALL_VALUES, SMALL_ROWS = 420, 60
#: Rows from the start and from the end of a large one, and the columns of those rows.
HEAD, TAIL, MAX_COLUMNS = 3, 2, 24
#: Most lines of a schema.
MAX_SCHEMA = 100
#: Most values that are read for the statistics of a column: numbers, and other objects.
MAX_NUMBERS, MAX_OBJECTS = 200_000, 20_000
#: Most characters of a value, unless the user has set pandas' ``display.max_colwidth`` higher.
WIDTH = 60
_SERIES_SMALL, _ARRAY_SMALL, _ARRAY_SAMPLED = 40, 200, 1_000_000
_NUMBERED = re.compile(r"(.*?)(\d+)$")
#: Types of single values that are written with ``str``.
_WRITTEN = frozenset(("Timestamp", "Timedelta", "Period", "Interval", "Decimal", "datetime", "date", "time", "UUID"))
_LIBRARIES = ("pandas", "numpy", "datetime", "decimal", "uuid")


def data_frame(frame: Any, plain: object) -> str:
    """Return the form of a ``pandas.DataFrame``."""
    rows, columns = frame.shape
    title = f"DataFrame, {rows} rows x {columns} columns"
    if rows == 0 or columns == 0:
        names = ", ".join(_labels(frame.columns)[:MAX_SCHEMA])
        return f"{title}: {names}" if names else title
    if rows <= SMALL_ROWS and rows * columns <= SMALL_VALUES:
        return "\n".join([title, *_csv(frame)])
    lines = [title, *_schema(frame)]
    shown = frame.iloc[:, :MAX_COLUMNS] if columns > MAX_COLUMNS else frame
    if rows <= HEAD + TAIL:
        return "\n".join([*lines, *_csv(shown)])
    lines.append(
        f"rows 0-{HEAD - 1} and the last {TAIL}" + (f", {MAX_COLUMNS} columns:" if shown is not frame else ":")
    )
    head, tail = _csv(shown.iloc[:HEAD], whole=frame.index), _csv(shown.iloc[-TAIL:], whole=frame.index)
    return "\n".join([*lines, *head, *tail[1:]])


def series(values: Any, plain: object) -> str:
    """Return the form of a ``pandas.Series``."""
    name = f" {values.name!r}" if type(values.name) is str else ""
    title = f"Series{name}, {len(values)} values, {values.dtype}"
    frame = values.to_frame("value")
    if len(values) <= _SERIES_SMALL:
        return "\n".join([title, *_csv(frame, header=False, with_index=True)])
    facts = _facts(values)
    lines = [f"{title}: {facts}" if facts else title]
    lines += _csv(frame.iloc[:5], header=False, with_index=True)
    return "\n".join([*lines, "…", *_csv(frame.iloc[-3:], header=False, with_index=True)])


def polars_frame(frame: Any, plain: object) -> str:
    """Return the form of a ``polars.DataFrame``."""
    rows, columns = frame.shape
    title = f"polars DataFrame, {rows} rows x {columns} columns"
    names = [f"{name}: {kind}" for name, kind in zip(frame.columns[:MAX_SCHEMA], frame.dtypes, strict=False)]
    whole = rows <= SMALL_ROWS and rows * columns <= SMALL_VALUES
    some = frame if whole else frame[:HEAD]
    shown = [",".join(texts.csv_field(_value(each, WIDTH)) for each in row[:MAX_COLUMNS]) for row in some.rows()]
    head = ",".join(texts.csv_field(name) for name in frame.columns[:MAX_COLUMNS])
    return "\n".join([title, ", ".join(names), head, *shown, *([] if whole else ["…"])])


def array(values: Any, plain: object) -> str | None:
    """Return the form of a ``numpy.ndarray``."""
    if values.size <= _ARRAY_SMALL:
        return None
    shape = " x ".join(map(str, values.shape))
    title = f"array {shape}, {values.dtype}"
    if values.dtype.kind not in "biuf":
        return f"{title}: {texts.cut(texts.mask_addresses(plain), 1500)}" if type(plain) is str else title
    numpy = sys.modules["numpy"]
    sampled = values.size > _ARRAY_SAMPLED
    flat = values.reshape(-1) if values.flags.c_contiguous else values.ravel(order="K")
    facts = _numbers(flat[:: max(1, values.size // _ARRAY_SAMPLED)] if sampled else flat)
    note = " (of a sample)" if sampled else ""
    corners = numpy.array2string(values, threshold=20, edgeitems=2, precision=6, max_line_width=200)
    return f"{title}, {facts}{note}\n{texts.cut(corners, 1500)}"


# --- the lines of a table -----------------------------------------------------------------


def _labels(columns: Any) -> list[str]:
    if columns.nlevels > 1:
        return ["/".join(_label(part) for part in each) for each in columns]
    return [_label(each) for each in columns]


def _label(value: Any) -> str:
    return value if type(value) is str else _value(value, WIDTH)


def _csv(frame: Any, *, header: bool = True, with_index: bool = False, whole: Any = None) -> list[str]:
    """Return the lines of a table, with the index if it is more than the row's number."""
    index = frame.index
    columns: list[list[str]] = []
    names: list[str] = []
    if with_index or not _is_row_number(index if whole is None else whole):
        for level in range(index.nlevels):
            values = index.get_level_values(level)
            names.append(_label(index.names[level]) if index.names[level] is not None else "")
            columns.append(_column(values))
    names += _labels(frame.columns)
    columns += [_column(frame.iloc[:, at]) for at in range(frame.shape[1])]
    lines = [",".join(texts.csv_field(each) for each in row) for row in zip(*columns, strict=True)]
    return [",".join(map(texts.csv_field, names)), *lines] if header else lines


def _is_row_number(index: Any) -> bool:
    pandas = sys.modules["pandas"]
    return type(index) is pandas.RangeIndex and index.start == 0 and index.step == 1


def _column(values: Any) -> list[str]:
    pandas = sys.modules["pandas"]
    width = max(WIDTH, _max_width(pandas))
    found = [_value(each, width) for each in values.tolist()]
    if values.dtype.kind == "M" and all(each.endswith(" 00:00:00") or not each for each in found):
        return [each.removesuffix(" 00:00:00") for each in found]
    return found


def _max_width(pandas: Any) -> int:
    width = pandas.get_option("display.max_colwidth")
    return 2000 if width is None else min(int(width), 2000)


def _value(value: Any, width: int) -> str:
    """Return one value of a table. Values of unknown types are named and not printed."""
    kind = type(value)
    if value is None:
        return ""
    if kind is float:
        return "" if value != value else texts.short_float(value)
    if kind is str:
        return value if len(value) <= width else f"{value[: width - 1]}…"
    if kind in (int, bool, complex):
        return str(value) if kind is not int or value.bit_length() < 4096 else "a large int"
    if kind in (list, tuple, dict, set, bytes):
        return _collection(value, width)
    module = str(kind.__module__).partition(".")[0]
    if module == "pandas" and kind.__name__ in ("NaTType", "NAType"):
        return ""
    if module == "numpy" and hasattr(value, "item"):
        return _value(value.item(), width) if type(value.item()) is not kind else str(value)
    if module in _LIBRARIES and kind.__name__ in _WRITTEN:
        return str(value)
    return f"<{kind.__name__}>"


def _collection(value: Any, width: int) -> str:
    text = collections.bounded_repr(value, width)
    return text if len(text) <= width else f"{text[: width - 1]}…"


# --- a schema -----------------------------------------------------------------------------


def _schema(frame: Any) -> list[str]:
    labels = _labels(frame.columns[: 50 * MAX_SCHEMA])
    kinds = [str(each) for each in frame.dtypes[: len(labels)]]
    lines: list[str] = []
    at = 0
    while at < len(labels) and len(lines) < MAX_SCHEMA:
        end = _end_of_series(labels, kinds, at)
        if end - at >= 4:
            lines.append(f"{labels[at]} … {labels[end - 1]} ({end - at}): {kinds[at]}")
        else:
            end = at + 1
            facts = _facts(frame.iloc[:, at])
            lines.append(f"{labels[at]}: {kinds[at]}" + (f", {facts}" if facts else ""))
        at = end
    left_out = frame.shape[1] - at
    return [*lines, f"… {left_out} more columns"] if left_out > 0 else lines


def _end_of_series(labels: Sequence[str], kinds: Sequence[str], at: int) -> int:
    """Return the end of the columns that have the same name, but for a number, and the same type."""
    first = _NUMBERED.match(labels[at])
    end = at + 1
    while first is not None and end < len(labels) and kinds[end] == kinds[at]:
        other = _NUMBERED.match(labels[end])
        if other is None or other[1] != first[1]:
            break
        end += 1
    return end


def _facts(values: Any) -> str:
    """Return nulls, range and mean of a column, or its most frequent values."""
    kind = values.dtype.kind
    count = len(values)
    most = MAX_NUMBERS if kind in "iufbmM" else MAX_OBJECTS
    sampled = values.iloc[:: -(-count // most)] if count > most else values
    found: list[str] = []
    nulls = int(sampled.isna().sum()) if kind != "O" or _is_library_type(values.dtype) else None
    if kind in "iuf":
        known = sampled.dropna() if nulls else sampled
        found.append(_numbers(known.to_numpy()))
    elif kind == "b":
        found.append(f"{int(sampled.sum())} True")
    elif kind in "mM":
        ends = sampled.min(), sampled.max()
        found.append(" … ".join(str(each).removesuffix(" 00:00:00") for each in ends))
    else:
        nulls, text = _most_frequent(sampled.tolist())
        found.append(text)
    if nulls:
        found.insert(0, f"{nulls} nulls")
    if count > most:
        found.append("of a sample")
    return ", ".join(each for each in found if each)


def _is_library_type(dtype: Any) -> bool:
    return str(type(dtype).__module__).partition(".")[0] in ("numpy", "pandas", "pyarrow")


def _numbers(values: Any) -> str:
    numpy = sys.modules["numpy"]
    if values.dtype.kind == "f":
        finite = values[numpy.isfinite(values)]
        bad = values.size - finite.size
    else:
        finite, bad = values, 0
    if not finite.size:
        return "no finite value"
    low, high, mean = (texts.short_float(float(each)) for each in (finite.min(), finite.max(), finite.mean()))
    return f"{low} … {high}, mean {mean}" + (f", {bad} not finite" if bad else "")


def _most_frequent(values: Sequence[Any]) -> tuple[int, str]:
    """Return the number of nulls, and the distinct values of a column of texts."""
    nulls = sum(
        each is None or (type(each) is float and each != each) or type(each).__name__ == "NAType" for each in values
    )
    known = [each for each in values if type(each) in (str, int, bool)]
    if len(known) + nulls < len(values):
        kinds = Counter(type(each).__name__ for each in values)
        return nulls, "values of " + ", ".join(f"{name} {n}" for name, n in kinds.most_common(4))
    counts = Counter(known)
    if len(counts) == len(known):
        return nulls, "all distinct"
    if len(counts) > len(known) // 2:
        return nulls, f"{len(counts)} distinct"
    top = ", ".join(f"{_value(value, 30)} {n}" for value, n in counts.most_common(4))
    return nulls, f"{len(counts)} distinct: {top}"
