"""A caller's trace on a real server: through each API into the log, the cell and its processes."""

from __future__ import annotations

import asyncio
import json

import pytest
import requests
import websockets
from http_server import Rpc
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from served import Served

from kernelsvc import AsyncClient, Client

SHOW = """import os, subprocess
run = subprocess.run("echo $TRACEPARENT $TRACESTATE", shell=True, text=True, capture_output=True)
print(run.stdout.strip(), os.environ.get("TRACEPARENT"))"""
HEADERS = {"Authorization": "Bearer test-token"}


def connect(served: Served, **headers: str):
    url = served.url.replace("http", "ws") + "/v1/ws"
    return websockets.connect(url, additional_headers={**HEADERS, **headers}, max_size=None, close_timeout=1)


async def rest(served, verb, path, headers=None, **more):
    headers = {**HEADERS, **(headers or {})}
    return await asyncio.to_thread(requests.request, verb, served.url + path, headers=headers, timeout=60, **more)


def parent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


@pytest.fixture
async def rpc(served):
    async with connect(served) as socket:
        yield Rpc(socket)


async def traces(served: Served, session: str) -> list[dict[str, str] | None]:
    """The traces of a session's cells in its log."""
    journal = (await rest(served, "GET", f"/v1/sessions/{session}/journal")).text.splitlines()
    return [event.get("trace") for event in map(json.loads, journal) if event["type"] == "cell_queued"]


async def test_a_trace_reaches_the_cell_and_its_processes_and_no_other_cell(served, rpc):
    session = (await rpc.call("session.create"))["id"]
    code = {"session": session, "code": SHOW}
    meta = {"traceparent": parent(1), "tracestate": "a=b", "baggage": "x=y", "progressToken": 1}
    numbers = [await rpc.send("session.execute", each) for each in ({**code, "_meta": meta}, code)]
    first, second = [(await rpc.answer(number))["result"] for number in numbers]
    assert first["text"] == f"{parent(1)} a=b {parent(1)}\n"
    assert second["text"] == " None\n"
    batch = await rpc.call(
        "session.batch",
        session=session,
        cells=[{"code": SHOW}, {"code": SHOW, "_meta": {"traceparent": parent(3)}}],
        _meta={"traceparent": parent(2)},
    )
    assert [cell["text"].split()[0] for cell in batch] == [parent(2), parent(3)]
    wrong = await rpc.call("session.execute", **code, _meta={"traceparent": "00-1", "tracestate": 5})
    assert wrong["text"] == " None\n"
    own = "import os\nos.environ['TRACEPARENT'] = 'mine'"
    await rpc.call("session.execute", session=session, code=own, _meta=meta)
    assert (await rpc.call("session.execute", **code))["text"] == "mine mine\n"
    assert await traces(served, session) == [
        {"parent": parent(1), "state": "a=b"},
        None,
        {"parent": parent(2)},
        {"parent": parent(3)},
        None,
        {"parent": parent(1), "state": "a=b"},
        None,
    ]
    await rpc.call("session.close", session=session)


async def test_the_header_of_a_request_is_the_trace_of_its_cells(served, rpc):
    session = (await rpc.call("session.create"))["id"]
    path, header = f"/v1/sessions/{session}/cells", {"traceparent": parent(4), "tracestate": "c=d"}
    cell = await rest(served, "POST", path, json={"code": SHOW}, headers=header)
    assert cell.json()["text"] == f"{parent(4)} c=d {parent(4)}\n"
    body = {"code": SHOW, "_meta": {"traceparent": parent(5)}}
    assert (await rest(served, "POST", path, json=body, headers=header)).json()["text"].startswith(parent(5))
    assert (await rest(served, "POST", path, json={"code": SHOW})).json()["text"] == " None\n"
    one_shot = await rest(served, "POST", "/v1/execute", json={"code": SHOW}, headers=header)
    assert one_shot.json()["text"].startswith(parent(4))
    await rpc.call("session.close", session=session)


async def test_the_header_of_a_connection_is_no_trace_of_its_requests(served):
    async with connect(served, traceparent=parent(6)) as socket:
        rpc = Rpc(socket)
        session = (await rpc.call("session.create"))["id"]
        await rpc.call("session.execute", session=session, code="1")
        assert await traces(served, session) == [None]
        await rpc.call("session.close", session=session)


async def test_mcp_carries_a_trace_in_meta(served):
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
    }
    meta = {
        "traceparent": parent(7),
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call = {"name": "run_code", "arguments": {"code": SHOW}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "run_code"}
    answer = await rest(served, "POST", "/mcp", headers=headers, json=body)
    assert parent(7) in answer.text, answer.text


async def test_jupyter_carries_a_trace_in_the_metadata_of_a_message(served):
    kernel = (await rest(served, "POST", "/api/kernels", json={})).json()["id"]
    url = served.url.replace("http", "ws") + f"/api/kernels/{kernel}/channels?token=test-token"
    header = {
        "msg_id": "m1",
        "msg_type": "execute_request",
        "username": "",
        "session": "x",
        "version": "5.3",
        "date": "",
    }
    content = {"code": "1", "silent": False, "allow_stdin": False}
    async with websockets.connect(url, close_timeout=1) as socket:
        message = {
            "channel": "shell",
            "header": header,
            "parent_header": {},
            "metadata": {"traceparent": parent(8)},
            "content": content,
            "buffers": [],
        }
        await socket.send(json.dumps(message))
        while json.loads(await socket.recv()).get("header", {}).get("msg_type") != "execute_reply":
            pass
    newest = (await rest(served, "GET", "/v1/sessions?limit=1")).json()["sessions"][0]["id"]
    assert await traces(served, newest) == [{"parent": parent(8)}]
    await rest(served, "DELETE", f"/api/kernels/{kernel}")


async def test_the_python_client_sends_the_current_span_or_the_given_trace(served):
    # As OpenTelemetry's SDK does: a span that is current in the calling task or thread.
    mine, given = (SpanContext(number, number, False, TraceFlags(1)) for number in (11, 12))
    carrier = {"traceparent": parent(12), "tracestate": "a=b"}
    async with AsyncClient(served.url, served.token) as client, await client.create_session() as session:
        with use_span(NonRecordingSpan(mine)):
            cells = [
                await session.run(SHOW),
                await session.run(SHOW, trace=carrier),
                *await session.batch([SHOW]),
                *await session.batch([SHOW], trace=carrier),
                await client.execute_once(SHOW),
                await client.execute_once(SHOW, trace=carrier),
            ]
            streams = [session.stream(SHOW), session.stream(SHOW, trace=carrier)]
        for stream in streams:  # its trace is that of the call
            async for _ in stream:
                pass
            cells.append(await stream.cell())
        cells.append(await session.run(SHOW))
    with (
        Client(served.url, served.token) as client,
        client.create_session() as session,
        use_span(NonRecordingSpan(given)),
    ):
        cells.append(await asyncio.to_thread(session.run, SHOW))
        for event in session.stream(SHOW, cell="streamed"):
            assert event.cell == "streamed"
        cells.append(session.cell("streamed"))
    current, chosen = f"{parent(11)} {parent(11)}", f"{parent(12)} a=b {parent(12)}"
    assert [" ".join(cell.text.split()) for cell in cells] == [
        *(current, chosen) * 4,
        "None",
        *[f"{parent(12)} {parent(12)}"] * 2,
    ]
