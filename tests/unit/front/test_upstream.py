"""HTTP from a front to a node that is slow, closes or is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tornado.httputil import HTTPHeaders, RequestStartLine

from kernelsvc.front.members import Member
from kernelsvc.front.upstream import Collector, NoAnswer, NodeHttp, NotSent
from kernelsvc.model.cluster.placing import Candidate
from kernelsvc.model.cluster.reports import Hello, NodeReport

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def member(url: str) -> Member:
    hello = Hello(protocol=1, node="abcdef", instance="i", url=url, version="1")
    return Member(hello, url, Candidate("abcdef", NodeReport()), 0.0)


@asynccontextmanager
async def node(answer: Answer) -> AsyncIterator[Member]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield member(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_a_connection_is_used_again_and_one_that_was_closed_is_not_an_error() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await head(reader)
            writer.write(OK)
        if connections == 1:
            await head(reader)  # the third request gets no answer

    http = NodeHttp()
    async with node(answer) as found:
        for _ in range(4):
            assert (await http.fetch(found, "GET", "/")).body == b"ok"
    assert connections == 2
    http.close()


async def test_a_request_that_may_have_been_carried_out_is_not_sent_again() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await head(reader))

    http = NodeHttp()
    async with node(answer) as found:
        with pytest.raises(NoAnswer):
            await http.fetch(found, "POST", "/v1/sessions", body=b"{}")
    assert len(seen) == 1


async def test_a_node_that_does_not_accept_got_nothing() -> None:
    with pytest.raises(NotSent):
        await NodeHttp().fetch(member("unix:/nowhere/node.sock"), "GET", "/")


async def test_a_refusal_is_read_although_the_body_was_not_taken() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    http = NodeHttp()
    async with node(answer) as found:
        assert (await http.fetch(found, "PUT", "/f", body=b"x" * 1000)).status == 413
    assert not http._idle[found.url]


@pytest.mark.parametrize("length", [{"Content-Length": "300000"}, {"Transfer-Encoding": "chunked"}], ids=str)
async def test_a_refusal_is_read_also_when_the_body_comes_later(length: dict[str, str]) -> None:
    refused = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        writer.close()
        await writer.wait_closed()
        refused.set()

    async def body() -> AsyncIterator[bytes]:
        await refused.wait()
        for _ in range(3):  # the first is answered by a reset, the next ones fail
            yield b"x" * 100_000

    async with node(answer) as found:
        collector = Collector()
        start = RequestStartLine("POST", "/", "HTTP/1.1")
        await NodeHttp().exchange(found, start, HTTPHeaders({"Host": "h", **length}), body, collector)
    assert (collector.response.status, collector.response.body) == (401, b"no")


async def test_a_lost_node_ends_its_requests() -> None:
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        asked.set()
        await reader.read()

    async with node(answer) as found:
        request = asyncio.ensure_future(NodeHttp().fetch(found, "POST", "/", body=b"x"))
        await asked.wait()
        for lost in [*found.on_lost]:
            lost()
        with pytest.raises(NoAnswer):
            await request
