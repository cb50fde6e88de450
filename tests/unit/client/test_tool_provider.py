"""A result that meets a restart of the server. tests/integration/test_mcp_bridge.py has real servers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from waiting import wait_until

from kernelsvc.client.offered import offered
from kernelsvc.client.tool_provider import ToolProvider
from kernelsvc.errors import NotFound


class Restarted:
    """The connection to a server that knows a call's session only after the functions were offered again."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.offers = asyncio.Event()
        self.offers.set()
        self.knows = True

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(method)
        if method == "tools.offer":
            await self.offers.wait()
            self.knows = "k.1" in params["holding"] or self.knows
            return {"cancelled": []}
        if not self.knows:
            raise NotFound("There is no session.")
        return {}


async def test_a_result_that_arrives_before_the_offers_is_sent_again_after_them() -> None:
    server, go = Restarted(), asyncio.Event()

    async def held() -> str:
        await go.wait()
        return "late"

    async def upload(session: str, name: str, data: bytes) -> None: ...

    provider = ToolProvider(server, upload)
    await provider.offer([offered(held)], None)
    called = {"call": "k.1", "session": "s", "tool": "held", "arguments": {}, "offered_in": None}
    provider.notified("tool.call", msgspec.json.encode(called))
    server.knows = False
    server.offers.clear()
    provider.connected()
    go.set()
    await wait_until(lambda: server.calls.count("tool.return") == 1, what="the first attempt")
    server.offers.set()
    await wait_until(lambda: server.calls.count("tool.return") == 2, what="the second attempt")
    assert (sorted(server.calls), server.calls[-1]) == (["tool.return"] * 2 + ["tools.offer"] * 2, "tool.return")
    await provider.close()


async def test_a_call_that_has_ended_is_not_answered_twice() -> None:
    server = Restarted()

    async def quick() -> None: ...

    async def upload(session: str, name: str, data: bytes) -> None: ...

    provider = ToolProvider(server, upload)
    await provider.offer([offered(quick)], None)
    server.knows = False
    called = {"call": "k.2", "session": "s", "tool": "quick", "arguments": {}, "offered_in": None}
    provider.notified("tool.call", msgspec.json.encode(called))
    await wait_until(lambda: "tool.return" in server.calls, what="the answer")
    await provider.close()
    assert server.calls.count("tool.return") == 1
