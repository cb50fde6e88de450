"""Readers and cursors as values. Hypothesis plays the server, the network and the readers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.client import event_feed as feeds
from kernelsvc.client.event_feed import EventFeed, FeedReader, SequenceGap
from kernelsvc.model import events as ev


def event(seq, cell="c"):
    return ev.Stream(session="s", seq=seq, cell=cell, text=str(seq))


def test_a_detached_feed_ignores_events():
    feed = EventFeed("s")
    feed.readers.append(FeedReader(0))
    assert feed.take(event(1), 1) == []
    assert feed.step() == ("attach", 0)


def test_a_gap_is_an_error():
    feed = EventFeed("s")
    feed.readers.append(FeedReader(0))
    feed.attached(0)
    with pytest.raises(SequenceGap):
        feed.take(event(2), 1)


def test_a_cells_reader_ends_with_its_cell():
    feed, reader = EventFeed("s"), FeedReader(0, "c")
    feed.readers.append(reader)
    feed.attached(0)
    feed.take(event(1, "other"), 1)
    feed.take(event(2), 1)
    feed.take(ev.CellFinished(session="s", seq=3, cell="other"), 1)
    assert not reader.done
    feed.take(ev.CellFinished(session="s", seq=4, cell="c"), 1)
    assert reader.done
    assert [e.seq for e in reader.drain()] == [2, 4]
    assert feed.step() == ("detach", 0)


def test_a_big_event_alone_pauses_but_is_taken():
    feed, reader = EventFeed("s"), FeedReader(0)
    feed.readers.append(reader)
    feed.attached(0)
    feed.take(event(1), feeds.MAX_BYTES + 1)
    assert reader.full
    assert feed.step() == ("detach", 0)
    feed.lost()
    assert feed.step() is None
    assert len(reader.drain()) == 1
    assert feed.step() == ("attach", 1)


@given(st.data())
def test_every_reader_gets_each_event_once(data):
    """Random order of: events on the wire, cuts, stale events, drains, new readers. Nothing is lost or repeated."""
    last = data.draw(st.integers(1, 30))
    feed = EventFeed("s")
    starts: list[int] = []
    got: list[list[int]] = []
    cursor: int | None = None  # of the server's attachment

    def add(after):
        reader = FeedReader(after)
        feed.readers.append(reader)
        starts.append(after)
        got.append([])

    def drain(index):
        got[index] += [e.seq for e in feed.readers[index].drain()]

    add(0)
    for _ in range(data.draw(st.integers(0, 120))):
        match data.draw(st.sampled_from(["steer", "event", "stale", "cut", "drain", "add"])):
            case "steer":
                step = feed.step()
                if step and step[0] == "attach":
                    cursor = step[1]
                    feed.attached(cursor)
                elif step:
                    cursor = None
                    feed.lost()
            case "event" if cursor is not None and cursor < last:
                cursor += 1
                feed.take(event(cursor), data.draw(st.sampled_from([1, feeds.MAX_BYTES])))
            case "stale" if cursor is None:
                feed.take(event(data.draw(st.integers(1, last))), 1)
            case "cut":
                cursor = None
                feed.lost()
            case "drain":
                drain(data.draw(st.integers(0, len(feed.readers) - 1)))
            case "add" if len(feed.readers) < 4:
                add(data.draw(st.integers(0, last)))
            case _:
                pass
    for _ in range(10 * last + 50):  # now let it settle
        for index in range(len(feed.readers)):
            drain(index)
        if step := feed.step():
            cursor = step[1] if step[0] == "attach" else None
            feed.attached(step[1]) if step[0] == "attach" else feed.lost()
        elif cursor is not None and cursor < last:
            cursor += 1
            feed.take(event(cursor), 1)
    for start, seqs in zip(starts, got, strict=True):
        assert seqs == list(range(start + 1, last + 1))
