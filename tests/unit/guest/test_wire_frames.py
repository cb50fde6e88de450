"""The outbox and the parser of the kernel's end: values only."""

from __future__ import annotations

import contextlib
import struct

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernelsvc.guest import wire_frames
from kernelsvc.guest.wire_frames import HEADER, MESSAGE, STREAM, Outbox, WireError, parse, parse_request


def numbers(data: bytes) -> list[int]:
    """The numbers of the whole frames in ``data``."""
    found, at = [], 0
    while at < len(data):
        length, _, number = HEADER.unpack_from(data, at)
        found.append(number)
        at += HEADER.size + length
    assert at == len(data)
    return found


def take(box: Outbox, most: int = 1 << 30) -> bytes:
    """What a socket that takes ``most`` bytes would get."""
    sent = b""
    while most and (view := box.unsent()) is not None:
        piece = bytes(view[:most])
        view.release()
        box.mark_sent(len(piece))
        most -= len(piece)
        sent += piece
    return sent


def test_frames_are_numbered_from_one() -> None:
    box = Outbox()
    box.rewind(0)
    for text in (b"a", b"", b"c"):
        box.put(STREAM, text)
    assert numbers(take(box)) == [1, 2, 3]
    assert box.unsent() is None
    assert box.clear


def test_what_the_socket_did_not_take_follows() -> None:
    box = Outbox()
    sent: list[bytes] = []
    box.put(STREAM, b"hello", lambda frame: sent.append(frame) or len(frame) - 4)
    box.put(STREAM, b"next")
    assert sent[0][:-4] + take(box)[:4] == sent[0]


def test_rewind_sends_again_what_follows() -> None:
    box = Outbox()
    for i in range(10):
        box.put(STREAM, b"x" * i)
    assert box.rewind(4) == 5
    assert numbers(take(box)) == [5, 6, 7, 8, 9, 10]
    assert box.rewind(10) == 11
    assert take(box) == b""
    assert box.rewind(99) == 11


def test_room_is_bounded_and_one_large_frame_is_let_in_alone() -> None:
    box = Outbox(limit=1000)
    assert box.has_room(5000)
    box.put(MESSAGE, b"x" * 5000)
    assert not box.has_room(1)
    box.ack(1)
    assert box.size == 0
    assert box.has_room(5000)
    box.put(STREAM, b"x" * 500)
    assert box.has_room(400)
    assert not box.has_room(600)


def test_acknowledged_runs_are_freed() -> None:
    box = Outbox()
    for _ in range(10_000):
        box.put(STREAM, b"x" * 50)
    assert box.size == 10_000 * 63
    box.ack(9_000)
    assert box.size < 2 * wire_frames.RUN_BYTES + 1_000 * 63
    box.ack(10_000)
    assert box.size == 0
    assert box.first == 10_001


def test_a_put_that_was_cut_short_leaves_no_trace() -> None:
    """A signal's handler may raise after the bytes were added and before they count."""
    box = Outbox()
    box.put(STREAM, b"one")
    box._tail.data += b"half a frame"
    box.put(STREAM, b"two")
    box.rewind(0)
    assert numbers(take(box)) == [1, 2]


def test_a_put_in_a_put_takes_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler may print while its code prints."""
    box, sent, pack = Outbox(), [], wire_frames._pack

    def send(frame: bytes) -> int:
        sent.append(frame)
        return len(frame)

    def interrupted(*fields: int) -> bytes:
        monkeypatch.setattr(wire_frames, "_pack", pack)
        assert box.put(STREAM, b"of the handler", send)
        return pack(*fields)

    monkeypatch.setattr(wire_frames, "_pack", interrupted)
    assert box.put(STREAM, b"of the code", send)
    assert (numbers(b"".join(sent)), box.clear) == ([1, 2], True)
    assert sent[1].endswith(b"of the code")


@pytest.mark.parametrize(("error", "connected"), [(BlockingIOError, True), (BrokenPipeError, False)])
def test_a_frame_that_the_socket_refuses_stays(error: type[OSError], connected: bool) -> None:
    def send(_frame: bytes) -> int:
        raise error

    box = Outbox()
    assert box.put(STREAM, b"x", send) is connected
    assert numbers(take(box)) == [1]


def test_a_view_that_somebody_still_holds_does_not_matter() -> None:
    box = Outbox()
    box.put(STREAM, b"one")
    box.rewind(0)
    held = box.unsent()
    assert held is not None
    box.put(STREAM, b"two")
    assert numbers(take(box)) == [1, 2]


class OutboxMachine(RuleBasedStateMachine):
    """Any order of puts, sends, acknowledgements and reconnects: the server gets each frame once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Outbox(limit=200_000)
        self.box.rewind(0)
        self.put: list[bytes] = []
        self.stream = b""
        self.got = 0

    def read(self) -> None:
        """The server takes the whole frames that have come."""
        at = 0
        while len(self.stream) - at >= HEADER.size:
            length, _, number = HEADER.unpack_from(self.stream, at)
            end = at + HEADER.size + length
            if end > len(self.stream):
                break
            assert number == self.got + 1
            assert self.stream[at + HEADER.size : end] == self.put[number - 1]
            self.got = number
            at = end
        self.stream = self.stream[at:]

    @rule(size=st.sampled_from([0, 1, 50, 1000, 70_000, 150_000]))
    def writes(self, size: int) -> None:
        payload = bytes([len(self.put) % 251]) * size
        if self.box.has_room(size):
            self.box.put(STREAM, payload)
            self.put.append(payload)

    @rule(most=st.integers(0, 100_000))
    def sends(self, most: int) -> None:
        self.stream += take(self.box, most)
        self.read()

    @rule(behind=st.integers(0, 3))
    def acknowledges(self, behind: int) -> None:
        self.box.ack(max(0, self.got - behind))

    @precondition(lambda self: self.put)
    @rule()
    def reconnects(self) -> None:
        self.stream = b""
        assert self.box.rewind(self.got) == self.got + 1

    @invariant()
    def holds_what_is_not_acknowledged(self) -> None:
        assert self.box.first <= self.got + 1
        assert self.box.size >= 0


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=examples(20), stateful_step_count=40)


# --- what comes in --------------------------------------------------------------------------


def test_whole_frames_are_taken_and_the_rest_waits() -> None:
    data = bytearray(HEADER.pack(2, 3, 7) + b"ab" + HEADER.pack(5, 2, 0) + b"abc")
    assert parse(data) == [(3, 7, b"ab")]
    assert parse(data) == []
    data += b"de"
    assert parse(data) == [(2, 0, b"abcde")]
    assert not data


def test_a_frame_that_is_too_large_is_refused() -> None:
    with pytest.raises(WireError):
        parse(bytearray(HEADER.pack(wire_frames.MAX_FRAME + 1, 2, 0)))


@given(st.binary(max_size=300))
def test_garbage_raises_one_error(data: bytes) -> None:
    for read in (lambda: parse(bytearray(data)), lambda: parse_request(data)):
        with contextlib.suppress(WireError):
            read()


def test_a_request_is_read() -> None:
    payload = wire_frames.join(b"shell", b'{"msg_id":"a","msg_type":"t"}', b"{}", b'{"m":1}', b'{"c":2}', b"\x00\xff")
    request = parse_request(payload)
    assert (request.channel, request.msg_id, request.msg_type) == ("shell", "a", "t")
    assert (request.metadata, request.content, request.buffers) == ({"m": 1}, {"c": 2}, [b"\x00\xff"])
    assert request.raw_header == b'{"msg_id":"a","msg_type":"t"}'
    assert request.message()["parent_header"] == {}


@pytest.mark.parametrize(
    "parts",
    [
        (b"[]", b"{}", b"{}", b"{}"),
        (b'{"msg_id":1,"msg_type":"t"}', b"{}", b"{}", b"{}"),
        (b'{"msg_type":"t"}', b"{}", b"{}", b"{}"),
        (b'{"msg_id":"a","msg_type":"t"}', b"{}", b"{}", b"1"),
        (b'{"msg_id":"a","msg_type":"t"}', b"{}", b"{", b"{}"),
    ],
)
def test_a_request_that_is_none_is_refused(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(WireError):
        parse_request(wire_frames.join(b"shell", *parts))


def test_misfits_are_named() -> None:
    assert wire_frames.size_error(b'{"a": "[[[[' + b"[" * 500 + b'"}') is None
    assert wire_frames.size_error(b"[" * 90 + b"]" * 90) is None
    assert "nested" in str(wire_frames.size_error(b"[" * 200 + b"]" * 200))
    assert "nested" in str(wire_frames.size_error(b'["' + b"x" * 20_000 + b'",' + b"[" * 200 + b"]" * 201))
    assert wire_frames.size_error(b'["' + b"x" * 20_000 + b'",' + b"[" * 99 + b"]" * 100) is None
    assert "values" in str(wire_frames.size_error(b"[" + b"0," * 2_000_001 + b"0]"))
    assert wire_frames.size_error(b'"' + b"," * 3_000_000 + b'"') is None


def test_a_stream_prefix() -> None:
    assert wire_frames.stream_prefix("stdout", "ab") == struct.pack("<BH", 1, 2) + b"ab"
    assert wire_frames.stream_prefix("stderr", "") == struct.pack("<BH", 2, 0)
    assert wire_frames.stream_prefix("stderr", "", raw=True) == struct.pack("<BH", 6, 0)
    assert len(wire_frames.stream_prefix("stderr", "x" * 100_000)) == 3 + 0xFFFF
