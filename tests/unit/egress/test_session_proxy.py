"""The proxy of one session: how many connections it accepts at once."""

import asyncio
import socket

import msgspec

from kernelsvc.egress import session_proxy
from kernelsvc.egress.interception import Interception
from kernelsvc.egress.protocol import OpenRequest
from kernelsvc.egress.session_proxy import SessionProxy
from kernelsvc.model.network.rules import NetworkRules


async def until_closed(address):
    """Connect, send nothing, and wait until the proxy closes the connection."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write_eof()
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()


async def test_a_session_makes_all_connections_of_the_burst_one_after_another(monkeypatch):
    """An accept(2) that finds no connection took from the limit, too, so half of the burst was all there was."""
    monkeypatch.setattr(session_proxy, "RATE", 0.0001)
    monkeypatch.setattr(session_proxy, "BURST", 6)
    rules = msgspec.convert({"allow": ["some.test"]}, NetworkRules)
    lookups = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    address = listeners[1].getsockname()
    proxy = SessionProxy(
        OpenRequest(container="c", rules=rules),
        [each.detach() for each in (lookups, *listeners)],
        {},
        Interception(b"", "", {}),
        lambda kind, fields: None,
    )
    try:
        for _ in range(6):
            await until_closed(address)
    finally:
        proxy.close()
