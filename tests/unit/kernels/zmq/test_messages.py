"""Messages of a hostile kernel: read, refused, mended, put in order."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.kernels.zmq.messages import (
    DELIMITER,
    MAX_JOINED,
    MAX_PARTS,
    MAX_TRACKED,
    HmacKey,
    InvalidMessage,
    ReplyOrdering,
    decode,
    encode,
    merge_texts,
)
from kernelsvc.protocol.jupyter import MAX_CONTAINERS, MAX_DEPTH

KEY = HmacKey(b"secret")


def signed(*body: bytes, key: HmacKey = KEY, routing: tuple[bytes, ...] = (b"topic",)) -> list[bytes]:
    return [*routing, DELIMITER, key.sign(body), *body]


def raw(
    content: bytes = b"{}", header: bytes = b'{"msg_id":"m","msg_type":"stream"}', parent: bytes = b"{}"
) -> list[bytes]:
    return signed(header, parent, b"{}", content)


def test_what_is_written_can_be_read() -> None:
    content = {"code": "x = 'é\ud800'", "silent": False}
    parts = encode(KEY, "s", "execute_request", content, msg_id="c1", metadata={"a": 1}, buffers=[b"\0\1"])
    read = decode("shell", parts, KEY)
    assert (read.msg_type, read.msg_id, read.parent) == ("execute_request", "c1", "")
    assert read.metadata == {"a": 1}
    assert list(read.buffers) == [b"\0\1"]
    assert read.content["code"] == "x = 'é\ufffd'"


def test_the_parent_is_named() -> None:
    assert decode("iopub", raw(parent=b'{"msg_id":"c1"}'), KEY).parent == "c1"
    assert decode("iopub", raw(parent=b"null"), KEY).parent == ""


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "delimiter"),
        ([b"x"] * 20, "delimiter"),
        ([b"x"] * 9 + raw(), "delimiter"),
        (raw()[:-1], "truncated"),
        ([DELIMITER], "truncated"),
        (raw() + [b""] * MAX_PARTS, "parts"),
        (signed(b"{}", b"{}", b"{}", b"{}", key=HmacKey(b"other")), "signature"),
        ([DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"], "signature"),
        (raw(b"[]"), "object"),
        (raw(b"{"), "JSON"),
        (raw(b'"' + b"x" * 10), "JSON"),
        (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "deep"),
        (raw(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"), "deep"),
        (raw(b'{"n":NaN,"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"), "deep"),
        (raw(b'{"a":[' + b"[]," * MAX_CONTAINERS + b"[]]}"), "arrays and objects"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "JSON"),
        (raw(header=b"{}"), "msg_type"),
        (raw(header=b'{"msg_type":3}'), "msg_type"),
        (raw(header=b'{"msg_type":"stream","msg_id":["m"]}'), "msg_id"),
        (raw(header=json.dumps({"msg_type": "x" * 600, "msg_id": ""}).encode()), "msg_type"),
        (raw(parent=b'{"msg_id":7}'), "parent"),
    ],
)
def test_what_breaks_the_protocol_is_refused(parts: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        decode("iopub", parts, KEY)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"v":NaN}', None),
        (b'{"v":[-Infinity, 1]}', [None, 1]),
        (b'{"v":1e999}', None),
        (b'{"v":"\\ud800x"}', "\ufffdx"),
        (b'{"v":"\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"v":"\xff"}', "\ufffd"),
        (b'{"v":{"\\udc00":true}}', {"\ufffd": True}),
        (b'{"v":NaN,"w":1e400,"x":123456789012345678901234567890}', None),
    ],
)
def test_what_an_honest_kernel_may_send_is_mended(content: bytes, value: object) -> None:
    assert decode("iopub", raw(content), KEY).content["v"] == value


@given(st.binary(max_size=200))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    try:
        read = decode("iopub", raw(content), KEY)
    except InvalidMessage:
        return
    msgspec.json.encode(read.content)  # what was read can be written


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_whatever_python_calls_json_is_read(content: dict[str, Any]) -> None:
    msgspec.json.encode(decode("iopub", raw(json.dumps(content).encode()), KEY).content)


@given(st.lists(st.binary(max_size=30), max_size=12))
def test_any_parts_are_read_or_refused(parts: list[bytes]) -> None:
    with pytest.raises(InvalidMessage):
        decode("iopub", parts, KEY)


def test_a_scheme_must_be_known() -> None:
    with pytest.raises(ValueError, match="scheme"):
        HmacKey(b"", "none")


# --- order ---------------------------------------------------------------------------------------


def message(channel: str, msg_type: str, parent: str = "c", **content: Any) -> KernelMessage:
    return KernelMessage(channel=channel, msg_type=msg_type, parent=parent, content=content)


REPLY = message("shell", "execute_reply", status="ok")
IDLE = message("iopub", "status", execution_state="idle")
BUSY = message("iopub", "status", execution_state="busy")
DISPLAY = message("iopub", "display_data")


@pytest.mark.parametrize(
    "arriving",
    [
        [BUSY, DISPLAY, REPLY, IDLE],
        [REPLY, BUSY, DISPLAY, IDLE],
        [BUSY, DISPLAY, IDLE, REPLY],
        [BUSY, REPLY, DISPLAY, IDLE],
    ],
)
def test_reply_and_idle_come_after_the_outputs(arriving: list[KernelMessage]) -> None:
    ordering = ReplyOrdering()
    ordering.track("c")
    out: list[Output] = []
    for one in arriving:
        out += ordering.arrange([one])
    assert out == [BUSY, DISPLAY, REPLY, IDLE]
    assert ordering.open == []


def test_what_was_not_asked_is_not_held() -> None:
    ordering = ReplyOrdering()
    ordering.track("other")
    assert ordering.arrange([REPLY, IDLE]) == [REPLY, IDLE]
    assert ordering.open == ["other"]


def test_a_second_reply_does_not_replace_the_first() -> None:
    ordering = ReplyOrdering()
    ordering.track("c")
    forged = message("shell", "execute_reply", status="error")
    assert ordering.arrange([REPLY, forged]) == [forged]
    assert ordering.arrange([IDLE]) == [REPLY, IDLE]


def test_an_end_on_the_wrong_channel_is_no_end() -> None:
    ordering = ReplyOrdering()
    ordering.track("c")
    wrong = [message("iopub", "execute_reply"), message("shell", "status", execution_state="idle")]
    assert ordering.arrange(wrong) == wrong
    assert ordering.open == ["c"]


def test_what_was_held_is_given_at_the_end() -> None:
    ordering = ReplyOrdering()
    ordering.track("c")
    ordering.track("d")
    assert ordering.arrange([REPLY]) == []
    assert ordering.answered("c")
    assert not ordering.answered("d")
    assert ordering.flush() == [REPLY]
    assert ordering.open == []


def test_the_number_of_open_requests_is_bounded() -> None:
    ordering = ReplyOrdering()
    for number in range(MAX_TRACKED + 10):
        ordering.track(str(number))
    assert len(ordering.open) == MAX_TRACKED


def test_streams_become_text() -> None:
    said = message("iopub", "stream", name="stderr", text="oh")
    odd = [message("iopub", "stream", name="stdlog", text="x"), message("iopub", "stream", name="stdout", text=3)]
    assert ReplyOrdering().arrange([said, *odd]) == [StreamText(name="stderr", text="oh", parent="c"), *odd]


def test_neighbouring_text_is_joined() -> None:
    def out(text: str, parent: str = "c") -> StreamText:
        return StreamText(name="stdout", text=text, parent=parent)

    err = StreamText(name="stderr", text="e", parent="c")
    batch = [out("a"), out("b"), err, out("c"), BUSY, out("d"), out("e", "x"), out("f", "x")]
    assert merge_texts(batch) == [out("ab"), err, out("c"), BUSY, out("d"), out("ef", "x")]
    assert merge_texts([]) == []


def test_joined_text_has_a_bound() -> None:
    piece = "x" * (MAX_JOINED // 2)
    texts = merge_texts([StreamText(name="stdout", text=piece)] * 5)
    assert [len(t.text) // len(piece) for t in texts if isinstance(t, StreamText)] == [2, 2, 1]
