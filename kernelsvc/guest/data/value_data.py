"""A variable's data for programs: rows of a table in a file format, other values as JSON.

No user code runs: only exact types of builtins, numpy, pandas and polars are read, and other objects in a table or a
collection become their type's name. A reply has at most ``MAX_BYTES``. A longer value is read in parts by rows.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import importlib
import io
import json
import math
import sys
import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kernelsvc.guest import variables

#: Bytes of data in one reply. Its base64 text is below the wire's limit of unacknowledged bytes.
MAX_BYTES = 4 * 1024 * 1024
#: Values that are converted first, to learn how many rows fit.
_FIRST_VALUES = 50_000
#: Most columns of a table that are converted one by one.
_MAX_SINGLE = 5000
#: Most objects of a nested value, and its depth.
_MAX_OBJECTS, _MAX_DEPTH = 500_000, 40
_EXACT = variables.Types(str, int, float, bool, type(None))
_DATES = variables.Types(datetime.date, datetime.datetime, datetime.time, decimal.Decimal)
_SIZED, _LISTS = variables.Types(list, tuple, dict), variables.Types(list, tuple, set, frozenset)
#: Time zones whose methods are not the user's.
_ZONES = variables.Types(type(None), datetime.timezone, zoneinfo.ZoneInfo)

Encoder = Callable[[int, int], bytes]


class DataRefused(Exception):
    """The data can't be returned in this form. ``code`` is the error code of the server's answer."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


def reply(namespace: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the reply to a request for a variable's data.

    Args:
        namespace: the user's globals.
        wanted: ``name``, ``format`` ("best" is arrow or csv for a table, json for other values), ``from_row``, ``rows``
            (None: as many as fit), ``columns`` (None: all) and ``whole``: refuse a part.
    """
    try:
        return {"status": "ok", **_exported(namespace, wanted)}
    except DataRefused as error:
        return {"status": "error", "ename": error.code, "evalue": str(error)}
    except Exception as error:  # A library refuses a value, for example one that its format has no type for.
        why = f"The value can't be converted ({type(error).__name__}). Ask for another format, or convert it in a cell."
        return {"status": "error", "ename": "not_supported", "evalue": why}


def _exported(namespace: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    name, form = wanted["name"], wanted["format"]
    if name not in namespace:
        raise DataRefused("not_found", f"There is no variable {name!r} in the session.")
    value = namespace[name]
    table = _table(value)
    if form == "best":
        form = "json" if table is None else "arrow" if _has("pyarrow") else "csv"
    columns = wanted.get("columns")
    if table is not None:
        count, width = len(table), table.shape[1] if columns is None else len(columns)
        encode = _encoder(table, form, columns)
    elif form != "json" or columns is not None:
        raise DataRefused("not_supported", f"{variables.type_name(value)} is no table. Ask for json, without columns.")
    else:
        count, width, encode = _json_encoder(value)
    start = min(wanted.get("from_row") or 0, count)
    rows = wanted.get("rows")
    stop = count if rows is None else min(count, start + rows)
    data, end = _part(encode, start, stop, max(1, _FIRST_VALUES // max(1, width)), whole=bool(wanted.get("whole")))
    return {
        "name": name,
        "type": variables.type_name(value),
        "format": form,
        "from_row": start,
        "rows": end - start,
        "total": count,
        "next_row": end if end < stop else None,
        "data": base64.b64encode(data).decode(),
    }


def _part(encode: Encoder, start: int, stop: int, first: int, *, whole: bool) -> tuple[bytes, int]:
    """Encode the rows that fit, and return the data and where they end."""
    end = min(stop, start + first)
    data = encode(start, end)
    fit = max(1, int((end - start) * 0.9 * MAX_BYTES / max(1, len(data))))
    if whole and stop - start > 4 * fit:
        _refuse_size(fit)
    # Parquet's first rows cost most, so that more fit than these say. That costs one more request of the caller.
    if end < stop and len(data) <= MAX_BYTES:
        wider = stop if whole else min(stop, start + fit)
        data, end = (encode(start, wider), wider) if wider > end else (data, end)
    while len(data) > MAX_BYTES:
        if whole or end - start <= 1:
            _refuse_size(fit if end - start > 1 else 0)
        end = start + max(1, (end - start) // 2)
        data = encode(start, end)
    return data, end


def _refuse_size(rows: int) -> None:
    how = f"Ask for parts with rows={rows} and from_row" if rows else "One row is larger. Ask for fewer columns"
    raise DataRefused("too_large", f"The data have more than {MAX_BYTES} bytes. {how}.")


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


# --- tables ---------------------------------------------------------------------------------------


def _table(value: Any) -> Any:
    """Return a data frame for a value that is a table, or None.

    Raises:
        DataRefused: pandas would call code of the session for it.
    """
    kind, member = type(value), variables.member
    if kind is member("polars", "DataFrame"):
        return value
    if kind is member("polars", "Series"):
        return value.to_frame()
    frame, series = member("pandas", "DataFrame"), member("pandas", "Series")
    if frame is None:
        return None
    if kind is member("numpy", "ndarray") and value.ndim in (1, 2) and value.dtype.names is None:
        # Without a type pandas would look for dates in objects, and ask time zones of the user.
        return frame(value, dtype=value.dtype)
    if kind is not frame and kind is not series:
        return None
    if (foreign := variables.foreign_array(value)) is not None:
        raise DataRefused(
            "not_supported",
            f"The table has values of the type {foreign}, whose methods are the session's code. Convert them in a "
            "cell, for example with astype(object).",
        )
    # The result of a method has a copy of the attributes, for which methods of the attributes are called.
    if kind is frame:
        return frame(value)
    label = "0" if value.name is None else _label(value.name)
    return frame({label: value.array}, index=value.index, dtype=value.dtype)


def _encoder(table: Any, form: str, columns: Sequence[str] | None) -> Encoder:
    of_pandas = type(table) is variables.member("pandas", "DataFrame")
    labels = _labels(table.columns) if of_pandas else list(table.columns)
    missing = [name for name in columns or () if name not in labels]
    if missing:
        raise DataRefused("not_found", f"There is no column {missing[0]!r}.")
    chosen = range(len(labels)) if columns is None else [labels.index(name) for name in columns]
    if form in ("parquet", "arrow") and of_pandas and not _has("pyarrow"):
        raise DataRefused(
            "not_supported", f"The session's environment has no pyarrow, which {form} needs. Ask for csv."
        )

    if not of_pandas:
        return lambda start, end: _of_polars(table[:, list(chosen)].slice(start, end - start), form)
    # Taking a column makes an object of its label, for which a time zone of the user would be asked.
    table = table.set_axis(range(len(labels)), axis=1).iloc[:, list(chosen)]
    # pandas needs a tenth of a millisecond for each column that is taken alone.
    single = [at for at, dtype in enumerate(table.dtypes) if not _is_plain(dtype)]
    if len(single) > _MAX_SINGLE:
        why = f"{len(single)} columns of other types than numbers take too long. Ask for at most {_MAX_SINGLE} columns."
        raise DataRefused("too_large", why)

    def encode(start: int, end: int) -> bytes:
        part = table.iloc[start:end]
        levels = _index_columns(part.index) if columns is None else []
        names = _apart([*(name for name, _ in levels), *(labels[at] for at in chosen)])
        part = part.reset_index(drop=True).set_axis(names[len(levels) :], axis=1)
        for at in single:
            part.isetitem(at, _column(table.iloc[start:end, at]))
        for at, (_, level) in enumerate(levels):
            part.insert(at, names[at], _column(level))
        return _of_pandas(part, form)

    return encode


def _is_plain(dtype: Any) -> bool:
    """Return whether values are numbers or points in time without a zone."""
    return isinstance(dtype, variables.member("numpy", "dtype")) and dtype.kind in "biufmM"


def _apart(labels: Iterable[str]) -> list[str]:
    """Return the labels, of which none is there twice: the second ``a`` is ``a_``, the third ``a_2``."""
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    found = []
    for label in labels:
        name = label
        while name in taken:
            # Counted for each label: 50,000 columns of one name must not cost the square of that.
            repeats[label] += 1
            name = f"{label}_{repeats[label] if repeats[label] > 1 else ''}"
        taken.add(name)
        found.append(name)
    return found


def _labels(index: Any) -> list[str]:
    """Return the names of a data frame's columns as text: levels joined by "/"."""
    levels = [
        _in_known_zone(level, getattr(level.dtype, "tz", None))
        for level in map(index.get_level_values, range(index.nlevels))
    ]
    return ["/".join(map(_label, each)) for each in zip(*levels, strict=True)]


def _label(value: Any) -> str:
    """Return a part of a column's name as text."""
    if type(value) is tuple:
        return "/".join(map(_label, value))
    if type(value) in _EXACT or _is_date(value):
        return str(value)
    return _pandas_date(value) or f"<{variables.type_name(value)}>"


def _is_date(value: Any) -> bool:
    """Return whether the text of a date, time or decimal number is made without user code."""
    # A time zone is any object, and its methods are called for the text of a date.
    return type(value) in _DATES and type(getattr(value, "tzinfo", None)) in _ZONES


def _pandas_date(value: Any) -> str | None:
    """Return the text of a point in time, a duration or a period of pandas, or None if it is none of them."""
    kind = type(value)
    if not any(kind is variables.member("pandas", name) for name in _POINTS):
        return None
    return str(_in_known_zone(value, getattr(value, "tz", None)))


def _index_columns(index: Any) -> list[tuple[str, Any]]:
    """Return the names and values of an index's levels. The default index, which counts rows, has none."""
    if type(index) is variables.member("pandas", "RangeIndex"):
        return []
    levels = [index.get_level_values(level) for level in range(index.nlevels)]
    return [(f"index_{at}" if level.name is None else _label(level.name), level) for at, level in enumerate(levels)]


def _column(values: Any) -> Any:
    """Return the values of a column in types that every format converts without user code."""
    dtype = values.dtype
    if _is_plain(dtype):
        return values.array
    if type(dtype) is sys.modules["pandas"].DatetimeTZDtype:
        return _in_known_zone(values.array, dtype.tz)
    if type(dtype).__name__ in ("BooleanDtype", *(f"{k}{n}Dtype" for k in _NULLABLE for n in _BITS)):
        return values.array
    if type(dtype) is sys.modules["pandas"].CategoricalDtype:
        names = [*_column(dtype.categories), None]
        return [names[code] for code in values.array.codes]
    plain = [_plain(each) for each in values.tolist()]
    kinds = {type(each) for each in plain} - {type(None)}
    if not (kinds <= {str} or kinds <= {int, float, bool}) or any(type(n) is int and abs(n) >= 2**63 for n in plain):
        plain = [None if each is None else str(each) for each in plain]
    return plain


def _in_known_zone(value: Any, zone: Any) -> Any:
    """Return points in time of pandas, in UTC if the methods of their zone may be the user's."""
    return value if type(zone) in _ZONES else value.tz_convert("UTC")


_POINTS = ("Timestamp", "Timedelta", "Period")
_NULLABLE, _BITS = ("Int", "UInt", "Float"), (8, 16, 32, 64)


def _plain(value: Any) -> Any:
    """Return an object of a table as text or number. Lone surrogates, which no format has, become escapes."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if kind is float:
        return None if value != value else value
    if kind in _EXACT:
        return value
    if kind is bytes:
        return base64.b64encode(value).decode()
    if _is_date(value):
        return str(value)
    if value is variables.member("pandas", "NA") or value is variables.member("pandas", "NaT"):
        return None
    if (text := _pandas_date(value)) is not None:
        return text
    copied = _copied(value)
    return copied if type(copied) in _EXACT else json.dumps(copied, ensure_ascii=False)


def _of_pandas(frame: Any, form: str) -> bytes:
    if form == "csv":
        return bytes(frame.to_csv(index=False).encode())
    if form == "json":
        return bytes(frame.to_json(orient="records", date_format="iso", force_ascii=False).encode())
    out = io.BytesIO()
    if form == "parquet":
        frame.to_parquet(out, index=False)
        return out.getvalue()
    pyarrow: Any = importlib.import_module("pyarrow")

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def _of_polars(frame: Any, form: str) -> bytes:
    polars: Any = sys.modules["polars"]
    objects = [name for name, kind in frame.schema.items() if kind == polars.Object]
    frame = frame.with_columns(
        *(polars.Series(name, [str(_plain(each)) for each in frame[name].to_list()]) for name in objects)
    )
    out = io.BytesIO()
    {"csv": frame.write_csv, "json": frame.write_json, "parquet": frame.write_parquet, "arrow": frame.write_ipc_stream}[
        form
    ](out)
    return out.getvalue()


# --- other values ---------------------------------------------------------------------------------


def _json_encoder(value: Any) -> tuple[int, int, Encoder]:
    """Return the number of parts of a value, the objects in one, and the function that encodes some of them."""
    if type(value) is list or type(value) is tuple:
        width = 1 + max((len(each) for each in value[:20] if type(each) in _SIZED), default=0)
        return len(value), width, lambda start, end: _as_json(value[start:end])
    return 1, 1, lambda start, end: _as_json(value)


def _as_json(value: Any) -> bytes:
    return json.dumps(_copied(value), ensure_ascii=False).encode("utf-8", "backslashreplace")


def _copied(value: Any, depth: int = 0, left: list[int] | None = None) -> Any:
    """Return a copy that JSON can have: exact builtins, and the type's name for other objects."""
    left = [_MAX_OBJECTS] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise DataRefused("too_large", f"The value has more than {_MAX_OBJECTS} objects. Ask for parts with rows.")
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind in _EXACT:
        return value
    if variables.is_numpy_scalar(kind):
        is_void = kind is variables.member("numpy", "void")
        return variables.summary(value) if is_void else _copied(value.item(), depth, left)
    if _is_date(value):
        return str(value)
    if kind is bytes:
        return base64.b64encode(value).decode()
    if depth >= _MAX_DEPTH:
        return f"<{variables.type_name(value)}>"
    if kind is dict:
        names = _apart(map(_label, value))
        return {name: _copied(each, depth + 1, left) for name, each in zip(names, value.values(), strict=True)}
    if kind in _LISTS:
        return [_copied(each, depth + 1, left) for each in value]
    if kind is variables.member("numpy", "ndarray") and value.size <= left[0]:
        return _copied(value.tolist(), depth + 1, left)
    return f"<{variables.type_name(value)}>"
