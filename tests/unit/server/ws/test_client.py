"""The client's end of a WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve, unix_serve

from kernelsvc.errors import BadRequest
from kernelsvc.server.ws import client


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("http://h:1", ("h", 1)),
        ("http://h", ("h", 80)),
        ("http://[::1]:5/", ("::1", 5)),
        ("unix:/run/x", "/run/x"),
    ],
)
def test_addresses(url: str, where: object) -> None:
    assert client.endpoint(url) == where


@pytest.mark.parametrize(
    "url", ["", "h:1", "https://h", "http://", "http://h:x", "http://h/path", "unix:x", "http://h?q"]
)
def test_other_texts_are_no_address(url: str) -> None:
    with pytest.raises(BadRequest):
        client.endpoint(url)


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.ping()
        await socket.send(message)


@pytest.mark.parametrize("size", [0, 5, 125, 126, 65_535, 65_536, 1_000_000])
async def test_messages_of_all_sizes_come_back(tmp_path: Path, size: int) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()
    closed = asyncio.Event()
    path = str(tmp_path / "s")
    async with unix_serve(echo, path, max_size=None):
        opened = await client.connect(f"unix:{path}", "/x", [], got.put_nowait, closed.set, 10_000_000)
        opened.send(b"a" * size)
        async with asyncio.timeout(10):
            assert await got.get() == b"a" * size
        opened.close()
        await closed.wait()


async def test_a_refusal_has_its_status() -> None:
    def refuse(connection: ServerConnection, request: object) -> object:
        return connection.respond(401, "no")

    async with serve(echo, "127.0.0.1", 0, process_request=refuse) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(client.HandshakeRefused) as refused:
            await client.connect(f"http://127.0.0.1:{port}", "/", [], lambda data: None, lambda: None, 1000)
    assert refused.value.status == 401


async def test_nothing_is_read_while_the_receiver_is_busy() -> None:
    taken: list[bytes] = []
    busy: list[asyncio.Future[None]] = []

    def take(data: bytes) -> asyncio.Future[None]:
        taken.append(data)
        busy.append(asyncio.get_running_loop().create_future())
        if len(taken) == 1:
            first.set()
        return busy[-1]

    async def send_two(socket: ServerConnection) -> None:
        await socket.send("1")
        await socket.send("2")
        await socket.wait_closed()

    first = asyncio.Event()
    async with serve(send_two, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        opened = await client.connect(url, "/", [], take, lambda: None, 1000)
        async with asyncio.timeout(10):
            await first.wait()
            assert taken == [b"1"]
            busy[0].set_result(None)
            while len(taken) < 2:
                await asyncio.sleep(0)
        opened.close()
