"""A connection's socket, read by a callback and written immediately, and its queue of outgoing frames."""

import asyncio
import socket
from contextlib import closing

import pytest
from tornado.iostream import IOStream, StreamClosedError
from waiting import wait_until

from kernelsvc.server.ws.socket_stream import LARGE_FRAME, MAX_BACKLOG, SendQueue, SocketStream, take_over


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


# -- the queue of outgoing frames ----------------------------------------------------


class Stream:
    """Takes bytes when it is told to."""

    def __init__(self, *, slow=False):
        self.written, self.slow, self.gone, self.pending, self.moved = [], slow, False, [], 0

    def write(self, data):
        if self.gone:
            raise StreamClosedError
        self.written.append(data)
        future = asyncio.get_running_loop().create_future()
        if self.slow:
            self.pending.append(future)
        else:
            future.set_result(None)
        return future

    def outlet(self):
        def moved():
            self.moved += 1

        return SendQueue(self.write, moved)


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_put_in_one_turn_goes_in_one_write_and_in_order():
    stream = Stream()
    outlet = stream.outlet()
    outlet.put(b"a")
    outlet.put(b"b")
    assert stream.written == []
    await turns()
    assert stream.written == [b"ab"]
    outlet.put(b"c")
    await turns()
    assert stream.written == [b"ab", b"c"]
    assert outlet.backlog == 0
    assert stream.moved == 2


async def test_the_first_frame_of_a_turn_leaves_at_once_and_the_others_together():
    stream = Stream()
    outlet = stream.outlet()
    for _ in range(2):
        stream.written.clear()
        for frame in (b"a", b"b", b"c"):
            outlet.send_first(frame)
        assert stream.written == [b"a"]
        await turns()
        assert stream.written == [b"a", b"bc"]


async def test_what_lingers_goes_with_the_next_or_by_itself():
    stream = Stream()
    outlet = stream.outlet()
    outlet.put(b"a", linger=30.0)
    await turns()
    assert stream.written == []
    outlet.put(b"b", linger=30.0)
    outlet.put(b"c")
    await turns()
    assert stream.written == [b"abc"]
    outlet.put(b"d", linger=0.001)
    async with asyncio.timeout(5):
        while len(stream.written) < 2:
            await asyncio.sleep(0.001)
    assert stream.written[1] == b"d"


async def test_what_does_not_linger_is_not_made_to_wait_by_what_does():
    stream = Stream()
    outlet = stream.outlet()
    outlet.put(b"a")
    outlet.put(b"b", linger=30.0)
    await turns()
    assert stream.written == [b"ab"]


class Log:
    """A source with portions of frames."""

    def __init__(self, outlet, *portions):
        self.outlet, self.portions, self.asked, self.on_taken = outlet, list(portions), 0, None

    def take(self):
        self.asked += 1
        return [self.portions.pop(0)] if self.portions else []

    def on_queued(self):
        if self.on_taken is not None:
            self.on_taken()


async def test_a_source_is_asked_when_something_leaves_and_for_all_that_came_meanwhile():
    stream = Stream()
    outlet = stream.outlet()
    log = Log(outlet, b"1")
    outlet.schedule(log, linger=30.0)
    outlet.schedule(log, linger=30.0)
    await turns()
    assert log.asked == 0
    log.portions.append(b"2")
    outlet.put(b"a")
    outlet.collect()
    outlet.put(b"b")
    await turns()
    assert stream.written == [b"a12b"]


async def test_what_is_long_is_not_copied_and_keeps_its_place():
    stream = Stream()
    outlet = stream.outlet()
    long = b"x" * LARGE_FRAME
    log = Log(outlet, b"1")
    log.take, portions = lambda: portions.pop(0) if portions else [], [[b"<", long, b">"]]
    outlet.put(b"a")
    outlet.schedule(log)
    outlet.collect()
    outlet.send(b"b")
    assert stream.written == [b"a<", long, b">b"]
    assert stream.written[1] is long
    assert outlet.backlog == 0


async def test_what_waits_for_a_source_comes_right_after_it():
    stream = Stream()
    outlet = stream.outlet()
    one, two = Log(outlet, b"1"), Log(outlet, b"2")
    one.on_taken = lambda: outlet.put(b"!")
    outlet.schedule(one)
    outlet.schedule(two)
    await turns()
    assert stream.written == [b"1!2"]


async def test_sources_are_asked_in_turn_and_not_while_the_other_end_takes_nothing():
    stream = Stream(slow=True)
    outlet = stream.outlet()
    one, two = Log(outlet, *[b"1" * MAX_BACKLOG] * 3), Log(outlet, *[b"2" * MAX_BACKLOG] * 3)
    outlet.schedule(one)
    outlet.schedule(two)
    for _ in range(6):
        await turns()
        assert outlet.backlog == MAX_BACKLOG
        stream.pending.pop().set_result(None)
    await turns()
    assert [data[:1] for data in stream.written] == [b"1", b"2"] * 3
    assert outlet.backlog == 0


async def test_drained_waits_for_a_slow_reader_and_not_for_one_that_is_gone():
    stream = Stream(slow=True)
    outlet = stream.outlet()
    outlet.put(b"x" * 100)
    waiting = asyncio.ensure_future(outlet.drained())
    await turns()
    assert stream.written
    assert not waiting.done()
    assert outlet.backlog == 100
    stream.pending.pop().set_result(None)
    await asyncio.wait_for(waiting, 5)
    outlet.put(b"y")
    waiting = asyncio.ensure_future(outlet.drained())
    await turns()
    stream.pending.pop().set_exception(StreamClosedError())
    await asyncio.wait_for(waiting, 5)
    assert outlet.closed


async def test_nothing_is_kept_for_a_stream_that_is_closed():
    stream = Stream()
    outlet = stream.outlet()
    stream.gone = True
    outlet.put(b"a")
    await turns()
    assert outlet.closed
    outlet.put(b"b")
    assert outlet.backlog == 0
    await outlet.drained()
