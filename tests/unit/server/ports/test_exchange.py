"""A server in a session that sends a head which can't pass, and a body right behind it: no byte reaches the client."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest
from tornado.iostream import IOStream

from kernelsvc.errors import PortUnreachable, TooLarge
from kernelsvc.server.ports.exchange import PortExchange

PAGE = b"<script>alert(origin)</script>"
PORT = 8000
#: Most bytes of a body.
MOST = 1000


class Link:
    """A connection to a session's server, whose other end is the test's."""

    def __init__(self) -> None:
        self.socket, self.server = socket.socketpair()
        self.socket.setblocking(False)

    def count(self, **passed: int) -> None:
        pass

    def fail(self) -> None:
        pass

    def close(self) -> None:
        self.socket.close()
        self.server.close()


class Client:
    """What the client would get."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.body = b""

    async def begin_response(self, code: int, headers: list[tuple[str, str]]) -> None:
        self.codes.append(code)

    async def pass_on(self, chunk: bytes) -> None:
        self.body += chunk

    def upgrade(self, headers: list[tuple[str, str]]) -> IOStream:
        raise AssertionError("nobody asked for a WebSocket")


async def respond(response: bytes) -> tuple[Client, BaseException | None]:
    """Pass on a response that arrives in one piece. Return what the client got, and the error."""
    link, client = Link(), Client()
    exchange = PortExchange(client, cast("Any", link), PORT, MOST)
    try:
        exchange.send_head("GET", "/", [("Host", "localhost")], upgrade=False)
        link.server.sendall(response)
        async with asyncio.timeout(30):
            await exchange.respond()
    except (PortUnreachable, TooLarge) as error:
        return client, error
    finally:
        exchange.close()
    return client, None


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {line}", "Content-Type: text/html", *fields, "", ""]).encode()


OWN_LENGTH = f"Content-Length: {len(PAGE)}"
WHOLE = head("200 OK", OWN_LENGTH) + PAGE


async def test_a_response_passes_and_informational_ones_do_not() -> None:
    client, error = await respond(head("103 Early Hints") + WHOLE)
    assert (client.codes, client.body, error) == ([200], PAGE, None)


@pytest.mark.parametrize(
    "response",
    [
        head("200 OK", OWN_LENGTH, OWN_LENGTH) + PAGE,
        head("200 OK", f"Content-Length: {len(PAGE)}, {len(PAGE)}") + PAGE,
        head("200 OK", f"Content-Length: {MOST + 1}") + PAGE,
        head("200 OK", "Content-Length: -1") + PAGE,
        head("200 OK", OWN_LENGTH, "Transfer-Encoding: chunked") + PAGE,
        head("600 Unknown", OWN_LENGTH) + PAGE,
        head("999 Unknown", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PAGE), PAGE),
        head("099 Unknown") + PAGE,
        head("101 Switching Protocols", "Upgrade: websocket") + WHOLE,
        head("101 Switching Protocols") + PAGE,
        PAGE + b"\r\n\r\n",
    ],
    ids=lambda response: response[:90].decode().split("\r\n\r\n")[0].replace("\r\n", "+"),
)
async def test_no_byte_of_a_refused_response_reaches_the_client(response: bytes) -> None:
    client, error = await respond(response)
    assert (client.codes, client.body) == ([], b"")
    assert error is not None
