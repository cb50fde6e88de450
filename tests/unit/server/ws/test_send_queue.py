"""Frames of one turn of the loop leave together."""

import asyncio

from tornado.iostream import StreamClosedError

from kernelsvc.server.ws.send_queue import LARGE_FRAME, MAX_BACKLOG, SendQueue


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
