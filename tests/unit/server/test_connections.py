"""The memory of incomplete requests, over real connections."""

from __future__ import annotations

import asyncio
import gc
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_server import HttpServer, Rpc
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
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nUpgrade: websocket\r\n"
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
    async def send(cls, server: InProcessServer, form: str, size: int, token: str) -> HalfRequest:
        place = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        if form == "body":
            writer.write(POST % (token.encode(), 32 * MIB))
        else:
            writer.write(UPGRADE % token.encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\x81\xff" + struct.pack("!Q", 32 * MIB) + bytes(4))
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


def resident() -> int:
    """The bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


LARGE = "x" * (16 * MIB)
UNKNOWN = "/v1/sessions/s_0000000000000000/cells"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (UNKNOWN, {"code": "1", "metadata": {"x": LARGE}}),
        ("/run_code", {"language": "no", "code": LARGE}),
        ("/run_code", {"language": "python", "code": "1", "run_timeout": 0, "stdin": LARGE}),
        ("/v1/ws", {"session": "s_0000000000000000", "cells": [{"code": "1", "metadata": {"x": LARGE}}]}),
        ("/process.Process/Start", {"process": {"cmd": "true"}, "tag": LARGE[: 7 * MIB]}),
    ],
    ids=["cell", "no language", "no time", "websocket", "program"],
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
        assert b"There is no session" in answer or b"SandboxError" in answer or b"tag of a program" in answer
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
