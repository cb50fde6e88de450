"""Connect's framing: streams cut anywhere, and what is no stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest, TooLarge
from kernelsvc.protocol import connect

MESSAGES = st.lists(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text()), max_size=5)


@given(messages=MESSAGES, cut=st.integers(0, 200))
def test_a_stream_arrives_whole_wherever_it_is_cut(messages: list[dict[str, object]], cut: int) -> None:
    sent = b"".join(map(connect.envelope, messages))
    data = bytearray(sent[:cut])
    found = connect.take(data)
    data += sent[cut:]
    assert [*found, *connect.take(data)] == messages
    assert not data


def test_no_more_messages_are_taken_than_were_asked_for() -> None:
    data = bytearray(connect.envelope({"a": 1}) + connect.envelope({"a": 2}) * 1000)
    assert connect.take(data, 1) == [{"a": 1}]
    assert len(connect.take(data)) == 1000


def test_its_end() -> None:
    assert connect.end() == b"\x02\x00\x00\x00\x02{}"
    assert connect.end("not_found", "gone").endswith(b'{"error":{"code":"not_found","message":"gone"}}')


@pytest.mark.parametrize("data", [b"\x00\x00\x00\x00\x02[]", b"\x00\x00\x00\x00\x01{", b"\x01\x00\x00\x00\x02{}"])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(BadRequest):
        connect.take(bytearray(data))


def test_a_message_has_a_bound_that_is_seen_before_it_arrives() -> None:
    with pytest.raises(TooLarge):
        connect.take(bytearray(b"\x00\x7f\xff\xff\xff"))


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    assert connect.as_bytes(connect.as_text(data)) == data


@pytest.mark.parametrize("value", ["*", "a", 5])
def test_bytes_that_are_none(value: object) -> None:
    if value == 5:
        assert connect.as_bytes(value) == b""
        return
    with pytest.raises(BadRequest):
        connect.as_bytes(value)


@pytest.mark.parametrize(
    ("header", "unit", "seconds"),
    [("1500", 0.001, 1.5), ("0", 1, None), (None, 1, None), ("-5", 1, None), ("x", 1, None), ("9" * 13, 1, None)],
)
def test_times(header: str | None, unit: float, seconds: float | None) -> None:
    assert connect.seconds(header, unit) == seconds
