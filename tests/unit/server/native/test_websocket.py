"""``/v1/ws`` over real sockets: order, many sessions, slow readers, bad input, who may come in."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable, Sequence

import pytest
import websockets
from http_server import SLEEP, Rpc
from waiting import wait_until
from websockets.frames import Frame, Opcode

from kernelsvc.errors import CursorExpired, NotFound
from kernelsvc.protocol import jsonrpc
from kernelsvc.server.native.websocket import LINGER, Attachment
from kernelsvc.server.ws.socket_stream import FrameSource

CREATE = '{"jsonrpc":"2.0","id":901,"method":"session.create","params":%s}'
CONTRACT_ERRORS = {"code", "message", "retryable", "details"}


async def make(rpc, **params):
    return (await rpc.call("session.create", **params))["id"]


async def test_a_cell_runs_and_its_result_is_returned(rpc):
    session = await make(rpc)
    cell = await rpc.call("session.execute", session=session, code="print('hi')\n1+1")
    assert (cell["state"], cell["reason"], cell["text"]) == ("finished", "ok", "hi\n2\n")
    types = [event["type"] for event in rpc.events(session)]
    assert types == ["session_started", "cell_queued", "cell_started", "stream", "result", "cell_finished"]
    assert [event["seq"] for event in rpc.events(session)] == [1, 2, 3, 4, 5, 6]


async def test_the_answer_of_create_and_attach_comes_before_the_events_and_those_of_a_cell_before_its_answer(rpc):
    session = await make(rpc)
    assert rpc.heard[0]["id"] == 1
    for number in range(20):
        await rpc.call("session.execute", session=session, code=f"print({number})")
        assert rpc.heard[-1]["result"]["seq"]["last"] == rpc.events(session)[-1]["seq"]
    await rpc.call("session.detach", session=session)
    before = len(rpc.heard)
    await rpc.call("session.attach", session=session, after=3)
    assert len(rpc.heard) == before + 1
    assert rpc.heard[-1]["result"] == {"session": session, "last_seq": rpc.events(session)[-1]["seq"]}


async def test_attach_replays_after_a_position_then_goes_live(http_server, rpc):
    session = await make(rpc, attach=False)
    await rpc.call("session.execute", session=session, code="print(1)")
    assert rpc.events(session) == []
    await rpc.call("session.attach", session=session, after=2)
    await rpc.call("session.execute", session=session, code="print(2)")
    seqs = [event["seq"] for event in rpc.events(session)]
    assert seqs == list(range(3, seqs[-1] + 1))


async def test_many_sessions_on_one_connection(rpc):
    sessions = [await make(rpc) for _ in range(5)]
    await asyncio.gather(*(rpc.send("session.execute", {"session": s, "code": "print(1)"}) for s in sessions))
    for number in range(6, 11):
        await rpc.answer(number)
    for session in sessions:
        assert [e["seq"] for e in rpc.events(session)] == [1, 2, 3, 4, 5]


async def test_requests_run_beside_each_other_and_cells_in_the_order_of_submission(rpc):
    session = await make(rpc)
    first = await rpc.send("session.execute", {"session": session, "code": SLEEP})
    others = [await rpc.send("session.execute", {"session": session, "code": f"{n}"}) for n in range(50)]

    async def busy() -> bool:
        return (await rpc.call("session.get", session=session))["state"] == "busy"

    await wait_until(busy)
    await rpc.call("session.interrupt", session=session)
    assert (await rpc.answer(first))["result"]["reason"] == "interrupted"
    for number in others:
        await rpc.answer(number)
    queued = [event["code"] for event in rpc.events(session) if event["type"] == "cell_queued"]
    assert queued[1:] == [f"{n}" for n in range(50)]


async def test_a_cell_starts_immediately_after_earlier_requests(rpc):
    session = await make(rpc)
    for _ in range(10):
        await rpc.call("session.execute", session=session, code="x = 1")
        restart = await rpc.send("session.restart", {"session": session})
        cell = await rpc.send("session.execute", {"session": session, "code": "x"})
        await rpc.answer(restart)
        assert (await rpc.answer(cell))["result"]["error"]["ename"] == "NameError"


@pytest.mark.parametrize("step", [1, 3, 1000, 1_000_000])
async def test_frames_may_come_in_any_pieces(http_server, step):
    texts = ["", "x" * 120, "y" * 70_000]
    ask = {"jsonrpc": "2.0", "method": "session.get"}
    asked = [{**ask, "id": n, "params": {"session": text}} for n, text in enumerate(texts)]
    frames = [Frame(Opcode.TEXT, json.dumps(each).encode()).serialize(mask=True) for each in asked]
    data = b"".join(frames[:2] if step < 100 else frames)
    async with http_server.socket() as socket:
        for at in range(0, len(data), step):
            socket.transport.write(data[at : at + step])
            await asyncio.sleep(0)
        rpc = Rpc(socket)
        for number in range(2 if step < 100 else 3):
            assert "error" in await rpc.answer(number)


async def test_batch_and_queued(rpc):
    session = await make(rpc)
    cells = await rpc.call("session.batch", session=session, cells=[{"code": "a = 2"}, {"code": "a * 3"}])
    assert [cell["text"] for cell in cells] == ["", "6\n"]
    cell = await rpc.call("session.execute", session=session, code=SLEEP, wait="queued")
    assert cell["state"] in ("queued", "running")


async def test_the_same_cell_id_again_runs_nothing(rpc):
    session = await make(rpc)
    first = await rpc.call("session.execute", session=session, code="n = globals().get('n', 0) + 1\nn", cell="c1")
    again = await rpc.call("session.execute", session=session, code="n = globals().get('n', 0) + 1\nn", cell="c1")
    assert first == again
    assert (await rpc.refused("session.execute", session=session, code="other", cell="c1"))["code"] == "cell_exists"


async def test_every_other_method_answers(rpc):
    session = await make(rpc, labels={"a": "b"})
    await rpc.call("session.execute", session=session, code="x = 1", cell="c")
    assert (await rpc.call("info"))["name"] == "kernelsvc"
    assert [each["name"] for each in await rpc.call("templates")] == ["python3"]
    assert (await rpc.call("call", code="6 * 7"))["text"] == "42\n"
    assert [s["id"] for s in (await rpc.call("session.list", label="a=b"))["sessions"]] == [session]
    assert (await rpc.call("session.cell", session=session, cell="c"))["id"] == "c"
    assert (await rpc.call("session.cells", session=session))["next_offset"] is None
    assert (await rpc.call("session.output", session=session, cell="c"))["total"] == 0
    assert (await rpc.refused("session.input", session=session, cell="c", text="t"))["code"] == "conflict"
    assert (await rpc.call("session.complete", session=session, code="pr"))["matches"] == ["x"]
    assert (await rpc.call("session.inspect", session=session, code="pr"))["found"] is False
    assert [v["name"] for v in await rpc.call("session.variables", session=session)] == ["x"]
    assert (await rpc.call("session.checkpoint", session=session, name="k"))["name"] == "k"
    assert [each["name"] for each in await rpc.call("session.checkpoints", session=session)] == ["k"]
    assert (await rpc.call("session.rollback", session=session, to="k"))["id"] == session
    assert await rpc.call("session.drop_checkpoint", session=session, checkpoint="k") is None
    assert (await rpc.refused("session.drop_checkpoint", session=session, checkpoint="k"))["code"] == "not_found"
    assert len(await rpc.call("session.branch", session=session, count=3)) == 3
    assert (await rpc.call("session.hibernate", session=session))["id"] == session
    assert (await rpc.call("session.restart", session=session))["id"] == session
    assert (await rpc.call("session.close", session=session))["state"] == "closed"
    while rpc.events(session)[-1]["type"] != "journal_signed":
        await rpc.hear()
    assert (await rpc.refused("session.execute", session=session, code="1"))["code"] == "session_closed"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "bad_request"),
        ("[]", "bad_request"),
        ('{"jsonrpc":"2.0","id":901,"method":"no.such"}', "not_found"),
        ('{"jsonrpc":"2.0","id":901,"method":"session.get","params":{"session":3}}', "bad_request"),
        ('{"jsonrpc":"2.0","id":901,"method":"session.get","params":{"session":"nope"}}', "not_found"),
        (CREATE % '{"labels":{"a":NaN}}', "bad_request"),
        (CREATE % '{"limits":{"memory_bytes":1.5}}', "bad_request"),
        (CREATE % '{"limits":{"memory_bytes":9000000000000}}', "limit_too_high"),
        (b"\x00\x01", "bad_request"),
        ("[" * 100_000, "bad_request"),
    ],
)  # fmt: skip
async def test_invalid_frames_get_an_error_and_the_connection_continues(rpc, frame, code):
    await rpc.socket.send(frame)
    message = await rpc.hear()
    assert set(message["error"]["data"]) == CONTRACT_ERRORS
    assert message["error"]["data"]["code"] == code
    assert (await rpc.call("info"))["name"] == "kernelsvc"


async def test_text_that_is_not_utf8_is_answered_then_closed(http_server):
    async with http_server.socket() as socket:
        await socket.send(b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}', text=True)
        assert json.loads(await socket.recv())["error"]["code"] == -32700
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1007


@pytest.mark.parametrize(
    "data",
    [
        Frame(Opcode.CLOSE, b"\x03\xe8\xff\xfe").serialize(mask=True),
        Frame(Opcode.CONT, b"x").serialize(mask=True),
        b"\xc1\x81\0\0\0\0x",
        b"\x83\x80\0\0\0\0",
    ],
    ids=["close reason", "continuation", "reserved bit", "opcode"],  # masks are random, so workers would differ
)
async def test_a_violation_of_the_protocol_closes_only_its_connection(http_server, rpc, data, caplog):
    async with http_server.socket() as socket:
        socket.transport.write(data)
        await asyncio.wait_for(socket.wait_closed(), 5)
    assert len(http_server.app.settings["context"].sockets) == 1
    assert (await rpc.call("info"))["name"] == "kernelsvc"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_code_over_the_limit_is_refused_and_not_queued(open_http_server):
    http_server = await open_http_server(max_code_bytes=2048)
    async with http_server.socket() as socket:
        rpc = Rpc(socket)
        session = await make(rpc)
        assert (await rpc.refused("session.execute", session=session, code="x" * 3000))["code"] == "too_large"
        assert (await rpc.call("session.get", session=session))["last_seq"] == 1


async def test_a_frame_over_the_limit_gets_an_error_and_closes_the_connection(open_http_server):
    http_server = await open_http_server(max_frame_bytes=4096)
    async with http_server.socket() as socket:
        await socket.send("x" * 5000)
        assert json.loads(await socket.recv())["error"]["data"]["code"] == "too_large"
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


async def test_a_request_without_id_gets_no_answer(rpc):
    await rpc.socket.send('{"jsonrpc":"2.0","method":"session.create","params":{"attach":false}}')
    assert len((await rpc.call("session.list"))["sessions"]) == 1
    assert len(rpc.heard) == 1


async def test_too_many_requests_at_once_are_refused(open_http_server):
    http_server = await open_http_server(max_requests=10)
    async with http_server.socket() as socket:
        rpc = Rpc(socket)
        session = await make(rpc)
        hung = [await rpc.send("session.execute", {"session": session, "code": SLEEP}) for _ in range(10)]
        assert (await rpc.refused("info"))["code"] == "quota_exceeded"
        assert hung[0] not in {message.get("id") for message in rpc.heard}


async def test_every_kind_of_answer_makes_room_for_another_request(open_http_server):
    http_server = await open_http_server(max_requests=2)
    async with http_server.socket() as socket:
        rpc = Rpc(socket)
        session = await make(rpc)
        for _ in range(3):
            assert (await rpc.call("session.execute", session=session, code="1"))["reason"] == "ok"
            assert (await rpc.refused("session.execute", session="s_none", code="1"))["code"] == "not_found"
            assert (await rpc.refused("session.get", session="s_none"))["code"] == "not_found"
            assert (await rpc.refused("session.get", sessions=1))["code"] == "bad_request"
            params = {"session": session, "code": "2"}
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "session.execute", "params": params}))
            assert (await rpc.call("session.get", session=session))["id"] == session


# --- who may come in -----------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong", "x" * 5000])
async def test_without_a_known_token_there_is_no_connection(http_server, token):
    with pytest.raises(websockets.InvalidStatus) as caught:
        await http_server.socket(token=token)
    assert caught.value.response.status_code == 401
    data = json.loads(caught.value.response.body)
    assert set(data) == CONTRACT_ERRORS
    assert data["code"] == "unauthenticated"


async def test_a_browser_may_send_its_token_in_the_query_and_it_is_not_logged(http_server, caplog):
    caplog.set_level(logging.DEBUG)
    async with http_server.socket(token=None, query="?token=alice-token") as socket:
        await socket.send("{")
        await socket.recv()
    with pytest.raises(websockets.InvalidStatus):
        await http_server.socket(token=None, query="?token=wrong-secret-token")
    served = [record for record in caplog.records if not record.name.startswith("websockets")]
    assert not [r for r in served if "alice-token" in r.getMessage() or "wrong-secret-token" in r.getMessage()]


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("https://evil.example", [], 403),
        ("null", [], 403),
        ("https://ok.example", ["https://ok.example"], 101),
        ("SELF", [], 101),
    ],
)
async def test_a_foreign_origin_is_refused(open_http_server, origin, allowed, status):
    http_server = await open_http_server(origins=allowed)
    headers = {"Origin": http_server.url if origin == "SELF" else origin}
    if status == 101:
        async with http_server.socket(headers=headers):
            return
    with pytest.raises(websockets.InvalidStatus) as caught:
        await http_server.socket(headers=headers)
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["code"] == "forbidden"


async def test_a_session_of_another_does_not_exist(http_server, rpc):
    session = await make(rpc)
    async with http_server.socket(token="bob-token") as socket:
        bob = Rpc(socket)
        for method, more in (("get", {}), ("attach", {}), ("execute", {"code": "1"}), ("close", {})):
            assert (await bob.refused(f"session.{method}", session=session, **more))["code"] == "not_found"


async def test_a_reader_reads_and_does_not_run(http_server, rpc):
    session = await make(rpc)
    async with http_server.socket(token="reader-token") as socket:
        reader = Rpc(socket)
        assert (await reader.call("session.get", session=session))["id"] == session
        assert (await reader.refused("session.execute", session=session, code="1"))["code"] == "forbidden"
        assert (await reader.refused("session.create"))["code"] == "forbidden"


async def test_plain_http_on_the_route_gets_an_error(http_server):
    assert await http_server.refused("GET", "/v1/ws") == (400, "bad_request")


# --- readers ---------------------------------------------------------------------------


async def test_attach_again_starts_again_where_it_was_asked(rpc):
    session = await make(rpc)
    await rpc.call("session.execute", session=session, code="print(1)")
    rpc.heard.clear()
    await rpc.call("session.attach", session=session, after=0)
    await rpc.call("session.execute", session=session, code="print(2)")
    seqs = [event["seq"] for event in rpc.events(session)]
    assert seqs == list(range(1, seqs[-1] + 1))
    assert rpc.heard[0].get("id") is not None


async def test_after_detach_no_event_comes(rpc):
    session = await make(rpc)
    await rpc.call("session.detach", session=session)
    rpc.heard.clear()
    await rpc.call("session.execute", session=session, code="print(1)")
    assert rpc.events(session) == []


async def test_a_cursor_past_the_end_is_refused(rpc):
    session = await make(rpc)
    assert (await rpc.refused("session.attach", session=session, after=10**6))["code"] == "cursor_unknown"


async def test_10000_events_arrive_in_order(rpc):
    """Several pages of the journal. ``tests/chaos/test_clients.py`` has ten times as many."""
    session = await make(rpc)
    await rpc.call("session.execute", session=session, code="for n in range(10_000): print(n)")
    lines = [int(event["text"]) for event in rpc.events(session) if event["type"] == "stream"]
    assert lines == list(range(10_000))


async def until_still(value):
    """Wait until a value is above 0 and has not changed over twenty looks."""
    seen = []

    def still():
        seen.append(value())
        return seen[-1] > 0 and len(seen) >= 20 and len(set(seen[-20:])) == 1

    await wait_until(still)
    return seen[-1]


async def test_a_client_that_does_not_read_delays_no_other_and_uses_bounded_memory(open_http_server):
    http_server = await open_http_server(ping_seconds=0.2)
    async with http_server.socket(max_queue=1, ping_interval=None) as slow_socket, http_server.socket() as quick_socket:
        slow, quick = Rpc(slow_socket), Rpc(quick_socket)
        session = await make(slow)
        await quick.call("session.execute", session=session, code="for n in range(3000): print('x' * 10_000)")
        handler = next(h for h in http_server.app.settings["context"].sockets if h._attachments)
        pump = handler._attachments[session]
        stuck = await until_still(lambda: pump.sent)
        assert 0 < stuck < 3000
        assert handler.ws_connection.stream.unsent < 1024 * 1024
        assert (await quick.call("session.get", session=session))["last_seq"] >= 3004
        assert pump.sent == stuck
        await slow.call("session.execute", session=session, code="1")
        seqs = [event["seq"] for event in slow.events(session)]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_lost_connection_interrupts_the_cells_that_requested_it(http_server, rpc):
    kept, cut = await make(rpc), await make(rpc)
    for session, then in ((kept, "keep"), (cut, "interrupt")):
        cell = {"session": session, "code": SLEEP, "on_disconnect": then, "cell": "c"}
        await rpc.send("session.execute", cell)
    async with http_server.socket() as socket:
        other = Rpc(socket)
        await other.call("session.attach", session=cut)
        await wait_until(lambda: http_server.state(cut) == http_server.state(kept) == "busy")
        lost = http_server.losses()
        await rpc.socket.close()
        while not other.events(cut) or other.events(cut)[-1]["type"] != "cell_finished":
            await other.hear()
        assert other.events(cut)[-1]["reason"] == "interrupted"
        assert (await other.call("session.get", session=kept))["state"] == "busy"
    assert lost


async def test_an_idle_connection_is_pinged_and_a_dead_peer_is_disconnected(open_http_server):
    http_server = await open_http_server(ping_seconds=0.05, ping_timeout_seconds=0.2)
    async with http_server.socket(ping_interval=None) as alive:
        await asyncio.wait_for(wait_until(lambda: alive.protocol.state == 1), 1)
        sockets = http_server.app.settings["context"].sockets
        await wait_until(lambda: len(sockets) == 1)
        handler = next(iter(sockets))
        first = handler._last_received
        await wait_until(lambda: handler._last_received > first)
        handler.on_pong = lambda data: None
        await wait_until(lambda: not sockets)


async def test_a_stop_tells_the_sockets(open_http_server):
    http_server = await open_http_server()
    async with http_server.socket() as socket:
        rpc = Rpc(socket)
        await make(rpc)
        await http_server.server.stop()
        await socket.wait_closed()
        assert socket.close_code == 1001


class Broken:
    """A subscription that fails in the middle, as one does when retention removes the log under a slow reader."""

    last_seq, exhausted = 0, False

    def __init__(self, error):
        self.error = error

    def on_lines(self, news):
        pass

    def next_nowait(self):
        if self.last_seq:
            raise self.error
        self.last_seq = 1
        return [b'{"session":"s1","seq":1,"type":"session_started"}']

    def close(self):
        pass


@pytest.mark.parametrize(("error", "code"), [(CursorExpired(), "cursor_expired"), (OSError(5, "EIO"), "internal")])
async def test_a_failed_attachment_is_reported_and_the_reply_of_a_cell_still_comes(http_server, rpc, error, code):
    session = await make(rpc, attach=False)
    http_server.service.attach = lambda *args, **more: Broken(error)
    await rpc.call("session.attach", session=session)
    while rpc.heard[-1].get("method") != "detached":
        await rpc.hear()
    assert rpc.heard[-1]["params"]["session"] == session
    assert rpc.heard[-1]["params"]["error"]["code"] == code
    assert (await rpc.call("session.execute", session=session, code="1"))["reason"] == "ok"


async def test_an_exception_gives_an_internal_error_and_the_connection_continues(http_server, rpc, caplog):
    http_server.service.info = lambda: 1 / 0
    error = await rpc.refused("info")
    assert (error["code"], error["details"]) == ("internal", {})
    assert "ZeroDivisionError" not in json.dumps(error)
    assert "ZeroDivisionError" in caplog.text
    assert await rpc.call("templates")


async def test_a_result_without_json_is_an_internal_error(http_server, rpc):
    http_server.service.info = lambda: {"text": "\udc80"}
    assert (await rpc.refused("info"))["code"] == "internal"


async def test_attachments_are_bounded(rpc, monkeypatch):
    monkeypatch.setattr("kernelsvc.server.native.websocket.MAX_ATTACHMENTS", 2)
    sessions = [await make(rpc) for _ in range(2)]
    assert (await rpc.refused("session.attach", session=await make(rpc, attach=False)))["code"] == "quota_exceeded"
    await rpc.call("session.detach", session=sessions[0])
    await rpc.call("session.attach", session=sessions[0])


async def test_a_client_that_sends_and_does_not_read_is_not_read(open_http_server):
    http_server = await open_http_server()
    async with http_server.socket(max_queue=1, ping_interval=None) as socket, http_server.socket() as other:
        http_server.service.info = lambda: {"text": "x" * 1_000_000}
        greedy = Rpc(socket)

        async def ask():
            for _ in range(300):
                await greedy.send("info")

        asking = asyncio.ensure_future(ask())
        context = http_server.app.settings["context"]
        await wait_until(lambda: len(context.sockets) == 2)
        handler = await wait_until(lambda: next((each for each in context.sockets if each._unsent), None))
        sent = await until_still(lambda: handler._unsent)
        assert sent < 20_000_000
        http_server.service.info = lambda: {}
        assert await Rpc(other).call("info") == {}
        for number in range(1, 301):
            await greedy.answer(number)
            greedy.heard.clear()
        await asking


async def test_nothing_of_a_connection_is_left_when_it_has_ended(http_server):
    def left():
        gc.collect()
        return sum(type(each).__name__ in ("_Protocol", "Line", "Frames") for each in gc.get_objects())

    before = left()
    for _ in range(5):
        async with http_server.socket() as socket:
            await Rpc(socket).call("info")
    await wait_until(lambda: left() <= before)


# --- an attachment, over a log and a connection that the test holds in its hands ---------


class Log:
    """A ``Subscription`` whose lines the test adds."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.last_seq = 0
        self.exhausted = self.closed = False
        self.failure: Exception | None = None
        self.news: Callable[[bytes], None] = lambda line: None

    def add(self, type: str) -> None:
        self.lines.append(b'{"type":"%b"}' % type.encode())
        self.news(self.lines[-1])

    def on_lines(self, news: Callable[[bytes], None]) -> None:
        self.news = news

    async def next(self) -> list[bytes]:
        return self.next_nowait()

    def next_nowait(self) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        lines, self.lines = self.lines, []
        self.last_seq += len(lines)
        return lines

    def close(self) -> None:
        self.closed = True


class Connection:
    """An ``EventConnection`` that sends when the test says so."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[FrameSource, float]] = []
        self.sent: list[bytes] = []
        self.pending_reply = False

    def schedule(self, source: FrameSource, linger: float = 0.0) -> None:
        self.scheduled.append((source, linger))

    def collect(self) -> None:
        for source, _ in self.scheduled:
            self.send(source.take())
            source.on_queued()
        self.scheduled.clear()

    def send(self, pieces: Sequence[bytes]) -> None:
        self.sent += pieces

    def has_pending_reply(self, session: str) -> bool:
        return self.pending_reply


def attach(after: int = 0) -> tuple[Attachment, Log, Connection]:
    log, connection = Log(), Connection()
    return Attachment("s_1", log, after, connection), log, connection


def test_nothing_is_scheduled_before_the_answer_that_announces_the_events() -> None:
    attachment, log, connection = attach()
    log.add("stream")
    assert not connection.scheduled
    attachment.start()
    connection.collect()
    assert connection.sent == [jsonrpc.event_frame(b'{"type":"stream"}')]


def test_an_answer_waits_for_the_events_before_it() -> None:
    attachment, log, connection = attach()
    attachment.start()
    order: list[str] = []
    attachment.when_sent(2, lambda: order.append("answer"))
    log.add("stream")
    connection.collect()
    assert not order
    log.add("cell_finished")
    connection.collect()
    assert order == ["answer"]
    attachment.when_sent(2, lambda: order.append("next"))
    assert order == ["answer", "next"]


async def test_a_stop_releases_those_who_wait() -> None:
    attachment, log, _ = attach()
    waiting = asyncio.ensure_future(attachment.reached(5))
    await asyncio.sleep(0)
    attachment.stop()
    await waiting
    assert log.closed
    assert not attachment.take()


def test_news_of_a_beginning_lingers_and_output_does_not() -> None:
    attachment, log, connection = attach()
    attachment.start()
    connection.scheduled.clear()
    for type, pending in (("cell_queued", False), ("stream", False), ("cell_finished", False), ("cell_finished", True)):
        connection.pending_reply = pending
        log.add(type)
    assert [linger for _, linger in connection.scheduled] == [LINGER, 0.0, 0.0, LINGER]


def test_a_log_that_fails_ends_the_attachment_with_its_error() -> None:
    attachment, log, connection = attach()
    attachment.start()
    log.failure = NotFound("The log is gone.")
    connection.collect()
    (frame,) = connection.sent
    detached = json.loads(frame[frame.index(b"{") :])
    assert (detached["method"], detached["params"]["error"]["code"]) == ("detached", "not_found")
    assert attachment.ended


async def test_a_page_sends_its_token_as_a_subprotocol_that_is_not_repeated(http_server):
    url = http_server.url.replace("http", "ws") + "/v1/ws"
    token = "kernelsvc.bearer.YWxpY2UtdG9rZW4"
    async with websockets.connect(url, subprotocols=["kernelsvc.v1", token]) as socket:
        assert socket.subprotocol == "kernelsvc.v1"
        rpc = Rpc(socket)
        assert (await rpc.call("info"))["name"] == "kernelsvc"
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(url, subprotocols=["kernelsvc.v1", "kernelsvc.bearer.YWxpY2U"])
