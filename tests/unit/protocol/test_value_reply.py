"""A kernel's reply with the data of a variable, from a kernel that lies."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.errors import Internal, NotFound, NotSupported, TooLarge
from kernelsvc.protocol import value_reply

GOOD = {
    "status": "ok",
    "name": "v",
    "type": "int",
    "format": "json",
    "from_row": 0,
    "rows": 1,
    "total": 1,
    "data": "MQ==",
}


def test_a_good_reply_is_decoded() -> None:
    found = value_reply.value_data({**GOOD, "next_row": None}, "best")
    assert (found.data, found.total) == (b"1", 1)


@pytest.mark.parametrize(
    "lie",
    [
        {"data": "not base64!"},
        {"data": 7},
        {"rows": -1},
        {"format": "exe"},
        {"format": "csv"},
        {"next_row": 0},
        {"type": "x" * 501},
        {"data": "A" * (9 * 1024 * 1024)},
        {"total": 1e300},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_a_reply_that_is_not_valid_is_an_error(lie: dict[str, Any]) -> None:
    with pytest.raises(Internal):
        value_reply.value_data({**GOOD, "next_row": None, **lie}, "json")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("not_found", NotFound), ("too_large", TooLarge), ("not_supported", NotSupported), (3, NotSupported)],
)
def test_a_refusal_keeps_its_code(name: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="why"):
        value_reply.value_data({"status": "error", "ename": name, "evalue": "why" * 400}, "json")
