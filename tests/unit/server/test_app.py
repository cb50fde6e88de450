"""Listening: TCP, a private Unix socket, what systemd passes; and the log, which holds no token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import subprocess
import sys

import msgspec
import pytest

from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.server.app import activated_sockets, address_of, bind_private
from kernelsvc.settings import Settings
from kernelsvc.testing import InProcessServer


@contextlib.asynccontextmanager
async def serving(tmp_path, **changes):
    settings = Settings(port=0, shutdown_seconds=1.0, data_dir=tmp_path / "data")
    inner = InProcessServer(msgspec.structs.replace(settings, **changes))
    await inner.service.start()
    try:
        yield inner.server
    finally:
        await inner.stop()


async def ask(path, request=b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_a_unix_socket_is_private_and_removed_at_the_end(short_tmp, tmp_path):
    path = short_tmp / "s.sock"
    async with serving(tmp_path, uds=path) as server:
        assert server.start() == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"200 OK" in await ask(path)
    assert not path.exists()


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_an_unencrypted_address_for_other_machines_has_a_warning(tmp_path, caplog, host, warned):
    async with serving(tmp_path, host=host) as server:
        server.start()
    assert ("not encrypted" in caplog.text) is warned


async def test_a_unix_socket_can_be_opened_by_a_group(short_tmp, tmp_path):
    path = short_tmp / "g.sock"
    group = os.getgroups()[-1] if os.geteuid() else 4242
    async with serving(tmp_path, uds=path, uds_group=str(group)) as server:
        server.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == group
        assert b"200 OK" in await ask(path)


async def test_an_unknown_group_is_refused_and_leaves_no_socket(short_tmp, tmp_path):
    path = short_tmp / "u.sock"
    async with serving(tmp_path, uds=path, uds_group="no-such-group") as server:
        with pytest.raises(BadRequest, match="no-such-group"):
            server.start()
    assert not path.exists()


async def test_a_dead_servers_socket_is_replaced_a_live_ones_is_not(short_tmp, tmp_path):
    path = short_tmp / "t.sock"
    bind_private(path).close()
    assert path.exists()
    async with serving(tmp_path, uds=path) as server:
        server.start()
        async with serving(tmp_path / "2", uds=path) as second:
            with pytest.raises(Conflict, match="a server listens there"):
                second.start()
        assert b"200 OK" in await ask(path)


async def test_a_file_in_the_sockets_place_is_left_alone(short_tmp, tmp_path):
    path = short_tmp / "file"
    path.write_text("mine")
    async with serving(tmp_path, uds=path) as server:
        with pytest.raises(Conflict, match="not a socket"):
            server.start()
    assert path.read_text() == "mine"


async def test_a_taken_port_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with serving(tmp_path, port=taken.getsockname()[1]) as server:
            with pytest.raises(Conflict, match="--port"):
                server.start()


async def test_every_address_of_a_host_gets_the_same_port(tmp_path):
    async with serving(tmp_path, host="localhost") as server:
        ports = {address.rpartition(":")[2] for address in server.start()}
        assert len(ports) == 1


async def test_a_host_that_is_not_ours_is_told(tmp_path):
    async with serving(tmp_path, host="192.0.2.1") as server:
        with pytest.raises(Conflict, match=r"192\.0\.2\.1"):
            server.start()


def test_addresses():
    with socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", 0))
        assert address_of(six) == f"http://[::1]:{six.getsockname()[1]}"


def test_sockets_of_another_process_are_not_ours():
    assert activated_sockets({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1)}) == []
    assert activated_sockets({}) == []


ACTIVATED = """
import asyncio, os, sys
from pathlib import Path
from kernelsvc.settings import Settings
from kernelsvc.server.app import Server
from kernelsvc.testing import InProcessServer

async def main():
    settings = Settings(port=1, shutdown_seconds=1.0, data_dir=Path({root!r}))
    env = {{**os.environ, "LISTEN_PID": str(os.getpid())}}
    server = Server(InProcessServer(settings).app, settings, env)
    print(server.start()[0], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""


async def test_socket_activation(tmp_path):
    """systemd passes the socket as descriptor 3, and the first connection may wait in it already."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code = ACTIVATED.format(root=str(tmp_path))
        # The shell moves the socket to 3, as systemd does.
        command = f'exec 3<&{listener.fileno()}; exec "$0" -c "$1"'
        process = subprocess.Popen(
            ["bash", "-c", command, sys.executable, code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={**os.environ, "LISTEN_FDS": "1"},
        )
    try:
        address = await asyncio.to_thread(process.stdout.readline)
        assert address.decode().strip() == f"http://127.0.0.1:{port}"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        process.communicate(timeout=10)
    assert process.returncode == 0


async def test_the_log_holds_paths_and_no_query(http_server, caplog):
    caplog.set_level(logging.DEBUG)
    await http_server.fetch("GET", "/v1/sessions?token=alice-token&label=private")
    http_server.service.list = lambda *args, **kwargs: 1 / 0
    await http_server.fetch("GET", "/v1/sessions?label=private")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "/v1/sessions" in text
    assert "private" not in text
    assert "alice-token" not in text


async def test_errors_have_one_shape_on_every_transport(http_server):
    shape = {"code", "message", "retryable", "details"}
    rest = json.loads((await http_server.fetch("GET", "/v1/sessions/nope")).body)
    async with http_server.socket() as ws:
        await ws.send('{"jsonrpc":"2.0","id":1,"method":"session.get","params":{"session":"nope"}}')
        rpc = json.loads(await ws.recv())["error"]["data"]
    assert set(rest) == shape
    assert rest == rpc


# --- who may ask -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/api", "/v1/openapi.json", "/healthz", "/readyz", "/no/such/route"])
async def test_a_foreign_name_gets_no_answer_without_a_token(http_server, path):
    """The name of a page in a browser was given the address of this server (DNS rebinding)."""
    for host, status in (("evil.example", 403), ("localhost:80", 200), ("127.0.0.1", 200)):
        response = await http_server.fetch("GET", path, token=None, headers={"Host": host})
        assert response.code == status or (status == 200 and response.code == 404 and path == "/no/such/route")
        if status == 403:
            assert b"'hosts'" in response.body
    response = await http_server.fetch("OPTIONS", path, token=None, headers={"Host": "evil.example"})
    assert response.code == 403


async def test_a_proxy_may_pass_its_own_name_with_a_token(http_server):
    assert (await http_server.fetch("GET", "/v1/sessions", headers={"Host": "proxy.example"})).code == 200
    assert (await http_server.fetch("GET", "/v1/sessions", token=None, headers={"Host": "proxy.example"})).code == 401


async def test_a_request_without_a_token_reads_no_journal(http_server, monkeypatch):
    """An id in the path or the Host had the closed session's journal read, before the token was checked."""
    session = (await http_server.json("POST", "/v1/sessions", {}))["id"]
    await http_server.fetch("DELETE", f"/v1/sessions/{session}")
    asked = []
    real = http_server.service.ensure_loaded

    async def watched(text):
        asked.append(text)
        await real(text)

    monkeypatch.setattr(http_server.service, "ensure_loaded", watched)
    host = {"Host": f"49999-{session}.localhost"}
    for path in ("/healthz", "/metrics", "/api", f"/v1/sessions/{session}", f"/no/such/{session}", "/files?path=x"):
        await http_server.fetch("GET", path, token=None, headers=host)
        await http_server.fetch("GET", path, token="wrong-token", headers=host)
    assert asked == []
    assert (await http_server.fetch("GET", f"/v1/sessions/{session}")).code == 200
    assert len(asked) == 1


async def test_wrong_tokens_are_logged_and_refused_more_and_more_slowly(http_server, monkeypatch, caplog):
    wrong, waits = http_server.app.settings["context"].wrong_tokens, []
    note = wrong.note
    monkeypatch.setattr(wrong, "note", lambda *args: waits.append(note(*args)) or waits[-1])
    monkeypatch.setattr("kernelsvc.server.wrong_tokens.FREE", 3)
    monkeypatch.setattr("kernelsvc.server.wrong_tokens.STEP_SECONDS", 0.2)
    with caplog.at_level("WARNING", logger="kernelsvc.server.handler"):
        for how in ({"token": "wrong-1"}, {"token": None, "headers": {"X-API-KEY": "wrong-2"}}) * 3:
            assert (await http_server.fetch("GET", "/v1/sessions", **how)).code == 401
    assert [seconds > 0 for seconds, _ in waits] == [False] * 3 + [True] * 3
    assert "Refused a wrong token from 127.0.0.1 (6 recently)" in caplog.text
    assert "wrong-1" not in caplog.text
    assert (await http_server.fetch("GET", "/v1/sessions")).code == 200  # a right token never waits
    assert (await http_server.fetch("GET", "/v1/sessions", token=None)).code == 401  # no token is no guess
    assert len(waits) == 6


@pytest.mark.parametrize("path", ["/run_code", "/boxes"])
async def test_a_token_in_the_query_counts_only_for_jupyter(http_server, path):
    assert (await http_server.fetch("POST", f"{path}?token=alice-token", {}, token=None)).code in (401, 404)
    assert (await http_server.fetch("GET", "/api/kernels?token=alice-token", token=None)).code == 200
