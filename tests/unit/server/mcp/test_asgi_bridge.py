"""The places of MCP sessions, over a real server with fake kernels."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import mcp_types as types
import pytest
from http_server import HttpServer
from mcp.shared.exceptions import MCPError

from kernelsvc.protocol.jupyter import MAX_VALUES
from kernelsvc.server.mcp import LONG, approvals, asgi_bridge, subscriptions

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
NUMBERS = itertools.count(3)


async def opened(http_server: HttpServer, token: str) -> str:
    """The id of a new MCP session."""
    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    response = await http_server.fetch("POST", "/mcp", message, token=token, headers=ACCEPT)
    assert response.code == 200, response.body
    return str(response.headers["mcp-session-id"])


async def status(http_server: HttpServer, session: str, token: str) -> int:
    """The status of a request of a session. 404: the session has ended."""
    headers: dict[str, Any] = {**ACCEPT, "mcp-session-id": session}
    message = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    return int((await http_server.fetch("POST", "/mcp", message, token=token, headers=headers)).code)


async def test_one_principal_does_not_take_all_places(http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session that was quiet for longest gives way. Others keep theirs."""
    monkeypatch.setattr(asgi_bridge, "MAX_CLIENTS_OF_ONE", 3)
    other = await opened(http_server, "bob-token")
    first, second, third = [await opened(http_server, "alice-token") for _ in range(3)]
    assert await status(http_server, first, "alice-token") == 200  # used: the second is the oldest now
    fourth = await opened(http_server, "alice-token")
    assert await status(http_server, second, "alice-token") == 404
    for session in (first, third, fourth):
        assert await status(http_server, session, "alice-token") == 200
    assert await status(http_server, other, "bob-token") == 200


async def subscribe(http_server: HttpServer, session: str, uri: str, token: str, verb: str = "subscribe") -> bool:
    """Subscribe to a resource, or unsubscribe. False: it is refused."""
    headers: dict[str, Any] = {**ACCEPT, "mcp-session-id": session}
    message = {"jsonrpc": "2.0", "id": next(NUMBERS), "method": f"resources/{verb}", "params": {"uri": uri}}
    response = await http_server.fetch("POST", "/mcp", message, token=token, headers=headers)
    return b'"error"' not in response.body


async def test_all_clients_of_a_principal_watch_a_number_of_resources_together(
    http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MAX_RESOURCES_OF_ONE", 2)
    watched = {}
    for token in ("alice-token", "bob-token"):
        kernel = (await http_server.json("POST", "/v1/sessions", {}, 201, token=token))["id"]
        watched[token] = [f"kernelsvc://sessions/{kernel}/{rest}" for rest in ("notebook.ipynb", "files/a", "files/b")]
    first, second = [await opened(http_server, "alice-token") for _ in range(2)]
    uris = watched["alice-token"]
    same = [subscribe(http_server, first, uris[0], "alice-token") for _ in range(2)]
    assert await asyncio.gather(*same) == [True, True]
    assert await subscribe(http_server, second, uris[1], "alice-token")
    assert not await subscribe(http_server, second, uris[2], "alice-token")
    other = await opened(http_server, "bob-token")
    assert await subscribe(http_server, other, watched["bob-token"][0], "bob-token")
    assert await subscribe(http_server, first, uris[0], "alice-token", "unsubscribe")
    assert await subscribe(http_server, second, uris[2], "alice-token")


async def test_a_message_with_too_many_values_is_refused_before_they_are_built(http_server: HttpServer) -> None:
    values = b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"a": [' + b"[]," * (MAX_VALUES + 1) + b"1]}}"
    for path in ("/mcp", "/python/mcp"):
        response = await http_server.fetch("POST", path, values, headers=ACCEPT)
        assert (response.code, response.headers["Content-Type"]) == (413, "application/json")
        assert json.loads(response.body)["code"] == "too_large"


async def test_a_state_that_is_not_this_servers_is_not_read(http_server: HttpServer) -> None:
    params: Any = types.CallToolRequestParams(name="wait", arguments={}, request_state="[" * (approvals.MAX_STATE + 1))
    began = time.process_time()
    with pytest.raises(MCPError, match="requestState"):
        await approvals.decide_again(None, params)  # type: ignore[arg-type]
    params.request_state = '{"session": "s", "cell": "c", "x": [' + "[]," * 4_000_000 + "1]}"
    with pytest.raises(MCPError, match="requestState"):
        await approvals.decide_again(None, params)  # type: ignore[arg-type]
    assert time.process_time() - began < 0.2


async def test_long_messages_of_a_principal_are_read_in_turn(http_server: HttpServer) -> None:
    session, other = await opened(http_server, "alice-token"), await opened(http_server, "bob-token")

    async def ping(session: str, token: str, size: int) -> int:
        headers: dict[str, Any] = {**ACCEPT, "mcp-session-id": session}
        message = {"jsonrpc": "2.0", "id": next(NUMBERS), "method": "ping", "params": {"_meta": {"a": "x" * size}}}
        return (await http_server.fetch("POST", "/mcp", message, token=token, headers=headers)).code

    who = http_server.service.authenticate("alice-token")
    async with http_server.app.settings["context"].turn_of(who, "messages"):
        long = asyncio.ensure_future(ping(session, "alice-token", LONG))
        assert await ping(session, "alice-token", 100) == 200
        assert await ping(other, "bob-token", LONG) == 200
        assert not long.done()
    assert await long == 200
