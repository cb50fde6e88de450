"""``kernelsvc mcp``: the SDK's own client starts it, as a host would."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from served import QUICK, Served

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def started(log: Path, *words: str, env: dict[str, str], era: str = "legacy") -> AsyncIterator[Client]:
    """A client of a ``kernelsvc mcp`` of its own."""
    how = StdioServerParameters(command=sys.executable, args=["-m", "kernelsvc", "mcp", "--facts", *words], env=env)
    with log.open("w") as said:
        async with Client(stdio_client(how, errlog=said), mode=era) as client:
            yield client


# The newer protocol is that of the test below. A thorough run also has the client choose one.
@pytest.mark.parametrize("era", ["legacy", pytest.param("auto", marks=pytest.mark.thorough)])
async def test_it_works_on_a_server_that_runs(served: Served, tmp_path: Path, era: str):
    async with started(tmp_path / "log", env=served.client_env, era=era) as client:
        assert client.server_info.name == "kernelsvc"
        made = await client.call_tool("run_code", {"code": "import os\nx = 6\nprint(os.getcwd())"})
        assert not made.is_error, made
        session = made.structured_content["session"]
        assert (await client.call_tool("run_code", {"code": "x * 7"})).structured_content["text"] == "42\n"
        for name, content in (("a.txt", {"text": "héllo"}), ("empty", {"text": ""}), ("b.bin", {"base64": "AAE="})):
            assert not (await client.call_tool("upload_file", {"path": name, **content})).is_error
        read = {name: await client.call_tool("download_file", {"path": name}) for name in ("a.txt", "empty", "b.bin")}
        assert [each.content[0].text for each in read.values()] == ["héllo", "", "[base64] AAE="]
        piece = await client.call_tool("download_file", {"path": "a.txt", "offset": 3, "limit": 2})
        assert (piece.content[0].text[:2], piece.structured_content["size"]) == ("ll", 6)
        listed = (await client.call_tool("list_files", {})).structured_content["files"]
        assert {each["path"] for each in listed} == {"a.txt", "empty", "b.bin"}
        assert (await client.call_tool("download_file", {"path": "none"})).is_error
        (branch,) = (await client.call_tool("branch", {})).structured_content["sessions"]
        assert (await client.call_tool("run_code", {"code": "x", "session": branch["session"]})).content[0].text[
            0
        ] == "6"
        (notebook,) = (await client.read_resource(f"kernelsvc://sessions/{session}/notebook.py")).contents
        assert "x * 7" in notebook.text
    # It outlives the command: a later one goes on in it.
    async with started(tmp_path / "log", "--session", session, env=served.client_env, era=era) as client:
        again = (await client.call_tool("run_code", {"code": "x"})).structured_content
        assert (again["text"], again["session"]) == ("6\n", session)
        for each in (session, branch["session"]):
            await client.call_tool("close_session", {"session": each})


async def test_what_is_listened_to_is_told(served: Served, tmp_path: Path):
    async with started(tmp_path / "log", env=served.client_env, era="2026-07-28") as client:
        made = await client.call_tool("run_code", {"code": "x = 1"})
        session = made.structured_content["session"]
        uri = f"kernelsvc://sessions/{session}/notebook.ipynb"
        async with client.listen(resource_subscriptions=[uri]) as events, asyncio.timeout(30):
            await client.call_tool("run_code", {"code": "x += 1"})
            async for event in events:
                assert event.uri == uri
                break
        await client.call_tool("close_session", {"session": session})


async def test_with_no_server_it_has_one_of_its_own_and_keeps_the_record(tmp_path: Path, short_tmp: Path):
    nothing = {"KERNELSVC_DATA_DIR": str(tmp_path / "d"), "KERNELSVC_RUNTIME_DIR": str(short_tmp / "none"), **QUICK}
    async with started(tmp_path / "log", env=nothing) as client:
        made = (await client.call_tool("run_code", {"code": "print('kept')"})).structured_content
        # Two at once do not meet.
        async with started(tmp_path / "log2", env=nothing) as other:
            found = (await other.call_tool("list_sessions", {})).structured_content
            assert found == {"sessions": []}
    assert "kept" in (tmp_path / "d" / "mcp" / "1" / "sessions" / made["session"] / "notebook.ipynb").read_text()
    assert "stay in" in (tmp_path / "log").read_text()
    async with started(tmp_path / "log", env=nothing) as client:
        (notebook,) = (await client.read_resource(f"kernelsvc://sessions/{made['session']}/notebook.py")).contents
        assert "kept" in notebook.text
