"""Event streams: framing, selection."""

from __future__ import annotations

from kernelsvc.server.native.sse import Selection, frame


def line(type, cell=None):
    return b'{"type":"%b"%b}' % (type.encode(), b',"cell":"%b"' % cell.encode() if cell else b"")


def test_one_event_is_one_frame():
    assert frame(7, b'{"a":"\\n"}') == b'id: 7\ndata: {"a":"\\n"}\n\n'


def test_everything_until_a_position():
    selection = Selection(until=5)
    assert selection.wants(line("stream"))
    assert not selection.over(4)
    assert selection.over(5)
    assert not Selection().over(10**9)


def test_cells_until_each_has_ended():
    selection = Selection(cells={"a", "b"})
    assert not selection.wants(line("session_started"))
    assert not selection.wants(line("stream", "c"))
    assert selection.wants(line("stream", "a"))
    assert selection.wants(line("cell_finished", "a"))
    assert not selection.over(1)
    assert not selection.wants(line("cell_finished", "c"))
    assert selection.wants(line("cell_finished", "b"))
    assert selection.over(1)
