"""Frames from a kernel, as values: coalescing, bounds, violations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.kernels.forked.wire_parser import (
    HEADER,
    HELLO,
    MAX_STREAM,
    MESSAGE,
    REPLY,
    STREAM,
    WireParser,
    WireViolation,
    merge_texts,
    parse_welcome,
)
from kernelsvc.kernels.port import KernelMessage, StreamText
from kernelsvc.protocol.jupyter import join_v1


def frame(kind: int, number: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), kind, number) + payload


def text(number: int, said: bytes, name: int = 1, parent: bytes = b"p") -> bytes:
    return frame(STREAM, number, bytes([name]) + len(parent).to_bytes(2, "little") + parent + said)


def status(number: int, state: bytes = b"idle") -> bytes:
    header, content = b'{"msg_id":"a","msg_type":"status"}', b'{"execution_state":"' + state + b'"}'
    return frame(MESSAGE, number, join_v1("iopub", [header, b'{"msg_id":"p"}', b"{}", content]))


def test_text_of_one_kind_in_one_read_is_one_text_with_the_last_number() -> None:
    got = WireParser().feed(text(1, b"a") + text(2, b"b") + text(3, b"c", name=2) + text(4, b"d", name=2, parent=b"q"))
    assert got == [
        StreamText(name="stdout", text="ab", parent="p", frame=2),
        StreamText(name="stderr", text="c", parent="p", frame=3),
        StreamText(name="stderr", text="d", parent="q", frame=4),
    ]


def test_bytes_of_a_pipe_are_decoded_where_the_servers_reads_of_it_are() -> None:
    parser = WireParser()
    euro = "€".encode()
    assert parser.feed(text(1, euro[:1], name=5) + text(2, euro[:1], name=6)) == []
    assert parser.decoders[0].decode(euro[1:]) == "€"  # the server's read
    assert parser.feed(text(3, euro[1:], name=6)) == [StreamText(name="stderr", text="€", parent="p", frame=3)]
    printed = text(4, b"1") + text(5, euro[:2], name=5) + text(6, b"2") + text(7, euro[2:], name=5) + text(8, b"3")
    assert parser.feed(printed) == [StreamText(name="stdout", text="12€3", parent="p", frame=8)]


def test_a_message_ends_a_text() -> None:
    got = WireParser().feed(text(1, b"a") + status(2) + text(3, b"b"))
    assert [type(item) for item in got] == [StreamText, KernelMessage, StreamText]
    assert got[1].frame == 2
    assert got[1].parent == "p"


@given(st.lists(st.integers(1, 40), min_size=1), st.integers(1, 50))
def test_any_cut_of_the_stream_gives_the_same(sizes: list[int], count: int) -> None:
    data = b"".join(text(i, b"%d;" % i) for i in range(1, count + 1))
    parser, said, at = WireParser(), "", 0
    for index in range(len(data)):
        size = sizes[index % len(sizes)]
        said += "".join(item.text for item in parser.feed(data[at : at + size]) if isinstance(item, StreamText))
        at += size
        if at >= len(data):
            break
    assert said == "".join(f"{i};" for i in range(1, count + 1))
    assert parser.last == count
    assert parser.pending == 0


def _fed(data: bytes, size: int) -> list[StreamText | KernelMessage]:
    """What a parser makes of ``data`` in pieces of ``size``; texts of one kind joined."""
    parser, got = WireParser(), []
    for at in range(0, len(data), size):
        got = merge_texts(got, parser.feed(data[at : at + size]))
    assert parser.pending == 0
    return got


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("out"), st.text(st.characters(max_codepoint=127), max_size=5).map(str.encode)),
            st.tuples(st.sampled_from(["out", "raw", "err", "other", "idle"]), st.just(b"x")),
            # A text that holds what its own frames begin with, one that holds a whole frame, one that ends in a header.
            st.tuples(st.just("out"), st.sampled_from([b"\x01\x01\x00p", text(3, b"z"), HEADER.pack(5, STREAM, 4)])),
        ),
        max_size=40,
    ),
    st.integers(1, 200),
)
def test_frames_that_are_read_together_are_those_that_came_one_by_one(told: list[tuple[str, bytes]], size: int) -> None:
    make = {
        "out": lambda n, said: text(n, said),
        "raw": lambda n, said: text(n, said, name=5),
        "err": lambda n, said: text(n, said, name=2),
        "other": lambda n, said: text(n, said, parent=b"another"),
        "idle": lambda n, said: status(n),
    }
    data = b"".join(make[kind](number, said) for number, (kind, said) in enumerate(told, 1))
    one_by_one = _fed(data, 1)
    assert _fed(data, len(data) or 1) == one_by_one
    assert _fed(data, size) == one_by_one


@pytest.mark.parametrize("at", [1, 5, 6, 30, 59, 60])
@pytest.mark.parametrize(
    "bad",
    [
        lambda n: text(n + 1, b"a"),
        lambda n: frame(STREAM, n, b"\x01\x09\x00p"),
        lambda n: frame(STREAM, n, b""),
        lambda n: frame(9, n, b"\x01\x01\x00pa"),
        lambda n: text(n, b"a")[:-1],
        lambda n: text(n, b"a") + b"b",
        lambda n: text(n, b"y" * MAX_STREAM),
    ],
)
def test_one_bad_frame_among_many_texts_is_found(at: int, bad: Callable[[int], bytes]) -> None:
    good = [text(n, b"%d\n" % n) for n in range(1, 61)]
    with pytest.raises(WireViolation):
        WireParser().feed(b"".join([*good[: at - 1], bad(at), *good[at:], text(61, b"end")]))


def test_many_texts_in_one_read_are_one() -> None:
    data = b"".join(text(n, b"%d\n" % n) for n in range(1, 1001))
    parser = WireParser()
    (got,) = parser.feed(data + text(1001, b"half")[:-2])
    assert got.text.splitlines() == [str(n) for n in range(1, 1001)]
    assert (got.frame, parser.last, parser.pending) == (1000, 1000, len(text(1001, b"half")) - 2)


def test_a_large_message_over_many_reads_is_decoded_whole_with_its_buffers_and_what_follows() -> None:
    said = "é<td>" * 300_000
    content = msgspec.json.encode({"data": {"text/html": said}})
    parts = [b'{"msg_id":"a","msg_type":"display_data"}', b'{"msg_id":"p"}', b'{"m":[1]}', content, b"one", b"", b"two"]
    data = text(1, b"before") + frame(MESSAGE, 2, join_v1("iopub", parts)) + text(3, b"after") + status(4)
    for size in (1000, 1 << 18, len(data)):
        before, message, after, idle = _fed(data, size)
        assert (before.text, after.text, idle.msg_type) == ("before", "after", "status")
        assert isinstance(message, KernelMessage)
        assert (message.content, message.metadata) == ({"data": {"text/html": said}}, {"m": [1]})
        assert (message.buffers, message.frame) == ((b"one", b"", b"two"), 2)


@pytest.mark.parametrize("size", [13, 4096, 70_000, 1 << 18, 1 << 20])
def test_large_texts_over_many_reads_are_whole_and_in_order(size: int) -> None:
    out, err = "é".encode() * 60_000, b"x" * 200_000
    told = [text(1, out), text(2, err, name=2), text(3, err, name=2), status(4), text(5, b"short"), text(6, out)]
    data = b"".join([*told, text(7, b"\n"), text(8, b"end", parent=b"another")])
    assert _fed(data, size) == [
        StreamText(name="stdout", text=out.decode(), parent="p", frame=1),
        StreamText(name="stderr", text=2 * err.decode(), parent="p", frame=3),
        *WireParser(last=3).feed(status(4)),
        StreamText(name="stdout", text=f"short{out.decode()}\n", parent="p", frame=7),
        StreamText(name="stdout", text="end", parent="another", frame=8),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        text(3, b"x" * 100_000),
        frame(STREAM, 2, b"\x01\xff\xff" + b"x" * 65_534),
        text(2, b"x" * 100_000) + HEADER.pack(5, 9, 3),
        text(2, b"x" * 100_000) + HEADER.pack(MAX_STREAM + 1, STREAM, 3),
        text(2, b"x" * 100_000) + text(4, b"x" * 100_000),
    ],
)
def test_a_bad_frame_beside_large_ones_is_found(bad: bytes) -> None:
    with pytest.raises(WireViolation):
        _fed(text(1, b"a") + bad + b"\0" * 300_000, 1 << 16)


def test_a_large_message_is_held_to_its_bounds_over_many_reads() -> None:
    header = [b'{"msg_id":"a","msg_type":"display_data"}', b"{}", b"{}"]
    for content in (
        b'{"data":' + b"[" * 200 + b"]" * 200 + b',"x":"' + b"x" * (2 << 20) + b'"}',
        b'{"data":[' + b"1," * 2_100_000 + b"1]}",
        b'{"data":"' + b"x" * (2 << 20) + b'\xff"}',
        b"[" + b'"' + b"x" * (2 << 20) + b'"]',
    ):
        with pytest.raises(WireViolation):
            _fed(frame(MESSAGE, 1, join_v1("iopub", [*header, content])), 1 << 18)


@given(st.binary(max_size=300))
def test_garbage_is_a_violation_or_waits(data: bytes) -> None:
    with contextlib.suppress(WireViolation):
        WireParser().feed(data)


@pytest.mark.parametrize(
    "data",
    [
        text(2, b"a"),
        text(1, b"a") + text(1, b"a"),
        text(1, b"a") + text(3, b"a"),
        frame(STREAM, 1, b""),
        frame(STREAM, 1, b"\x01\x05\x00abc"),
        HEADER.pack(MAX_STREAM + 1, STREAM, 1),
        HEADER.pack(1 << 31, MESSAGE, 1),
        HEADER.pack(1 << 21, REPLY, 1),
        frame(7, 1, b""),
        frame(HELLO, 1, b"{}"),
        frame(REPLY, 1, b'{"request":"1"}'),
        frame(MESSAGE, 1, b""),
    ],
)
def test_violations(data: bytes) -> None:
    with pytest.raises(WireViolation):
        WireParser().feed(data)


def test_a_lower_bound_on_frames_holds() -> None:
    with pytest.raises(WireViolation):
        WireParser(max_frame=100).feed(HEADER.pack(101, MESSAGE, 1))


def test_replies_are_kept_apart() -> None:
    parser = WireParser(last=5)
    assert parser.feed(frame(REPLY, 6, b'{"request": 3, "ok": true}')) == []
    (reply,) = parser.replies
    assert (reply.request, reply.body) == (3, {"ok": True})
    assert parser.last == 6


def test_a_new_connection_forgets_half_a_frame() -> None:
    parser = WireParser()
    parser.feed(text(1, b"a") + text(2, b"b")[:5])
    assert parser.pending == 5
    parser.reset()
    assert parser.feed(text(2, b"b")) == [StreamText(name="stdout", text="b", parent="p", frame=2)]


def test_invalid_utf8_is_replaced() -> None:
    (got,) = WireParser().feed(text(1, b"\xff", parent=b"\xff"))
    assert (got.text, got.parent) == ("�", "�")


def test_welcome_is_taken_from_the_front() -> None:
    data = bytearray(frame(HELLO, 9, b'{"version":1,"pid":5}')[:10])
    assert parse_welcome(data) is None
    data[:] = frame(HELLO, 9, b'{"version":1,"pid":5}') + b"rest"
    said = parse_welcome(data)
    assert said is not None
    assert (said[0].pid, said[1]) == (5, 9)
    assert data == b"rest"


def test_batches_are_joined_over_the_seam() -> None:
    a, b = (
        StreamText(name="stdout", text="a", parent="p", frame=1),
        StreamText(name="stdout", text="b", parent="p", frame=2),
    )
    other = StreamText(name="stderr", text="c", parent="p", frame=3)
    assert merge_texts([a], [b, other]) == [StreamText(name="stdout", text="ab", parent="p", frame=2), other]
    assert merge_texts([a], [other]) == [a, other]
    assert merge_texts([], [a]) == merge_texts([a], []) == [a]
