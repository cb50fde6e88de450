"""The APIs in front of the real service: what a plain client sees, as ``api.md`` writes it."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
from pathlib import Path

import pytest
import requests
import websockets
from http_server import Rpc
from served import OTHER_PRINCIPAL, Served, serving

from kernelsvc.client import AsyncClient
from kernelsvc.model import events as ev

HEADERS = {"Authorization": "Bearer test-token"}


def connect(served: Served, token: str = "test-token", **more):
    url = served.url.replace("http", "ws") + "/v1/ws"
    headers = {"Authorization": f"Bearer {token}"}
    return websockets.connect(url, additional_headers=headers, compression=None, max_size=None, close_timeout=1, **more)


@pytest.fixture
async def rpc(served):
    async with connect(served) as socket:
        yield Rpc(socket)


@pytest.fixture
async def session(rpc):
    id = (await rpc.call("session.create"))["id"]
    yield id
    await rpc.call("session.close", session=id)


async def rest(served, verb, path, **more):
    headers = {**HEADERS, **more.pop("headers", {})}
    return await asyncio.to_thread(requests.request, verb, served.url + path, headers=headers, timeout=60, **more)


async def test_stream_journal_and_pages_are_the_same_bytes(served, rpc, session):
    code = "print('a')\nfrom IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\n1/0"
    cell = await rpc.call("session.execute", session=session, code=code)
    assert (cell["reason"], cell["error"]["ename"]) == ("error", "ZeroDivisionError")
    last = cell["seq"]["last"]
    live = [event for event in rpc.events(session) if event["seq"] <= last]
    assert [event["seq"] for event in live] == list(range(1, last + 1))
    journal = (await rest(served, "GET", f"/v1/sessions/{session}/journal")).text.splitlines()
    page = (await rest(served, "GET", f"/v1/sessions/{session}/events")).json()["events"]
    stream = await rest(
        served, "GET", f"/v1/sessions/{session}/events?follow=false", headers={"Accept": "text/event-stream"}
    )
    data = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert live == [json.loads(line) for line in journal][:last] == page[:last] == data[:last]


@pytest.mark.timeout(180)
async def test_a_view_is_the_same_by_each_way_and_reads_what_is_cut(served, rpc, session):
    code = "print('\\n'.join(f'{k} ' + 'x' * (k % 200) for k in range(30_000)))\n'the value'"
    cell = await rpc.call("session.execute", session=session, code=code)
    assert "characters of output left out" in cell["text"]
    view = await rpc.call("session.view", session=session, budget=500)
    assert (view["number"], view["lines"], view["cell"]) == (1, 30_001, cell["id"])
    assert view["text"].startswith("0 \n1 x\n2 xx\n")
    assert view["text"].endswith("\n[1]")
    for name in (cell["id"], "1"):
        path = f"/v1/sessions/{session}/cells/{name}/view"
        assert (await rest(served, "GET", f"{path}?budget=500")).json() == view
    async with AsyncClient(served.url, served.token) as client:
        same = await client.session(session)
        assert (await same.view(1, budget=500)).text == view["text"]
        page = (await same.view(cell["id"], from_line=15_000, lines=2)).text
        assert page.startswith(f"14999 {'x' * 199}\n15000 \n[1 lines 15000–15001 of 30001; the next")
        assert (await same.view(find="^25000 ")).text.startswith("25001: 25000 \n")
    for wrong in ({"cell": "2"}, {"cell": "0"}, {"budget": 5}, {"find": "(a+)+"}):
        answer = await rpc.refused("session.view", session=session, **wrong)
        assert answer["code"] in ("not_found", "bad_request"), answer


async def test_the_text_of_an_answer_is_as_short_as_the_request_says_by_each_way(served, rpc, session):
    cell = {"code": "print('ab' * 5000)", "max_text": 100}
    short = "ab" * 25 + "\n[… 9,901 characters left out …]\n" + "b" + "ab" * 24 + "\n"
    assert (await rpc.call("session.execute", session=session, **cell))["text"] == short
    answers = await rpc.call("session.batch", session=session, cells=[cell, {"code": "print('cd' * 100)"}])
    assert [one["text"] for one in answers] == [short, "cd" * 100 + "\n"]
    path = f"/v1/sessions/{session}/cells"
    assert (await rest(served, "POST", path, json=cell)).json()["text"] == short
    async with AsyncClient(served.url, served.token) as client:
        run = (await client.session(session)).run
        assert (await run(cell["code"], max_text=100)).text == short
        assert (await run("print('short')", max_text=100)).text == "short\n"
    assert (await rpc.refused("session.execute", session=session, code="1", max_text=-1))["code"] == "bad_request"


async def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(served, rpc, session):
    running = await rpc.send("session.execute", {"session": session, "code": "for n in range(5000): print(n)"})
    seen: list[dict] = []
    while True:
        async with connect(served) as socket:
            reader = Rpc(socket)
            await reader.call("session.attach", session=session, after=seen[-1]["seq"] if seen else 0)
            while len(reader.events(session)) < 40:
                await reader.hear()
                if reader.events(session) and reader.events(session)[-1]["type"] == "cell_finished":
                    break
            seen += reader.events(session)
        if seen[-1]["type"] == "cell_finished":
            break
    await rpc.answer(running)
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    text = "".join(event["text"] for event in seen if event["type"] == "stream")
    assert text.split() == [str(n) for n in range(5000)]


async def test_files_go_to_the_cell_and_come_from_it(served, rpc, session):
    base = f"/v1/sessions/{session}/files/"
    assert (await rest(served, "PUT", base + "in/data.csv", data=b"a,b\n1,2\n")).status_code == 201
    code = (
        "import os\nprint(open('in/data.csv').read())\nopen('in/out.txt', 'w').write('made')\nos.remove('in/data.csv')"
    )
    cell = await rpc.call("session.execute", session=session, code=code)
    assert cell["reason"] == "ok", cell["text"]
    assert (await rest(served, "GET", base + "in/out.txt")).text == "made"
    assert (await rest(served, "GET", base + "in/data.csv")).status_code == 404
    listed = (await rest(served, "GET", base + "?recursive=true")).json()["files"]
    assert "in/out.txt" in [entry["path"] for entry in listed]
    changes = [event for event in rpc.events(session) if event["type"] == "files_changed"]
    assert changes[0]["files"][0]["path"] == "in/data.csv"


async def test_a_hostile_directory_gives_away_nothing(served, rpc, session):
    secret = Path(served.root) / "secret.txt"
    secret.write_text("the secret")
    code = f"""
import os
os.symlink({str(secret)!r}, 'link')
os.symlink({str(secret.parent)!r}, 'dir')
os.symlink('/proc/self/environ', 'environ')
os.mkfifo('fifo')
open('new\\nline', 'w').write('odd')
open(b'\\xff\\xfe', 'w').write('odd')
"""
    cell = await rpc.call("session.execute", session=session, code=code)
    assert cell["reason"] == "ok", cell["text"]
    base = f"/v1/sessions/{session}/files/"
    for name in ("link", "dir/secret.txt", "environ", "fifo"):
        answer = await asyncio.wait_for(rest(served, "GET", base + name), 10)
        assert answer.status_code in (400, 404), name
        assert "the secret" not in answer.text
    assert (await rest(served, "PUT", base + "dir/planted", data=b"x")).status_code == 400
    assert not (secret.parent / "planted").exists()
    plain = [entry for entry in (await rest(served, "GET", base)).json()["files"] if entry["kind"] == "file"]
    assert len(plain) == 2
    for entry in plain:
        assert (await rest(served, "GET", base + entry["url"])).text == "odd"


async def test_ten_thousand_queued_cells_are_bounded_and_nothing_else_suffers(rpc, served):
    session = (await rpc.call("session.create", attach=False))["id"]
    first = await rpc.send(
        "session.execute", {"session": session, "code": "input()", "allow_stdin": True, "wait": "queued"}
    )
    await rpc.answer(first)
    codes = []
    for _ in range(10):
        batch = {"session": session, "cells": [{"code": "1"}] * 1000, "wait": "queued"}
        message = await rpc.answer(await rpc.send("session.batch", batch))
        codes.append(message.get("error", {}).get("data", {}).get("code"))
    assert codes[-1] in ("quota_exceeded", "at_capacity", "conflict")
    assert (await rpc.call("session.get", session=session))["queued"] <= 1000
    await rpc.call("session.close", session=session)


async def test_an_html_export_is_inert_and_a_closed_session_is_still_there(served, rpc):
    session = (await rpc.call("session.create"))["id"]
    await rpc.call("session.execute", session=session, code="print('kept')")
    await rpc.call("session.close", session=session)
    page = await rest(served, "GET", f"/v1/sessions/{session}/notebook?format=html")
    assert page.headers["Content-Security-Policy"].startswith("sandbox")
    assert "kept" in page.text
    notebook = (await rest(served, "GET", f"/v1/sessions/{session}/notebook")).json()
    assert notebook["nbformat"] == 4
    assert "print" in (await rest(served, "GET", f"/v1/sessions/{session}/notebook?format=py")).text
    assert (await rpc.refused("session.execute", session=session, code="1"))["code"] == "session_closed"


async def test_metrics_count_cells_and_name_nobody(served, rpc, session):
    await rpc.call("session.execute", session=session, code="1")
    text = (await rest(served, "GET", "/metrics")).text
    # A front adds the label of the node.
    assert re.search(r'kernelsvc_cells_total\{(node="[0-9a-f]+",)?reason="ok"\} [1-9]', text)
    assert session not in text


async def test_the_log_names_who_did_what(served):
    async with AsyncClient(served.url, served.token) as client, await client.create_session() as session:
        await session.run("x = 1")
        stream = session.stream("input()\nwhile True: pass", allow_stdin=True)
        async for event in stream:
            if isinstance(event, ev.InputRequested):
                await session.input(stream.id, "go")
            elif isinstance(event, ev.InputGiven):
                await session.interrupt()
        await session.rollback()
        await session.checkpoint("one")
        await session.drop_checkpoint("one")
        await session.upload(b"x", "file")
        await session.start_program(["true"])
        await session.branch()
        await session.close()
        log = [json.loads(line) for line in (await session.journal()).splitlines()]
    authors = {event["type"]: event["by"] for event in log if event.get("by")}
    acts = (
        "input_given interrupted rolled_back checkpoint_made checkpoint_dropped files_changed program_started branched"
    )
    assert authors == dict.fromkeys([*acts.split(), "session_closed"], "local")


def test_what_one_principal_makes_the_other_does_not_see(short_tmp):
    with serving(short_tmp / "two", env=OTHER_PRINCIPAL) as served:
        session = served.call("POST", "/v1/sessions", {})["id"]
        other = {"Authorization": "Bearer other-token"}
        assert served.call("GET", "/v1/sessions", headers=other)["sessions"] == []
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.call("GET", f"/v1/sessions/{session}", headers=other)
        assert caught.value.code == 404
        caught.value.close()
        assert "test-token" not in served.output()
        for path in served.data_dir.rglob("*"):
            if path.is_file():
                assert b"test-token" not in path.read_bytes(), path
