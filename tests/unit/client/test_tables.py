"""The parts of a variable's data as one object."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kernelsvc.client.tables import joined
from kernelsvc.errors import NotSupported
from kernelsvc.model.objects import ValueData


def part(data: bytes, form: str = "json", type: str = "list") -> ValueData:
    return ValueData(name="v", type=type, format=form, from_row=0, rows=1, total=2, next_row=None, data=data)  # type: ignore[arg-type]


def test_lists_are_joined_and_other_values_are_one_part() -> None:
    assert joined([part(b"[1, 2]"), part(b"[3]")]) == [1, 2, 3]
    assert joined([part(b'{"a": 1}', type="dict")]) == {"a": 1}


@pytest.mark.parametrize(("form", "data"), [("csv", b"a\n1\n"), ("json", json.dumps([{"a": 1}]).encode())])
def test_tables_are_one_frame(form: str, data: bytes) -> None:
    found = joined([part(data, form, "pandas.DataFrame")] * 2)
    assert found.equals(pd.DataFrame({"a": [1, 1]}))


def test_a_missing_library_is_named() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(NotSupported, match="pyarrow"):
            joined([part(b"", "arrow", "pandas.DataFrame")])
    else:
        pytest.skip("pyarrow is installed")
