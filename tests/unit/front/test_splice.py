"""WebSockets of one session through a front."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import websockets
from fleet import Fleet

from kernelsvc.model.cluster import ids


def channels(fleet: Fleet, session: str, token: str = "alice-token") -> Any:
    url = fleet.url.replace("http", "ws") + f"/t/{token}/api/kernels/{ids.kernel_id(session)}/channels"
    return websockets.connect(url, max_size=None)


def execute(code: str) -> str:
    header = {"msg_id": "m", "msg_type": "execute_request", "session": "c", "username": "u", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return json.dumps(
        {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
    )


async def test_jupyters_channels_run_cells_on_each_node(fleet: Fleet) -> None:
    for session in await fleet.on_each():
        async with channels(fleet, session["id"]) as socket:
            await socket.send(execute("print('y' * 300_000)"))
            seen = []
            while "execute_reply" not in seen or "stream" not in seen:
                seen.append(json.loads(await socket.recv())["msg_type"])


async def test_the_client_notices_that_the_node_ends_and_the_node_that_the_client_ends(fleet: Fleet) -> None:
    _, session = await fleet.on_each()
    async with channels(fleet, session["id"]) as socket:
        await fleet.nodes[1].leave()
        await socket.wait_closed()


@pytest.mark.parametrize("token", ["wrong", "bob-token"])
async def test_channels_need_the_owners_token(fleet: Fleet, token: str) -> None:
    _, session = await fleet.on_each()
    with pytest.raises(websockets.InvalidStatus):
        await channels(fleet, session["id"], token).__aenter__()


async def raw(fleet: Fleet, data: bytes, until: bytes = b"") -> bytes:
    """Send bytes to the front. Return the answer, up to these bytes or the end."""
    host, _, port = fleet.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            writer.write(data)
            found = b""
            while (not until or until not in found) and (piece := await reader.read(65536)):
                found += piece
            return found
    finally:
        writer.close()


UPGRADE = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"


@pytest.mark.parametrize(
    "first",
    ["GET /health HTTP/1.1\r\n{}\r\n", "POST /execute HTTP/1.1\r\n{}Content-Length: 2\r\n\r\n{{}}"],
    ids=["refused", "with a body"],
)
async def test_a_stranger_gets_no_connection_to_a_node(fleet: Fleet, first: str) -> None:
    """The front reads each request itself, unless a node has agreed to a WebSocket."""
    second = "GET /v1/info HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice-token\r\n\r\n"
    answers = await raw(fleet, (first.format(UPGRADE) + second).encode(), until=b'"public_keys"')
    assert answers.startswith(b"HTTP/1.1 401 ")
    assert b'"front":' in answers.partition(b"\r\n\r\n")[2]


async def test_a_client_that_sends_before_the_agreement_is_disconnected(fleet: Fleet) -> None:
    _, session = await fleet.on_each()
    path = f"/t/alice-token/api/kernels/{ids.kernel_id(session['id'])}/channels"
    head = f"GET {path} HTTP/1.1\r\n{UPGRADE}\r\n".encode()
    assert (await raw(fleet, head, until=b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert await raw(fleet, head + b"GET /v1/info HTTP/1.1\r\n\r\n") == b""
