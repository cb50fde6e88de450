"""Requests through a front, by REST and the APIs of other products."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import websockets
from fleet import KEY, Fleet
from http_server import SLEEP, TOKENS
from tornado.simple_httpclient import HTTPStreamClosedError
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.front import relay
from kernelsvc.model.cluster import ids
from kernelsvc.model.cluster.reports import PROTOCOL, Hello, NodeMessage, NodeReport
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.protocol import e2b


async def test_a_session_on_each_node_works_by_rest(fleet: Fleet) -> None:
    for session in await fleet.on_each():
        path = f"/v1/sessions/{session['id']}"
        assert (await fleet.json("GET", path, status=200))["id"] == session["id"]
        cell = await fleet.json("POST", f"{path}/cells", {"code": "print(6 * 7)"}, status=200)
        assert cell["reason"] == "ok", cell
        assert (await fleet.fetch("PUT", f"{path}/files/a/b.bin", b"x" * 300_000)).code == 201
        part = await fleet.fetch("GET", f"{path}/files/a/b.bin", headers={"Range": "bytes=2-5"})
        assert (part.code, part.body) == (206, b"xxxx")
        head = await fleet.fetch("HEAD", f"{path}/files/a/b.bin")
        assert (head.code, head.headers["Content-Length"]) == (200, "300000")
        assert len((await fleet.fetch("GET", f"{path}/files/a/b.bin")).body) == 300_000
        assert (await fleet.fetch("GET", f"{path}/notebook")).code == 200
        assert (await fleet.fetch("DELETE", f"{path}/files/a/b.bin")).code == 204
        assert (await fleet.json("DELETE", path, status=200))["state"] == "closed"


async def test_events_stream_and_resume_through_the_front(fleet: Fleet) -> None:
    (session, _) = await fleet.on_each()
    path = f"/v1/sessions/{session['id']}"
    await fleet.json("POST", f"{path}/cells", {"code": "print(1)"}, status=200)
    got: list[bytes] = []
    enough = asyncio.Event()

    def take(chunk: bytes) -> None:
        got.append(chunk)
        if b"cell_finished" in b"".join(got):
            enough.set()

    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
    stream = asyncio.ensure_future(fleet.fetch("GET", f"{path}/events", headers=headers, streaming_callback=take))
    async with asyncio.timeout(10):
        await enough.wait()
    text = b"".join(got).decode()
    assert "id: 2\n" in text
    assert "id: 1\n" not in text
    stream.cancel()


async def test_a_one_shot_call_runs_somewhere(fleet: Fleet) -> None:
    answer = await fleet.json("POST", "/v1/execute", {"code": "1 + 1"}, status=200)
    assert answer["reason"] == "ok"


async def test_tokens_are_checked_at_the_front(fleet: Fleet) -> None:
    (session, _) = await fleet.on_each()
    path = f"/v1/sessions/{session['id']}"
    assert await fleet.refused("GET", path, token="wrong") == (401, "unauthenticated")
    assert await fleet.refused("GET", path, token=None) == (401, "unauthenticated")
    assert await fleet.refused("GET", path, token="bob-token") == (404, "not_found")
    assert await fleet.refused("GET", "/v1/none") == (404, "not_found")


async def test_a_token_is_read_in_the_forms_of_its_api(fleet: Fleet) -> None:
    forms: list[tuple[str, dict[str, str], int]] = [
        ("/v1/sessions", {"Authorization": "Bearer alice-token"}, 200),
        ("/api/kernels", {"Authorization": "token alice-token"}, 200),
        ("/t/alice-token/api/kernels", {}, 200),
        ("/api/kernels?token=alice-token", {}, 200),
        ("/v2/sandboxes", {"X-API-KEY": "alice-token", "Authorization": "Bearer other"}, 200),
        # Addresses end up in logs of proxies.
        ("/v1/sessions?token=alice-token", {}, 401),
        ("/v1/templates?token=alice-token", {}, 401),
        ("/v2/sandboxes?token=alice-token", {}, 401),
        ("/mcp?token=alice-token", {}, 401),
        ("/v1/sessions/s_0000000123456789abcdef?token=alice-token", {}, 401),
    ]
    for path, headers, status in forms:
        assert (await fleet.fetch("GET", path, headers=headers, token=None)).code == status, path


async def test_jupyter_through_the_front(fleet: Fleet) -> None:
    kernels = [await fleet.json("POST", "/api/kernels", {}, status=201) for _ in range(4)]
    assert len({ids.node_of(ids.session_of_kernel(each["id"])) for each in kernels}) == 2
    listed = await fleet.json("GET", "/t/alice-token/api/kernels", status=200, token=None)
    assert {each["id"] for each in listed} == {each["id"] for each in kernels}
    body = {"kernel": {"id": kernels[0]["id"]}, "path": "a.ipynb", "type": "notebook"}
    assert (await fleet.json("POST", "/api/sessions", body, status=201))["kernel"]["id"] == kernels[0]["id"]
    assert (await fleet.fetch("DELETE", f"/api/kernels/{kernels[1]['id']}")).code == 204
    assert "python3" in (await fleet.json("GET", "/api/kernelspecs", status=200))["kernelspecs"]


async def test_e2b_through_the_front(fleet: Fleet) -> None:
    made = [await fleet.json("POST", "/sandboxes", {"templateID": "base"}, status=201) for _ in range(4)]
    names = [each["sandboxID"] for each in made]
    assert len({ids.node_of(ids.session_of(name) or "") for name in names}) == 2
    shown: list[str] = []
    after = ""
    while True:
        response = await fleet.fetch("GET", f"/v2/sandboxes?limit=3{after}")
        shown += [each["sandboxID"] for each in json.loads(response.body)]
        if "x-next-token" not in response.headers:
            break
        after = f"&nextToken={response.headers['x-next-token']}"
    assert shown == names[::-1]
    usage = await fleet.json("GET", f"/sandboxes/metrics?sandbox_ids={','.join(names)}", status=200)
    assert set(usage["sandboxes"]) == set(names)
    for each in made:
        secret = {"E2b-Sandbox-Id": each["sandboxID"], "X-Access-Token": each["envdAccessToken"]}
        assert (await fleet.fetch("GET", "/health", headers=secret, token=None)).code == 204
        host = {"Host": f"49983-{each['sandboxID']}.example.org", "X-Access-Token": each["envdAccessToken"]}
        assert (await fleet.fetch("GET", "/health", headers=host, token=None)).code == 204
        assert (await fleet.fetch("DELETE", f"/sandboxes/{each['sandboxID']}")).code == 204
    assert (await fleet.fetch("GET", "/health", headers={"E2b-Sandbox-Id": names[0]}, token=None)).code == 401


@pytest.mark.parametrize("path", ["/v1/sessions/{}/cells", "/v1/execute"], ids=["passed on", "placed"])
async def test_a_client_that_goes_ends_its_request_at_the_node(fleet: Fleet, path: str) -> None:
    session, _ = await fleet.on_each()
    losses = [node.losses() for node in fleet.nodes]
    body = {"code": SLEEP, **({"on_disconnect": "interrupt"} if "{}" in path else {})}
    call = asyncio.ensure_future(fleet.fetch("POST", path.format(session["id"]), body, request_timeout=0.5))
    await asyncio.gather(call, return_exceptions=True)
    await wait_until(lambda: any(losses), what="the node notices")


async def test_a_stop_ends_event_streams_and_waits_for_responses(fleet: Fleet) -> None:
    fleet.server._settings = msgspec.structs.replace(fleet.settings, shutdown_seconds=60)
    path = f"/v1/sessions/{(await fleet.on_each())[1]['id']}"
    got = asyncio.Event()
    events = asyncio.ensure_future(
        fleet.fetch(
            "GET", f"{path}/events", headers={"Accept": "text/event-stream"}, streaming_callback=lambda _: got.set()
        )
    )
    await got.wait()
    code = "import asyncio\nawait asyncio.sleep(0.5)\nprint('done')"
    cell = asyncio.ensure_future(fleet.json("POST", f"{path}/cells", {"code": code}, status=200))
    await wait_until(lambda: fleet.state(path.rpartition("/")[2]) == "busy", what="the cell runs")
    async with asyncio.timeout(30):
        await fleet.server.stop()
        assert (await cell)["reason"] == "ok"
        with pytest.raises(HTTPStreamClosedError):
            await events


@pytest.mark.parametrize(("verb", "most"), [("GET", 20), ("POST", 1)])
async def test_a_node_that_closes_connections_is_asked_again_for_a_time(fleet: Fleet, verb: str, most: int) -> None:
    """Only requests that read are sent again, and they end with an error."""
    fleet.front.members.hold_seconds = 0.3
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = fleet.url.replace("http", "ws") + "/v1/cluster/join"
        async with websockets.connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            hello = Hello(protocol=PROTOCOL, node="abcdef", instance="i", url=f"http://127.0.0.1:{port}", version="1")
            for message in (NodeMessage(hello=hello), NodeMessage(report=NodeReport(max_sessions=1))):
                await socket.send(msgspec.json.encode(message))
            await fleet.joined(3)
            one_hop = {"Connection": "X-Named", "X-Named": "1", "Proxy-Authorization": "secret"}
            path, body = "/v1/sessions/s_abcdef0123456789abcdef/cells", {} if verb == "POST" else None
            request = fleet.refused(verb, path, body, headers=one_hop)
            if verb == "POST":
                with pytest.raises(HTTPStreamClosedError):
                    await request
            else:
                assert await request == (503, "node_unreachable")
    assert 1 <= len(asked) <= most
    assert not [name for name in (b"x-named", b"proxy-auth") if name in asked[0].lower()]


async def test_a_ticket_of_the_console_is_redeemed_where_it_was_made(fleet: Fleet) -> None:
    for _ in range(4):
        await fleet.on_each()  # another node has most room now
        made = await fleet.json("POST", "/console/tickets", {}, status=201)
        redeemed = await fleet.fetch("POST", "/console/tickets/redeem", {"ticket": made["ticket"]}, token=None)
        assert redeemed.code == 200, redeemed.body


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """A server in a session: fake kernels have the network of the test."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"x-kernelsvc" if b"x-kernelsvc" in head.lower() else b"hi"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_port_is_reached_by_host_name_on_each_node(fleet: Fleet, port: int) -> None:
    for session in await fleet.on_each():
        host = f"{port}-{session['id'].replace('_', '-')}.apps.test"
        answer = await fleet.fetch("GET", "/any/path", headers={"Host": host})
        assert (answer.code, answer.body) == (200, b"hi")
        assert (await fleet.fetch("GET", "/any/path", headers={"Host": host}, token=None)).code == 401


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_client_without_a_token_may_read_for_long(fleet: Fleet, websocket: bool) -> None:
    """A sandbox's secret authenticates it at the node. The front does not know that, and cuts no stream."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        upgrade = b"101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        writer.write(b"HTTP/1.1 " + (upgrade if websocket else b"200 OK\r\n\r\n") + b"first")
        await ended.wait()
        writer.close()

    session, _ = await fleet.on_each()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await fleet.json("POST", f"/v1/sessions/{session['id']}/ports", {"port": port, "public": True}, status=201)
        reader, writer = await asyncio.open_connection(*fleet.url.removeprefix("http://").rsplit(":", 1))
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n" if websocket else ""
        path = f"/v1/sessions/{session['id']}/ports/{port}/"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode())
        async with asyncio.timeout(10):
            await reader.readuntil(b"first")
        limiter = fleet.server._http.connections
        assert limiter is not None
        (connection,) = (each for group in limiter._unauthenticated.values() for each in group)
        assert connection.overdue(limiter.now() + 3600, 3600) is None
        ended.set()
        async with asyncio.timeout(10):
            await reader.read() if websocket else await reader.readuntil(b"0\r\n\r\n")
        writer.close()


async def test_a_client_without_a_token_that_does_not_read_is_disconnected(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()
        ended.set()

    monkeypatch.setattr(relay, "ANSWER_SECONDS", 0.2)
    session, _ = await fleet.on_each()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await fleet.json("POST", f"/v1/sessions/{session['id']}/ports", {"port": port, "public": True}, status=201)
        _, writer = await asyncio.open_connection(*fleet.url.removeprefix("http://").rsplit(":", 1))
        writer.write(f"GET /v1/sessions/{session['id']}/ports/{port}/ HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(20):
            await ended.wait()
        writer.close()


async def test_a_disconnected_client_is_no_bug(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    session, _ = await fleet.on_each()
    path = f"/v1/sessions/{session['id']}/files/f"
    assert (await fleet.fetch("PUT", path, b"x" * 20_000_000)).code == 201
    reader, writer = await asyncio.open_connection(*fleet.url.removeprefix("http://").rsplit(":", 1))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n\r\n".encode())
    async with asyncio.timeout(10):
        await reader.readuntil(b"xxx")
    (member,) = (each for each in fleet.front.members.known() if session["id"].startswith(f"s_{each.name}"))
    limiter = fleet.server._http.connections
    assert limiter is not None
    streams = [each.stream for each in limiter._owned["alice"]]
    await wait_until(lambda: any(each.writing() for each in streams), what="the front waits for the client")
    writer.transport.abort()
    await wait_until(lambda: not member.on_lost, what="the exchange ends")
    assert not [one for one in caplog.records if one.levelname == "ERROR"], caplog.text


async def test_the_node_decides_who_reaches_a_port(fleet: Fleet, port: int) -> None:
    for node, session in zip(fleet.nodes, await fleet.on_each(), strict=True):
        node.app.settings["context"].on_loopback = False  # as a worker, which listens on a Unix socket
        ports = f"/v1/sessions/{session['id']}/ports"
        path = f"{ports}/{port}/"
        assert (await fleet.fetch("GET", path)).body == b"hi"
        assert (await fleet.fetch("GET", path, token=None)).code == 401
        secret = node.service.access.secret(node.service.authenticate("alice-token"), session["id"], e2b.TRAFFIC)
        assert (await fleet.fetch("GET", path, token=None, headers={"E2B-Traffic-Access-Token": secret})).body == b"hi"
        address = (await fleet.json("POST", ports, {"port": port, "seconds": 60}, status=201))["path"]
        # Pages of a session's server have the origin "null", and a ticket is no cookie of this service.
        page = {"Origin": "null", "Host": "rebound.example"}
        assert (await fleet.fetch("GET", address, token=None, headers=page)).body == b"hi"
        asks = {**page, "Access-Control-Request-Method": "PUT"}
        assert (await fleet.fetch("OPTIONS", address, token=None, headers=asks)).code == 204
        await fleet.json("POST", ports, {"port": port, "public": True}, status=201)
        assert (await fleet.fetch("GET", path, token=None)).body == b"hi"
        for token in (None, "wrong"):
            rebound = await fleet.fetch("GET", path, token=token, headers={"Host": "rebound.example"})
            assert (rebound.code, b"'Host'" in rebound.body) == (403, True)


async def test_the_archive_has_a_closed_session_whose_node_is_gone(tmp_path: Path) -> None:
    boss = TokenRecord(name="boss", sha256=hash_token("boss-token"), scopes=frozenset({"read", "audit"}))
    fleet = Fleet(tmp_path, tokens=[*TOKENS, boss], archive_url=f"file://{tmp_path}/archive")
    (tmp_path / "archive").mkdir()
    await fleet.start(hold_seconds=0.2)
    try:
        closed, still_open = (await fleet.on_each())[0]["id"], (await fleet.on_each())[0]["id"]
        await fleet.json("DELETE", f"/v1/sessions/{closed}", status=200)
        paths = [f"/v1/sessions/{closed}/{part}" for part in ("notebook", "journal")]
        before = [(await fleet.fetch("GET", path)).body for path in paths]
        await wait_until((tmp_path / "archive" / closed / "record.json").exists)
        await fleet.nodes[0].leave()
        await fleet.joined(1)
        for path, body in zip(paths, before, strict=True):
            for token in ("alice-token", "reader-token", "boss-token"):
                response = await fleet.fetch("GET", path, token=token)
                assert (response.code, response.body) == (200, body)
            assert await fleet.refused("GET", path, token="bob-token") == (404, "not_found")
            assert await fleet.refused("GET", path, token="wrong") == (401, "unauthenticated")
            assert await fleet.refused("GET", path.replace(closed, still_open)) == (503, "node_unreachable")
        async with AsyncClient(fleet.url, "alice-token") as client:
            assert b"<title>" in await client.notebook(closed, "html")
            assert await client.journal(closed) == before[1]
        assert await fleet.refused("GET", f"{paths[0]}?format=html", token="bob-token") == (404, "not_found")
        assert await fleet.refused("GET", f"/v1/sessions/{closed}") == (503, "node_unreachable")
        assert await fleet.refused("GET", f"/v1/sessions/{closed}/events") == (503, "node_unreachable")
        (tmp_path / "archive").rename(tmp_path / "away")
        assert await fleet.refused("GET", paths[0]) == (503, "node_unreachable")
    finally:
        await fleet.stop()
