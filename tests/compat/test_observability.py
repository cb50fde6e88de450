"""Spans and metrics in what platform teams run: Phoenix, rotel and Prometheus, each from its registry."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import QUICK, Served, free_port, serving
from waiting import wait_for

import kernelsvc
from kernelsvc import Client
from kernelsvc.model.tracing.context import span_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
START_SECONDS = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 600)]


def get(url: str, **headers: str) -> bytes | None:
    """The body of an answer, or None while there is none."""
    with contextlib.suppress(OSError), urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read()
    return None


@contextlib.contextmanager
def running(command: list[str], log: Path, up: Callable[[], Any], **env: str) -> Iterator[None]:
    """A program of another project, until the end of the ``with``."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_env(**env), cwd=log.parent)
    try:
        wait_for(lambda: up() or process.poll() is not None, deadline=START_SECONDS, what=command[0])
        if "error while loading shared libraries" in (text := log.read_text("utf-8", "replace")):
            pytest.skip(f"this machine lacks a library: {text.strip()[-200:]}")
        assert process.poll() is None, text[-2000:]
        yield
    finally:
        process.terminate()
        process.wait(30)


def run_cells(served: Served) -> tuple[str, str, str]:
    """Run a cell in a caller's trace that calls a function, and one that fails. Returns session and cells."""
    with Client(served.url, served.token) as client, client.create_session() as session:

        @session.tool
        def double(x: int) -> int:
            return 2 * x

        body = {"code": "print(tools.double(4))"}
        cell = served.call("POST", f"/v1/sessions/{session.id}/cells", body, headers=PARENT)
        assert cell["text"] == "8\n"
        return session.id, cell["id"], session.run("1/0").id


#: OpenTelemetry's conventions for generative AI (v0.1): the attributes of an ``execute_tool`` span.
CONVENTION = {"gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.call.id", "gen_ai.tool.type"}
#: A program that traces itself with OpenTelemetry's SDK, and asks for a cell in its span.
AGENT = """
import sys
import kernelsvc
from kernelsvc import Client
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

url, token, receiver, session = sys.argv[1:]
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{receiver}/v1/traces")))
trace.set_tracer_provider(provider)
with Client(url, token) as client, trace.get_tracer("agent").start_as_current_span("agent") as span:
    cell = client.session(session).run("!echo $TRACEPARENT")
    print(f"{span.get_span_context().trace_id:032x}", cell.id, cell.text.strip())
provider.shutdown()
"""


@contextlib.contextmanager
def phoenix(python: Path, directory: Path) -> Iterator[str]:
    """The address of a Phoenix: the one that Phoenix's own variable names, or a new one, whose start takes a minute."""
    if named := os.environ.get("PHOENIX_COLLECTOR_ENDPOINT"):
        yield named
        return
    url = f"http://127.0.0.1:{(port := free_port())}"
    where = {
        **{"PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(free_port())},
        **{"PHOENIX_WORKING_DIR": str(directory), "PHOENIX_TELEMETRY_ENABLED": "false"},
    }
    command = [str(python.parent / "phoenix"), "serve"]
    with running(command, directory / "log", lambda: get(f"{url}/v1/projects"), **where):
        yield url


def test_phoenix_shows_one_tree_from_the_agent_to_the_call_of_a_function(tmp_path: Path, short_tmp: Path) -> None:
    # The agent runs in the same environment: Phoenix brings OpenTelemetry's SDK, and the client needs four packages.
    python = python_with("arize-phoenix==20.26.1", "msgspec>=0.19", "platformdirs>=4", "tornado>=6.4,<7")
    with phoenix(python, tmp_path) as url:
        check_phoenix(python, url, short_tmp)


def check_phoenix(python: Path, url: str, short_tmp: Path) -> None:
    spans_of = f"{url}/v1/projects/default/spans?limit=1000"

    def spans() -> dict[str, dict[str, Any]]:
        found = json.loads(get(spans_of) or b'{"data": []}')["data"]
        shown = {each["context"]["span_id"]: each for each in found}
        assert len(shown) == len(found), "a span is shown twice"
        return shown

    options = ("--telemetry-endpoint", url, "--telemetry-content", "all")
    with serving(short_tmp / "phoenix", *options, env=QUICK) as served:
        session, cell, failed = run_cells(served)
        with Client(served.url, served.token) as client, client.create_session() as asked:
            command = [python, "-c", AGENT, served.url, served.token, url, asked.id]
            path = str(Path(kernelsvc.__file__).parents[1])
            done = subprocess.run(command, env=clean_env(PYTHONPATH=path), capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            trace, inner, inside = done.stdout.split()
            ids = [span_id(session, cell).hex(), span_id(session, failed).hex(), span_id(asked.id, inner).hex()]
            wait_for(lambda: {*ids} <= {*spans()}, deadline=60, what="the spans of the cells")
            # A span that is sent again is the same span.
            again = ["traces", asked.id, "--telemetry-endpoint", url, "--data-dir", str(served.data_dir)]
            before = len(spans())
            subprocess.run([sys.executable, "-m", "kernelsvc", *again], check=True, capture_output=True, timeout=120)
            assert len(spans()) == before
            found = spans()
    good, bad, under = (found[each] for each in ids)
    for each in (good, bad, under):
        assert each["attributes"].keys() >= CONVENTION
        assert each["attributes"]["gen_ai.operation.name"] == "execute_tool"
        assert each["name"] == f"execute_tool {each['attributes']['gen_ai.tool.name']}"
        assert each["span_kind"] == "TOOL"  # Phoenix knows the operation
    # A caller's trace over HTTP, the caller's function as the cell's child, and a failure.
    assert (good["context"]["trace_id"], good["parent_id"]) == (TRACE, SPAN)
    (function,) = (each for each in found.values() if each["parent_id"] == ids[0])
    assert (function["name"], function["attributes"]["gen_ai.tool.name"]) == ("execute_tool double", "double")
    assert (bad["status_code"], bad["attributes"]["error.type"]) == ("ERROR", "ZeroDivisionError")
    assert {each["attributes"]["session.id"] for each in (good, bad, function)} == {session}
    assert bad["attributes"]["gen_ai.conversation.id"] == session
    # The agent's span, the cell's, and the environment of the cell's process are one trace.
    tree = [each for each in found.values() if each["context"]["trace_id"] == trace]
    (agent,) = (each for each in tree if each["name"] == "agent")
    assert under in tree
    assert under["parent_id"] == agent["context"]["span_id"]
    assert inside == f"00-{trace}-{ids[2]}-01"
    # Code and output, where the operator has asked for them.
    assert "tools.double(4)" in good["attributes"]["gen_ai.tool.call.arguments"]
    assert good["attributes"]["gen_ai.tool.call.result"] == "8\n"


def test_rotel_shows_the_fields_of_spans(tmp_path: Path, short_tmp: Path) -> None:
    # It links against a shared libpython, which Debian's interpreter has and many others lack.
    system = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else None
    agent = python_with("rotel==0.0.1a15", system=system).parents[1].glob("lib/*/site-packages/rotel/rotel-agent")
    port, grpc = free_port(), free_port()
    log = tmp_path / "rotel.log"
    command = [
        str(next(agent)), "start", "--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint",
        f"127.0.0.1:{grpc}", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed",
    ]  # fmt: skip
    # It has no page to ask: any answer, also 404, means that it listens.
    with running(command, log, lambda: listens(port)):
        options = ("--telemetry-endpoint", f"http://127.0.0.1:{port}")
        with serving(short_tmp / "rotel", *options, env=QUICK) as served:
            session, cell, failed = run_cells(served)
            own = span_id(session, cell).hex()
            wait_for(lambda: span_id(session, failed).hex() in log.read_text().lower(), deadline=30)
        text = log.read_text()
    for shown in (
        TRACE, SPAN, own, "execute_tool run_code", "execute_tool double", "gen_ai.operation.name", "execute_tool",
        "gen_ai.conversation.id", session, "ZeroDivisionError", "service.name", "kernelsvc.seq.first",
    ):  # fmt: skip
        assert shown in text, shown


def listens(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_prometheus_answers_every_query_of_the_dashboard(tmp_path: Path, served: Served) -> None:
    tool = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if tool is None:
        pytest.skip("prometheus is not installed (Debian: prometheus); 'make test-telemetry' fetches it")
    dashboard = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text("utf-8"))
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: kernelsvc\n    static_configs:\n"
        f"      - targets: [{json.dumps(served.url.removeprefix('http://'))}]\n"
    )
    command = [
        tool, "--config.file=prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ask(query: str) -> list[Any]:
        text = get(f"{url}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        found = json.loads(text or b'{"status": "failed"}')
        assert found["status"] == "success", query
        return found["data"]["result"]

    with running(command, tmp_path / "prometheus.log", lambda: get(f"{url}/-/ready")):
        served.call("POST", "/v1/execute", {"code": "1+1"})
        wait_for(lambda: ask("rate(kernelsvc_cells_total[1m])"), deadline=60)
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
        found = {query: ask(re.sub(r"\$__rate_interval", "1m", query).replace("$instance", ".*")) for query in queries}
    answered = [query for query, result in found.items() if result]
    # The others need calls, a network, answers or a receiver of spans, which this server does not have.
    assert len(answered) >= 15, {query for query, result in found.items() if not result}
