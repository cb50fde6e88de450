"""Server-sent events out of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.errors import TooLarge
from kernelsvc.protocol.openai import sse_decoder
from kernelsvc.protocol.openai.sse_decoder import SseDecoder

STREAM = 'event: x\ndata: {"a":1}\n\n: comment\r\n\r\ndata:two\r\ndata: lines é\r\n\r\nid: 1\rdata: [DONE]\r\r'.encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_do_not_depend_on_the_cuts(cuts: list[int]) -> None:
    decoder, cuts = SseDecoder(), sorted(cuts)
    found = []
    for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        found += decoder.feed(STREAM[a:b])
    assert found + decoder.end() == ['{"a":1}', "two\nlines é", "[DONE]"]


def test_an_event_without_its_empty_line_is_complete_at_the_end() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: x") == []
    assert decoder.end() == ["x"]


def test_an_event_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_decoder, "MAX_EVENT", 100)
    decoder = SseDecoder()
    decoder.feed(b"data: 1234567890\n" * 6)
    with pytest.raises(TooLarge):
        decoder.feed(b"data: 1234567890")


def test_a_line_without_an_end_in_small_pieces_costs_its_length() -> None:
    # Copying the line for each piece would take an hour: 160,000 times 8 MB on average.
    decoder = SseDecoder()
    decoder.feed(b"data: ")
    pieces = [b"x" * 100] * 200_000
    with pytest.raises(TooLarge):
        [*map(decoder.feed, pieces)]
