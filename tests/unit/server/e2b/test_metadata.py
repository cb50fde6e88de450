"""Metadata of files as headers and as extended attributes."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest, TooLarge
from kernelsvc.server.e2b import metadata


def test_headers_and_attributes() -> None:
    asked = metadata.from_headers([("Content-Type", "x"), ("X-Metadata-Author", "me"), ("x-metadata-a.b", "")])
    assert asked == {"author": "me", "a.b": ""}
    kept = metadata.to_attributes(asked)
    assert kept == {"user.e2b.author": b"me", "user.e2b.a.b": b""}
    assert metadata.from_attributes({**kept, "user.other": b"x", "security.x": b"y"}) == asked


def test_what_a_cell_wrote_need_not_be_text() -> None:
    assert metadata.from_attributes({"user.e2b.\udcff": b"\xff"}) == {"?": "\ufffd"}
    many = {f"user.e2b.{n}": b"x" for n in range(10_000)}
    assert len(metadata.from_attributes(many)) <= 4 * metadata.MAX_NAMES


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([("X-Metadata-", "x")], BadRequest),
        ([("X-Metadata-" + "n" * 300, "x")], BadRequest),
        ([("X-Metadata-A", "é")], BadRequest),
        ([("X-Metadata-A", "a\x07")], BadRequest),
        ([("X-Metadata-A", "x" * 4000)], TooLarge),
        ([(f"X-Metadata-{n}", "x") for n in range(metadata.MAX_NAMES + 1)], TooLarge),
    ],
)
def test_what_can_t_be_kept(headers: list[tuple[str, str]], error: type[Exception]) -> None:
    with pytest.raises(error):
        metadata.from_headers(headers)
