"""The steps of vLLM's ``MCPToolServer``, in its packages and order: ``vllm_tool_server.py URL TOKEN``.

vLLM itself needs torch. Its class (``vllm/frontend/entrypoints/mcp/tool_server.py``) uses only the SDK's client and
``openai_harmony``: at the start it reads the server's name, instructions and tools, without a header. For each response
it opens a connection with the header ``x-session-id`` and those of the request's MCP tool.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp import ClientSession
from mcp.client.sse import sse_client
from openai_harmony import ToolDescription, ToolNamespaceConfig

ADDRESS = f"{sys.argv[1].removeprefix('http://')}/t/{sys.argv[2]}/python"
URL = f"http://{ADDRESS}/sse"  # as vLLM makes it of --tool-server


async def described() -> ToolNamespaceConfig:
    async with sse_client(url=URL) as streams, ClientSession(*streams) as session:
        opened = await session.initialize()
        listed = await session.list_tools()
    shown = [tool for tool in listed.tools if getattr(tool.annotations, "include_in_prompt", True)]
    tools = [ToolDescription.new(tool.name, tool.description, parameters=tool.inputSchema) for tool in shown]
    return ToolNamespaceConfig(name=opened.serverInfo.name, description=opened.instructions, tools=tools)


@asynccontextmanager
async def session_of(response: str, **headers: str) -> AsyncIterator[ClientSession]:
    named = {"x-session-id": response, **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with sse_client(url=URL, headers=named) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


async def results(response: str, *codes: str, **headers: str) -> list[str]:
    async with session_of(response, **headers) as session:
        return [(await session.call_tool("python", {"code": code})).content[0].text for code in codes]


async def main() -> None:
    namespace = await described()
    # gpt-oss knows the tool from its training: only its name and instructions are in the prompt.
    assert (namespace.name, namespace.tools) == ("python", []), namespace
    assert "keeps its variables" in namespace.description
    assert await results("resp_1", "x = 41", "x + 1") == ["[no output]", "42"]
    assert "NameError" in (await results("resp_2", "x"))[0]
    assert await results("resp_3", "y = 7", x_container="conv-9") == ["[no output]"]
    both = await asyncio.gather(
        results("resp_4", "y * 6", x_container="conv-9"), results("resp_5", "z = 1", "z", x_container="conv-10")
    )
    assert both == [["42"], ["[no output]", "1"]], both
    print("ok")


asyncio.run(main())
