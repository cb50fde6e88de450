"""The operator's log: one line for each session that starts or ends, as text and as JSON."""

import io
import json
import logging

import pytest

from kernelsvc import AsyncClient, logs
from kernelsvc.model import events as ev
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
    operator_log.record(event)
    [entry] = entries(output)
    assert fields.items() <= entry.items()


def test_a_message_of_a_kernel_begins_no_line_of_its_own(output):
    operator_log.record(ev.KernelDied(cause="exit", message="x\n2026-01-01 WARNING forged"))
    assert len(output.getvalue().splitlines()) == 1
    assert "\n" not in entries(output)[0]["message"]


def test_many_sessions_are_all_logged_and_a_storm_of_limits_is_not(output):
    for number in range(3 * logs.BURST):
        operator_log.record(ev.SessionClosed(reason=str(number)))
        operator_log.record(ev.LimitReached(limit="processes"))
    actions = [entry["action"] for entry in entries(output)]
    assert actions.count("session_closed") == 3 * logs.BURST
    assert actions.count("limit_reached") < 2 * logs.BURST
