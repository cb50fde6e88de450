"""The settings of the export of spans, before a server starts."""

from __future__ import annotations

import sys

import pytest

from kernelsvc import settings as conf
from kernelsvc.cli.companions import traces
from kernelsvc.errors import BadRequest, KernelsvcError, NotSupported
from kernelsvc.model.tracing.spans import Span

ENDPOINT = {"KERNELSVC_TELEMETRY_ENDPOINT": "http://127.0.0.1:4318"}


def settings(tmp_path, **env):
    return conf.load({}, {"KERNELSVC_DATA_DIR": str(tmp_path), **env})


def test_without_a_receiver_there_is_no_process_and_no_import(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_exporter", lambda: pytest.fail("imported"))
    assert traces.prepare(settings(tmp_path), {}) is None
    assert traces.prepare(settings(tmp_path, **ENDPOINT), {"OTEL_SDK_DISABLED": "true"}) is None


def test_the_process_gets_the_servers_settings(tmp_path):
    found = traces.prepare(settings(tmp_path, **ENDPOINT, KERNELSVC_TELEMETRY_SAMPLE="0.25"), {})
    again = conf.load({}, found._env)
    assert (again.telemetry.endpoint, again.telemetry.sample) == ("http://127.0.0.1:4318", 0.25)
    assert again.data_path() == tmp_path


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"KERNELSVC_TELEMETRY_ENDPOINT": "gopher://h"}, "no HTTP address"),
        ({"KERNELSVC_TELEMETRY_ENDPOINT": "http://u:hidden@h"}, "headers_file"),
        ({**ENDPOINT, "KERNELSVC_TELEMETRY_HEADERS_FILE": "/nonexistent/headers"}, "Can't read /nonexistent/headers"),
    ],
)
def test_a_server_with_a_wrong_receiver_does_not_start(tmp_path, env, says):
    with pytest.raises(BadRequest, match=says) as raised:
        traces.prepare(settings(tmp_path, **env), {})
    assert "hidden" not in str(raised.value)


def test_a_server_without_the_package_says_how_to_install_it(tmp_path, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("opentelemetry.proto", "kernelsvc.telemetry.tracing.exp"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.proto", None)
    monkeypatch.delitem(sys.modules, "kernelsvc.protocol.otlp", raising=False)
    with pytest.raises(NotSupported, match=r"pip install 'kernelsvc\[telemetry\]'"):
        traces.prepare(settings(tmp_path, **ENDPOINT), {})


@pytest.mark.parametrize(
    ("spans", "size", "lengths"), [(0, 0, []), (5, 10, [5]), (600, 10, [256, 256, 88]), (5, 190_000, [3, 2])]
)
def test_a_request_has_few_spans_and_few_bytes(spans, size, lengths):
    made = [
        Span(trace_id=b"t", span_id=b"s", name="n", start=0, end=0, seq=1, attributes={"a": "x" * size})
        for _ in range(spans)
    ]
    batches = list(traces._batches(made))
    assert [len(batch) for batch in batches] == lengths
    assert [span for batch in batches for span in batch] == made


@pytest.mark.parametrize("session", ["nothing", "../secret", "."])
def test_a_session_that_is_not_there(tmp_path, session):
    with pytest.raises(KernelsvcError, match="There is no session"):
        next(traces._spans_of(settings(tmp_path), session))


def test_a_session_of_a_further_worker(tmp_path):
    journal = tmp_path / "workers" / "2" / "sessions" / "s-1" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_bytes(b"")
    assert list(traces._spans_of(settings(tmp_path), "s-1")) == []
