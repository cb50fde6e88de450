"""``/mcp`` on a real server, by the official SDK's own client, in both eras of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from served import Served, serving

from benchmarks.corpus import LEAK
from benchmarks.model_corpus import HOSTS
from kernelsvc.tools import CORE, TOOLS, ToolResult
from kernelsvc.tools.result import ImageContent, TextContent

ERAS = ("legacy", "2026-07-28")
JSON = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


@contextlib.asynccontextmanager
async def connected(served: Served, era: str, token: str | None = None) -> AsyncIterator[Client]:
    """The SDK's client."""
    headers = {"Authorization": f"Bearer {token or served.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(served.url + "/mcp?facts=1", http_client=http), mode=era) as client,
    ):
        yield client


@pytest.fixture(params=ERAS)
async def mcp(served: Served, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Calls a tool in a session of the test's own; ``mcp.client`` is the client."""

    async def run() -> None:
        async with connected(served, request.param) as client:
            ready.set_result(client)
            await over.wait()

    # The client's task groups must be left by the task that entered them, which a fixture does not promise.
    ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    running = asyncio.create_task(run())
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    client = ready.result()
    yield Calls(client, f"t{id(client)}")
    await client.call_tool("close_session", {"session": f"t{id(client)}"})
    over.set()
    await running


#: For tests of a tool's effect, which is the same in both eras of the protocol. Other tests check results, pictures,
#: errors, progress and cancelled calls in both eras. A thorough run also has these tests in both.
ONE_ERA = pytest.mark.parametrize("mcp", [ERAS[0], pytest.param(ERAS[1], marks=pytest.mark.thorough)], indirect=True)


class Calls:
    def __init__(self, client: Client, session: str) -> None:
        self.client, self.session = client, session

    async def __call__(self, tool: str, /, **arguments: Any) -> Any:
        result = await self.client.call_tool(tool, {"session": self.session, **arguments})
        for part in result.content:
            assert part.type != "text" or not LEAK.search(part.text), part.text
        return result

    async def text(self, tool: str, /, **arguments: Any) -> str:
        return "\n".join(part.text for part in (await self(tool, **arguments)).content if part.type == "text")


async def test_state_lives_across_calls_and_pictures_come_as_pictures(mcp):
    first = await mcp("run_code", code="x = 41\nprint('hi')\nx + 1")
    assert first.structured_content["text"] == "hi\n42\n"
    assert not first.is_error
    second = await mcp("run_code", code="import matplotlib.pyplot as plt\nplt.plot([1, x])\nplt.show()")
    (picture,) = [part for part in second.content if part.type == "image"]
    assert picture.mime_type == "image/png"
    assert picture.data.startswith("iVBOR")
    assert "x: int = 41" in await mcp.text("variables")


async def test_a_model_gets_text_and_pictures_and_no_second_form(served: Served):
    """Hosts show a model the structured content alone where there is some, so that it would lose text and pictures."""
    code = "import matplotlib.pyplot as plt\nprint('shown')\nplt.plot([1, 2])\nplt.show()"
    async with Client(streamable_http_client(f"{served.url}/t/{served.token}/mcp"), mode="legacy") as client:
        assert all(tool.output_schema is None for tool in (await client.list_tools()).tools)
        result = await client.call_tool("run_code", {"code": code, "session": "plain"})
        assert result.structured_content is None
        assert {part.type for part in result.content} == {"text", "image"}
        parts = [
            TextContent(part.text) if part.type == "text" else ImageContent(part.mime_type, part.data.encode())
            for part in result.content
        ]
        received = ToolResult(parts=parts, facts=result.structured_content, failed=bool(result.is_error))
        assert {rule(received) for rule in HOSTS.values()} == {("shown\n[picture 1]\n[1]", 1)}
        await client.call_tool("close_session", {"session": "plain"})


@pytest.mark.filterwarnings("ignore:resources/:mcp.shared.exceptions.MCPDeprecationWarning")
async def test_a_client_is_told_when_a_notebook_or_a_file_is_another_one(served: Served):
    told: asyncio.Queue[Any] = asyncio.Queue()
    headers = {"Authorization": f"Bearer {served.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(
            streamable_http_client(served.url + "/mcp?facts=1", http_client=http),
            mode="legacy",
            message_handler=told.put,
        ) as client,
    ):
        assert client.server_capabilities.resources.subscribe
        run = await client.call_tool("run_code", {"code": "x = 1"})
        session = run.structured_content["session"]
        notebook, file = (f"kernelsvc://sessions/{session}/{rest}" for rest in ("notebook.ipynb", "files/out.txt"))
        for uri in (notebook, notebook, file):
            await client.subscribe_resource(uri)
        await client.call_tool("run_code", {"code": "_ = open('out.txt', 'w').write('a')"})
        assert await uris(told, 2) == {notebook, file}
        await client.unsubscribe_resource(notebook)
        await client.call_tool("run_code", {"code": "_ = open('out.txt', 'w').write('b')"})
        assert await uris(told, 1) == {file}
        for wrong in ("kernelsvc://sessions/s_0000000000000000/notebook.ipynb", "kernelsvc://sessions/x", "other://x"):
            with pytest.raises(MCPError):
                await client.subscribe_resource(wrong)
        await client.call_tool("close_session", {"session": session})


async def uris(told: asyncio.Queue[Any], count: int) -> set[str]:
    """Which resources are told of, until that many are."""
    found: set[str] = set()
    async with asyncio.timeout(30):
        while len(found) < count:
            message = await told.get()
            if getattr(message, "method", "") == "notifications/resources/updated":
                found.add(str(message.params.uri))
    return found


async def test_a_client_of_the_later_era_listens(served: Served):
    async with connected(served, "2026-07-28") as client:
        run = await client.call_tool("run_code", {"session": "listened", "code": "x = 1"})
        session = run.structured_content["session"]
        notebook = f"kernelsvc://sessions/{session}/notebook.ipynb"
        async with client.listen(resource_subscriptions=[notebook], resources_list_changed=True) as events:
            await client.call_tool("run_code", {"session": session, "code": "x += 1"})
            await client.call_tool("run_code", {"session": "more", "code": "1"})
            seen: set[str] = set()
            async with asyncio.timeout(30):
                async for event in events:
                    seen.add(type(event).__name__)
                    if len(seen) == 2:
                        break
        assert seen == {"ResourceUpdated", "ResourcesListChanged"}
        with pytest.raises(MCPError):
            async with client.listen(resource_subscriptions=["kernelsvc://sessions/s_0000000000000000/notebook.py"]):
                pass
        for each in (session, "more"):
            await client.call_tool("close_session", {"session": each})


async def test_a_host_that_can_send_no_header_has_the_token_in_the_address(served: Served):
    async with Client(streamable_http_client(f"{served.url}/t/{served.token}/mcp?facts=1"), mode="legacy") as client:
        run = await client.call_tool("run_code", {"code": "6 * 7"})
        assert run.structured_content["text"] == "42\n"
        await client.call_tool("close_session", {"session": run.structured_content["session"]})
    async with httpx2.AsyncClient() as http:
        assert (await http.post(f"{served.url}/t/wrong/mcp", headers=JSON, json={})).status_code == 401
    assert served.token not in served.output()


async def test_every_tool_is_listed_with_its_schemas(mcp):
    tools = {tool.name: tool for tool in (await mcp.client.list_tools()).tools}
    assert set(tools) == set(TOOLS)
    assert tools["variables"].annotations.read_only_hint
    assert tools["run_code"].output_schema["required"] == ["session", "cell", "state", "text"]


async def test_a_long_cell_tells_of_progress_and_is_picked_up_again(mcp):
    said: list[tuple[float, str | None]] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        said.append((value, message))

    code = "import time\nfor i in range(25):\n    print('step', i, flush=True)\n    time.sleep(0.1)\n'end'"
    arguments = {"session": mcp.session, "code": code, "wait_seconds": 1.5}
    half = await mcp.client.call_tool("run_code", arguments, progress_callback=progress)
    assert half.structured_content["state"] == "running"
    assert not half.is_error
    assert said[0][1].startswith("step ")
    whole = await mcp("wait_for_cell", cell=half.structured_content["cell"])
    assert whole.structured_content["text"].endswith("step 24\n'end'\n")
    assert (await mcp("wait_for_cell")).structured_content == whole.structured_content


async def test_a_call_whose_client_gave_up_goes_on(mcp):
    await mcp("run_code", code="n = 0")
    with pytest.raises(MCPError, match="timed out"):
        await mcp.client.call_tool(
            "run_code",
            {"session": mcp.session, "code": "import time\ntime.sleep(2)\nn += 1\nn"},
            read_timeout_seconds=0.5,
        )
    found = await mcp("wait_for_cell")
    assert found.structured_content["text"] == "1\n"


async def test_errors_tell_the_next_step(mcp):
    failed = await mcp("run_code", code="1/0")
    assert failed.is_error
    assert failed.structured_content["error"] == {"ename": "ZeroDivisionError", "evalue": "division by zero"}
    assert "run_code" in await mcp.text("variables", session="nobodys")
    assert "list_sessions" in await mcp.text("run_code", session="s_0123456789abcdef", code="1")
    assert "unknown field `cod`" in await mcp.text("run_code", cod="1")
    assert "data.csv" in await mcp.text("upload_file", path="", text="x")
    assert (await mcp("download_file", path="../../etc/passwd")).is_error
    with pytest.raises(MCPError, match="run_code"):
        await mcp("run_cobol")


@ONE_ERA
async def test_a_crash_says_so_and_keeps_the_variables(mcp):
    await mcp("run_code", code="kept = 7")
    await mcp("checkpoint", name="before")
    crashed = await mcp("run_code", code="import os\nos.kill(os.getpid(), 9)")
    assert crashed.is_error
    assert crashed.structured_content["reason"] == "kernel_died"
    assert crashed.structured_content["variables_kept"] is True
    assert (await mcp("run_code", code="kept")).structured_content["text"] == "7\n"


@ONE_ERA
async def test_interrupt_restart_rollback_and_branch(mcp):
    await mcp("run_code", code="x = 1")
    await mcp("checkpoint", name="one")
    await mcp("run_code", code="x = 2")
    await mcp("rollback", to="one")
    assert (await mcp("run_code", code="x")).structured_content["text"] == "1\n"
    made = (await mcp("branch", count=2)).structured_content["sessions"]
    for number, each in enumerate(made):
        found = await mcp("run_code", session=each["session"], code=f"x + {number}")
        assert found.structured_content["text"] == f"{1 + number}\n"
        await mcp("close_session", session=each["session"])
    await mcp("run_code", code="import time\ntime.sleep(60)", wait_seconds=0.2)
    await mcp("interrupt")
    assert (await mcp("wait_for_cell")).structured_content["reason"] == "interrupted"
    await mcp("restart")
    assert (await mcp("run_code", code="x")).structured_content["error"]["ename"] == "NameError"


@ONE_ERA
async def test_output_is_bounded_and_each_gap_can_be_read(mcp):
    code = (
        "print('start')\nprint('late', file=__import__('sys').stderr)\nprint(' '.join(f'n{k}' for k in range(30_000)))"
    )
    shown = await mcp.text("run_code", code=code, budget=500)
    assert len(shown) < 3000
    first, last = map(int, re.findall(r"\[… lines (\d+)–(\d+) …\]", shown)[0])
    number = int(re.findall(r"\[(\d+)\]$", shown)[0])
    page = await mcp.text("read_output", cell=number, from_line=first, lines=1)
    assert re.fullmatch(rf"[n\d ]{{2000}}\n\[{number} lines {first}–{first} of {last + 1}; the next .*\]", page)
    assert f"{last + 1}: " in await mcp.text("read_output", find="n29999")
    # As earlier versions read it.
    assert await mcp.text("read_output", cell=number, name="stderr") == "late\n"
    assert (await mcp("read_output", cell=number, offset=2, limit=2)).structured_content["next_offset"] == 4


@ONE_ERA
async def test_waiting_returns_what_is_new(mcp):
    wait = "while not __import__('os').path.exists('go'): time.sleep(0.05)"
    code = f"import time\nprint('first')\nprint('second')\n{wait}\n'end'"
    half = await mcp.text("run_code", code=code, wait_seconds=1.5)
    assert "first" in half
    assert "first" not in await mcp.text("wait", seconds=0)
    await mcp("write_file", path="go", text="")
    whole = await mcp.text("wait")
    assert "first" not in whole
    assert "'end'" in whole
    assert "first" in await mcp.text("wait")


@ONE_ERA
async def test_the_tools_by_their_new_names(mcp):
    await mcp("run_code", code="x = 1")
    await mcp("keep", name="one")
    await mcp("run_code", code="x = 2")
    await mcp("undo", cell=2)
    assert (await mcp.text("run_code", code="x")).startswith("1\n")
    await mcp("undo", to="one")
    (copy,) = (await mcp("fork", from_kept="one")).structured_content["sessions"]
    assert (await mcp.text("run_code", session=copy["session"], code="x")).startswith("1\n")
    assert not (await mcp.client.call_tool("sessions", {"close": copy["session"]})).is_error
    await mcp("write_file", path="d/a.txt", text="one\ntwo\nthree\n")
    assert "a.txt" in await mcp.text("read_file", path="d")
    assert await mcp.text("read_file", path="d/a.txt") == "one\ntwo\nthree\n"
    assert (await mcp.text("read_file", path="d/a.txt", find="t[wh]")).startswith("2: two\n3: three\n")
    assert (await mcp.text("read_file", path="d/a.txt", from_line=2, lines=1)).startswith("two\n")
    assert (await mcp("export_notebook", path="n.ipynb")).structured_content["path"] == "n.ipynb"
    assert not (await mcp.client.call_tool("sessions", {"restart": mcp.session})).is_error
    assert (await mcp("run_code", code="x")).structured_content["error"]["ename"] == "NameError"


async def test_the_listed_tools_can_be_chosen_and_name_the_packages(served: Served):
    async with Client(streamable_http_client(f"{served.url}/t/{served.token}/mcp?tools=core"), mode="legacy") as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == [*CORE]
        assert "Installed: numpy, pandas, matplotlib" in tools[0].description
    async with Client(
        streamable_http_client(f"{served.url}/t/{served.token}/mcp?tools=nothing"), mode="legacy"
    ) as client:
        with pytest.raises(MCPError, match="Choose core, all"):
            await client.list_tools()


async def test_files_and_records_as_tools_and_as_resources(mcp):
    await mcp("upload_file", path="data/in.csv", text="a,b\n1,2\n")
    await mcp("upload_file", path="raw.bin", base64="AAEC/w==")
    assert (await mcp("run_code", code="len(open('data/in.csv').read())")).structured_content["text"] == "8\n"
    listed = (await mcp("list_files", recursive=True)).structured_content["files"]
    assert {each["path"] for each in listed} == {"data", "data/in.csv", "raw.bin"}
    assert await mcp.text("download_file", path="data/in.csv") == "a,b\n1,2\n"
    assert await mcp.text("download_file", path="raw.bin") == "[base64] AAEC/w=="
    piece = await mcp("download_file", path="data/in.csv", limit=4)
    assert piece.structured_content["next_offset"] == 4
    await mcp("run_code", code="plt = __import__('matplotlib.pyplot').pyplot\nplt.plot([1])\nplt.savefig('p.png')")
    assert [part.type for part in (await mcp("download_file", path="p.png")).content] == ["text", "image"]

    exported = await mcp("export_notebook", save_as="out.ipynb")
    (link,) = [part for part in exported.content if part.type == "resource_link"]
    (notebook,) = (await mcp.client.read_resource(link.uri)).contents
    assert json.loads(notebook.text)["nbformat"] == 4
    session = exported.structured_content["session"]
    (read,) = (await mcp.client.read_resource(f"kernelsvc://sessions/{session}/files/data/in.csv")).contents
    assert read.text == "a,b\n1,2\n"
    (raw,) = (await mcp.client.read_resource(f"kernelsvc://sessions/{session}/files/raw.bin")).contents
    assert raw.blob == "AAEC/w=="
    assert link.uri in {each.uri for each in (await mcp.client.list_resources()).resources}
    templates = (await mcp.client.list_resource_templates()).resource_templates
    assert any("{+path}" in each.uri_template for each in templates)
    for uri in (f"kernelsvc://sessions/{session}/files/none", "kernelsvc://sessions/", "file:///etc/passwd"):
        with pytest.raises(MCPError):
            await mcp.client.read_resource(uri)


async def test_prompts(mcp):
    assert {each.name for each in (await mcp.client.list_prompts()).prompts} == {"analyse", "compare", "resume"}
    got = await mcp.client.get_prompt("resume", {"session": "mine"})
    assert "session mine" in got.messages[0].content.text
    with pytest.raises(MCPError, match="needs the argument"):
        await mcp.client.get_prompt("resume", {})


async def test_without_a_name_each_connection_has_a_session_of_its_own(served: Served):
    async with connected(served, "legacy") as one, connected(served, "legacy") as other:
        mine = (await one.call_tool("run_code", {"code": "mine = 1"})).structured_content["session"]
        theirs = (await other.call_tool("run_code", {"code": "'mine' in dir()"})).structured_content
        assert theirs["text"] == "False\n"
        again = (await one.call_tool("run_code", {"code": "mine"})).structured_content
        assert (again["text"], again["session"]) == ("1\n", mine)
        # By its id, another connection of the same principal goes on in it.
        shared = await other.call_tool("run_code", {"code": "mine + 1", "session": mine})
        assert shared.structured_content["text"] == "2\n"
        await one.call_tool("close_session", {"session": mine})
        after = (await one.call_tool("run_code", {"code": "'mine' in dir()"})).structured_content
        assert "has ended" in after["note"]
        for session in (theirs["session"], after["session"]):
            await one.call_tool("close_session", {"session": session})


async def test_a_name_is_found_again_by_a_later_connection(served: Served):
    async with connected(served, "legacy") as one:
        await one.call_tool("run_code", {"code": "y = 5", "session": "later"})
    async with connected(served, "2026-07-28") as other:
        found = await other.call_tool("run_code", {"code": "y", "session": "later"})
        assert found.structured_content["text"] == "5\n"
        await other.call_tool("close_session", {"session": "later"})


# --- the way in ---------------------------------------------------------------------------------


def first_message(version: str = "2025-11-25") -> dict[str, Any]:
    client = {"name": "t", "version": "1"}
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


async def send(served: Served, headers: dict[str, str], verb: str = "POST", body: Any = None) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=30) as http:
        content = json.dumps(first_message() if body is None else body) if verb == "POST" else None
        return await http.request(verb, served.url + "/mcp", headers=JSON | headers, content=content)


@pytest.mark.parametrize("token", [None, "wrong"])
@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE"])
async def test_it_is_closed_without_a_token(served: Served, verb, token):
    answer = await send(served, {"Authorization": f"Bearer {token}"} if token is not None else {}, verb)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthenticated"


async def test_a_foreign_page_is_refused_also_when_it_has_our_host_name(served: Served):
    mine = {"Authorization": f"Bearer {served.token}"}
    port = served.url.rpartition(":")[2]
    for headers in (
        {"Origin": "https://evil.example"},
        # DNS rebinding: the page's own name now leads to us, and so the two agree.
        {"Origin": f"http://evil.example:{port}", "Host": f"evil.example:{port}"},
    ):
        assert (await send(served, mine | headers)).status_code == 403
    for origin in (served.url, None):
        answer = await send(served, mine | ({"Origin": origin} if origin else {}))
        assert answer.status_code == 200
        left = await send(served, mine | {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}, "DELETE")
        assert left.status_code == 200


async def test_another_principals_connection_and_sessions_do_not_exist(tmp_path: Path, short_tmp: Path):
    config = tmp_path / "kernelsvc.toml"
    digest = hashlib.sha256(b"eves-token").hexdigest()
    other = hashlib.sha256(b"other-token").hexdigest()
    config.write_text(
        f'[[tokens]]\nname = "eve"\nsha256 = "{digest}"\nscopes = ["read"]\n'
        f'[[tokens]]\nname = "bob"\nsha256 = "{other}"\n'
    )
    with serving(short_tmp / "mcp", "--config", str(config)) as served:
        async with connected(served, "legacy") as mine, connected(served, "legacy", "other-token") as bob:
            assert not (await mine.call_tool("run_code", {"code": "1", "session": "mine"})).is_error
            (made,) = [each["id"] for each in served.call("GET", "/v1/sessions")["sessions"]]
            refused = await bob.call_tool("run_code", {"code": "1", "session": made})
            assert refused.is_error
            assert "not_found" in refused.content[0].text
            assert (await bob.list_resources()).resources == []
            with pytest.raises(MCPError):
                await bob.read_resource(f"kernelsvc://sessions/{made}/notebook.ipynb")
        async with connected(served, "legacy", "eves-token") as eve:
            refused = await eve.call_tool("run_code", {"code": "1"})
            assert "forbidden" in refused.content[0].text
            assert not (await eve.call_tool("list_sessions", {})).is_error
        opened = await send(served, {"Authorization": f"Bearer {served.token}"})
        stolen = {"Authorization": "Bearer other-token", "Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
        assert (await send(served, stolen, body=body)).status_code == 404


async def test_a_broken_stream_is_resumed_by_its_last_event(served: Served):
    mine = JSON | {"Authorization": f"Bearer {served.token}"}
    url = served.url + "/mcp"
    async with httpx2.AsyncClient(timeout=30) as http:
        opened = await http.post(url, headers=mine, content=json.dumps(first_message()))
        mine |= {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "Mcp-Protocol-Version": "2025-11-25"}
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await http.post(url, headers=mine, content=json.dumps(told))).status_code == 202
        arguments = {"code": "import time\ntime.sleep(1)\n'whole'", "session": "resumed"}
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}
        call["params"] = {"name": "run_code", "arguments": arguments, "_meta": {"progressToken": 1}}
        async with http.stream("POST", url, headers=mine, content=json.dumps(call)) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    last = line.removeprefix("id: ")
                    break
        async with http.stream("GET", url, headers=mine | {"Last-Event-ID": last}) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and '"id":7' in line:
                    assert "'whole'" in line
                    break
        close = {"jsonrpc": "2.0", "id": 8, "method": "tools/call"}
        close["params"] = {"name": "close_session", "arguments": {"session": "resumed"}}
        await http.post(url, headers=mine, content=json.dumps(close))
        assert (await http.delete(url, headers=mine)).status_code == 200
        assert (await http.post(url, headers=mine, content=json.dumps(call))).status_code == 404


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "[" * 5000, '{"jsonrpc":"2.0"}', '{"jsonrpc":"2.0","id":1,"method":7}']
)
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28", "1999-01-01"])
async def test_nonsense_is_refused(served: Served, body, version):
    headers = JSON | {"Authorization": f"Bearer {served.token}", "Mcp-Protocol-Version": version}
    async with httpx2.AsyncClient(timeout=30) as http:
        answer = await http.post(served.url + "/mcp", headers=headers, content=body)
    assert 400 <= answer.status_code < 500, answer.text


def test_the_servers_start_imports_no_sdk():
    code = (
        "import sys, kernelsvc.cli.serve, kernelsvc.server.app; print([m for m in sys.modules if m in"
        " ('mcp', 'mcp_types', 'pydantic', 'starlette', 'httpx2')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
