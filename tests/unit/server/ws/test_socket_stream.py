"""A connection's socket, read by a callback and written at once."""

import asyncio
import socket
from contextlib import closing

import pytest
from tornado.iostream import IOStream, StreamClosedError
from waiting import wait_until

from kernelsvc.server.ws.socket_stream import SocketStream, take_over


class Ends:
    """A line, and the other end of it as a plain socket."""

    def __init__(self):
        ours, self.other = socket.socketpair()
        ours.setblocking(False)
        self.other.setblocking(False)
        self.heard, self.gone = [], 0
        self.line = SocketStream(ours, self.heard.append, self.went)

    def went(self):
        self.gone += 1

    def read(self, size=1 << 20):
        try:
            return self.other.recv(size)
        except BlockingIOError:
            return b""

    def close(self):
        self.line.close()
        self.other.close()


@pytest.fixture
async def ends():
    with closing(Ends()) as both:
        yield both


async def test_what_comes_is_heard_when_somebody_listens(ends):
    ends.other.send(b"a")
    await asyncio.sleep(0)
    assert ends.heard == []
    ends.line.listen()
    await wait_until(lambda: ends.heard)
    ends.line.pause()
    ends.other.send(b"b")
    for _ in range(3):
        await asyncio.sleep(0)
    assert ends.heard == [b"a"]
    ends.line.listen()
    await wait_until(lambda: ends.heard == [b"a", b"b"])


async def test_what_is_written_has_left_in_the_same_call(ends):
    assert ends.line.write(b"abc").done()
    assert ends.read() == b"abc"
    assert ends.line.unsent == 0


async def test_what_the_socket_does_not_take_waits_and_keeps_its_order(ends):
    pieces = [bytes([n]) * 300_000 for n in range(40)]
    written = [ends.line.write(piece) for piece in pieces]
    assert not written[-1].done()
    assert 0 < ends.line.unsent < 12_000_000
    got = bytearray()

    def all_read():
        got.extend(ends.read())
        return len(got) == 12_000_000

    await wait_until(all_read)
    assert bytes(got) == b"".join(pieces)
    await asyncio.gather(*written)
    assert ends.line.unsent == 0
    assert ends.line.write(b"x").done()


async def test_the_other_end_leaves(ends):
    ends.line.listen()
    ends.other.close()
    await wait_until(lambda: ends.gone)
    assert ends.line.closed()
    with pytest.raises(StreamClosedError):
        ends.line.write(b"x")
    ends.line.close()
    ends.line.set_nodelay(True)
    assert ends.gone == 1


async def test_the_other_end_leaves_while_much_is_to_be_sent(ends):
    writing = ends.line.write(bytes(10_000_000))
    ends.other.close()
    with pytest.raises(StreamClosedError):
        await writing
    assert ends.line.closed()


async def test_a_write_to_nobody_ends_the_line(ends):
    ends.other.close()
    writing = ends.line.write(b"x")
    with pytest.raises(StreamClosedError):
        await writing


async def test_closing_loses_what_has_not_left(ends):
    writing = ends.line.write(bytes(10_000_000))
    ends.line.close()
    with pytest.raises(StreamClosedError):
        await writing
    await wait_until(lambda: ends.gone == 1)


@pytest.mark.parametrize("early", [b"", b"early"])
async def test_a_stream_is_taken_over_with_what_it_has_read(early):
    ours, other = socket.socketpair()
    stream = IOStream(ours)
    with closing(other):
        other.send(b"head\n" + early)
        assert await stream.read_until(b"\n") == b"head\n"
        taken, read = await take_over(stream)
        with closing(taken):
            assert read == early
            assert stream.closed()
            other.send(b"more")
            assert taken.recv(10) == b"more"
            taken.send(b"back")
            assert other.recv(10) == b"back"


async def test_a_stream_whose_other_end_is_gone_is_not_taken_over():
    ours, other = socket.socketpair()
    stream = IOStream(ours)
    other.close()
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1)
    with pytest.raises(StreamClosedError):
        await take_over(stream)
