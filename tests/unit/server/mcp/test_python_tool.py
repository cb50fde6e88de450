"""The tool server for vLLM and gateways, by the official SDK's clients, with fake kernels."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp import Client, ClientSession, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from kernelsvc.model.objects import Principal

ALICE = Principal(name="alice")


@contextlib.asynccontextmanager
async def connected(server: Any, token: str = "alice-token", **headers: str) -> AsyncIterator[ClientSession]:
    """A client as vLLM's: the token is in the address, and each message has the headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{server.url}/t/{token}/python/sse"
    async with sse_client(url, headers=named) as streams, ClientSession(*streams) as session:
        session.opened = await session.initialize()  # type: ignore[attr-defined]
        yield session


async def run(session: ClientSession, code: str) -> str:
    """What the model reads."""
    return (await session.call_tool("python", {"code": code})).content[0].text


async def test_it_says_what_vllm_asks_at_its_start(http_server: Any) -> None:
    async with connected(http_server) as session:
        assert session.opened.server_info.name == "python"
        assert "keeps its variables" in session.opened.instructions
        [tool] = (await session.list_tools()).tools
        assert (tool.name, list(tool.input_schema["properties"])) == ("python", ["code"])
    assert http_server.service.list(ALICE)[0] == []  # asking costs no session


async def test_state_is_kept_in_a_request_and_over_requests_by_one_header(http_server: Any) -> None:
    async with connected(http_server, x_session_id="resp_1") as session:
        assert await run(session, "x = 41") == "[no output]"
        assert await run(session, "x + 1") == "42"
    # Another response has a session of its own, also at the same time.
    async with connected(http_server, x_session_id="resp_2") as session:
        assert "NameError" in await run(session, "x")
    for code, shown in (("y = 7", "[no output]"), ("y * 6", "42")):
        async with connected(http_server, x_session_id=f"resp_{code}", x_container="conv-9") as session:
            assert await run(session, code) == shown
    async with connected(http_server, token="bob-token", x_container="conv-9") as session:
        assert "NameError" in await run(session, "y")


async def test_two_connections_at_once_do_not_share_variables(http_server: Any) -> None:
    async with (
        connected(http_server, x_container="a") as first,
        connected(http_server, x_container="b") as second,
    ):
        await run(first, "x = 1")
        await run(second, "x = 2")
        assert [await run(each, "x") for each in (first, second)] == ["1", "2"]


@pytest.mark.parametrize("code", ['{"code": "6 * 7"}', "6 * 7"])
async def test_code_and_code_in_json_are_the_same(http_server: Any, code: str) -> None:
    async with connected(http_server, x_container="a") as session:
        assert await run(session, code) == "42"
        assert await run(session, '{"code": 1}') == "{'code': 1}"


async def test_streamable_http_has_the_facts_for_gateways(http_server: Any) -> None:
    headers = {"Authorization": "Bearer alice-token", "x-container": "conv-1"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(http_server.url + "/python/mcp", http_client=http)) as client,
    ):
        facts = (await client.call_tool("python", {"code": "print('hi'); 6 * 7"})).structured_content
        assert facts["outputs"] == [{"type": "logs", "logs": "hi\n42\n"}]
        assert facts["stdout"] == "hi\n42\n"
        session = facts["container_id"].replace("cntr_", "s_")
        assert http_server.service.get(ALICE, session).labels
        with pytest.raises(MCPError):
            await client.call_tool("other", {"code": "1"})


async def test_a_wrong_token_gets_nothing(http_server: Any) -> None:
    assert (await http_server.fetch("GET", "/t/wrong/python/sse", token=None)).code == 401
    assert (await http_server.fetch("POST", "/python/messages?session_id=x", {}, token=None)).code == 401
