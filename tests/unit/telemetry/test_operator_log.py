"""The operator's log: one line for each session that starts or ends, as text and as JSON."""

import asyncio
import contextlib
import io
import json
import logging
import urllib.error
import urllib.request

import pytest

from kernelsvc import AsyncClient, KernelsvcError, logs
from kernelsvc.model import events as ev
from kernelsvc.model.tokens import TokenRecord, hash_token
from kernelsvc.settings import Settings
from kernelsvc.telemetry import operator_log
from kernelsvc.testing import InProcessServer


@pytest.fixture
def output():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logs.RateLimit(handler)
    handler.setFormatter(logs.JsonLines())
    operator_log.log.addHandler(handler)
    operator_log.log.setLevel(logging.INFO)
    yield stream
    operator_log.log.removeHandler(handler)
    operator_log.log.setLevel(logging.NOTSET)


def entries(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_session_from_its_start_to_its_end(output):
    async with InProcessServer() as server, AsyncClient(server.url, server.token) as client:
        session = await client.create_session()
        await session.run("secret = 'in the code'\nprint(secret)")
        await session.close()
    started, closed = entries(output)
    assert (started["action"], started["session"], started["principal"]) == ("session_started", session.id, "local")
    assert (closed["action"], closed["session"], closed["reason"]) == ("session_closed", session.id, "closed")
    assert "secret" not in output.getvalue()


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (ev.KernelDied(cause="oom", message="no memory"), {"level": "WARNING", "cause": "oom"}),
        (ev.LimitReached(limit="disk_bytes", bound=5.0), {"level": "WARNING", "limit": "disk_bytes", "bound": 5.0}),
        (ev.Hibernated(bytes=7), {"level": "INFO", "bytes": 7}),
    ],
)
def test_a_line_has_the_facts_of_its_event(output, event, fields):
    operator_log.record(event, "alice")
    [entry] = entries(output)
    assert (fields | {"principal": "alice"}).items() <= entry.items()


def test_a_line_names_the_cell_that_ended_with_the_kernel(output):
    hit, died = ev.LimitReached(limit="memory_bytes", cell="c1"), ev.KernelDied(cause="oom")
    batch = [hit, died, ev.CellFinished(cell="c1", reason=ev.Reason.MEMORY)]
    for event in (hit, died):
        operator_log.record(event, "alice", batch)
    operator_log.record(ev.SessionClosed(), "alice", [ev.SessionClosed()])
    assert [entry.get("cell") for entry in entries(output)] == ["c1", "c1", None]


@pytest.mark.parametrize("transport", ["REST", "WebSocket"])
async def test_a_refused_request_has_a_line_and_a_mistaken_one_has_none(output, transport):
    records = [TokenRecord(name=name, sha256=hash_token(name), scopes=frozenset({name})) for name in ("read", "run")]
    settings = Settings(port=0, journal_sync="off", tokens=records, max_sessions_per_principal=1)
    async with InProcessServer(settings) as server:
        async with AsyncClient(server.url, "run") as client:
            session = await client.create_session(keep=True)
        if transport == "REST":
            for token, path in (
                ("run", ""),
                ("read", ""),
                ("run", f"/{session.id}/rollback"),
                ("run", "/s_none/cells"),
            ):
                await post(f"{server.url}/v1/sessions{path}", token)
        else:
            for token in ("run", "read"):
                async with AsyncClient(server.url, token) as client:
                    with pytest.raises(KernelsvcError):
                        await client.create_session()
            async with AsyncClient(server.url, "run") as client:
                with pytest.raises(KernelsvcError):
                    await client.session("s_none")
    found = [entry for entry in entries(output) if entry["action"] == "refused"]
    assert [(each["code"], each["principal"]) for each in found] == [("quota_exceeded", "run"), ("forbidden", "read")]


async def post(url, token):
    request = urllib.request.Request(url, b"{}", {"Authorization": f"Bearer {token}"})
    with contextlib.suppress(urllib.error.HTTPError):
        await asyncio.to_thread(urllib.request.urlopen, request)


def test_the_server_says_when_it_starts_and_stops(output):
    operator_log.server_started(["http://127.0.0.1:1"])
    operator_log.server_stopped("keep")
    started, stopped = entries(output)
    assert (started["action"], started["addresses"]) == ("server_started", ["http://127.0.0.1:1"])
    assert (stopped["action"], stopped["on_stop"]) == ("server_stopped", "keep")


def test_a_message_of_a_kernel_begins_no_line_of_its_own(output):
    operator_log.record(ev.KernelDied(cause="exit", message="x\n2026-01-01 WARNING forged"), "alice")
    assert len(output.getvalue().splitlines()) == 1
    assert "\n" not in entries(output)[0]["message"]


def test_many_sessions_are_all_logged_and_a_storm_of_limits_is_not(output):
    for number in range(3 * logs.BURST):
        operator_log.record(ev.SessionClosed(reason=str(number)), "alice")
        operator_log.record(ev.LimitReached(limit="processes"), "alice")
    actions = [entry["action"] for entry in entries(output)]
    assert actions.count("session_closed") == 3 * logs.BURST
    assert actions.count("limit_reached") < 2 * logs.BURST
