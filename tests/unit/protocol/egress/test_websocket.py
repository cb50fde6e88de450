"""WebSockets through the proxy: which handshakes are valid, and stars in frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.network.secrets import Redactor
from kernelsvc.protocol.egress.websocket import FrameRedactor, InvalidFrame, handshake_key, is_accepted

# The example of RFC 6455, section 1.3.
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
ASKED = {
    b"connection": b"keep-alive, Upgrade",
    b"upgrade": b"WebSocket",
    b"sec-websocket-key": KEY,
    b"sec-websocket-version": b"13",
}
SECRET = b"sk-0123456789"


def frame(payload: bytes, first: int = 0x81) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes([first, size]) + payload
    return bytes([first, 126]) + size.to_bytes(2) + payload if size < 65536 else (
        bytes([first, 127]) + size.to_bytes(8) + payload
    )  # fmt: skip


def test_a_complete_handshake_has_a_key():
    assert handshake_key(b"GET", ASKED.items()) == KEY


@pytest.mark.parametrize(
    "changed",
    [
        {b"connection": b"keep-alive"},
        {b"upgrade": b"h2c"},
        {b"upgrade": b"websocket, h2c"},
        {b"sec-websocket-version": b"12"},
        {b"sec-websocket-key": b"c2hvcnQ="},
        {b"sec-websocket-key": b"!"},
        {b"content-length": b"3"},
        {b"transfer-encoding": b"chunked"},
        *({field: None} for field in ASKED),
    ],
)
def test_another_request_has_none(changed):
    fields = [(field, value) for field, value in (ASKED | changed).items() if value is not None]
    assert handshake_key(b"GET", fields) is None


def test_another_method_or_a_second_key_is_no_handshake():
    assert handshake_key(b"POST", ASKED.items()) is None
    assert handshake_key(b"GET", [*ASKED.items(), (b"sec-websocket-key", KEY)]) is None


def test_an_answer_must_be_for_the_key():
    answer = {b"upgrade": b"websocket", b"sec-websocket-accept": ACCEPT}
    assert is_accepted(KEY, answer.items())
    for field in answer:
        assert not is_accepted(KEY, (answer | {field: b"x"}).items())
        assert not is_accepted(KEY, [pair for pair in answer.items() if pair[0] != field])
    assert not is_accepted(KEY, [*answer.items(), *answer.items()])


PAYLOADS = st.lists(
    st.sampled_from([b"", b"plain", SECRET, b"x" + SECRET + b"sk-0", b"sk-", b"y" * 200 + SECRET, b"z" * 70_000]),
    max_size=5,
)


@given(PAYLOADS, st.lists(st.integers(1, 40), max_size=30))
def test_secrets_become_stars_however_the_frames_arrive(payloads, sizes):
    data = b"".join(map(frame, payloads))
    redactor, got, at = FrameRedactor(Redactor([SECRET])), b"", 0
    for size in [*sizes, len(data)]:
        got += redactor.feed(data[at : at + size])
        at += size
    # Nothing of a complete frame is kept back: the client could wait for it.
    assert got == data.replace(SECRET, b"*" * len(SECRET))


def test_a_part_of_a_frame_is_passed_on_but_for_the_beginning_of_a_secret():
    redactor = FrameRedactor(Redactor([SECRET]))
    assert redactor.feed(b"\x81\x20abcsk-") == b"\x81\x20abc"
    assert redactor.feed(b"x") == b"sk-x"


@pytest.mark.parametrize("head", [b"\x81\x85abcd", b"\xc1\x01x"])
def test_masked_and_compressed_frames_of_a_server_are_refused(head):
    with pytest.raises(InvalidFrame):
        FrameRedactor(Redactor([SECRET])).feed(head)


@given(st.binary(max_size=300))
def test_any_bytes_are_passed_on_with_their_length_or_refused(data):
    redactor = FrameRedactor(Redactor([SECRET]))
    try:
        got = redactor.feed(data)
    except InvalidFrame:
        return
    assert data.startswith(got)
    assert len(data) - len(got) < max(len(SECRET), 10)
