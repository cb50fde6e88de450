"""Spans and metrics in what platform teams run: rotel and Prometheus, each from its registry."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
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

from kernelsvc import Client
from kernelsvc.model.tracing.context import span_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
START_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + 300)]


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
