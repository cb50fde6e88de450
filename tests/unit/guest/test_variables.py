"""Summaries of variables never run the user's code."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kernelsvc.guest.variables import MAX_VARIABLES, describe, size, summary, type_name


def traps() -> dict[str, Any]:
    """Objects that raise at whatever could be asked of them. Made late: pytest itself would look at them."""

    class Trap:
        def __getattribute__(self, name: str) -> Any:
            raise SystemExit(name)

        def __repr__(self) -> str:
            raise SystemExit("repr")

        __str__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = __sizeof__ = __repr__  # type: ignore[assignment]

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit(name)

    class MyList(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            raise SystemExit("len")

    class MyFrame(pd.DataFrame):
        @property
        def shape(self) -> Any:
            raise SystemExit("shape")

    return {"trap": Trap(), "liar": Meta("Liar", (), {}), "list": MyList([1]), "frame": MyFrame()}


def test_a_trap_is_not_sprung() -> None:
    found = describe(traps(), {})
    assert [v["name"] for v in found] == ["trap", "liar", "list", "frame"]
    assert [v["type"].rpartition(".")[2] for v in found] == ["Trap", "Meta", "MyList", "MyFrame"]
    assert size(traps()["trap"]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        (None, "None"),
        ("abc", "'abc'"),
        (b"abc", "b'abc'"),
        ([1, 2], "2 items"),
        ({"a": 1}, "1 items"),
        (collections.OrderedDict(a=1), "1 items"),
        (range(3), "range(0, 3)"),
        (np.zeros((2, 3)), "shape (2, 3), float64"),
        (np.float64(0.5), "0.5"),
        (pd.Series([1, 2]), "2 values, int64"),
        (pd.DataFrame({"a": [1]}), "1 rows x 1 columns: 'a'"),
        (math.sqrt, ""),
        (test_a_trap_is_not_sprung, "def test_a_trap_is_not_sprung(...)"),
        (dict, "class"),
        (10**3000, "int of 9966 bits"),
    ],
)
def test_summaries(value: object, expected: str) -> None:
    assert summary(value) == expected


def test_summaries_are_short() -> None:
    wide = pd.DataFrame({f"column {i}" * 50: [1] for i in range(100)})
    for value in ("x" * 10**7, b"x" * 10**7, list(range(10**6)), wide, 2**5000):
        (found,) = describe({"x": value}, {})
        assert len(found["summary"]) <= 200


def test_sizes() -> None:
    assert size(np.zeros(100)) == 800
    assert size(pd.DataFrame({"a": np.zeros(100)})) >= 800
    assert size("x" * 100) > 100  # type: ignore[operator]


def test_only_what_the_user_made_is_listed() -> None:
    hidden = {"In": [], "exit": print}
    names = {**hidden, "_x": 1, "np": np, "mine": 1, 5: 1}
    assert [v["name"] for v in describe(names, hidden)] == ["mine"]  # type: ignore[arg-type]


def test_a_hidden_name_that_was_taken_over_is_listed() -> None:
    assert [v["name"] for v in describe({"exit": 3}, {"exit": print})] == ["exit"]


def test_there_is_a_bound() -> None:
    assert len(describe({f"v{i}": i for i in range(5000)}, {})) == MAX_VARIABLES


def test_type_names_carry_the_package() -> None:
    assert type_name(np.zeros(1)) == "numpy.ndarray"
    assert type_name(3) == "int"
    assert type_name(pd.DataFrame()) == "pandas.DataFrame"
