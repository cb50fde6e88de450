"""Records of environments."""

from __future__ import annotations

import pytest

from kernelsvc.store.environments import EnvironmentRecord


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("polars>=1", "polars>=1"),
        ("shop @ git+https://robot:secret@git.example.com/shop.git", "shop @ git+https://git.example.com/shop.git"),
        ("shop @ https://to@ken@files.example.com/shop.whl", "shop @ https://files.example.com/shop.whl"),
        ("shop @ https://files.example.com/a@b.whl", "shop @ https://files.example.com/a@b.whl"),
    ],
)
def test_callers_see_no_credentials_of_an_address(wanted: str, shown: str) -> None:
    assert EnvironmentRecord(name="e", python="p", wanted=[wanted]).shown == [shown]
