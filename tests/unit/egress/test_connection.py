"""One connection of a session: clients that send nothing, or never complete their first message."""

import asyncio
import socket
import ssl

import msgspec
import pytest
from egress_servers import READ

from kernelsvc.egress import connection
from kernelsvc.egress.connection import EgressConnection
from kernelsvc.model.network.policy import Refused
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.protocol.egress import client_hello


class Policy:
    """Allows each connection by a rule whose requests are read, and keeps the reports."""

    def __init__(self):
        self.reports, self.denied = [], []
        self.rules = msgspec.convert({"allow": [READ]}, NetworkRules).parsed()

    def destination(self, address):
        return "read.test"

    def rules_for(self, destination, port):
        return self.rules

    def report(self, kind, **fields):
        self.reports.append((kind, fields))

    def report_denied(self, via, host, port, why):
        self.denied.append(why)


async def answer_to(data: bytes, policy: Policy) -> bytes:
    """Send these bytes and keep the connection open. Return what the proxy sends until it ends the connection."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        for one in (client, accepted):
            one.setblocking(False)
        client.sendall(data)
        async with asyncio.timeout(20):
            await EgressConnection(policy, accepted).run()
            accepted.close()
            return await loop.sock_recv(client, 100)


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_client_that_does_not_complete_its_first_message_is_ended(data, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_BYTES_SECONDS", 0.05)
    monkeypatch.setattr(connection, "FAREWELL_SECONDS", 0.05)
    policy = Policy()
    assert await answer_to(data, policy) == client_hello.alert(client_hello.ALERT_INTERNAL_ERROR)
    ((kind, fields),) = policy.reports
    assert (kind, fields["end"][:6]) == ("connection", "failed")


@pytest.mark.parametrize(("offered", "number"), [("h2", client_hello.ALERT_NO_APPLICATION_PROTOCOL), ("x", 120)])
async def test_a_client_without_http_1_is_refused_in_words(offered, number, monkeypatch):
    monkeypatch.setattr(connection, "FAREWELL_SECONDS", 0.05)
    context, outgoing = ssl.create_default_context(), ssl.MemoryBIO()
    context.set_alpn_protocols([offered])
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="read.test").do_handshake()
    policy = Policy()
    assert await answer_to(outgoing.read(), policy) == client_hello.alert(number)
    assert policy.denied == [connection.HTTP_1_ONLY]


async def test_a_connection_without_bytes_ends(monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.05)
    policy = Policy()
    policy.rules = NetworkRules(allow=("read.test",)).parsed()
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def connect(destination, port):
            made = socket.create_connection(server.getsockname())
            made.setblocking(False)
            return made

        policy.connect = connect
        assert await answer_to(b"", policy) == b""
    ((kind, fields),) = policy.reports
    assert (kind, fields["end"]) == ("connection", "idle")


def test_a_connection_is_cut_if_its_rules_refuse_it():
    policy = Policy()

    def refuse(destination, port):
        raise Refused("no rule")

    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def main():
            one = EgressConnection(policy, ours)
            assert not one.cut_if_refused(), "it has no destination yet"
            one._destination, one._port = "read.test", 443
            assert one.cut_if_refused(), "bytes that were not read have no rule now"
            policy.rules_for = refuse
            assert one.cut_if_refused()

        asyncio.run(main())
