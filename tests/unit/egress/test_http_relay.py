"""Plain HTTP through the proxy: whose requests pass, and how they are written."""

import asyncio
import contextlib
import itertools
import socket

import h11
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.egress import http_relay
from kernelsvc.egress.byte_channels import PlainChannel
from kernelsvc.egress.http_relay import BadHttp, HttpRelay, check_request, forwarded
from kernelsvc.egress.relay import give_way
from kernelsvc.egress.secret_values import Secret
from kernelsvc.model.network.policy import Refused
from kernelsvc.model.network.rules import NetworkRules

NAME = "ok.test"
RULES = NetworkRules(allow=(NAME,)).parsed()
READ_ONLY = {"host": NAME, "methods": ["GET"], "paths": ["/public/*"]}


def request(target=b"/", method=b"GET", headers=((b"Host", b"ok.test"),)):
    return h11.Request(method=method, target=target, headers=list(headers))


@pytest.mark.parametrize("host", [b"ok.test", b"OK.test", b"ok.test:80", b"ok.test.", b"ok.test.:80"])
def test_the_host_is_the_name(host):
    check_request(request(headers=[(b"Host", host)]), NAME, 80)


@pytest.mark.parametrize(
    ("given_request", "refused"),
    [
        (request(headers=[(b"Host", b"evil.test")]), Refused),
        (request(headers=[(b"Host", b"ok.test..")]), Refused),
        (request(headers=[(b"Host", b"ok.test:80.")]), Refused),
        (request(headers=[(b"Host", b"a@ok.test")]), Refused),
        (request(headers=[(b"Host", b"ok.test:81")]), Refused),
        (request(headers=[(b"Host", b"ok.test@evil.test")]), Refused),
        (request(target=b"http://evil.test/"), Refused),
        (request(target=b"http://ok.test/"), Refused),
        (request(method=b"CONNECT", target=b"ok.test:22"), Refused),
    ],
)
def test_a_request_for_another_server_is_refused(given_request, refused):
    with pytest.raises(refused):
        check_request(given_request, NAME, 80)


def test_two_framings_are_refused():
    both = [(b"Host", b"ok.test"), (b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")]
    with pytest.raises(BadHttp):
        check_request(h11.Request(method="POST", target="/", headers=both), NAME, 80)


def test_fields_for_one_connection_are_not_passed_on():
    headers = request(
        headers=[
            (b"Host", b"ok.test"),
            (b"Connection", b"close, X-Mine, host"),
            (b"X-Mine", b"1"),
            (b"Upgrade", b"h2c"),
            (b"Expect", b"100-continue"),
            (b"X-HTTP-Method-Override", b"DELETE"),
            (b"X_Original_URL", b"/admin"),
            (b"Proxy_Authorization", b"1"),
            (b"X_Mine", b"1"),
            (b"Transfer_Encoding", b"chunked"),
            (b"Content_Length", b"3"),
            (b"X-Other", b"2"),
        ]
    ).headers
    assert [name for name, _ in forwarded(headers, request=True)] == [b"host", b"x-other"]


def test_a_connection_field_takes_no_framing_away():
    headers = [(b"connection", b"host, content_length, content-length"), (b"content-length", b"3"), (b"host", b"a")]
    for asked in (True, False):
        assert forwarded(headers, request=asked) == headers[1:]


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def exchange(raw: bytes, answer: bytes = ANSWER, rules=RULES) -> tuple[bytes, bytes]:
    """Send bytes as a session and return what the session and the server got."""
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    seen = bytearray()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    loop = asyncio.get_running_loop()

    async def connect() -> PlainChannel:
        return PlainChannel(theirs)

    async def serve() -> None:
        parser = h11.Connection(h11.SERVER)
        while data := await loop.sock_recv(server, 65536):
            seen.extend(data)
            parser.receive_data(data)
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.EndOfMessage):
                    await loop.sock_sendall(server, answer)
                if isinstance(event, h11.ConnectionClosed):
                    return
            if parser.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.SEND_RESPONSE}:
                parser.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
                parser.send(h11.Data(data=b"hi"))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()

    async def relay() -> None:
        client = PlainChannel(ours)
        with contextlib.suppress(Refused, BadHttp, OSError):
            await HttpRelay(client, NAME, 80, lambda: rules, connect, lambda *_: None, lambda _: None).run()
        client.close()
        theirs.close()

    async with asyncio.timeout(10):
        tasks = [asyncio.ensure_future(one()) for one in (serve, relay)]
        await loop.sock_sendall(client, raw)
        client.shutdown(socket.SHUT_WR)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := await loop.sock_recv(client, 65536):
                got += data
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for one in (client, server):
        one.close()
    return got, bytes(seen)


async def test_requests_of_one_connection_are_checked_each():
    good = b"POST /a HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 3\r\n\r\nabc"
    got, seen = await exchange(good + b"GET /b HTTP/1.1\r\nHost: ok.test\r\n\r\n")
    assert got.count(b"200 OK") == 2
    assert seen.count(b"HTTP/1.1") == 2
    got, seen = await exchange(good + b"GET /secret HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    assert (got.count(b"200 OK"), got.count(b"403 Forbidden")) == (1, 1)
    assert b"/secret" not in seen


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        (b"GET /public/a?x=../..", True),
        (b"POST /public/a", False),
        (b"HEAD /public/a", False),
        (b"TRACE /public/a", False),
        (b"get /public/a", False),
        (b"GET /private", False),
        (b"GET /public", False),
        (b"GET /public/../private", False),
        (b"GET /public/%2e%2E/private", False),
        (b"GET /public/%252e%252e/private", False),
        (b"GET /public/%c0%ae%c0%ae/private", False),
        (b"GET /public//private", False),
        (b"GET /public/..;/private", False),
        (b"GET /public/..\\private", False),
        (b"GET *", False),
        (b"GET http://ok.test/public/a", False),
    ],
)
async def test_each_request_needs_a_rule_with_its_method_and_path(line, passes):
    rules = msgspec.convert({"allow": [READ_ONLY]}, NetworkRules).parsed()
    got, seen = await exchange(line + b" HTTP/1.1\r\nHost: ok.test\r\n\r\n", rules=rules)
    assert got.startswith(b"HTTP/1.1 200" if passes else b"HTTP/1.1 403")
    assert bool(seen) is passes


async def test_trace_is_never_passed_on():
    got, seen = await exchange(b"TRACE / HTTP/1.1\r\nHost: ok.test\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 403")
    assert not seen


async def test_an_answer_that_is_there_already_does_not_end_the_connection():
    """sock_recv returns without a turn of the loop if there is data."""
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    server.sendall(ANSWER)

    async def connect() -> PlainChannel:
        return PlainChannel(theirs)

    client.sendall(b"GET /a HTTP/1.1\r\nHost: ok.test\r\n\r\n")
    relay = HttpRelay(PlainChannel(ours), NAME, 80, lambda: RULES, connect, lambda *_: None, lambda _: None)
    assert await relay._exchange()
    for one in (ours, client, theirs, server):
        one.close()


async def test_a_connection_that_sends_single_bytes_gives_way_within_one_read(monkeypatch):
    """A read of 64 KiB has 11,000 such chunks. They were parsed without a turn for other sessions."""
    monkeypatch.setattr(http_relay, "TURN_SECONDS", 0.0)
    upload = b"POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000
    (ours, client), (theirs, server) = socket.socketpair(), socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    pauses, enough = itertools.count(1), asyncio.Event()

    async def pause() -> None:
        if next(pauses) == 100:
            enough.set()
        await give_way()

    async def connect() -> PlainChannel:
        return PlainChannel(theirs)

    report = [lambda *_: None, lambda _: None]
    relay = HttpRelay(PlainChannel(ours), NAME, 80, lambda: RULES, connect, *report, pause=pause)
    client.sendall(upload)
    running = asyncio.ensure_future(relay.run())
    async with asyncio.timeout(20):
        await enough.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for one in (ours, client, theirs, server):
        one.close()


class Cut(PlainChannel):
    """A channel whose end is that of an attacker in the network."""

    def is_cut(self) -> bool:
        return True


@pytest.mark.parametrize("channel", [PlainChannel, Cut])
async def test_an_answer_that_a_cut_connection_ends_is_not_complete(channel):
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    server.shutdown(socket.SHUT_WR)

    async def connect() -> PlainChannel:
        return channel(theirs)

    client.sendall(b"GET /a HTTP/1.1\r\nHost: ok.test\r\nConnection: close\r\n\r\n")
    relay = HttpRelay(PlainChannel(ours), NAME, 80, lambda: RULES, connect, lambda *_: None, lambda _: None)
    with pytest.raises(OSError, match="close_notify") if channel is Cut else contextlib.nullcontext():
        await relay.run()
    ours.close()
    assert client.recv(4096).endswith(b"half\r\n0\r\n\r\n") is (channel is PlainChannel)
    for one in (client, server):
        one.close()


class Sends(PlainChannel):
    """A channel that counts its writes."""

    count = 0

    async def send(self, data: bytes) -> None:
        self.count += 1
        await super().send(data)


async def test_a_head_and_its_body_are_written_together():
    """Each write is a packet, which wakes the receiver."""
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    server.sendall(ANSWER)
    to_client, to_server = Sends(ours), Sends(theirs)

    async def connect() -> Sends:
        return to_server

    client.sendall(b"POST /a HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 3\r\n\r\nabc")
    assert await HttpRelay(to_client, NAME, 80, lambda: RULES, connect, lambda *_: None, lambda _: None)._exchange()
    assert (to_client.count, to_server.count) == (1, 1)
    assert server.recv(4096).endswith(b"\r\n\r\nabc")
    assert client.recv(4096).endswith(b"\r\n\r\nhi")
    for one in (ours, client, theirs, server):
        one.close()


class Used(Exception):
    """A quota."""


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_quota_ends_both_connections_while_a_body_is_sent(framing, direction):
    """The server answers nothing, or a part, so its end does not come by itself."""
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    loop = asyncio.get_running_loop()

    async def connect() -> PlainChannel:
        return PlainChannel(theirs)

    def count(sent: int, received: int) -> None:
        if limited and (sent if direction == "sent" else received):
            raise Used

    limited = False
    client.sendall(b"POST /a HTTP/1.1\r\nHost: ok.test\r\n" + framing + b"\r\n\r\n")
    relay = HttpRelay(PlainChannel(ours), NAME, 80, lambda: RULES, connect, count, lambda _: None)
    running = asyncio.create_task(relay.run())
    async with asyncio.timeout(10):
        assert (await loop.sock_recv(server, 4096)).endswith(b"\r\n\r\n")
        limited = True
        if direction == "sent":
            client.sendall(b"x")
        else:
            server.sendall(b"HTTP/1.1 200 OK\r\n")
        with pytest.raises(Used):
            await running
        assert not await loop.sock_recv(server, 4096), "the connection to the server is still open"
    for one in (ours, client, theirs, server):
        one.close()


SMUGGLING = [
    b"POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ok.test\r\nHost: evil.test\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ok.test\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ok.test\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
]


@pytest.mark.parametrize("raw", SMUGGLING)
async def test_a_request_that_can_be_read_in_two_ways_reaches_no_server(raw):
    got, seen = await exchange(raw)
    assert not seen
    assert got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 431", b"HTTP/1.1 501"))


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    ],
)
async def test_answers_of_each_framing_are_passed_on(answer, body):
    got, _ = await exchange(b"GET / HTTP/1.1\r\nHost: ok.test\r\nConnection: close\r\n\r\n", answer)
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "ok.test")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(got)
    read = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        read += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert read == body


WORDS = [b"GET ", b"POST ", b"/", b" HTTP/1.1\r\n", b"Host: ok.test\r\n", b"Host: evil.test\r\n", b"\r\n", b"\0"]
WORDS += [
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"abc",
    b" ",
    b":",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_any_bytes_end_and_no_request_for_another_passes(words):
    _, seen = asyncio.run(exchange(b"".join(words)))
    assert b"evil.test" not in seen


KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
).encode()
FIELDS = ["Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Accept: {ACCEPT}", ""]
SWITCHED = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *FIELDS])
INJECT = {"host": NAME, "inject": {"Authorization": "Bearer ${api}"}}


@contextlib.asynccontextmanager
async def handshake(answer: str, rule=NAME, count=lambda *_: None):
    """Send a handshake and an early frame, answer it, and yield the session's end, the server's, and the relay."""
    ours, client = socket.socketpair()
    theirs, server = socket.socketpair()
    for one in (ours, client, theirs, server):
        one.setblocking(False)
    loop = asyncio.get_running_loop()

    async def connect() -> PlainChannel:
        return PlainChannel(theirs)

    rules = msgspec.convert({"allow": [rule]}, NetworkRules).parsed()
    exchanges = []
    secrets = {"api": Secret(b"sk-0123456789", (NAME,))}
    relay = HttpRelay(PlainChannel(ours), NAME, 443, lambda: rules, connect, count, exchanges.append, secrets)
    running = asyncio.create_task(relay.run())
    async with asyncio.timeout(10):
        await loop.sock_sendall(client, HANDSHAKE + b"early")
        seen = await loop.sock_recv(server, 4096)
        await loop.sock_sendall(server, answer.encode("latin-1"))
        try:
            yield client, server, running, seen, exchanges
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for one in (ours, client, theirs, server):
                one.close()


async def read(sock, size):
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (more := await loop.sock_recv(sock, size - len(data))):
        data += more
    return data


async def read_head(sock):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await read(sock, 1)
    return data


async def test_a_websocket_is_relayed_in_both_directions_until_its_end():
    async with handshake(SWITCHED + "\r\n\x01\x02hi") as (client, server, running, seen, exchanges):
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in seen.lower()
        assert b"permessage-deflate" in seen
        head = await read_head(client)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert ACCEPT.encode() in head
        # Bytes that came with a head are passed on, too, and bytes that are no request or answer.
        assert await read(client, 4) == b"\x01\x02hi"
        assert await read(server, 5) == b"early"
        loop = asyncio.get_running_loop()
        for source, target in ((client, server), (server, client)):
            await loop.sock_sendall(source, b"\x81\x03abc" * 10_000)
            assert await read(target, 50_000) == b"\x81\x03abc" * 10_000
        assert not exchanges
        server.shutdown(socket.SHUT_WR)
        assert await read(client, 1) == b""
        client.shutdown(socket.SHUT_WR)
        await running
        assert [(one.method, one.path, one.status) for one in exchanges] == [("GET", "/ws", 101)]


async def test_secrets_are_sent_in_a_handshake_and_are_stars_in_frames():
    answer = SWITCHED + "X-Echo: sk-0123456789\r\n\r\n\x81\x0fa sk-0123456789\x81\x03a s"
    async with handshake(answer, INJECT) as (client, _, _, seen, _):
        assert b"authorization: Bearer sk-0123456789\r\n" in seen
        assert b"permessage-deflate" not in seen
        got = await read_head(client) + await read(client, 22)
        assert b"sk-0123456789" not in got
        assert got.endswith(b"\x81\x0fa " + b"*" * 13 + b"\x81\x03a s")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (SWITCHED.replace(ACCEPT, "x") + "\r\n", b"not the one that was asked for"),
        (SWITCHED.replace("websocket", "h2c") + "\r\n", b"not the one that was asked for"),
        (SWITCHED + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", b"is compressed"),
    ],
)
async def test_an_answer_that_does_not_accept_the_websocket_ends_the_connection(answer, why):
    async with handshake(answer, INJECT) as (client, server, running, _, _):
        got = await asyncio.get_running_loop().sock_recv(client, 4096)
        assert got.startswith(b"HTTP/1.1 502 ")
        assert why in got
        with pytest.raises(OSError, match=why.decode()):
            await running
        assert await read(server, 5) == b""


async def test_requests_are_read_after_a_server_has_refused_a_websocket():
    """Otherwise a client could pass further requests unread, after a handshake that no server accepts."""
    raw = HANDSHAKE + b"GET /secret HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    got, seen = await exchange(raw, b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
    assert (got.count(b"426 Upgrade"), got.count(b"403 Forbidden")) == (1, 1)
    assert b"/secret" not in seen


async def test_a_switch_that_was_not_asked_for_is_refused():
    got, _ = await exchange(b"GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n", (SWITCHED + "\r\n").encode())
    assert b"101" not in got


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_quota_ends_a_websocket(direction):
    limited = False

    def count(sent: int, received: int) -> None:
        if limited and (sent if direction == "sent" else received):
            raise Used

    async with handshake(SWITCHED + "\r\n", count=count) as (client, server, running, _, _):
        await read_head(client)
        limited = True
        (client if direction == "sent" else server).sendall(b"x")
        with pytest.raises(Used):
            await running
        assert await read(server, 6) in (b"early", b"")


async def test_http_2_is_refused_in_words():
    got, seen = await exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 403 ")
    assert b"the client must use HTTP/1.1 (gRPC" in got
    assert not seen
