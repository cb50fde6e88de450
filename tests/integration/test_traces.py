"""Spans of a real server with real kernels, as a receiver gets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from otlp_receiver import Receiver, answer, attributes, drip, receiving
from served import QUICK, Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.cli.companions.companion_process import holder
from kernelsvc.model.tracing.context import span_id
from kernelsvc.model.tracing.spans import SpanFold

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def traced(short_tmp: Path, receiver: Receiver) -> Iterator[Served]:
    """A server that exports spans to the receiver."""
    headers = short_tmp / "headers"
    headers.write_text("api-key=top-secret\n")
    options = ("--telemetry-endpoint", receiver.url, "--telemetry-headers-file", str(headers))
    served = Served(short_tmp / "traced", *options, env=QUICK)
    try:
        yield served.start()
    finally:
        served.stop()


def spans_of(receiver: Receiver, session: str) -> dict[str, object]:
    found = (span for span in receiver.by_id().values() if attributes(span.attributes).get("session.id") == session)
    return {attributes(span.attributes).get("gen_ai.tool.call.id", span.name): span for span in found}


def scrape(served: Served) -> str:
    with urllib.request.urlopen(served.url + "/metrics", timeout=30) as response:
        return response.read().decode()


def test_one_trace_from_the_caller_to_a_process_of_the_cell(traced: Served, receiver: Receiver) -> None:
    with Client(traced.url, traced.token) as client, client.create_session() as session:

        @session.tool
        def double(x: int) -> int:
            return 2 * x

        code = "import subprocess\nprint(tools.double(4), subprocess.getoutput('echo $TRACEPARENT'))"
        cell = traced.call("POST", f"/v1/sessions/{session.id}/cells", {"code": code}, headers=PARENT)
        plain = session.run("1/0")
        program = session.run("import os; print(os.environ.get('TRACEPARENT'))").text
        wait_for(lambda: len(spans_of(receiver, session.id)) == 4, what="four spans")
        spans = spans_of(receiver, session.id)
    own = spans[cell["id"]]
    assert cell["text"] == f"8 00-{TRACE}-{own.span_id.hex()}-01\n"
    assert program == "None\n"
    assert (own.trace_id.hex(), own.parent_span_id.hex()) == (TRACE, SPAN)
    (call,) = (span for span in spans.values() if span.name == "execute_tool double")
    assert (call.trace_id, call.parent_span_id) == (own.trace_id, own.span_id)
    assert own.start_time_unix_nano <= call.start_time_unix_nano <= call.end_time_unix_nano <= own.end_time_unix_nano
    failed = spans[plain.id]
    assert not failed.parent_span_id
    assert attributes(failed.attributes)["error.type"] == "ZeroDivisionError"
    assert receiver.headers["Api-Key"] == "top-secret"
    assert receiver.resource["service.name"] == "kernelsvc"
    metrics = wait_for(
        lambda: 'kernelsvc_spans_total{outcome="sent"} 4.0' in (text := scrape(traced)) and text, what="the metric"
    )
    assert "kernelsvc_spans_lag_seconds" in metrics
    settings = subprocess.run(
        [sys.executable, "-m", "kernelsvc", "settings", *traced.args], capture_output=True, text=True, check=True
    )
    assert "top-secret" not in settings.stdout + traced.output()


def test_killed_processes_and_a_receiver_that_is_away_lose_no_span(traced: Served, receiver: Receiver) -> None:
    receiver.respond = lambda handler, _: answer(handler, 503)
    with Client(traced.url, traced.token) as client:
        session = client.create_session()
        for number in range(5):
            session.run(str(number))
        exporter = holder(traced.data_dir / "traces.lock")
        assert exporter
        os.kill(exporter, signal.SIGKILL)
        session.run("5")
        traced.kill()
        traced.start()
        receiver.respond = None
    with Client(traced.url, traced.token) as client:
        client.session(session.id).run("6")
        client.session(session.id).close()
        journal = (traced.data_dir / "sessions" / session.id / "journal.jsonl").read_bytes().splitlines()
        fold = SpanFold(session.id)
        expected = {span.span_id for line in journal for span in fold.feed_line(line)}
        assert len(expected) == 7
        wait_for(lambda: {s.span_id for s in spans_of(receiver, session.id).values()} == expected, deadline=30)


@pytest.mark.parametrize(
    "respond",
    [drip, lambda handler, _: answer(handler, 200, b"<html>"), lambda handler, _: answer(handler, 503)],
    ids=["slow", "lying", "down"],
)
def test_cells_have_nothing_to_do_with_a_receiver_that_fails(
    traced: Served, receiver: Receiver, respond: Callable[..., bool]
) -> None:
    before, receiver.respond = receiver.requests, respond
    port = int(receiver.url.rpartition(":")[2])
    with Client(traced.url, traced.token) as client, client.create_session() as session:
        session.run("0")
        wait_for(lambda: receiver.requests > before, what="a request that fails")
        assert [session.run(f"{number}+1").text for number in range(20)] == [f"{number + 1}\n" for number in range(20)]
        # Only the exporter connects, and it leaves the CPU to the others.
        server, exporter = (
            psutil.Process(pid) for pid in (traced.process.pid, holder(traced.data_dir / "traces.lock"))
        )
        assert not [each for each in server.net_connections() if each.raddr and each.raddr.port == port]
        assert exporter.nice() == min(19, server.nice() + 10)
        receiver.respond = None
        wait_for(lambda: len(spans_of(receiver, session.id)) == 21, deadline=60, what="all spans")


def test_the_spans_of_a_past_session_can_be_sent_again(traced: Served, receiver: Receiver) -> None:
    with Client(traced.url, traced.token) as client, client.create_session() as session:
        cell = session.run("secret = 1")
        wait_for(lambda: spans_of(receiver, session.id))
    with receiving() as other:
        command = [sys.executable, "-m", "kernelsvc", "traces", session.id, "--data-dir", str(traced.data_dir)]
        options = ["--telemetry-endpoint", other.url, "--telemetry-content", "code"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, f"{session.id}: 1 spans sent\n")
        (span,) = other.spans
        assert span.span_id == span_id(session.id, cell.id)
        arguments = attributes(span.attributes)["gen_ai.tool.call.arguments"]
        assert json.loads(arguments) == {"code": "secret = 1"}
        other.respond = lambda handler, _: answer(handler, 500)
        failed = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (failed.returncode, "it answered 500" in failed.stderr) == (3, True)
