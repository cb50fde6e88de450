"""The memory of incomplete requests, over real connections."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.model.tokens import record_for
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
