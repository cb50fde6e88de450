"""The memory of incomplete requests, over real connections."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_server import SLEEP, HttpServer, Rpc
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.model.tokens import record_for
from kernelsvc.protocol import connect
from kernelsvc.server import connections
from kernelsvc.settings import Settings
from kernelsvc.testing import InProcessServer

MIB = 1 << 20
POST = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@asynccontextmanager
async def serving() -> AsyncIterator[InProcessServer]:
    tokens = [record_for("a-token-of-the-hostile", name="hostile"), record_for("a-token-of-another", name="other")]
    async with InProcessServer(Settings(tokens=tokens)) as server:
        yield server


class HalfRequest:
    """A connection that sends the beginning of a request, or of a WebSocket message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.ended = asyncio.create_task(reader.read())

    @classmethod
    async def send(
        cls,
        server: InProcessServer,
        form: str,
        size: int,
        token: str,
        path: bytes = b"/v1/ws",
        head: bytes = b"\x81\xff" + struct.pack("!Q", 32 * MIB) + bytes(4),
    ) -> HalfRequest:
        place = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        if form == "body":
            writer.write(POST % (token.encode(), 32 * MIB))
        else:
            writer.write(UPGRADE % (path, token.encode()))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
        writer.write(bytes(size))
        await writer.drain()
        return cls(reader, writer)


@pytest.mark.parametrize("form", ["body", "message"])
async def test_the_memory_of_half_requests_is_bounded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HELD", 3 * MIB)
    async with serving() as server:
        honest = await HalfRequest.send(server, form, MIB // 2, "a-token-of-another")
        sent = [await HalfRequest.send(server, form, MIB, "a-token-of-the-hostile") for _ in range(6)]
        await wait_until(lambda: sum(each.ended.done() for each in sent) >= 3, what="the largest are closed")
        assert not honest.ended.done()
        async with AsyncClient(server.url, "a-token-of-another") as client:
            assert (await (await client.create_session()).run("print(6 * 7)")).text == "42\n"
        assert not honest.ended.done()
        for each in (honest, *sent):
            each.writer.close()
        await asyncio.gather(honest.ended, *(each.ended for each in sent), return_exceptions=True)


async def test_the_memory_of_half_messages_of_jupyters_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HELD", 3 * MIB)
    async with serving() as server, AsyncClient(server.url, "a-token-of-the-hostile") as client:
        session = await client.create_session()
        path = f"/api/kernels/{session.id}/channels".encode()
        sent = [await HalfRequest.send(server, "message", MIB, "a-token-of-the-hostile", path) for _ in range(6)]
        await wait_until(lambda: sum(each.ended.done() for each in sent) >= 3, what="the largest are closed")
        for each in sent:
            each.writer.close()
        await asyncio.gather(*(each.ended for each in sent), return_exceptions=True)


def message(**fields: Any) -> bytes:
    """A text frame of a client with a request. The mask is zero."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, **fields}).encode()
    return b"\x81\xff" + struct.pack("!Q", len(text)) + bytes(4) + text


async def test_messages_that_are_being_served_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HELD", 3 * MIB)
    async with serving() as server, AsyncClient(server.url, "a-token-of-the-hostile") as client:
        session = (await client.create_session()).id
        asleep = message(method="session.execute", params={"session": session, "code": SLEEP, "wait": "queued"})
        cells = [{"code": "#" + "x" * MIB}]
        sent = []
        for _ in range(6):
            half = await HalfRequest.send(server, "message", 0, "a-token-of-the-hostile", b"/v1/ws", head=asleep)
            half.writer.write(message(method="session.batch", params={"session": session, "cells": cells}))
            await half.writer.drain()
            sent.append(half)
        await wait_until(lambda: sum(each.ended.done() for each in sent) >= 3, what="the largest are closed")
        for each in sent:
            each.writer.close()
        await asyncio.gather(*(each.ended for each in sent), return_exceptions=True)


@pytest.mark.parametrize("form", ["page", "replies"])
async def test_the_memory_of_answers_that_are_not_read_is_bounded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of events, and replies on a WebSocket. The slow answer of another principal stays."""
    monkeypatch.setattr(connections, "MAX_UNSENT", 16 * MIB)
    closed, close = [], connections.LimitedConnection.close

    def noted(connection: connections.LimitedConnection, reason: str) -> None:
        closed.append(reason)
        close(connection, reason)

    monkeypatch.setattr(connections.LimitedConnection, "close", noted)
    async with serving() as server:
        limiter = server.server._http.connections
        assert limiter is not None
        honest = await slow_reader(server, form, "a-token-of-another", 6_000_000)
        await wait_until(
            lambda: any(each.unsent for each in limiter._owned.get("other", ())), what="an answer that waits"
        )
        hostile = [await slow_reader(server, form, "a-token-of-the-hostile") for _ in range(6)]
        await wait_until(lambda: len(closed) >= 3, what="most slow connections are closed")
        assert limiter._unsent <= 16 * MIB
        assert len(limiter._owned["other"]) == 1
        for each in (honest, *hostile):
            each.close()
        await wait_until(lambda: len(limiter) == 0, what="the end of all connections")
        assert limiter._unsent == 0


async def slow_reader(server: InProcessServer, form: str, token: str, size: int = 10_000_000) -> socket.socket:
    """A connection that asks for several MiB and reads nothing."""
    place, loop = urlsplit(server.url), asyncio.get_running_loop()
    async with AsyncClient(server.url, token) as client:
        session = await client.create_session()
        cell = await session.run(f"print('x' * {size})")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await loop.sock_connect(made, (place.hostname, place.port))
    if form == "page":
        head = f"GET /v1/sessions/{session.id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}"
        await loop.sock_sendall(made, head.encode() + b"\r\n\r\n")
        return made
    params = {"session": session.id, "cell": cell.id, "limit": 4 * MIB}
    asked = message(method="session.output", params=params)
    await loop.sock_sendall(made, UPGRADE % (b"/v1/ws", token.encode()) + asked * (size // (3 * MIB)))
    return made


@pytest.mark.parametrize("form", ["jupyter", "stream"])
async def test_large_entries_reach_the_clients_of_a_principal_one_by_one(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 clients that follow a log and read nothing. Each had several forms of an entry in memory at the same time."""
    monkeypatch.setattr(connections, "MAX_UNSENT", 16 * MIB)
    async with serving() as server, AsyncClient(server.url, "a-token-of-the-hostile") as client:
        place, loop, token = urlsplit(server.url), asyncio.get_running_loop(), b"a-token-of-the-hostile"
        session = await client.create_session()
        path = f"/v1/sessions/{session.id}/events?follow=true".encode()
        head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % (path, token)
        if form == "jupyter":
            head = UPGRADE % (f"/api/kernels/{session.id}/channels".encode(), token)
        limiter, readers = server.server._http.connections, []
        assert limiter is not None
        for _ in range(32):
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.setblocking(False)
            await loop.sock_connect(made, (place.hostname, place.port))
            await loop.sock_sendall(made, head)
            assert (await loop.sock_recv(made, 1000)).startswith((b"HTTP/1.1 200", b"HTTP/1.1 101"))
            readers.append(made)
        assert len(limiter) >= 32
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        before = resident()
        await session.run(f"print('x' * 8_000_000)  # {'x' * 4_000_000}")
        await wait_until(lambda: len(limiter) <= 20, deadline=30, what="the end of many connections")
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        assert peak - before < 200 * MIB
        for each in readers:
            each.close()


async def test_a_client_that_does_not_wait_for_its_answer_is_not_counted_afterwards() -> None:
    """The server reads its request and the end of the connection together. After four such clients it took no more."""
    async with InProcessServer(Settings(max_connections=8)) as server:
        limiter, place = server.server._http.connections, urlsplit(server.url)
        assert limiter is not None
        head = f"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        for _ in range(5):
            with socket.create_connection((place.hostname or "", place.port or 0)) as hasty:
                await wait_until(lambda: len(limiter) == 1, what="the connection")
                hasty.sendall(head.encode())
            await wait_until(lambda: len(limiter) == 0, what="its end")


def resident() -> int:
    """The bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


LARGE = "x" * (16 * MIB)
UNKNOWN = "/v1/sessions/s_0000000000000000/cells"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (UNKNOWN, {"code": LARGE[: 3 * MIB], "user_expressions": dict.fromkeys(map(str, range(64)), LARGE[:65536])}),
        ("/v1/sessions", {"env": {"A": LARGE}}),
        ("/run_code", {"language": "no", "code": LARGE}),
        ("/run_code", {"language": "python", "code": "1", "run_timeout": 0, "stdin": LARGE}),
        ("/v1/ws", {"session": "s_0000000000000000", "cells": [{"code": LARGE[: 3 * MIB]}] * 3}),
        ("/process.Process/Start", {"process": {"cmd": "true"}, "tag": LARGE[: 7 * MIB]}),
    ],
    ids=["cell", "environment", "no language", "no time", "websocket", "program"],
)
async def test_a_refused_request_leaves_no_memory(http_server: HttpServer, rpc: Rpc, path: str, body: Any) -> None:
    """Its error made garbage of cycles that held the body, until a collection thousands of requests later."""
    data = json.dumps(body).encode()
    place = urlsplit(http_server.url)
    headers = "Content-Type: application/json\r\n"
    if path.startswith("/process"):
        made = await http_server.json(
            "POST", "/sandboxes", {"templateID": "base"}, headers={"X-API-Key": "alice-token"}
        )
        data = connect.envelope(body)
        headers = (
            f"Content-Type: {connect.STREAM}\r\nE2b-Sandbox-Id: {made['sandboxID']}\r\nE2b-Sandbox-Port: 49983\r\n"
            f"X-Access-Token: {made['envdAccessToken']}\r\n"
        )
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\nConnection: close\r\n"

    async def refuse() -> None:
        if path == "/v1/ws":
            assert (await rpc.refused("session.batch", **body))["code"] == "not_found"
            return
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(f"{head}{headers}Content-Length: {len(data)}\r\n\r\n".encode())
        writer.write(data)
        answer = await reader.read()
        assert any(
            each in answer for each in (b"There is no session", b"SandboxError", b"tag of", b"environment takes")
        )
        writer.close()

    gc.collect()
    gc.disable()
    try:
        await refuse()
        before = resident()
        for _ in range(20):
            await refuse()
        assert resident() - before < 64 * MIB
    finally:
        gc.enable()
