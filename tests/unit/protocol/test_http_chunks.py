"""Chunked bodies, cut anywhere."""

from __future__ import annotations

import pytest

from kernelsvc.protocol.http_chunks import MAX_LINE, ChunkDecoder

RAW = b"5\r\nhello\r\n1A;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nExpires: never\r\n\r\n"


@pytest.mark.parametrize("size", range(1, len(RAW) + 1))
def test_a_body_cut_into_pieces_is_the_same(size: int) -> None:
    decoder = ChunkDecoder()
    pieces = [decoder.feed(RAW[at : at + size]) for at in range(0, len(RAW), size)]
    assert b"".join(pieces) == b"helloabcdefghijklmnopqrstuvwxyz"
    assert decoder.ended


def test_a_body_without_its_last_chunk_has_not_ended() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(RAW[:-2]) == b"helloabcdefghijklmnopqrstuvwxyz"
    assert not decoder.ended


@pytest.mark.parametrize(
    "raw",
    [b"x\r\n", b"-1\r\n", b"0x1\r\n", b"1_0\r\n", b"\r\n", b"1\r\nab\r\n", b"1" * 17 + b"\r\n", b"1" * (MAX_LINE + 1)],
)
def test_invalid_framing_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"the size|too long|longer"):
        ChunkDecoder().feed(raw)
