"""A client's frames, in any pieces, and what is no frame."""

import random
import tracemalloc

import pytest
from websockets.frames import Frame, Opcode

from kernelsvc.server.ws.protocol import FrameParser, MessageTooBig, ProtocolViolation

TEXT, BINARY, PING = 1, 2, 9


def serialized(*frames, mask=True):
    return b"".join(frame.serialize(mask=mask) for frame in frames)


def read(frames, data, step=None):
    step = step or max(1, len(data))
    found = []
    for at in range(0, len(data), step):
        frames.feed(data[at : at + step])
        while (message := frames.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 125, 65_536, None])
def test_frames_of_every_length_in_pieces_of_every_size(step, mask):
    sizes = [0, 1, 125, 126, 127, 300, 65_535, 65_536, 70_001]
    texts = [random.Random(size).randbytes(size) for size in sizes]
    data = serialized(*(Frame(Opcode.BINARY, text) for text in texts), mask=mask)
    assert read(FrameParser(1 << 20), data, step) == [(BINARY, text) for text in texts]


@pytest.mark.parametrize("step", [1, None])
def test_parts_are_put_together_and_control_comes_between_them(step):
    data = serialized(
        Frame(Opcode.TEXT, b"a", fin=False),
        Frame(Opcode.PING, b"?"),
        Frame(Opcode.CONT, b"b", fin=False),
        Frame(Opcode.CONT, b"c"),
        Frame(Opcode.TEXT, b"d"),
    )
    assert read(FrameParser(10), data, step) == [(PING, b"?"), (TEXT, b"abc"), (TEXT, b"d")]


@pytest.mark.parametrize(
    "data",
    [
        serialized(Frame(Opcode.CONT, b"x")),
        serialized(Frame(Opcode.TEXT, b"x", fin=False), Frame(Opcode.TEXT, b"x")),
        b"\xc1\x81\0\0\0\0x",
        b"\x09\x80\0\0\0\0",
        b"\x89\xfe\0\x7e\0\0\0\0",
    ],
    ids=["continuation", "two beginnings", "reserved bit", "control in parts", "long control"],  # masks are random
)
def test_what_breaks_the_protocol_is_told(data):
    with pytest.raises(ProtocolViolation):
        read(FrameParser(100), data)


def test_a_message_over_its_bound_is_told_before_it_is_read():
    frames = FrameParser(100)
    assert read(frames, serialized(Frame(Opcode.TEXT, b"x" * 100))) == [(TEXT, b"x" * 100)]
    with pytest.raises(MessageTooBig):
        read(frames, serialized(Frame(Opcode.TEXT, b"x" * 101))[:4])
    frames = FrameParser(100)
    assert read(frames, serialized(Frame(Opcode.TEXT, b"x" * 60, fin=False))) == []
    with pytest.raises(MessageTooBig):
        read(frames, serialized(Frame(Opcode.CONT, b"x" * 41))[:2])
    with pytest.raises(MessageTooBig):
        read(FrameParser(100), b"\x81\xff" + b"\xff" * 8)


def test_a_large_frame_in_small_pieces_costs_no_more_than_its_size():
    """Whoever copies what there is with each piece would copy 5 GB here."""
    text = bytes(10_000_000)
    frames = FrameParser(1 << 30)
    assert read(frames, serialized(Frame(Opcode.BINARY, text)), 10_000) == [(BINARY, text)]


@pytest.mark.parametrize("following", [b"", b"\x81"])
def test_an_idle_connection_keeps_nothing_of_its_last_message(following):
    """Each of thousands of connections may have had one of 64 MiB."""
    frames = FrameParser(1 << 24)
    tracemalloc.start()
    try:
        assert len(read(frames, serialized(Frame(Opcode.TEXT, b"x" * (1 << 23))) + following, 65_536)) == 1
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert frames.held == len(following)
