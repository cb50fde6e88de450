"""The bridge to MCP servers: what ends it, and what concerns one server alone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from mcp.types import ListToolsResult

from kernelsvc.errors import BadRequest, Forbidden, KernelsvcError
from kernelsvc.integrations import mcp_bridge
from kernelsvc.model.tool_calls.mcp_servers import McpServer


async def test_tools_that_can_not_be_offered_concern_their_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Exception] = [BadRequest("too many tools"), OSError("no such program"), Forbidden("no scope")]
    tried: list[Exception] = []

    async def serve(self: object, client: object) -> None:
        tried.append(ends[len(tried)])
        raise tried[-1]

    monkeypatch.setattr(mcp_bridge._Bridged, "_serve", serve)
    monkeypatch.setattr(mcp_bridge, "MAX_PAUSE", 0.0)
    bridged = mcp_bridge._Bridged("shop", McpServer(command=["shop"]), asyncio.Event())
    with pytest.raises(KernelsvcError, match="no scope"):
        await bridged.run("http://127.0.0.1:9", "token")
    assert tried == ends


async def test_pages_of_tools_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Endless:
        async def list_tools(self, *, cursor: str | None, cache_mode: str) -> ListToolsResult:
            return ListToolsResult(tools=[], next_cursor="more", ttl_ms=0, cache_scope="private")

    monkeypatch.setattr(mcp_bridge, "MAX_PAGES", 3)
    bridged = mcp_bridge._Bridged("shop", McpServer(command=["shop"]), asyncio.Event())
    async with asyncio.timeout(10):
        assert await bridged._functions(cast("Any", Endless())) == []
    assert "more than 3 pages" in caplog.text
