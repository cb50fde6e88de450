"""The two framings of Jupyter messages: what goes in comes out, and garbage raises one error."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest, TooLarge
from kernelsvc.protocol import jupyter
from kernelsvc.protocol.jupyter import JupyterMessage, decode_json, decode_v1, encode_json, encode_v1, split_v1

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
OBJECT = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON, max_size=4)
MESSAGES = st.builds(
    JupyterMessage,
    channel=st.sampled_from(sorted(jupyter.CHANNELS)),
    header=OBJECT,
    parent_header=OBJECT,
    metadata=OBJECT,
    content=OBJECT,
    buffers=st.lists(st.binary(max_size=50), max_size=4).map(tuple),
)


@given(MESSAGES)
def test_v1_round_trip(message: JupyterMessage) -> None:
    assert decode_v1(encode_v1(message)) == message


@given(MESSAGES)
def test_json_round_trip(message: JupyterMessage) -> None:
    encoded = encode_json(message)
    assert isinstance(encoded, bytes) == bool(message.buffers)
    assert decode_json(encoded) == message


@given(st.binary(max_size=400))
def test_garbage_raises_one_error(data: bytes) -> None:
    for decode in (decode_v1, decode_json):
        with contextlib.suppress(BadRequest):
            decode(data)


@given(st.text(max_size=200))
def test_garbage_text_raises_one_error(data: str) -> None:
    with contextlib.suppress(BadRequest):
        decode_json(data)


@given(MESSAGES, st.data())
def test_a_changed_byte_raises_one_error_or_is_another_message(message: JupyterMessage, data: Any) -> None:
    encoded = bytearray(encode_v1(message))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    try:
        decode_v1(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
        decode_v1(bytes(encoded))
    except BadRequest:
        pass


def test_v1_is_laid_out_as_jupyter_server_lays_it_out() -> None:
    """``serialize_msg_to_ws_v1`` of jupyter_server, whose six offsets count the end of the content."""
    parts = [b'{"msg_id":"a"}', b"{}", b"{}", b'{"x":1}']
    offsets = [8 * (1 + 1 + len(parts) + 1)]
    offsets.append(len(b"shell") + offsets[-1])
    for part in parts:
        offsets.append(len(part) + offsets[-1])
    theirs = b"".join(
        [len(offsets).to_bytes(8, "little"), *(o.to_bytes(8, "little") for o in offsets), b"shell", *parts]
    )
    message = JupyterMessage(channel="shell", header={"msg_id": "a"}, content={"x": 1})
    assert encode_v1(message) == theirs
    assert decode_v1(theirs) == message


def test_json_binary_is_laid_out_as_jupyter_server_lays_it_out() -> None:
    text = json.dumps({"channel": "iopub", "header": {"msg_id": "a", "msg_type": "t"}, "content": {}}).encode()
    theirs = struct.pack(">III", 2, 12, 12 + len(text)) + text + b"\x00\x01"
    message = decode_json(theirs)
    assert message.buffers == (b"\x00\x01",)
    assert (message.msg_id, message.msg_type, message.parent) == ("a", "t", "")


def test_a_missing_channel_is_shell_and_missing_parts_are_empty() -> None:
    message = decode_json('{"header": {"msg_type": "kernel_info_request"}}')
    assert message.channel == "shell"
    assert message.metadata == message.content == message.parent_header == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "{",
        '{"channel": "nowhere"}',
        '{"channel": 5}',
        '{"header": []}',
        '{"content": "x"}',
        '{"header": NaN}',
        '{"header": {"a": ' + "[" * 200 + "]" * 200 + "}}",
        '{"a": ' + "9" * 5000 + "}",
        "\ud800",
    ],
)
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        decode_json(text)


@pytest.mark.parametrize("count", [0, 1, 5, 2000, 1 << 63])
def test_impossible_offset_counts_are_refused(count: int) -> None:
    with pytest.raises(BadRequest):
        split_v1(struct.pack("<Q", count) + b"\0" * 100)


def test_offsets_must_cover_the_frame_in_order() -> None:
    good = bytearray(encode_v1(JupyterMessage(channel="shell", header={})))
    for at, value in ((8, 0), (16, 1 << 60), (24, 0), (8 * 6, 10)):
        bad = bytearray(good)
        bad[at : at + 8] = struct.pack("<Q", value)
        with pytest.raises(BadRequest):
            split_v1(bytes(bad))


def test_size_depth_and_number_are_bounded() -> None:
    with pytest.raises(TooLarge):
        decode_v1(b"\0" * (jupyter.MAX_BYTES + 1))
    with pytest.raises(TooLarge):
        decode_json("x" * (jupyter.MAX_BYTES + 1))
    with pytest.raises(TooLarge):
        jupyter.parse_json(b"[" + b"0," * jupyter.MAX_VALUES + b"0]")
    with pytest.raises(BadRequest):
        jupyter.parse_json(b"[" * 10_000_0 + b"]" * 10_000_0)
    assert jupyter.parse_json(b'"' + b"[" * 1000 + b"," * 3_000_000 + b'"')
    assert jupyter.parse_json(b"[" * jupyter.MAX_DEPTH + b"]" * jupyter.MAX_DEPTH)
    many = JupyterMessage(channel="shell", header={}, buffers=(b"",) * (jupyter.MAX_BUFFERS + 1))
    with pytest.raises(BadRequest):
        decode_v1(encode_v1(many))


def test_escapes_in_strings_do_not_confuse_the_depth() -> None:
    tricky = json.dumps({"a": '\\"' * 300 + "[" * 300}).encode()
    assert jupyter.parse_json(tricky)


@pytest.mark.parametrize(
    ("unit", "name"),
    [(b"[],", "arrays and objects"), (b"{},", "arrays and objects"), (b'{"a":1},', "arrays and objects")],
)
def test_many_small_containers_are_refused(unit: bytes, name: str) -> None:
    text = b"[" + unit * (jupyter.MAX_CONTAINERS - 1) + b"0]"
    assert len(jupyter.parse_json(text)) == jupyter.MAX_CONTAINERS
    with pytest.raises(TooLarge, match=name):
        jupyter.parse_json(b"[" + unit * (jupyter.MAX_CONTAINERS + 1) + b"0]")


@pytest.mark.parametrize(
    ("number", "most"),
    [
        (b"1e-320", jupyter.MAX_SLOW_FLOATS),  # subnormal: 9 us each
        (b"1.7976931348623157E+308", jupyter.MAX_SLOW_FLOATS),
        (b"2e-0000310", jupyter.MAX_SLOW_FLOATS),
        (b"9007199254740993.000000000000000000001", jupyter.MAX_SLOW_FLOATS),  # halfway between two floats
        (b"1.5", jupyter.MAX_FLOATS),
        (b"1e23", jupyter.MAX_FLOATS),
    ],
)
def test_numbers_that_are_decoded_slowly_are_few(number: bytes, most: int) -> None:
    separated = number + b","
    assert len(jupyter.parse_json(b"[" + separated * (most - 1) + number + b"]")) == most
    with pytest.raises(TooLarge, match="numbers with a point or an exponent"):
        jupyter.parse_json(b"[" + separated * most + number + b"]")


@pytest.mark.parametrize("text", [b"1e-320,", b"0.5,", b"1" * 30 + b","])
def test_numbers_in_texts_and_words_are_no_slow_numbers(text: bytes) -> None:
    assert jupyter.parse_json(b'["' + text * (jupyter.MAX_FLOATS + 1) + b'"]')
    assert len(jupyter.parse_json(b"[" + b"true,false," * jupyter.MAX_FLOATS + b"0]")) == 2 * jupyter.MAX_FLOATS + 1


def test_many_texts_among_brackets_are_refused() -> None:
    few = b"[[]" + b",[]" * 200
    assert jupyter.parse_json(few + b',"a"' * jupyter.MAX_STRINGS + b"]")
    with pytest.raises(TooLarge, match="texts and keys"):
        jupyter.parse_json(few + b',"a"' * (jupyter.MAX_STRINGS + 1) + b"]")
    keys = b",".join(b'"%d":1' % number for number in range(jupyter.MAX_STRINGS + 1))
    with pytest.raises(TooLarge, match="texts and keys"):
        jupyter.parse_json(b"{" + keys + b"}")


def test_a_text_of_escapes_is_checked_without_going_back() -> None:
    """Each escape cost 0.2 us and 20 bytes of the regular expression's stack."""
    text = b'["' + b"[" * 101 + b'\\"' * 4_000_000 + b'"]'
    tracemalloc.start()
    try:
        jupyter.check_json(text)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()
