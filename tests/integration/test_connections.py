"""Clients without a token against a server that may open 256 files: they keep no one out, and cost little."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served
from waiting import wait_for
from websockets.sync.client import connect

#: More than the server's descriptors.
ATTACKERS, DESCRIPTORS = 300, 256
HEAD_SECONDS = 2
HALF_HEADS = {
    "half a head": b"GET / HTTP/1.1\r\nHost: localhost\r\nX-",
    "nothing": b"",
    "half an upgrade": b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-",
}


class Small(Served):
    """A server with few descriptors, which is the first to be ended when memory is short."""

    def command(self) -> list[str]:
        limits = ["choom", "-n", "900", "--", "prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", "--"]
        return [*limits, *super().command(), "--request-head-seconds", str(HEAD_SECONDS)]


@pytest.fixture(scope="module")
def small(short_tmp: Path) -> Iterator[Small]:
    served = Small(short_tmp / "small", "--max-unauthenticated-connections", "40", "--limits-open-files", "128")
    served.start()
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def session(small: Small) -> str:
    found: str = small.call("POST", "/v1/sessions", {})["id"]
    return found


def dial(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 30)


@contextlib.contextmanager
def attack(served: Served, sent: bytes, count: int = ATTACKERS) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        attackers = []
        for _ in range(count):
            attackers.append(stack.enter_context(dial(served)))
            with contextlib.suppress(OSError):  # closed already
                attackers[-1].sendall(sent)
        yield attackers


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed this connection."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    if not poll.poll(0):
        return False
    try:
        return client.recv(65536, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def bounded(served: Served) -> Iterator[None]:
    """What happens within keeps the server from neither idling nor its log from staying short."""
    log, began, cpu = len(served.output()), time.monotonic(), cpu_seconds(served.pid)
    yield
    assert len(served.output()) - log < 64 * 1024, served.output()[-2000:]
    assert cpu_seconds(served.pid) - cpu < 0.7 * (time.monotonic() - began) + 0.5


def execute(served: Served, session: str) -> str:
    text: str = served.call("POST", f"/v1/sessions/{session}/cells", {"code": "6 * 7"})["text"]
    return text.strip()


@pytest.mark.parametrize("sent", HALF_HEADS.values(), ids=[*HALF_HEADS])
def test_connections_without_a_request_keep_no_client_out(small: Small, session: str, sent: bytes) -> None:
    with attack(small, sent) as attackers, bounded(small):
        for _ in range(10):
            assert execute(small, session) == "42"
        wait_for(lambda: all(map(is_closed, attackers)), what="the server closes each of them", deadline=30)
        assert execute(small, session) == "42"


def test_an_attack_that_is_renewed_keeps_no_client_out_either(small: Small, session: str) -> None:
    with contextlib.ExitStack() as stack, bounded(small):
        for _ in range(3):
            stack.enter_context(attack(small, HALF_HEADS["half a head"]))
            assert execute(small, session) == "42"


def test_authenticated_connections_are_not_closed_for_it(small: Small, session: str) -> None:
    url = small.url.replace("http", "ws") + "/v1/ws"
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(connect(url, additional_headers={"Authorization": f"Bearer {small.token}"}))
            for _ in range(30)
        ]
        stack.enter_context(attack(small, HALF_HEADS["half a head"]))
        for number, each in enumerate(sockets):
            call = {"jsonrpc": "2.0", "id": number, "method": "session.get", "params": {"session": session}}
            each.send(json.dumps(call))
            assert json.loads(each.recv(30))["result"]["id"] == session


def test_one_principal_does_not_take_all_connections(small: Small, session: str) -> None:
    request = f"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small.token}\r\n\r\n".encode()
    statuses = []
    with contextlib.ExitStack() as stack:
        for _ in range(DESCRIPTORS // 4 + 1):
            client = stack.enter_context(dial(small))
            client.sendall(request)
            statuses.append(client.recv(65536).split(b" ")[1])
        assert statuses == [b"200"] * (DESCRIPTORS // 4) + [b"503"]
        assert http_status(small, "/healthz") == 200
    wait_for(lambda: http_status(small, "/v1/info", small.token) == 200, what="places are free again", deadline=30)


def http_status(served: Served, path: str, token: str | None = None) -> int:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_connections_of_one_address_that_show_no_token_are_limited(small: Small) -> None:
    with attack(small, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 60) as clients:
        for client in clients:
            client.recv(65536)
        time.sleep(1.1)  # younger ones are left alone: their request may still be on the way
        with attack(small, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 20):
            wait_for(lambda: sum(map(is_closed, clients)) >= 20, what="the oldest are closed", deadline=30)


SLOW = {
    "a head byte by byte": (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 1000),
    "the second head": (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 1000,
    ),
    "a head behind a request": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HT", b""),
    "a body": (b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n", b"x" * 9000),
    "a body in chunks": (
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n" * 1000,
    ),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_request_that_trickles_is_cut(small: Small, kind: str) -> None:
    first, trickle = SLOW[kind]
    with dial(small) as client:
        client.sendall(first)
        deadline = time.monotonic() + 30
        left = [*trickle]

        def cut() -> bool:
            with contextlib.suppress(OSError):
                if left:
                    client.send(bytes([left.pop(0)]))
            try:
                while data := client.recv(65536, socket.MSG_DONTWAIT):
                    assert data
            except BlockingIOError:
                return False
            except OSError:
                return True
            return True

        wait_for(cut, what="the server closes it", deadline=30)
        assert time.monotonic() < deadline


def test_an_idle_connection_and_a_body_that_pauses_are_not_cut(small: Small, session: str) -> None:
    idle = http.client.HTTPConnection(small.url.removeprefix("http://"), timeout=30)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    local = idle.sock.getsockname()
    head = (
        f"POST /v1/sessions/{session}/cells HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small.token}\r\n"
        f"Content-Length: 17\r\n\r\n"
    )
    with dial(small) as client, dial(small) as late:
        client.sendall(head.encode() + b'{"code": ')
        # A connection that was opened after these two and sent nothing is cut: so much time has passed.
        wait_for(lambda: is_closed(late), what="the late one is cut", deadline=30)
        client.sendall(b'"6 * 7"}')
        assert b"42" in client.recv(65536)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read()
        assert idle.sock.getsockname() == local
    idle.close()


def limit_descriptors(served: Served, soft: int) -> None:
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (soft, DESCRIPTORS))


def exhaust(served: Served) -> None:
    """Take the server's free descriptors away: it has no number below the limit left."""
    used = {int(each) for each in os.listdir(f"/proc/{served.pid}/fd")}
    limit_descriptors(served, min(set(range(DESCRIPTORS)) - used))


def test_without_descriptors_the_server_waits_and_then_goes_on(small: Small, session: str) -> None:
    before = small.output().count("accepts no connections")
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack, bounded(small):
        stack.callback(limit_descriptors, small, DESCRIPTORS)

        def waiting() -> socket.socket | None:
            """A connection that is not accepted. The server may have closed a descriptor since ``exhaust`` looked."""
            exhaust(small)
            client = stack.enter_context(dial(small))
            client.sendall(request)
            return None if select.select([client], [], [], 1.0)[0] else client

        client = wait_for(waiting, what="a connection waits", deadline=60)
        limit_descriptors(small, DESCRIPTORS)
        assert b"200" in client.recv(65536)
    assert 1 <= small.output().count("accepts no connections") <= before + 1
    assert execute(small, session) == "42"
