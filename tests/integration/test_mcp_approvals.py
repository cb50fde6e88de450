"""The person at an MCP host approves calls of code, in both eras of the protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from served import Served

from kernelsvc import AsyncClient


async def test_run_code_asks_the_host(served: Served) -> None:
    ran: list[int] = []
    async with AsyncClient(served.url, served.token) as provider:
        await provider.offer(
            lambda n: ran.append(n) or n,
            name="send_mail",
            parameters={"type": "object", "properties": {"n": {}}},
            approval="always",
        )
        for era in ("legacy", "2026-07-28"):
            asked: list[str] = []

            async def answer(ctx: Any, params: Any, asked: list[str] = asked) -> types.ElicitResult:
                asked.append(params.message)
                return types.ElicitResult(action="accept", content={"approve": len(asked) != 2})

            headers = {"Authorization": f"Bearer {served.token}"}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as http,
                Client(
                    streamable_http_client(served.url + "/mcp", http_client=http),
                    mode=era,
                    elicitation_callback=answer,
                ) as client,
            ):
                ran.clear()
                code = "open('lines', 'a').write('x')\nr = []\nfor n in range(3):\n    try:\n"
                code += "        r.append(tools.send_mail(n=n))\n    except PermissionError:\n        r.append(None)\n"
                code += "print(r, open('lines').read())"
                found = await asyncio.wait_for(client.call_tool("run_code", {"code": code, "session": era}), 60)
                text = "".join(part.text for part in found.content)
                await client.call_tool("close_session", {"session": era})
            assert "[0, None, 2] x" in text, text
            assert ran == [0, 2]
            assert len(asked) == 3
            assert "send_mail" in asked[0]


async def test_a_host_that_can_not_ask_reads_that_the_cell_waits(served: Served) -> None:
    async with AsyncClient(served.url, served.token) as provider, await provider.create_session() as session:
        await session.offer(lambda: 1, name="pay", approval="always")
        headers = {"Authorization": f"Bearer {served.token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(served.url + "/mcp", http_client=http)) as client,
        ):
            arguments = {"code": "tools.pay()", "session": session.id, "wait_seconds": 2}
            found = await client.call_tool("run_code", arguments)
            assert "waits until a person approves its call of pay" in found.content[0].text
            (call,) = await session.calls(state="pending")
            await call.approve()
            done = await client.call_tool("wait", {"session": session.id, "cell": call.cell})
            assert "1" in done.content[0].text


@pytest.mark.parametrize(("action", "content", "decision"), [
    ("accept", {"approve": True}, True),
    ("accept", {"approve": False}, False),
    ("accept", None, False),
    ("decline", None, False),
    ("cancel", None, None),
])  # fmt: skip
def test_decisions(action: Any, content: Any, decision: bool | None) -> None:
    from kernelsvc.server.mcp.approvals import decision_of

    assert decision_of(types.ElicitResult(action=action, content=content)) is decision
