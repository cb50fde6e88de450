import socket

import pytest

from kernelsvc.client import connection
from kernelsvc.client.address import Address
from kernelsvc.client.connection import RpcConnection, backoff
from kernelsvc.client.values import Unreachable


def test_pauses_grow_to_a_limit_and_differ_between_clients():
    assert [backoff(n, 1.0) for n in range(4)] == [0.05, 0.1, 0.2, 0.4]
    assert backoff(50, 1.0) == 5.0
    assert backoff(3, 0.0) == 0.2


async def test_a_call_ends_whatever_makes_the_connection_fail(monkeypatch):
    def no_such_header(*args, **kwargs):
        raise ValueError("Unsafe header value")

    monkeypatch.setattr(connection, "websocket_connect", no_such_header)
    rpc = RpcConnection(Address(base="http://h"), connect_seconds=60.0, retry_seconds=60.0)
    with pytest.raises(Unreachable, match="Unsafe header value"):
        await rpc.call("server.info", {}, timeout=30.0)
    await rpc.close()


async def test_the_handshake_has_a_limit(monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(base=f"http://127.0.0.1:{silent.getsockname()[1]}")
        rpc = RpcConnection(address, connect_seconds=0.1, retry_seconds=0.1)
        with pytest.raises(Unreachable, match="No server answers"):
            await rpc.call("server.info", {}, timeout=30.0)
        await rpc.close()
