"""The official SDK before its second major version, which most hosts still have: over HTTP, then over stdio."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamablehttp_client

URL, TOKEN, PYTHON, SOURCE = sys.argv[1:5]


async def work(session: ClientSession, name: str) -> None:
    await session.initialize()
    tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    assert tools["run_code"].inputSchema["required"] == ["code"]
    made = await session.call_tool("run_code", {"session": name, "code": "x = 41\nprint('hi')\nx + 1"})
    assert made.structuredContent["text"] == "hi\n42\n", made
    plot = "import matplotlib.pyplot as plt; plt.plot([x]); plt.show()"
    shown = await session.call_tool("run_code", {"session": name, "code": plot})
    assert [part.type for part in shown.content] == ["text", "image"]
    assert (await session.call_tool("run_code", {"session": name, "code": "1/0"})).isError
    said: list[str | None] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        said.append(message)

    slow = "import time\nfor i in range(4):\n    print(i)\n    time.sleep(0.5)"
    await session.call_tool("run_code", {"session": name, "code": slow}, progress_callback=progress)
    assert said, "no progress was told"
    try:
        await session.call_tool(
            "run_code", {"session": name, "code": "time.sleep(2)\n'late'"}, read_timeout_seconds=timedelta(seconds=0.5)
        )
        raise AssertionError("there was no time-out")
    except Exception as error:
        late = str(error)
    assert "imed out" in late, late
    found = await session.call_tool("wait_for_cell", {"session": name})
    assert found.structuredContent["text"] == "'late'\n"
    uri = f"kernelsvc://sessions/{made.structuredContent['session']}/notebook.ipynb"
    assert "nbformat" in (await session.read_resource(uri)).contents[0].text
    assert (await session.get_prompt("resume", {"session": name})).messages
    await session.call_tool("close_session", {"session": name})


async def main() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        streamablehttp_client(URL + "/mcp?facts=1", headers=headers) as (reading, writing, _),
        ClientSession(reading, writing) as session,
    ):
        await work(session, "old-http")
    env = {**os.environ, "KERNELSVC_URL": URL, "KERNELSVC_TOKEN": TOKEN, "PYTHONPATH": SOURCE}
    how = StdioServerParameters(command=PYTHON, args=["-m", "kernelsvc", "mcp", "--facts"], env=env)
    async with stdio_client(how) as (reading, writing), ClientSession(reading, writing) as session:
        await work(session, "old-stdio")


asyncio.run(main())
print("ok")
