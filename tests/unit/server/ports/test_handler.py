"""Requests to a session's own server, which here listens on this machine's loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import websockets
from tornado.simple_httpclient import HTTPStreamClosedError
from waiting import wait_until

from kernelsvc.model import events as ev
from kernelsvc.model.tokens import TokenRecord
from kernelsvc.server.ports import exchange
from kernelsvc.store.token_file import TokenFile

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class Port:
    """A session, a port on which something listens, and a client."""

    def __init__(self, server: Any, session: str) -> None:
        self.server, self.session, self.number = server, session, 0
        self.heads: list[str] = []
        self.ended = 0

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.session}/ports/{self.number}"

    @property
    def host(self) -> str:
        return f"{self.number}-{self.session.replace('_', '-')}.localhost"

    async def listen(self, respond: Respond) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head.decode("latin1"))
                await respond(reader, writer, head)
            self.ended += 1
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.number = listener.sockets[0].getsockname()[1]
        return listener

    async def share(self, token: str = "alice-token", **options: Any) -> dict[str, Any]:
        body = {"port": self.number, **options}
        return await self.server.json("POST", f"/v1/sessions/{self.session}/ports", body, 201, token=token)

    def events(self, kind: type) -> list[Any]:
        from http_server import ALICE

        return [e for e in map(ev.decode, self.server.service.events(ALICE, self.session)) if isinstance(e, kind)]


def answering(data: bytes) -> Respond:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()

    return respond


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    body = head + await reader.readexactly(length)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nSet-Cookie: a=b\r\n\r\n" % len(body) + body)


@pytest.fixture
async def port(http_server: Any) -> AsyncIterator[Port]:
    session = (await http_server.json("POST", "/v1/sessions", {}))["id"]
    found = Port(http_server, session)
    listener = await found.listen(echo)
    yield found
    listener.close()


async def test_a_request_reaches_the_sessions_server(port: Port) -> None:
    response = await port.server.fetch("POST", port.path + "/a%2Fb/../c?x=1", b"hello", headers={"X-App": "1"})
    head, _, body = response.body.partition(b"\r\n\r\n")
    assert response.code == 200
    assert head.startswith(f"POST /a%2Fb/../c?x=1 HTTP/1.1\r\nHost: localhost:{port.number}\r\n".encode())
    assert (b"X-App: 1" in head, b"alice-token" in head, body) == (True, False, b"hello")
    assert "Set-Cookie" not in response.headers
    assert "sandbox" in response.headers["Content-Security-Policy"]


async def test_a_refusal_before_the_end_of_the_body_reaches_the_client(port: Port) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    listener = await port.listen(refuse)
    response = await port.server.fetch("POST", port.path + "/", b"x" * 3_000_000)
    assert (response.code, response.body) == (413, b"no")
    listener.close()


async def test_others_do_not_reach_it(port: Port) -> None:
    for token, expected in [(None, 401), ("bob-token", 404), ("reader-token", 403)]:
        status, _ = await port.server.refused("GET", port.path + "/", token=token)
        assert status == expected
    assert port.heads == []


async def test_a_backend_reaches_the_ports_of_the_user_that_it_names_and_no_other(port: Port) -> None:
    tokens = TokenFile(port.server.settings.data_path() / "keys")
    token, _ = tokens.create(lambda digest: TokenRecord(name="backend", sha256=digest, scopes=frozenset({"delegate"})))
    for user in ("one", None):
        named = {"X-On-Behalf-Of": user} if user else {}
        made = await port.server.json("POST", "/v1/sessions", {}, 201, token=token, headers=named)
        port.session = made["id"]
        answers = [
            (await port.server.fetch("GET", port.path + "/", token=token, headers=headers)).code
            for headers in (named, {"X-On-Behalf-Of": "two"})
        ]
        assert answers == [200, 404]
    assert "behalf" not in "".join(port.heads).lower()


async def test_a_signed_address_ends_when_its_owner_says_so(port: Port) -> None:
    address = await port.share(seconds=60)
    assert (await port.server.fetch("GET", address["path"], token=None)).code == 200
    other = address["path"].replace(f".{port.number}.", ".1.")
    assert (await port.server.fetch("GET", other, token=None)).code == 401
    await port.server.json("DELETE", port.path, status=204)
    assert (await port.server.fetch("GET", address["path"], token=None)).code == 401
    assert (await port.server.fetch("GET", (await port.share(seconds=60))["path"], token=None)).code == 200
    assert (await port.server.fetch("GET", (await port.share(seconds=0.001))["path"], token=None)).code == 401
    assert [type(e) for e in port.events(ev.PortShared | ev.PortUnshared)] == [
        ev.PortShared, ev.PortUnshared, ev.PortShared, ev.PortShared,
    ]  # fmt: skip


async def test_a_public_port(port: Port) -> None:
    assert (await port.share(public=True))["path"] == port.path + "/"
    assert (await port.server.fetch("GET", port.path + "/", token=None)).code == 200
    for host, status in [(port.host.replace("localhost", "example.org"), 200), ("rebound.example", 403)]:
        response = await port.server.fetch("GET", port.path + "/", token=None, headers={"Host": host})
        assert response.code == status
    assert await port.server.json("GET", f"/v1/sessions/{port.session}/ports") == [
        {"port": port.number, "public": True}
    ]
    await port.server.json("DELETE", port.path, status=204)
    assert (await port.server.fetch("GET", port.path + "/", token=None)).code == 401


async def test_a_host_name_of_its_own(port: Port) -> None:
    ticket = (await port.share(seconds=60))["path"].split("/")[3]
    headers = {"Host": port.host}
    assert (await port.server.fetch("GET", "/healthz", token=None, headers=headers)).code == 401
    first = await port.server.fetch("GET", f"//evil/a?b=1&kernelsvc_ticket={ticket}", token=None, headers=headers)
    assert (first.code, first.headers["Location"]) == (302, "/evil/a?b=1")
    cookie = first.headers["Set-Cookie"].partition(";")[0]
    headers["Cookie"] = f"app=1; {cookie}"
    page = await port.server.fetch("GET", "/healthz", headers={**headers, "Authorization": "Basic YTpi"}, token=None)
    assert (page.code, page.headers["Set-Cookie"]) == (200, "a=b")
    assert b"GET /healthz " in page.body
    assert b"Cookie: app=1\r\n" in page.body
    assert b"Authorization: Basic YTpi" in page.body
    headers["Origin"] = "https://4000-s-0123456789abcdef.localhost"
    assert (await port.server.fetch("POST", "/", b"", token=None, headers=headers)).code == 403


async def test_the_services_own_host_name_may_look_like_one(port: Port) -> None:
    for host in ("8888-name.example.org", "99999999-s-0123456789abcdef.example.org"):
        assert (await port.server.fetch("GET", "/v1/info", headers={"Host": host})).code == 200


GARBAGE = [
    (b"", 502, "port_unreachable"),
    (b"\x00\xff" * 500, 502, "port_unreachable"),
    (b"220 mail ESMTP\r\n\r\n", 502, "port_unreachable"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000, 502, "port_unreachable"),
    (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 50_000, 502, "port_unreachable"),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, 502, "port_unreachable"),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", 502, "port_unreachable"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf", 502, "port_unreachable"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, "port_unreachable"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", 413, "too_large"),
]


async def test_a_server_that_sends_no_http(port: Port) -> None:
    for answer, status, code in GARBAGE:
        async with await port.listen(answering(answer)):
            assert await port.server.refused("GET", port.path + "/") == (status, code)
            assert (await port.server.fetch("GET", "/v1/info")).code == 200


BROKEN = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf",
]


async def test_a_response_that_breaks_off_is_not_taken_for_a_whole_one(port: Port) -> None:
    for answer in BROKEN:
        async with await port.listen(answering(answer)):
            with pytest.raises(HTTPStreamClosedError):
                await port.server.fetch("GET", port.path + "/")


async def test_bytes_after_a_response_reach_no_other_request(port: Port) -> None:
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    async with await port.listen(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + second)):
        reader, writer = await asyncio.open_connection(*port.server.url.removeprefix("http://").split(":"))
        ask = f"GET {port.path}/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n\r\n"
        info = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write((ask + info).encode())
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert data.count(b"HTTP/1.1 200 OK") == 2
    assert b"forged" not in data


SMUGGLED = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Content-Length: +5\r\n",
    "Content_Length: 5\r\nX: a\rb\r\n",
]


async def test_a_request_with_two_readings_arrives_with_one_or_not_at_all(port: Port) -> None:
    for smuggled in SMUGGLED:
        reader, writer = await asyncio.open_connection(*port.server.url.removeprefix("http://").split(":"))
        head = f"POST {port.path}/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n{smuggled}\r\n"
        writer.write(head.encode() + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        writer.close()
        assert not any("smuggled" in head for head in port.heads)
        assert not any("transfer-encoding" in head.lower() and "content-length" in head.lower() for head in port.heads)


async def test_nothing_listens(port: Port) -> None:
    async with await port.listen(echo):
        pass
    body = await port.server.json("GET", port.path + "/", status=502)
    assert body["code"] == "port_unreachable"
    assert "Nothing listens" in body["message"]


async def test_a_server_that_does_not_answer(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HEAD_SECONDS", 0.05)

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await reader.read()

    async with await port.listen(wait):
        assert await port.server.refused("GET", port.path + "/") == (504, "timeout")


async def test_a_slow_reader_slows_the_server_and_costs_no_memory(port: Port) -> None:
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    async with await port.listen(flood):
        _, writer = await asyncio.open_connection(*port.server.url.removeprefix("http://").split(":"), limit=1)
        ask = f"GET {port.path}/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n\r\n"
        writer.write(ask.encode())
        seen: list[int] = []

        def stands_still() -> bool:
            seen.append(written)
            return written > 0 and len(seen) > 20 and seen[-20] == written

        await wait_until(stands_still)
        assert written < 64 * 1024 * 1024
        writer.close()
        await wait_until(lambda: port.ended == 1)


async def test_connections_are_limited_and_the_owner_keeps_some(open_http_server: Any) -> None:
    server = await open_http_server(port_connections=4)
    port = Port(server, (await server.json("POST", "/v1/sessions", {}))["id"])
    released = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await released.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with await port.listen(wait):
        await port.share(public=True)
        held = [asyncio.ensure_future(server.fetch("GET", port.path + "/", token=None)) for _ in range(3)]
        await wait_until(lambda: len(port.heads) == 3)
        assert await server.refused("GET", port.path + "/", token=None) == (429, "quota_exceeded")
        held.append(asyncio.ensure_future(server.fetch("GET", port.path + "/")))
        await wait_until(lambda: len(port.heads) == 4)
        assert await server.refused("GET", port.path + "/") == (429, "quota_exceeded")
        released.set()
        assert {response.code for response in await asyncio.gather(*held)} == {204}


async def test_a_websocket_and_its_end_by_the_owner(port: Port) -> None:
    async def serve(socket: Any) -> None:
        async for message in socket:
            await socket.send(message[::-1])

    async with websockets.serve(serve, "127.0.0.1", 0, origins=None) as listener:
        port.number = listener.sockets[0].getsockname()[1]
        address = await port.share(seconds=60)
        url = port.server.url.replace("http", "ws") + address["path"]
        async with websockets.connect(url, compression=None) as socket:
            await socket.send("abc")
            assert await socket.recv() == "cba"
            await port.server.json("DELETE", port.path, status=204)
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(url)


async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
    await reader.read()


@pytest.mark.parametrize(("form", "end"), [("path", "token"), ("host", "time")])
async def test_an_exchange_ends_with_its_address(port: Port, form: str, end: str) -> None:
    tokens = TokenFile(port.server.settings.data_path() / "keys")
    token, kept = tokens.create(lambda digest: TokenRecord(name="alice", sha256=digest))
    async with await port.listen(forever):
        # An address ends at a whole second, so that one of less than two could be over before the request.
        path = (await port.share(token, seconds=2 if end == "time" else 60))["path"]
        ticket = f"Host: {port.host}\r\nCookie: kernelsvc-port={path.split('/')[3]}\r\n"
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\n" if form == "path" else f"GET / HTTP/1.1\r\n{ticket}"
        reader, writer = await asyncio.open_connection(*port.server.url.removeprefix("http://").split(":"))
        writer.write(f"{head}\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"first"), 20)
        if end == "token":
            tokens.revoke(kept.id)
        await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await wait_until(lambda: port.ended == 1)


@pytest.mark.parametrize("public", [False, True])
async def test_a_connection_that_is_being_made_ends_with_its_address(
    port: Port, public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (await port.share(**({"public": True} if public else {"seconds": 60})))["path"]
    service = port.server.service
    entered, released = asyncio.Event(), asyncio.Event()

    async def resume(session: Any) -> None:
        entered.set()
        await released.wait()

    monkeypatch.setattr(service.environment, "resume", resume)
    asked = asyncio.ensure_future(port.server.fetch("GET", path, token=None))
    await asyncio.wait_for(entered.wait(), 20)
    await port.server.json("DELETE", port.path, status=204)
    released.set()
    assert ((await asked).code, port.heads) == (401, [])


async def test_a_websocket_that_a_server_refuses_is_a_response(port: Port) -> None:
    async with await port.listen(answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")):
        url = port.server.url.replace("http", "ws") + port.path
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url + "/", additional_headers={"Authorization": "Bearer alice-token"})
        assert refused.value.response.status_code == 403


async def test_the_log_has_the_requests(port: Port) -> None:
    await port.server.fetch("POST", port.path + "/", b"12345")
    await port.server.json("DELETE", f"/v1/sessions/{port.session}")
    port.server.service.ports.end_all()
    session = (await port.server.json("POST", "/v1/sessions", {}))["id"]
    other = Port(port.server, session)
    async with await other.listen(echo):
        await other.server.fetch("POST", other.path + "/", b"12345")
        other.server.service.ports.end_all()
    (used,) = other.events(ev.PortUsed)
    assert (used.port, used.access, used.requests, used.received, used.failed) == (other.number, "token", 1, 5, 0)
    assert used.sent > 5


@pytest.mark.parametrize(("ports", "public", "signed"), [("off", 403, 403), ("private", 403, 201), ("on", 201, 201)])
async def test_the_setting(open_http_server: Any, ports: str, public: int, signed: int) -> None:
    server = await open_http_server(ports=ports)
    session = (await server.json("POST", "/v1/sessions", {}))["id"]
    path = f"/v1/sessions/{session}/ports"
    assert (await server.fetch("POST", path, {"port": 3000})).code == signed
    assert (await server.fetch("POST", path, {"port": 3000, "public": True})).code == public
    response = await server.fetch("GET", path + "/1/")
    assert response.code == (403 if ports == "off" else 502)
    assert "port" in json.loads(response.body)["message"]


async def test_a_closed_session_has_no_ports(port: Port) -> None:
    address = await port.share(seconds=60)
    await port.server.json("DELETE", f"/v1/sessions/{port.session}")
    assert (await port.server.fetch("GET", port.path + "/")).code == 409
    assert (await port.server.fetch("GET", address["path"], token=None)).code == 401
