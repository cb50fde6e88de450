"""The data of a variable: formats, parts, and objects that would run user code."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kernelsvc.guest import variables
from kernelsvc.guest.data import value_data


class Trap:
    """An object whose methods must not be called."""

    __module__ = "__main__"

    def __reduce__(self) -> Any:
        raise AssertionError("called")

    __str__ = __repr__ = __iter__ = __len__ = __float__ = __format__ = __reduce__


class Lying(pd.DataFrame):
    def to_csv(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("called")


def asked(value: Any, form: str = "json", **more: Any) -> dict[str, Any]:
    return value_data.reply({"v": value}, {"name": "v", "format": form, **more})


def data(value: Any, form: str = "json", **more: Any) -> bytes:
    found = asked(value, form, **more)
    assert found["status"] == "ok", found
    return base64.b64decode(found["data"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, (2, 3)], 4: None}, {"a": [1, [2, 3]], "4": None}),
        ([float("nan"), float("inf"), b"ab", np.int64(7)], [None, None, "YWI=", 7]),
        (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        (pd.Series([1.5], name="n", index=["i"]), [{"index_0": "i", "n": 1.5}]),
        (np.array([[1, 2]]), [{"0": 1, "1": 2}]),
        (Trap(), "<Trap>"),
        ([Trap(), 1], ["<Trap>", 1]),
        ("\ud800", "\ud800"),
        (pd.DataFrame({"a": [Trap(), [1, Trap()]]}), [{"a": "<Trap>"}, {"a": '[1, "<Trap>"]'}]),
        (pd.DataFrame({Trap: [1], ("p", 2): [3]}), [{"<type>": 1, "p/2": 3}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_as_json(value: Any, expected: Any) -> None:
    assert json.loads(data(value)) == expected


def test_a_table_as_csv_has_all_rows_and_no_object_is_called() -> None:
    frame = pd.DataFrame({"n": [1, 2], "o": [Trap(), "a\ud800"], "d": pd.date_range("2024-01-01", periods=2)})
    rows = list(csv.reader(io.StringIO(data(frame, "csv").decode())))
    assert rows == [["n", "o", "d"], ["1", "<Trap>", "2024-01-01"], ["2", "a\\ud800", "2024-01-02"]]
    assert asked(Lying({"a": [1]}), "csv")["ename"] == "not_supported"


def test_a_long_table_comes_in_parts_that_fit() -> None:
    frame = pd.DataFrame({"n": np.arange(400_000), "t": ["text of a row"] * 400_000})
    parts, start = [], 0
    while True:
        found = asked(frame, "csv", from_row=start)
        raw = base64.b64decode(found["data"])
        assert len(raw) <= value_data.MAX_BYTES
        parts.append(pd.read_csv(io.BytesIO(raw)))
        assert found["total"] == 400_000
        if found["next_row"] is None:
            break
        start = found["next_row"]
    assert 1 < len(parts) < 12
    assert pd.concat(parts, ignore_index=True).equals(frame)
    refused = asked(frame, "csv", whole=True)
    assert refused["ename"] == "too_large"
    assert "rows=" in refused["evalue"]


@pytest.mark.parametrize(
    ("value", "more", "code"),
    [
        ("x" * 5_000_000, {}, "too_large"),
        (pd.DataFrame({"a": ["x" * 5_000_000]}), {"form": "csv"}, "too_large"),
        ([[0] * 600_000], {}, "too_large"),
        ([1], {"form": "csv"}, "not_supported"),
        ([1], {"columns": ["a"]}, "not_supported"),
        (pd.DataFrame({"a": [1]}), {"columns": ["b"]}, "not_found"),
        (10**5000, {}, "not_supported"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_has_a_code_and_the_next_step(value: Any, more: dict[str, Any], code: str) -> None:
    found = asked(value, **more)
    assert (found["status"], found["ename"]) == ("error", code)
    assert value_data.reply({}, {"name": "v", "format": "json"})["ename"] == "not_found"


def test_wide_tables_and_chosen_columns_and_rows() -> None:
    wide = pd.DataFrame(np.zeros((50, 10_000)))
    found = asked(wide, "csv", rows=2, columns=["0", "9999"])
    assert base64.b64decode(found["data"]) == b"0,9999\n0.0,0.0\n0.0,0.0\n"
    assert (found["rows"], found["total"], found["next_row"]) == (2, 50, None)
    assert asked(wide, "csv")["next_row"] is None or asked(wide, "csv")["rows"] > 0


def test_columns_of_one_name_stay_apart() -> None:
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert json.loads(data(frame)) == [{"a": 1, "a_": 2}]
    many = pd.DataFrame([range(2000)], columns=["a"] * 2000)
    assert [*json.loads(data(many))[0]][-2:] == ["a_1998", "a_1999"]
    assert json.loads(data({1: "int", "1": "text", (1,): "tuple"})) == {"1": "int", "1_": "text", "1_2": "tuple"}


def test_many_columns_that_need_a_conversion_each_are_refused() -> None:
    found = asked(pd.DataFrame([["x"] * 5001]), "csv")
    assert found["ename"] == "too_large"
    assert "5000" in found["evalue"]
    assert asked(pd.DataFrame([["x"] * 5001]), "csv", columns=["7"])["status"] == "ok"


CALLED: list[str] = []


class Meta(type):
    """A metaclass whose objects are equal to every class."""

    def __eq__(cls, other: object) -> bool:
        CALLED.append("==")
        return True

    def __hash__(cls) -> int:
        CALLED.append("hash")
        return hash(int)

    def __instancecheck__(cls, instance: object) -> bool:
        CALLED.append("isinstance")
        return True


class Equal(metaclass=Meta):
    """An object that pretends to be any other, and notes each call of a method."""

    def __getattribute__(self, name: str) -> Any:
        CALLED.append(name)
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        CALLED.append("repr")
        return ""

    def __hash__(self) -> int:
        CALLED.append("hash of an object")
        return 1

    def __eq__(self, other: object) -> bool:
        CALLED.append("== of an object")
        return True

    def __len__(self) -> int:
        CALLED.append("len")
        return 1


class Numbers(pd.api.extensions.ExtensionArray):
    """A user's own array for pandas."""

    dtype = property(lambda self: CALLED.append("dtype") or pd.array([1]).dtype)
    nbytes = property(lambda self: CALLED.append("nbytes") or 8)

    def __len__(self) -> int:
        CALLED.append("len of an array")
        return 1

    def __getitem__(self, item: Any) -> Any:
        CALLED.append("item")
        return 1 if isinstance(item, int) else self

    def copy(self) -> Numbers:
        return self


class LazyModule(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        CALLED.append(name)
        raise AttributeError(name)


def _series(named: Any) -> Any:
    found = pd.Series([1], name="n")
    found.name = named
    return found


def _frame_with_attributes() -> Any:
    found = pd.DataFrame({"a": [1]})
    found.attrs["x"] = Equal()
    return found


@pytest.mark.parametrize(
    "made",
    [
        Equal,
        lambda: Equal,
        lambda: [Equal(), {"k": Equal()}, (Equal(), {Equal()})],
        lambda: {Equal(): 1},
        lambda: {"a": Equal},
        lambda: pd.DataFrame({"a": [Equal(), Equal()]}, dtype=object),
        lambda: pd.DataFrame({"a": [1]}, index=pd.Index([Equal()], dtype=object)),
        lambda: pd.DataFrame([[1]], columns=pd.Index([Equal()], dtype=object)),
        lambda: pd.DataFrame({"a": pd.Series([Equal()], dtype=object).to_numpy()}, dtype=object),
        lambda: _series(("a", Equal())),
        _frame_with_attributes,
        lambda: pd.Series(Numbers()),
        lambda: pd.DataFrame({"a": Numbers()}),
        lambda: pd.DataFrame({"a": [1]}, index=pd.Index(Numbers())),
    ],
)
def test_no_method_of_a_class_of_the_session_is_called(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    value = made()
    monkeypatch.setitem(sys.modules, "polars", LazyModule("polars"))
    CALLED.clear()
    asked(value, "best")
    asked(value, "json")
    asked(value, "csv")
    variables.describe({"v": value}, {})
    assert CALLED == []


def test_a_table_with_values_of_the_sessions_own_kind_is_refused_with_its_type() -> None:
    found = asked(pd.Series(Numbers()), "csv")
    assert found["ename"] == "not_supported"
    assert "Numbers" in found["evalue"]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_arrows_formats(form: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"n": [1, 2], "t": ["a", Trap()], "mixed": [1, "b"]})
    raw = io.BytesIO(data(frame, form))
    found = pyarrow.ipc.open_stream(raw).read_all().to_pandas() if form == "arrow" else pd.read_parquet(raw)
    assert found.to_dict("list") == {"n": [1, 2], "t": ["a", "<Trap>"], "mixed": ["1", "b"]}


def test_without_pyarrow_the_best_format_of_a_table_is_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_data, "_has", lambda name: False)
    frame = pd.DataFrame({"a": [1]})
    assert asked(frame, "best")["format"] == "csv"
    assert asked([1], "best")["format"] == "json"
    assert asked(frame, "parquet")["ename"] == "not_supported"


class HostileZone(datetime.tzinfo):
    """A time zone whose methods must not be called, except while the values are made."""

    allowed = True

    def utcoffset(self, _: datetime.datetime | None) -> datetime.timedelta:
        assert self.allowed, "called"
        return datetime.timedelta(hours=1)

    dst = utcoffset

    def tzname(self, _: datetime.datetime | None) -> str:
        assert self.allowed, "called"
        return "hostile"


def _with_zone(kind: str, zone: datetime.tzinfo) -> Any:
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=zone)
    return {
        "datetime": lambda: noon,
        "time": lambda: datetime.time(12, tzinfo=zone),
        "in a list": lambda: [noon],
        "key": lambda: {noon: 1},
        "index": lambda: pd.DataFrame({"a": [1]}, index=pd.DatetimeIndex([noon])),
        "label": lambda: pd.DataFrame([[1]], columns=[noon]),
        "column": lambda: pd.DataFrame({"a": pd.Series([noon]).dt.tz_convert(zone)}),
        "objects": lambda: pd.DataFrame({"a": pd.Series([noon, 1], dtype=object)}),
        "stamps": lambda: pd.DataFrame({"a": pd.Series([pd.Timestamp(noon), 1], dtype=object)}),
        "series": lambda: pd.Series([1], index=pd.DatetimeIndex([noon])),
        "array": lambda: np.array([noon], dtype=object),
        "levels": lambda: pd.DataFrame([[1]], columns=pd.MultiIndex.from_arrays([pd.DatetimeIndex([noon])])),
        "categories": lambda: pd.DataFrame({"a": pd.Categorical(pd.DatetimeIndex([noon]))}),
    }[kind]()


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize(
    "kind", ["datetime", "time", "in a list", "key", "index", "label", "column", "objects", "stamps", "series", "array"]
)
def test_time_zones_of_the_user_are_not_asked(kind: str, form: str) -> None:
    zone = HostileZone()
    value = _with_zone(kind, zone)
    zone.allowed = False
    expected = "12:00:00"
    hostile = asked(value, form)
    assert hostile["status"] == "ok" or (form == "csv" and hostile["ename"] == "not_supported"), hostile
    known = asked(_with_zone(kind, datetime.UTC), form)
    assert known["status"] == hostile["status"]
    assert known["status"] != "ok" or expected in base64.b64decode(known["data"]).decode()
