"""The client's end of a WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tornado.iostream import StreamClosedError
from websockets.asyncio.server import ServerConnection, serve, unix_serve

from kernelsvc.errors import BadRequest
from kernelsvc.server.ws import client
from kernelsvc.server.ws.socket_stream import SocketStream


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


async def test_queued_messages_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = SocketStream.write
    monkeypatch.setattr(SocketStream, "write", lambda self, data: [written.append(data), write(self, data)][1])
    got: asyncio.Queue[bytes] = asyncio.Queue()
    async with serve(echo, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        opened = await client.connect(url, "/", [], got.put_nowait, lambda: None, 1000)
        assert (opened.queue(b"1"), opened.queue(b"2"), written) == (None, None, [])
        opened.flush()
        assert [data[:2] for data in written] == [b"\x81\x81"]
        async with asyncio.timeout(10):
            assert [await got.get(), await got.get()] == [b"1", b"2"]
        opened.close()
        with pytest.raises(StreamClosedError):
            opened.queue(b"3")


async def test_a_sender_waits_while_the_peer_does_not_read(tmp_path: Path) -> None:
    reading = asyncio.Event()

    async def read_late(socket: ServerConnection) -> None:
        await reading.wait()
        async for _ in socket:
            pass

    path = str(tmp_path / "s")
    async with unix_serve(read_late, path, max_size=None, max_queue=1):
        opened = await client.connect(f"unix:{path}", "/", [], lambda data: None, lambda: None, 1000)
        sent = opened.queue(b"a" * 8_000_000)
        assert sent is not None
        opened.flush()
        assert not sent.done()
        reading.set()
        async with asyncio.timeout(10):
            await sent
        opened.close()


async def test_the_end_of_a_read_is_reported_after_its_messages() -> None:
    seen: list[bytes] = []
    ended = asyncio.Event()

    async def send_together(socket: ServerConnection) -> None:
        for text in ("1", "2"):
            socket.protocol.send_text(text.encode())
        socket.transport.write(b"".join(socket.protocol.data_to_send()))
        await socket.wait_closed()

    def on_read() -> None:
        seen.append(b"end")
        ended.set()

    async with serve(send_together, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        opened = await client.connect(url, "/", [], seen.append, lambda: None, 1000, on_read)
        async with asyncio.timeout(10):
            await ended.wait()
        assert seen == [b"1", b"2", b"end"]
        opened.close()
