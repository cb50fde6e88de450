"""``exit()`` through every API: the cell ends and says so once, and the next cell finds the variables."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import nbformat
import pytest
import websockets
from http_server import Rpc
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from served import Served, serving

from kernelsvc import Client
from kernelsvc.guest.exit_calls import NOTE
from kernelsvc.integrations import Tools, anthropic

EXITS = "x = 41; exit()"
AFTER = "print(f'found {x}')"


async def websocket(served: Served) -> list[str]:
    headers = {"Authorization": f"Bearer {served.token}"}
    async with websockets.connect(served.url.replace("http", "ws") + "/v1/ws", additional_headers=headers) as socket:
        rpc = Rpc(socket)
        session = (await rpc.call("session.create"))["id"]
        cells = [await rpc.call("session.execute", session=session, code=code) for code in (EXITS, AFTER)]
        await rpc.call("session.close", session=session)
    assert (cells[0]["reason"], cells[0]["error"]["ename"], cells[0]["error"]["evalue"]) == ("error", "SystemExit", "")
    return [cell["text"] for cell in cells]


async def rest(served: Served) -> list[str]:
    return await asyncio.to_thread(_rest, served)


def _rest(served: Served) -> list[str]:
    path = f"/v1/sessions/{served.call('POST', '/v1/sessions', {})['id']}"
    found = [json.dumps(served.call("POST", f"{path}/cells", {"code": code})["text"]) for code in (EXITS, AFTER)]
    notebook = nbformat.reads(json.dumps(served.call("GET", f"{path}/notebook")), 4)
    outputs = [json.dumps(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert [text.count(NOTE) for text in outputs] == [1, 0]
    served.call("DELETE", path)
    return found


async def events(served: Served) -> list[str]:
    return await asyncio.to_thread(_events, served)


def _events(served: Served) -> list[str]:
    path = f"/v1/sessions/{served.call('POST', '/v1/sessions', {})['id']}"
    headers = {"Accept": "text/event-stream"}
    found = [_read(served, "POST", f"{path}/cells", {"code": code}, headers) for code in (EXITS, AFTER)]
    served.call("DELETE", path)
    return ["".join(line for line in text.splitlines() if '"cell_finished"' not in line) for text in found]


def _read(served: Served, method: str, path: str, body: Any, headers: dict[str, str]) -> str:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    try:
        said = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/json", **headers}
        connection.request(method, path, json.dumps(body), said)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


async def mcp(served: Served) -> list[str]:
    headers = {"Authorization": f"Bearer {served.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http_client,
        McpClient(streamable_http_client(served.url + "/mcp", http_client=http_client), mode="legacy") as client,
    ):
        said = [await client.call_tool("run_code", {"session": "leaver", "code": code}) for code in (EXITS, AFTER)]
        await client.call_tool("close_session", {"session": "leaver"})
    assert [answer.is_error for answer in said] == [True, False]
    return ["".join(part.text for part in answer.content if part.type == "text") for answer in said]


async def function_calling(served: Served) -> list[str]:
    return await asyncio.to_thread(_function_calling, served)


def _function_calling(served: Served) -> list[str]:
    found = []
    with Tools(served.url, served.token, session="caller") as tools:
        for code in (EXITS, AFTER):
            call = {"type": "tool_use", "id": "t", "name": "run_code", "input": {"code": code}}
            (message,) = anthropic.run(tools, {"content": [call]})
            found.append("".join(part["text"] for part in message["content"][0]["content"]))
        tools.call("close_session", {"session": "caller"})
    return found


async def e2b(served: Served) -> list[str]:
    return await asyncio.to_thread(_e2b, served)


def _e2b(served: Served) -> list[str]:
    key = {"X-API-KEY": served.token}
    box = json.loads(_read(served, "POST", "/v2/sandboxes", {"templateID": "base"}, key))
    headers = {
        "E2b-Sandbox-Id": box["sandboxID"],
        "E2b-Sandbox-Port": "49999",
        "E2B-Traffic-Access-Token": box["trafficAccessToken"],
    }
    found = [_read(served, "POST", "/execute", {"code": code}, headers) for code in (EXITS, AFTER)]
    lines = [json.loads(line) for line in found[0].splitlines()]
    assert [line["name"] for line in lines if line["type"] == "error"] == ["SystemExit"]
    _read(served, "DELETE", f"/sandboxes/{box['sandboxID']}", None, key)
    return found


async def jupyter(served: Served) -> list[str]:
    kernel = (await asyncio.to_thread(served.call, "POST", "/api/kernels"))["id"]
    url = f"{served.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={served.token}&session_id=me"
    found = []
    async with websockets.connect(url) as socket, asyncio.timeout(60):
        for code in (EXITS, AFTER):
            header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "me", "version": "5.4"}
            message = {"channel": "shell", "header": {**header, "username": ""}, "parent_header": {}, "metadata": {}}
            await socket.send(json.dumps({**message, "content": {"code": code}}))
            shown = ""
            while True:
                heard = json.loads(await socket.recv())
                if heard["parent_header"].get("msg_id") != header["msg_id"]:
                    continue
                if heard["msg_type"] in ("stream", "error"):
                    shown += json.dumps(heard["content"])
                if heard["msg_type"] == "execute_reply":
                    assert heard["content"]["payload"] == []
                    assert (heard["content"].get("ename") == "SystemExit") == (code == EXITS)
                if heard["content"].get("execution_state") == "idle":
                    break
            found.append(shown)
    await asyncio.to_thread(served.call, "DELETE", f"/api/kernels/{kernel}")
    return found


async def sandboxai(served: Served) -> list[str]:
    return await asyncio.to_thread(_sandboxai, served)


def _sandboxai(served: Served) -> list[str]:
    base = "/v1/spaces/default/sandboxes"
    made = json.loads(_read(served, "POST", base, {"spec": {"image": "box:1"}}, {}))
    path = f"{base}/{made['name']}"
    tool = f"{path}/tools:run_ipython_cell"
    found = [_read(served, "POST", tool, {"code": code}, {}) for code in (EXITS, AFTER)]
    _read(served, "DELETE", path, None, {})
    return found


async def command_line(served: Served) -> list[str]:
    return await asyncio.to_thread(_command_line, served)


def _command_line(served: Served) -> list[str]:
    with Client(served.url, served.token) as client, client.create_session() as session:
        argv = [sys.executable, "-m", "kernelsvc", "run", "-", "--session", session.id]
        more: dict[str, Any] = {"env": served.client_env, "text": True, "capture_output": True, "timeout": 60}
        ran = [subprocess.run(argv, input=code, check=False, **more) for code in (EXITS, AFTER)]
    assert [done.returncode for done in ran] == [1, 0]
    return [done.stdout + done.stderr for done in ran]


#: The same in the short form for models.
MODEL_NOTE = "the session and its variables go on"

APIS: list[Callable[[Served], Coroutine[Any, Any, list[str]]]] = [
    websocket,
    rest,
    events,
    mcp,
    function_calling,
    e2b,
    jupyter,
    sandboxai,
    command_line,
]


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.__name__)
async def test_an_exit_is_said_once_and_the_next_cell_finds_the_variables(served: Served, api: Any) -> None:
    first, second = await api(served)
    # The journal holds both forms of an error, every other API shows one.
    assert max(first.count(NOTE), first.count(MODEL_NOTE)) == 1, first
    assert "found 41" in second
    assert NOTE not in second


@pytest.mark.parametrize(("on_error", "then"), [("stop", "cancelled"), ("continue", "ok")])
@pytest.mark.parametrize("code", [EXITS, "import sys; x = 41; sys.exit(0)"])
def test_an_exit_is_an_error_for_what_is_queued(served: Served, on_error: str, then: str, code: str) -> None:
    path = f"/v1/sessions/{served.call('POST', '/v1/sessions', {})['id']}"
    cells = [{"code": code}, {"code": AFTER}]
    ran = served.call("POST", f"{path}/cells", {"cells": cells, "on_error": on_error})
    assert [cell["reason"] for cell in ran] == ["error", then]
    served.call("DELETE", path)


def test_a_session_is_closed_restarted_and_hibernated_as_ever(served: Served) -> None:
    with Client(served.url, served.token) as client, client.create_session() as session:
        assert session.run(EXITS).error.ename == "SystemExit"
        session.hibernate()
        assert session.run(AFTER).text == "found 41\n"
        session.restart()
        assert session.run(AFTER).error.ename == "NameError"
        assert session.run("exit()").error.ename == "SystemExit"


def test_a_cold_kernel_that_exits_ends_with_its_cell(short_tmp: Path) -> None:
    spec = short_tmp / "leaving" / "kernels" / "other"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.joinpath("kernel.json").write_text(json.dumps({"argv": argv, "display_name": "O", "language": "python"}))
    with (
        serving(short_tmp / "leavers", env={"JUPYTER_PATH": str(short_tmp / "leaving")}) as served,
        Client(served.url, served.token) as client,
        client.create_session(template="other") as session,
    ):
        gone = session.run(EXITS)
        assert (gone.reason, gone.variables_kept) == ("kernel_died", False)
        assert "The cell asked for the end of the kernel" in (gone.message or "")
        assert "variables are lost" in (gone.message or "")
        assert session.run("1 + 1").text == "2\n"
        assert session.run(AFTER).error.ename == "NameError"
