"""The REST surface over real sockets: every route, the one error shape, streams, resumption, bounds."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import urllib.parse

import pytest
from http_server import ALICE, SLEEP, Rpc
from waiting import wait_until

from kernelsvc.errors import CursorExpired
from kernelsvc.model.view import cell_view
from kernelsvc.server import handler
from kernelsvc.server.native import handlers
from kernelsvc.server.native.handlers import accepts_stream
from kernelsvc.server.native.routes import ROUTES, is_id, pattern
from kernelsvc.session import cell_views


async def make(http_server, **body):
    return (await http_server.json("POST", "/v1/sessions", body, status=201))["id"]


def sse(data: bytes):
    """The events of a stream as (id, data)."""
    found = []
    for block in data.decode().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])))
    return found


async def test_a_session_from_birth_to_end(http_server):
    response = await http_server.fetch("POST", "/v1/sessions", {"name": "n", "labels": {"a": "b"}})
    assert response.code == 201
    session = json.loads(response.body)["id"]
    assert response.headers["Location"] == f"/v1/sessions/{session}"
    base = f"/v1/sessions/{session}"
    assert (await http_server.json("GET", base, status=200))["state"] == "idle"
    cell = await http_server.json("POST", f"{base}/cells", {"code": "print('x' * 10)\n2", "cell": "c1"}, status=200)
    assert (cell["text"], cell["reason"]) == ("xxxxxxxxxx\n2\n", "ok")
    assert (await http_server.json("GET", f"{base}/cells/c1", status=200)) == cell
    assert (await http_server.json("GET", f"{base}/cells?limit=1", status=200)) == {
        "cells": [cell],
        "next_offset": None,
    }
    piece = await http_server.json("GET", f"{base}/cells/c1/output?offset=2&limit=3", status=200)
    assert piece == {"name": "stdout", "offset": 2, "text": "xxx", "next_offset": 5, "total": 11}
    assert await http_server.refused("POST", f"{base}/cells/c1/input", {"text": "t"}) == (409, "conflict")
    assert (await http_server.json("POST", f"{base}/interrupt", status=200))["id"] == session
    assert (await http_server.json("POST", f"{base}/restart", b"", status=200))["id"] == session
    assert (await http_server.json("POST", f"{base}/complete", {"code": "pr"}, status=200))["matches"] == []
    assert (await http_server.json("POST", f"{base}/inspect", {"code": "pr"}, status=200))["found"] is False
    assert await http_server.json("GET", f"{base}/variables", status=200) == []
    made = await http_server.json("POST", f"{base}/checkpoints", {"name": "k"}, status=201)
    assert made["name"] == "k"
    assert made["id"] in [each["id"] for each in await http_server.json("GET", f"{base}/checkpoints", status=200)]
    assert (await http_server.json("POST", f"{base}/rollback", {"to": "k"}, status=200))["id"] == session
    assert await http_server.json("DELETE", f"{base}/checkpoints/k", status=204) is None
    assert await http_server.refused("DELETE", f"{base}/checkpoints/k") == (404, "not_found")
    assert (await http_server.json("POST", f"{base}/hibernate", status=200))["id"] == session
    assert len(await http_server.json("POST", f"{base}/branches", {"count": 2}, status=201)) == 2
    assert (await http_server.json("DELETE", base, status=200))["state"] == "closed"
    assert (await http_server.json("GET", base, status=200))["state"] == "closed"
    assert await http_server.refused("POST", f"{base}/cells", {"code": "1"}) == (409, "session_closed")
    assert await http_server.refused("POST", f"{base}/purge", {}) == (409, "conflict"), "it has branches"


@pytest.mark.parametrize(("size", "aside"), [(1000, False), (60_000, True)])
async def test_a_large_output_is_viewed_beside_the_event_loop(http_server, monkeypatch, size, aside):
    base = f"/v1/sessions/{(await http_server.json('POST', '/v1/sessions', {}))['id']}"
    cell = await http_server.json("POST", f"{base}/cells", {"code": f"print('a\\b' * {size // 2})"}, status=200)
    threads, real = [], cell_view.view_cell

    def view_cell(*given):
        threads.append(threading.get_ident())
        return real(*given)

    monkeypatch.setattr(cell_view, "view_cell", view_cell)
    view = await http_server.json("GET", f"{base}/cells/{cell['id']}/view?find=a", status=200)
    assert (view["cell"], view["lines"]) == (cell["id"], 1)
    assert [thread != threading.get_ident() for thread in threads] == [aside]


async def test_a_page_of_large_cells_ends_early(http_server, monkeypatch):
    monkeypatch.setattr(cell_views, "PAGE_BYTES", 100)
    base = f"/v1/sessions/{(await http_server.json('POST', '/v1/sessions', {}))['id']}"
    for code in ("print('a' * 1000)", "1", "2" + " " * 200, "3"):
        await http_server.json("POST", f"{base}/cells", {"code": code}, status=200)
    sizes, offset = [], 0
    while offset is not None:
        page = await http_server.json("GET", f"{base}/cells?limit=3&offset={offset}", status=200)
        sizes.append(len(page["cells"]))
        offset = page["next_offset"]
    assert sizes == [1, 2, 1]


async def test_a_page_of_large_events_ends_early(http_server, monkeypatch):
    monkeypatch.setattr(handlers, "PAGE_BYTES", 300_000)
    session = await make(http_server)
    await http_server.json(
        "POST", f"/v1/sessions/{session}/cells", {"code": "for n in range(20): print('x' * 200_000)"}
    )
    page = await http_server.json("GET", f"/v1/sessions/{session}/events?limit=1000", status=200)
    assert len(json.dumps(page)) < 900_000
    assert page["next_after"] == page["events"][-1]["seq"] < page["last_seq"]
    one = await http_server.json("GET", f"/v1/sessions/{session}/events?limit=1&after=1", status=200)
    assert [each["seq"] for each in one["events"]] == [2]


@pytest.mark.parametrize(("method", "path"), [("cells", "cells"), ("cell", "cells/{}"), ("view", "cells/{}/view")])
async def test_long_reads_of_one_principal_delay_no_other(http_server, monkeypatch, method, path):
    order, paths = [], []
    read = getattr(http_server.service, method)

    def noted(who, *args, **kwargs):
        order.append(who.name)
        return read(who, *args, **kwargs)

    monkeypatch.setattr(http_server.service, method, noted)
    for token in ("alice-token", "bob-token"):
        session = (await http_server.json("POST", "/v1/sessions", {}, status=201, token=token))["id"]
        cell = await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "1"}, token=token)
        paths.append(f"/v1/sessions/{session}/{path.format(cell['id'])}")
    # Of both, the sockets are connected and the requests sent before the server reads the first one.
    many = [send_get(http_server, paths[0], "alice-token") for _ in range(100)]
    many.append(send_get(http_server, paths[1], "bob-token"))
    await wait_until(lambda: "bob" in order, what="the other principal's answer")
    assert order.index("bob") < 20
    for each in many:
        each.close()


async def test_a_very_long_read_is_followed_by_a_pause(http_server, monkeypatch):
    context, loop = http_server.app.settings["context"], asyncio.get_running_loop()
    pauses, call_later = [], loop.call_later

    def noted(seconds, *args, **kwargs):
        pauses.append(seconds)
        return call_later(seconds, *args, **kwargs)

    monkeypatch.setattr(loop, "call_later", noted)
    monkeypatch.setattr(handler, "MAX_PAUSE", 1e-7)
    for after, pause in ((0.0, 1e-7), (1000.0, 0.0)):
        monkeypatch.setattr(handler, "PAUSE_AFTER", after)
        async with context.turn_of(ALICE):
            pass
        assert pauses[-1] == pause


@pytest.mark.parametrize(
    "path", ["/api/kernels", "/api/sessions", "/sandboxes", "/v2/sandboxes", "/snapshots", "/sandboxes/metrics"]
)
async def test_lists_of_other_apis_are_long_reads_too(http_server, path):
    async def read(token):
        headers = {"X-API-KEY": token} if "s" in path.split("/")[1] else {}
        return await http_server.fetch("GET", path, headers=headers, token=token)

    async with http_server.app.settings["context"].turn_of(ALICE):
        waits = asyncio.ensure_future(read("alice-token"))
        for _ in range(3):
            assert (await read("bob-token")).code == 200
        assert not waits.done()
    assert (await waits).code == 200


@pytest.mark.parametrize("path", ["", "/{}/calls", "/{}/cells", "/{}/outline", "/{}/tools", "/{}/usage"])
async def test_long_reads_of_sessions_take_turns(http_server, path):
    async def read(token):
        session = (await http_server.json("POST", "/v1/sessions", {}, status=201, token=token))["id"]
        reads.append(session)
        return await http_server.json("GET", "/v1/sessions" + path.format(session), status=200, token=token)

    reads: list[str] = []
    async with http_server.app.settings["context"].turn_of(ALICE):
        waits = asyncio.ensure_future(read("alice-token"))
        await wait_until(lambda: reads)
        for _ in range(3):
            await read("bob-token")
        assert not waits.done()
    await waits


def send_get(http_server, path, token):
    place = urllib.parse.urlsplit(http_server.url)
    made = socket.create_connection((place.hostname, place.port))
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return made


async def test_sessions_are_listed_in_pages_by_label_and_state(http_server):
    made = [await make(http_server, labels={"n": str(number % 2)}) for number in range(5)]
    await http_server.json("DELETE", f"/v1/sessions/{made[0]}")
    first = await http_server.json("GET", "/v1/sessions?limit=3", status=200)
    rest = await http_server.json("GET", f"/v1/sessions?limit=3&page={first['next_page']}", status=200)
    assert [s["id"] for s in first["sessions"] + rest["sessions"]] == made[::-1]
    assert rest["next_page"] is None
    assert len((await http_server.json("GET", "/v1/sessions?label=n%3D1", status=200))["sessions"]) == 2
    assert len((await http_server.json("GET", "/v1/sessions?state=closed", status=200))["sessions"]) == 1
    assert await http_server.refused("GET", "/v1/sessions?state=asleep") == (400, "bad_request")


async def test_idempotency_keys(http_server):
    key = {"Idempotency-Key": "k-1"}
    first = await http_server.json("POST", "/v1/sessions", {}, headers=key)
    assert (await http_server.json("POST", "/v1/sessions", {}, headers=key))["id"] == first["id"]
    # The key names one request: an answer to another one would hide that its session does not exist.
    for body in ({"name": "other"}, {"env": {"A": "1"}}, {"limits": {"cpu_cores": 0.5}}):
        assert await http_server.refused("POST", "/v1/sessions", body, headers=key) == (409, "conflict")
    assert await http_server.refused("POST", "/v1/sessions", {"idempotency_key": "z"}, headers=key) == (
        400,
        "bad_request",
    )
    path = f"/v1/sessions/{first['id']}/cells"
    code = "n = globals().get('n', 0) + 1\nn"
    one = await http_server.json("POST", path, {"code": code}, headers=key, status=200)
    assert await http_server.json("POST", path, {"code": code}, headers=key, status=200) == one
    several = {"cells": [{"code": code}, {"code": code}]}
    two = await http_server.json("POST", path, several, headers={"Idempotency-Key": "k-2"}, status=200)
    assert await http_server.json("POST", path, several, headers={"Idempotency-Key": "k-2"}, status=200) == two
    assert [cell["text"] for cell in two] == ["2\n", "3\n"]


async def test_queued_answers_at_once(http_server):
    session = await make(http_server)
    cell = await http_server.json("POST", f"/v1/sessions/{session}/cells?wait=queued", {"code": SLEEP}, status=202)
    assert cell["state"] in ("queued", "running")


async def test_one_shot(http_server):
    cell = await http_server.json(
        "POST", "/v1/execute", {"code": "open('a').read() + 'b'", "files": {"a": "a"}}, status=200
    )
    assert (cell["error"]["ename"], cell["reason"]) == ("FileNotFoundError", "error")  # fake kernels have no directory
    cell = await http_server.json("POST", "/v1/execute", {"code": "6 * 7"}, status=200)
    assert (cell["text"], cell["reason"]) == ("42\n", "ok")
    assert await http_server.refused("POST", "/v1/execute", {}) == (400, "bad_request")
    assert await http_server.refused("POST", "/v1/execute", {"code": "1", "args": "x"}) == (400, "bad_request")


# --- streams -----------------------------------------------------------------------------


async def test_a_cell_as_a_stream_of_its_own_events(http_server):
    session = await make(http_server)
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "1"})
    response = await http_server.fetch(
        "POST", f"/v1/sessions/{session}/cells", {"code": "print('a')\nprint('b')", "cell": "c2"},
        headers={"Accept": "text/event-stream"},
    )  # fmt: skip
    assert response.headers["Content-Type"] == "text/event-stream"
    events = sse(response.body)
    assert [data["type"] for _, data in events] == ["cell_queued", "cell_started", "stream", "stream", "cell_finished"]
    assert all(id == data["seq"] and data["cell"] == "c2" for id, data in events)
    several = {"cells": [{"code": "1"}, {"code": "2"}]}
    response = await http_server.fetch(
        "POST", f"/v1/sessions/{session}/cells", several, headers={"Accept": "text/event-stream"}
    )
    assert [data["type"] for _, data in sse(response.body)].count("cell_finished") == 2


async def test_events_as_pages(http_server):
    session = await make(http_server)
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "for n in range(300): print(n)"})
    after, seen = 0, []
    while True:
        page = await http_server.json("GET", f"/v1/sessions/{session}/events?after={after}&limit=101", status=200)
        seen += page["events"]
        after = page["next_after"]
        if not page["events"]:
            break
    assert [event["seq"] for event in seen] == list(range(1, page["last_seq"] + 1))
    assert await http_server.refused("GET", f"/v1/sessions/{session}/events?after=99999") == (400, "cursor_unknown")
    assert await http_server.refused("GET", f"/v1/sessions/{session}/events?after=-1") == (400, "bad_request")
    assert await http_server.refused("GET", f"/v1/sessions/{session}/events?aftre=1") == (400, "bad_request")
    assert await http_server.refused("GET", f"/v1/sessions/{session}/events?after=1&after=2") == (400, "bad_request")


async def test_events_as_a_stream_resume_after_the_last_one_seen(http_server):
    session = await make(http_server)
    path = f"/v1/sessions/{session}/events"
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "for n in range(20): print(n)"})
    taken = await http_server.fetch("GET", f"{path}?follow=false", headers={"Accept": "text/event-stream"})
    first = [id for id, _ in sse(taken.body)]
    assert first == list(range(1, first[-1] + 1))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "10"}
    again = await http_server.fetch("GET", f"{path}?follow=false", headers=headers)
    assert [id for id, _ in sse(again.body)] == list(range(11, first[-1] + 1))
    headers["Last-Event-ID"] = "ten"
    assert await http_server.refused("GET", path, headers=headers) == (400, "bad_request")


async def test_a_stream_goes_on_live_with_comments_in_silence_and_ends_with_the_session(open_http_server):
    http_server = await open_http_server(keepalive_seconds=0.05)
    session = await make(http_server)
    pieces = []
    path = f"/v1/sessions/{session}/events?follow=true"
    stream = asyncio.ensure_future(http_server.fetch("GET", path, streaming_callback=pieces.append))
    await wait_until(lambda: b": keepalive" in b"".join(pieces))
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "print(1)"})
    await wait_until(lambda: b"cell_finished" in b"".join(pieces))
    await http_server.json("DELETE", f"/v1/sessions/{session}")
    await stream
    assert [data["type"] for _, data in sse(b"".join(pieces))[-2:]] == ["session_closed", "journal_signed"]


async def test_a_stream_that_fails_says_so_in_the_one_shape(http_server):
    session = await make(http_server)

    class Broken:
        async def wait(self):
            raise CursorExpired

        def close(self):
            pass

    http_server.service.attach = lambda *args, **more: Broken()
    response = await http_server.fetch("GET", f"/v1/sessions/{session}/events?follow=true")
    assert b"event: error" in response.body
    assert sse(response.body)[0][1]["code"] == "cursor_expired"


@pytest.mark.parametrize(("then", "state"), [("interrupt", "idle"), ("keep", "busy")])
async def test_a_client_that_leaves_while_its_cell_runs(http_server, then, state):
    session = await make(http_server)
    body = json.dumps({"code": SLEEP, "on_disconnect": then}).encode()
    port = urllib.parse.urlsplit(http_server.url).port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/sessions/{session}/cells HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await wait_until(lambda: http_server.state(session) == "busy")
    gone = http_server.losses()
    writer.close()
    await wait_until(lambda: gone)
    await wait_until(lambda: http_server.state(session) == state)


async def test_a_stop_ends_streams_and_long_waits(open_http_server):
    http_server = await open_http_server(shutdown_seconds=0.5)
    session = await make(http_server)
    waits = [
        asyncio.ensure_future(http_server.fetch("GET", f"/v1/sessions/{session}/events?follow=true")),
        asyncio.ensure_future(http_server.fetch("POST", f"/v1/sessions/{session}/cells", {"code": SLEEP})),
    ]
    await wait_until(
        lambda: http_server.state(session) == "busy" and len(http_server.app.settings["context"].streams) == 2
    )
    began = asyncio.get_running_loop().time()
    await http_server.server.stop()
    assert asyncio.get_running_loop().time() - began < 0.4
    done, _ = await asyncio.wait(waits, timeout=5)
    assert len(done) == 2
    answer = waits[1].result()
    assert (answer.code, json.loads(answer.body)["retryable"]) == (503, True)


async def test_a_request_under_way_is_answered_before_a_stop_ends(open_http_server):
    http_server = await open_http_server(shutdown_seconds=10.0)
    session = await make(http_server)
    gate = asyncio.Event()

    async def produce(write):
        await write(b"x" * 1000)
        await gate.wait()
        await write(b"x" * 1000)

    put = asyncio.ensure_future(http_server.fetch("PUT", f"/v1/sessions/{session}/files/f", body_producer=produce))
    await wait_until(lambda: list(http_server.files(session).iterdir()))
    stop = asyncio.ensure_future(http_server.server.stop())
    await wait_until(lambda: http_server.app.settings["context"].stopping)
    gate.set()
    assert (await put).code == 201
    await stop


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code"),
    [
        ("GET", "/", None, 404, "not_found"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("POST", "/v1/nothing", b"x" * 1000, 404, "not_found"),
        ("PATCH", "/v1/sessions", b"{}", 405, "bad_request"),
        ("DELETE", "/v1/sessions", None, 405, "bad_request"),
        ("BREW", "/v1/sessions", None, 405, "bad_request"),
        ("PUT", "/healthz", b"", 405, "bad_request"),
        ("POST", "/v1/sessions", b"{", 400, "bad_request"),
        ("POST", "/v1/sessions", b"[]", 400, "bad_request"),
        ("POST", "/v1/sessions", b'"x"', 400, "bad_request"),
        ("POST", "/v1/sessions", b"\xff", 400, "bad_request"),
        ("POST", "/v1/sessions", b'{"name": "\xff"}', 400, "bad_request"),
        ("POST", "/v1/sessions", b'{"labels": {"a": NaN}}', 400, "bad_request"),
        ("POST", "/v1/sessions", b"[" * 200_000, 400, "bad_request"),
        ("POST", "/v1/sessions", {"unknown": 1}, 400, "bad_request"),
        ("POST", "/v1/sessions", {"limits": {"memory_bytes": 1 << 60}}, 400, "limit_too_high"),
        ("POST", "/v1/sessions?attach=true", {}, 400, "bad_request"),
        ("GET", "/v1/sessions/nope", None, 404, "not_found"),
        ("GET", "/v1/sessions/%2e%2e", None, 404, "not_found"),
        ("GET", "/v1/sessions/a%00b", None, 404, "not_found"),
        ("GET", "/v1/sessions/%ff", None, 400, "bad_request"),
        ("GET", "/v1/sessions/nope/cells/x", None, 404, "not_found"),
        ("GET", "/v1/sessions/nope/notebook", None, 404, "not_found"),
        ("GET", "/v1/sessions/nope/journal", None, 404, "not_found"),
        ("GET", "/v1/sessions/nope/events", None, 404, "not_found"),
        ("GET", "/v1/sessions/nope/files/", None, 404, "not_found"),
        ("GET", "/v1/sessions/nope/files/x", None, 404, "not_found"),
        ("PUT", "/v1/sessions/nope/files/x", b"x", 404, "not_found"),
        ("GET", "/v1/sessions?limit=0", None, 400, "bad_request"),
        ("GET", "/v1/sessions?limit=%ff", None, 400, "bad_request"),
    ],
)
async def test_bad_requests_get_the_one_shape(http_server, verb, path, body, status, code):
    assert await http_server.refused(verb, path, body) == (status, code)


async def test_a_bad_cell_changes_nothing(http_server):
    session = await make(http_server)
    path = f"/v1/sessions/{session}/cells"
    for body in (
        {}, {"code": 1}, {"code": "1", "cell": "../x"}, {"code": "1", "session": "other"},
        {"code": "1", "wait": "queued"}, {"cells": []}, {"cells": [{"code": "1"}], "code": "2"},
        {"code": "1", "timeout_seconds": 0},
    ):  # fmt: skip
        assert await http_server.refused("POST", path, body) == (400, "bad_request"), body
    assert (await http_server.json("GET", f"/v1/sessions/{session}"))["last_seq"] == 1
    await http_server.json("POST", path, {"code": "1", "cell": "c"})
    assert await http_server.refused("POST", path, {"code": "2", "cell": "c"}) == (409, "cell_exists")


async def test_a_405_names_what_is_allowed(http_server):
    response = await http_server.fetch("PATCH", "/v1/sessions", b"")
    assert set(response.headers["Allow"].split(", ")) == {"GET", "POST", "OPTIONS"}


async def test_a_body_over_its_bound_is_refused_unread_and_one_without_length_too(open_http_server):
    http_server = await open_http_server(max_body_bytes=4096)
    assert await http_server.refused("POST", "/v1/sessions", b"x" * 5_000_000) == (413, "too_large")

    async def produce(write):
        for _ in range(100):
            await write(b"x" * 1000)

    assert await http_server.refused("POST", "/v1/sessions", body_producer=produce) == (413, "too_large")
    assert await http_server.json("GET", "/v1/sessions") == {"sessions": [], "next_page": None}


async def test_code_over_its_bound(open_http_server):
    http_server = await open_http_server(max_code_bytes=2048)
    session = await make(http_server)
    assert await http_server.refused("POST", f"/v1/sessions/{session}/cells", {"code": "x" * 3000}) == (
        413,
        "too_large",
    )


async def test_50_megabytes_of_code_get_an_answer(http_server):
    session = await make(http_server)
    assert await http_server.refused("POST", f"/v1/sessions/{session}/cells", {"code": "#" * 50_000_000}) == (
        413,
        "too_large",
    )
    async with http_server.socket() as ws:
        rpc = Rpc(ws)
        assert (await rpc.refused("session.execute", session=session, code="#" * 50_000_000))["code"] == "too_large"


async def test_a_bug_of_ours_shows_nothing_of_itself(http_server, caplog):
    session = await make(http_server)
    http_server.service.get = lambda *args: 1 / 0
    response = await http_server.fetch("GET", f"/v1/sessions/{session}")
    assert response.code == 500
    assert json.loads(response.body)["code"] == "internal"
    assert b"ZeroDivision" not in response.body
    assert "ZeroDivisionError" in caplog.text


async def test_garbage_on_the_wire_does_not_stop_the_server_and_is_not_logged(http_server, caplog):
    caplog.set_level("DEBUG")
    for garbage in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\x01\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        port = urllib.parse.urlsplit(http_server.url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert (await http_server.json("GET", "/healthz"))["status"] == "ok"
    assert (await http_server.fetch("HEAD", "/healthz")).code == 200
    assert "alice-token" not in caplog.text


# --- who may come in ----------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong", "alice-token "])
async def test_tokens(http_server, token):
    headers = {"Authorization": f"Bearer {token}x"} if token else {}
    assert await http_server.refused("GET", "/v1/sessions", token=None, headers=headers) == (401, "unauthenticated")


async def test_the_query_is_no_place_for_a_token_in_rest(http_server):
    assert await http_server.refused("GET", "/v1/sessions?token=alice-token", token=None) == (401, "unauthenticated")


async def test_every_route_but_the_open_ones_asks_for_a_token(http_server):
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "x", route.path)
        response = await http_server.fetch(route.verb, path, token=None)
        if route.scope is None:
            assert response.code == 200, path
        else:
            assert response.code == 401, path


async def test_scopes(http_server):
    session = await make(http_server)
    for route in ROUTES:
        path = re.sub(r"\{session\}", session, route.path)
        path = re.sub(r"\{\w+\}", "x", path)
        response = await http_server.fetch(
            route.verb, path, {"code": "1"} if route.verb == "POST" else None, token="reader-token"
        )
        if route.scope == "run":
            assert response.code in (400, 403), path
            if response.code == 403:
                assert json.loads(response.body)["code"] == "forbidden"
        elif route.scope == "read":
            assert response.code in (200, 404, 501), path
    assert (await http_server.json("GET", f"/v1/sessions/{session}"))["last_seq"] == 1


async def test_anothers_session_does_not_exist(http_server):
    session = await make(http_server)
    await http_server.fetch("PUT", f"/v1/sessions/{session}/files/x", b"1")
    for route in ROUTES:
        if "{session}" in route.path:
            path = re.sub(r"\{\w+\}", "x", route.path.replace("{session}", session).replace("{port}", "80"))
            bodies = {
                "session.execute": {"code": "1"},
                "session.complete": {"code": ""},
                "session.inspect": {"code": ""},
                "session.decide": {"calls": ["k.1"], "decision": "deny"},
                "session.decide_cells": {"cells": ["x"], "decision": "refuse"},
                "program.start": {"argv": ["true"]},
                "session.share_port": {"port": 3000},
                "program.resize": {"rows": 1, "columns": 1},
                "tool.return": {"status": "ok"},
                "tool.progress": {"progress": 1.0},
            }
            body = bodies.get(route.id, {"text": ""} if route.id == "session.input" else {})
            data = None if route.verb in ("GET", "DELETE", "HEAD") else b"x" if route.verb == "PUT" else body
            response = await http_server.fetch(route.verb, path, data, token="bob-token")
            assert response.code == 404, route


@pytest.mark.parametrize(
    ("origin", "allowed", "good"),
    [("https://evil.example", [], False), ("https://a.example", ["https://a.example"], True)],
)
async def test_foreign_origins(open_http_server, origin, allowed, good):
    http_server = await open_http_server(origins=allowed)
    for verb in ("GET", "OPTIONS"):
        response = await http_server.fetch(verb, "/v1/sessions", headers={"Origin": origin}, token="alice-token")
        assert response.headers.get("Access-Control-Allow-Origin") == (origin if good else None)
        assert (response.code < 300) is good
    response = await http_server.fetch("GET", "/v1/sessions/nope", headers={"Origin": origin})
    assert response.code == (404 if good else 403)
    assert response.headers.get("Access-Control-Allow-Origin") == (origin if good else None)
    assert (await http_server.fetch("OPTIONS", "/v1/sessions", headers={"Origin": origin}, token=None)).code == (
        204 if good else 403
    )


# --- exports, health, documents ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "kind"), [("ipynb", "application/x-ipynb+json"), ("html", "text/html"), ("py", "text/x-python")]
)
async def test_notebooks(http_server, form, kind):
    session = await make(http_server)
    response = await http_server.fetch("GET", f"/v1/sessions/{session}/notebook?format={form}")
    assert response.headers["Content-Type"].startswith(kind)
    assert response.headers["Content-Security-Policy"].startswith("sandbox;")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert await http_server.refused("GET", f"/v1/sessions/{session}/notebook?format=exe") == (400, "bad_request")


async def test_the_journal_is_whole_lines(http_server):
    session = await make(http_server)
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "print('x' * 1000000)"})
    response = await http_server.fetch("GET", f"/v1/sessions/{session}/journal")
    assert response.headers["Content-Type"] == "application/x-ndjson"
    lines = response.body.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))


async def test_health_and_metrics_hold_no_session_data(http_server, caplog):
    session = await make(http_server, name="secretname")
    assert await http_server.json("GET", "/healthz", token=None) == {"status": "ok"}
    assert await http_server.json("GET", "/readyz", token=None) == {"status": "ready"}
    http_server.service.ready = lambda: False
    response = await http_server.fetch("GET", "/readyz", token=None)
    assert response.code == 503
    assert json.loads(response.body)["retryable"] is True
    assert "Retry-After" in response.headers
    assert "refused" not in caplog.text  # a probe asks every second
    http_server.service.templates = lambda: [{"name": "ds", "state": "failed", "message": "polars starts 3 threads"}]
    response = await http_server.fetch("GET", "/readyz", token=None)
    assert (response.code, json.loads(response.body)["code"]) == (503, "template_failed")
    assert b"polars starts 3 threads" in response.body
    text = (await http_server.fetch("GET", "/metrics", token=None)).body.decode()
    assert "kernelsvc_requests_total" in text
    assert "secretname" not in text
    assert f'"{session}"' not in text


async def test_gauges_count_open_sessions_and_their_cells(http_server):
    busy, closed = await make(http_server), await make(http_server)
    await make(http_server)
    await http_server.fetch("DELETE", f"/v1/sessions/{closed}")
    for name in ("a", "b"):
        await http_server.json("POST", f"/v1/sessions/{busy}/cells?wait=queued", {"code": SLEEP, "cell": name})
    lines = (await http_server.fetch("GET", "/metrics", token=None)).body.decode().splitlines()
    names = ("kernelsvc_sessions", "kernelsvc_unfinished_cells", "kernelsvc_promised_memory_bytes")
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith(names))}
    assert values == {
        'kernelsvc_sessions{kind="busy"}': 1,
        'kernelsvc_sessions{kind="idle"}': 1,
        "kernelsvc_unfinished_cells": 2,
        "kernelsvc_promised_memory_bytes": 2 * http_server.settings.limits.memory_bytes,
    }
    (free,) = (float(line.split()[1]) for line in lines if line.startswith("kernelsvc_free_disk_bytes "))
    assert free > 0


async def test_metrics_need_a_token_if_the_settings_say_so(open_http_server):
    http_server = await open_http_server(metrics_scope="run")
    codes = [(await http_server.fetch("GET", "/metrics", token=t)).code for t in (None, "reader-token", "alice-token")]
    assert codes == [401, 403, 200]
    assert (await http_server.fetch("OPTIONS", "/metrics", token=None)).code == 204


async def test_a_drain_ends_after_its_time_with_a_cell_that_runs(http_server):
    session = await make(http_server)
    await http_server.json("POST", f"/v1/sessions/{session}/cells?wait=queued", {"code": SLEEP, "cell": "c"})
    async with asyncio.timeout(10):
        await http_server.service.drain(0.05)
    assert await http_server.refused("POST", "/v1/sessions", {}) == (503, "at_capacity")
    assert await http_server.refused("POST", f"/v1/sessions/{session}/branches", {}) == (503, "at_capacity")
    assert (await http_server.fetch("GET", "/readyz", token=None)).code == 503
    assert (await http_server.json("GET", f"/v1/sessions/{session}/cells/c"))["state"] == "running"


async def test_documents(http_server):
    openapi = await http_server.json("GET", "/v1/openapi.json", token=None)
    assert openapi["openapi"].startswith("3.1")
    assert set(openapi["paths"]) == {route.path for route in ROUTES}
    openrpc = await http_server.json("GET", "/v1/openrpc.json", token=None)
    assert "session.execute" in {method["name"] for method in openrpc["methods"]}
    assert "CellFinished" in openrpc["components"]["schemas"]


async def test_headers_of_a_streamed_download_and_keepalive_connections(http_server):
    port = urllib.parse.urlsplit(http_server.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sock = writer.get_extra_info("socket")
    assert sock.family == socket.AF_INET
    for _ in range(3):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"200 OK" in head
        assert b"Server:" not in head
        await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
    writer.close()


def test_pure_parts():
    assert accepts_stream("text/event-stream")
    assert accepts_stream("text/event-stream, application/json")
    assert not accepts_stream("application/json, text/event-stream")
    assert not accepts_stream("*/*")
    assert re.fullmatch(pattern("/a/{session}/files/{path}"), "/a/x/files/b/c")
    assert not re.fullmatch(pattern("/a/{session}"), "/a/x/y")
    assert is_id("abc-1.2:3_x")
    assert not any(map(is_id, ("", "-a", "a/b", "a\n", "ä", "a" * 129)))


@pytest.mark.parametrize("field", ["sidecar_of", "beside"])
async def test_a_sidecar_shares_the_directory_and_the_old_name_of_the_field_is_accepted(http_server, field):
    session = await make(http_server)
    await http_server.fetch("PUT", f"/v1/sessions/{session}/files/shared", b"1")
    sidecar = await http_server.json("POST", "/v1/sessions", {field: session}, status=201)
    assert (sidecar["sidecar_of"], sidecar["beside"]) == (session, session)
    assert (await http_server.fetch("GET", f"/v1/sessions/{sidecar['id']}/files/shared")).body == b"1"
    both = {"sidecar_of": session, "beside": "s_0000000000000000"}
    assert await http_server.refused("POST", "/v1/sessions", both) == (400, "bad_request")
    await http_server.json("DELETE", f"/v1/sessions/{session}", status=200)
    await wait_until(lambda: http_server.state(sidecar["id"]) == "closed")


async def test_an_outline_has_one_line_for_each_cell(http_server):
    session = await make(http_server)
    base = f"/v1/sessions/{session}"
    for code in ("\nx = 1\nprint(x)", "raise ValueError", "y = 2"):
        await http_server.json("POST", f"{base}/cells", {"code": code}, status=200)
    page = await http_server.json("GET", f"{base}/outline", status=200)
    assert page["total"] == 3
    assert [cell["first_line"] for cell in page["cells"]] == ["x = 1", "raise ValueError", "y = 2"]
    assert [cell["reason"] for cell in page["cells"]] == ["ok", "error", "ok"]
    one = page["cells"][0]
    assert (one["lines"], one["principal"], one["undone"], one["first"]) == (3, "alice", False, 2)
    assert one["wall_ms"] is not None
    assert one["last"] < page["cells"][1]["first"]
    part = await http_server.json("GET", f"{base}/outline?offset=1&limit=1", status=200)
    assert part == {"cells": page["cells"][1:2], "total": 3}
    assert (await http_server.json("GET", f"{base}/outline?offset=9", status=200))["cells"] == []


async def test_cells_are_found_by_words_of_their_code_within_the_sessions_that_a_token_may_read(http_server):
    session = await make(http_server)
    await http_server.json("POST", f"/v1/sessions/{session}/cells", {"code": "penguins = 7", "cell": "c1"}, status=200)
    (found,) = await http_server.json("GET", "/v1/search?text=peng", status=200)
    assert (found["session"], found["cell"]) == (session, "c1")
    assert await http_server.json("GET", "/v1/search?text=peng", status=200, token="bob-token") == []
    assert await http_server.refused("GET", "/v1/search?text=peng&principal=*") == (403, "forbidden")
    assert await http_server.json("GET", "/v1/search?text=", status=200) == []


async def test_samples_of_the_use_of_a_session(http_server):
    session = await make(http_server)
    (sample,) = await http_server.json("GET", f"/v1/sessions/{session}/usage", status=200)
    assert set(sample) == {"at", "cpu_seconds", "memory_bytes", "disk_bytes"}
