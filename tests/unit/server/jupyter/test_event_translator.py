"""The Jupyter API's functions of values: ids, models, and events as messages."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from kernelsvc.model import events as ev
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellError, CellInfo, CellState, SeqRange
from kernelsvc.protocol import jupyter, kernel_messages
from kernelsvc.server.jupyter import channels
from kernelsvc.server.jupyter.event_translator import KEPT, MAX_KEPT, EventTranslator, joined, kept_header, portions

HEADER = {"msg_id": "m1", "msg_type": "execute_request", "session": "me", "username": "u", "version": "5.0"}


def none(cell: str) -> CellInfo:
    raise AssertionError(f"{cell} was looked up")


def stamped(*events: ev.Event, cell: str = "m1") -> list[ev.Event]:
    for seq, event in enumerate(events, 1):
        event.seq, event.at, event.cell = seq, f"2026-01-01T00:00:0{seq}.000000Z", cell
    return list(events)


def queued(**more: Any) -> ev.CellQueued:
    return ev.CellQueued(code="x", metadata={KEPT: {"header": HEADER}}, **more)


def said(events: list[ev.Event]) -> list[tuple[str, str, Any]]:
    translator = EventTranslator("s_1", none)
    found = [m for event in events for m in translator.messages(event)]
    assert all(m.parent == "m1" for m in found)
    return [(m.channel, m.msg_type, m.content.get("execution_state") or m.content.get("status")) for m in found]


def test_a_cell_is_what_a_kernel_would_have_sent() -> None:
    events = stamped(queued(), ev.CellStarted(execution_count=1), ev.Stream(text="a"), ev.CellFinished())
    assert said(events) == [
        ("iopub", "status", "busy"),
        ("iopub", "execute_input", None),
        ("iopub", "stream", None),
        ("shell", "execute_reply", "ok"),
        ("iopub", "status", "idle"),
    ]
    again, once = EventTranslator("s_1", none), EventTranslator("s_1", none)
    assert [once.messages(e) for e in events] == [again.messages(e) for e in events]


def test_a_pager_s_text_is_a_payload_of_the_reply() -> None:
    (page,) = kernel_messages.shown_payloads([{"source": "page", "data": {"text/plain": "help"}, "start": 0}])
    events = stamped(queued(), ev.CellStarted(execution_count=1), page, ev.CellFinished())
    translator = EventTranslator("s_1", none)
    found = [message for event in events for message in translator.messages(event)]
    assert "display_data" not in [message.msg_type for message in found]
    (reply,) = [message for message in found if message.msg_type == "execute_reply"]
    assert reply.content["payload"] == [{"source": "page", "data": {"text/plain": "help"}, "start": 0}]


def test_long_code_and_many_cells_are_read_from_the_service_again() -> None:
    code, asked = "#" * 5000, []
    found = CellInfo(id="m1", session="s_1", code=code, state=CellState.RUNNING, seq=SeqRange(first=1, last=2))
    translator = EventTranslator("s_1", lambda cell: asked.append(cell) or found)
    for number in range(200):
        (waiting,) = stamped(queued(), cell=f"c{number}")
        translator.messages(waiting)
    began = stamped(ev.CellQueued(code=code, metadata={KEPT: {"header": HEADER}}), ev.CellStarted(execution_count=1))
    messages = [message for event in began for message in translator.messages(event)]
    assert [message.content["code"] for message in messages if message.msg_type == "execute_input"] == [code]
    assert asked == ["m1"]
    assert len(translator._cells) <= 64


def test_each_payload_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    encode = jupyter.encode_part
    monkeypatch.setattr(jupyter, "encode_part", lambda value: measured.append(len(encode(value))) or encode(value))
    small = [ev.Display(data={"text/plain": "x"}, metadata={"kernelsvc": {"payload": {"source": "page"}}})] * 1000
    translator = EventTranslator("s_1", none)
    for event in stamped(queued(), ev.CellStarted(execution_count=1), *(msgspec.structs.replace(e) for e in small)):
        translator.messages(event)
    assert len(measured) == 1000
    assert sum(measured) < MAX_KEPT


def test_what_a_kernel_calls_payloads_is_kept_up_to_a_limit_and_shown_beyond_it() -> None:
    """Each socket keeps them until the end of the cell. A kernel could send a gigabyte."""
    large = ev.Display(data={"text/plain": "x" * MAX_KEPT}, metadata={"kernelsvc": {"payload": {"source": "page"}}})
    small = ev.Display(data={"text/plain": "x"}, metadata={"kernelsvc": {"payload": {"source": "page"}}})
    events = stamped(queued(), ev.CellStarted(execution_count=1), small, large, ev.CellFinished())
    translator = EventTranslator("s_1", none)
    found = [message for event in events for message in translator.messages(event)]
    (reply,) = [message for message in found if message.msg_type == "execute_reply"]
    assert [len(each["data"]["text/plain"]) for each in reply.content["payload"]] == [1]
    assert [message.content["data"] for message in found if message.msg_type == "display_data"] == [large.data]
    (late,) = stamped(small)
    assert [message.msg_type for message in translator.messages(late)] == ["display_data"]


@pytest.mark.parametrize("size", [1, MAX_KEPT])
def test_a_large_error_is_read_again_at_the_end_of_its_cell(size: int) -> None:
    error = ev.Error(ename="E", evalue="v", traceback=["x" * size])
    events = stamped(
        queued(), ev.CellStarted(execution_count=1), error, ev.CellFinished(reason=Reason.ERROR, execution_count=1)
    )
    short = CellError(ename="E", evalue="short", traceback=[])
    seq = SeqRange(first=1, last=4)
    info = CellInfo(id="m1", session="s_1", code="x", state="finished", error=short, seq=seq)
    translator = EventTranslator("s_1", lambda cell: info)
    found = [message for event in events for message in translator.messages(event)]
    (reply,) = [message for message in found if message.msg_type == "execute_reply"]
    assert reply.content["evalue"] == ("v" if size == 1 else "short")
    translator.messages(error)  # of a cell that has ended
    assert translator._errors == {}


def test_a_large_kernel_info_is_not_stored() -> None:
    cursors = channels.Cursors()
    cursors.put_info("alice", "s", {"banner": "x"})
    cursors.put_info("alice", "t", {"banner": "x" * channels.MAX_INFO})
    assert [name in cursors.infos for name in "st"] == [True, False]


def test_a_silent_cell_says_no_input() -> None:
    assert ("iopub", "execute_input", None) not in said(stamped(queued(silent=True), ev.CellStarted()))


@pytest.mark.parametrize("reason", [r for r in Reason if r not in (Reason.OK, Reason.CANCELLED)])
def test_every_bad_end_has_an_error_a_reply_and_an_idle(reason: Reason) -> None:
    found = said(stamped(queued(), ev.CellStarted(execution_count=1), ev.CellFinished(reason=reason, message="why")))
    assert ("iopub", "error", None) in found
    assert found[-2:] == [("shell", "execute_reply", "error"), ("iopub", "status", "idle")]


def test_a_cancelled_cell_is_aborted() -> None:
    found = said(stamped(queued(), ev.CellFinished(reason=Reason.CANCELLED)))
    assert found == [
        ("iopub", "status", "busy"),
        ("shell", "execute_reply", "aborted"),
        ("iopub", "status", "idle"),
    ]


def test_headers_are_bounded_and_a_foreign_cell_gets_one() -> None:
    assert kept_header({"msg_id": "x" * 1000, "session": 5, "evil": "y"}) == {"msg_id": "x" * 256}
    (message,) = _after_queue(ev.CellQueued(code="1"))
    assert message.parent == "m1"


def _after_queue(first: ev.CellQueued) -> list[jupyter.JupyterMessage]:
    translator = EventTranslator("s_1", none)
    one, two = stamped(first, ev.Stream(text="t"))
    translator.messages(one)
    return translator.messages(two)


def test_what_a_comm_message_caused_names_it() -> None:
    event = ev.Comm(content={"comm_id": "c"}, buffers=["AAE=", "not base64"], request="w1")
    (message,) = EventTranslator("s_1", none).messages(event)
    assert (message.parent, message.buffers) == ("w1", (b"\x00\x01", b""))


def test_cursors_only_go_forward_and_are_bounded() -> None:
    cursors = channels.Cursors()
    cursors.put("alice", "s", "c", 5)
    cursors.put("alice", "s", "c", 3)
    cursors.put("alice", "s", "", 9)
    assert (cursors.get("s", "c"), cursors.get("s", "")) == (5, None)
    for each in range(channels.MAX_CURSORS_OF_ONE):
        cursors.put("alice", "s", f"other{each}", 1)
    assert cursors.get("s", "c") is None


def test_no_principal_evicts_the_cursors_of_another() -> None:
    cursors = channels.Cursors()
    cursors.put("alice", "s", "c", 5)
    cursors.sent("alice", "s", "c", 7)
    cursors.put_info("alice", "s", {})
    for each in range(channels.MAX_CURSORS + 1):
        cursors.put("mallory", "m", f"{each}", 1)
        cursors.sent("mallory", "m", f"{each}", 2)
        cursors.put_info("mallory", f"m{each}", {})
    assert (cursors.get("s", "c"), cursors.unanswered("s", "c"), cursors.infos.get("s")) == (5, {7}, {})


@pytest.mark.parametrize("size", [1, 200, 70_000])
def test_binary_frames(size: int) -> None:
    framed = channels.binary_frame(b"x" * size)
    assert framed[0] == 0x82
    assert framed.endswith(b"x" * size)


def lines_of(events: list[ev.Event]) -> list[bytes]:
    return [ev.encode(event) for event in events]


def test_text_that_was_printed_in_one_go_is_one_message() -> None:
    printed = [ev.Stream(text=f"{i}\n") for i in range(3)]
    other = [ev.Stream(name="stderr", text="e"), ev.Stream(text="a"), ev.OutputCleared(), ev.Stream(text="b")]
    found = list(joined(stamped(*printed, *other)))
    assert [(e.seq, getattr(e, "text", None)) for e in found] == [
        (1, "0\n1\n2\n"),
        (4, "e"),
        (5, "a"),
        (6, None),
        (7, "b"),
    ]


def test_text_of_two_cells_is_not_joined() -> None:
    one, two = stamped(ev.Stream(text="a"), ev.Stream(text="b"))
    two.cell = "m2"
    assert list(joined([one, two])) == [one, two]


def test_what_is_sent_again_is_cut_where_it_was() -> None:
    lines = lines_of(stamped(*(ev.Stream(text="x") for _ in range(9))))
    first = [*portions(lines[:2], 10**6, ()), *portions(lines[2:7], 10**6, ()), *portions(lines[7:], 10**6, ())]
    cursors = channels.Cursors()
    for portion in first:
        cursors.sent("alice", "s", "me", portion[-1].seq)
    again = list(portions(lines, 10**6, cursors.unanswered("s", "me")))
    assert [list(joined(p)) for p in again] == [list(joined(p)) for p in first]
    cursors.put("alice", "s", "me", 2)
    assert cursors.unanswered("s", "me") == {7, 9}


def test_a_portion_ends_when_it_is_large() -> None:
    lines = lines_of(stamped(*(ev.Stream(text="x" * 100) for _ in range(9))))
    found = list(portions(lines, 500, ()))
    assert len(found) > 1
    assert [e.seq for portion in found for e in portion] == list(range(1, 10))


class Pieces:
    """A subscription that has these batches, and then nothing more."""

    def __init__(self, *batches: list[ev.Event]) -> None:
        self.batches = [[msgspec.json.encode(event) for event in batch] for batch in batches]

    async def wait(self) -> int:
        if not self.batches:
            await asyncio.Event().wait()
        return sum(map(len, self.batches[0]))

    def next_nowait(self) -> list[bytes]:
        return self.batches.pop(0)


@pytest.mark.parametrize(
    ("batches", "gathered"),
    [
        ([[ev.Stream(text="a")], [ev.Stream(text="b")], [ev.CellFinished()], [ev.Stream(text="c")]], 3),
        ([[ev.CellFinished()], [ev.Stream(text="c")]], 1),
        ([[ev.Stream(text="a")]], 1),
        ([[ev.Stream(text="a")], []], 1),
    ],
)
async def test_text_waits_a_short_time_for_more_text(batches: list[list[ev.Event]], gathered: int) -> None:
    source: Any = Pieces(*batches)
    socket = channels.ChannelsSocket.__new__(channels.ChannelsSocket)
    lines = source.next_nowait()
    await socket._gather(source, lines)
    assert len(lines) == gathered
    assert len(source.batches) == len(batches) - gathered


def test_the_end_of_a_cell_has_its_start() -> None:
    events = stamped(queued(), ev.CellStarted(execution_count=1), ev.CellFinished())
    translator = EventTranslator("s_1", none)
    reply = next(m for event in events for m in translator.messages(event) if m.channel == "shell")
    assert (reply.content["payload"], reply.metadata) == ([], {"started": events[1].at, "status": "ok"})


def test_an_event_of_the_debugger_is_a_message() -> None:
    translator = EventTranslator("s_1", none)
    events = stamped(queued(), ev.DebugEvent(content={"event": "stopped"}))
    (message,) = (m for event in events for m in translator.messages(event))
    assert (message.channel, message.msg_type, message.content) == ("iopub", "debug_event", {"event": "stopped"})
