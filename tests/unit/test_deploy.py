"""The dashboard, the alert rules and the metrics agree."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from promtool import promtool

from kernelsvc.kernels.read_budget import ReadBudgets
from kernelsvc.model import events as ev
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.settings import Settings
from kernelsvc.telemetry.metrics import Metrics
from kernelsvc.telemetry.tracing.status import ExportMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
ALERTS = (DEPLOY / "alerts.yml").read_text("utf-8")
#: Labels that Prometheus adds.
ADDED = {"instance", "job", "le"}


def exposition() -> bytes:
    """The metrics of a server in which everything has happened once."""
    settings = Settings(max_total_memory_bytes=2**30)
    metrics = Metrics()
    for kind in typing.get_args(ev.AnyEvent):
        metrics.record(kind())
    metrics.record(ev.ToolReturned(waited_ms=5.0))
    metrics.request("http", "GET /v1/info", "ok", 0.001)
    metrics.connections.labels("websocket").inc()
    registry = SessionRegistry(settings, None, None)  # type: ignore[arg-type]
    metrics.watch(lambda: {**registry.statistics(), "sessions": {"idle": 1}})
    metrics.watch(ReadBudgets().statistics)
    metrics.watch(lambda: {"last_backup_timestamp_seconds": 0.0, "free_disk_bytes": 0.0})
    metrics.watch(lambda: {"unarchived_sessions": 0.0})
    metrics.registry.register(ExportMetrics(ROOT / "nothing"))
    return metrics.exposition()


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The labels of each series."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels() -> Iterator[dict[str, typing.Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


QUERIES = [
    *(target["expr"] for panel in panels() for target in panel["targets"]),
    *(each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"),
    *re.findall(r"expr: (?:>-\n)?(.*?)\n        for:", ALERTS, re.DOTALL),
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(query: str, known: dict[str, set[str]]) -> None:
    names = re.findall(r"\bkernelsvc_\w+", query)
    assert names or "up{" in query
    assert set(names) <= known.keys()
    labels = set(re.findall(r"(\w+)=[~\"]", query))
    for grouped in re.findall(r"\b(?:by|on) \(([\w, ]+)\)", query):
        labels |= {label.strip() for label in grouped.split(",")}
    assert labels - ADDED <= set().union(*(known[name] for name in names))


def test_every_group_of_metrics_is_on_the_dashboard(known: dict[str, set[str]]) -> None:
    shown = set(re.findall(r"\bkernelsvc_\w+?(?=_bucket|_total|\b)", " ".join(QUERIES)))
    for metric in ("cells", "tool_calls", "egress", "answers", "checkpoint_seconds", "spans_lag_seconds"):
        assert f"kernelsvc_{metric}" in shown


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in panels() for target in panel["targets"])


def test_the_page_about_metrics_has_each_metric_and_no_other(known: dict[str, set[str]]) -> None:
    page = (ROOT / "docs/howto/operate.md").read_text("utf-8")
    table = set(re.findall(r"^\| `(kernelsvc_\w+?)(?:_total|_\*)?`", page, re.MULTILINE))
    have = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in known}
    have = {"kernelsvc_server_process" if name.startswith("kernelsvc_server_") else name for name in have}
    assert table == have


def test_prometheus_finds_no_fault_in_the_metrics() -> None:
    assert promtool("check", "metrics", text=exposition()).strip() == ""


def test_prometheus_reads_the_rules() -> None:
    rules = ALERTS.count("- alert:")
    assert f"{rules} rules found" in promtool("check", "rules", str(DEPLOY / "alerts.yml"))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml"))


def test_rules_fire_when_they_must_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS)
    (tmp_path / "test.yml").write_text(
        """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'kernelsvc_sessions{kind="idle",instance="full"}'
        values: '60x60'
      - series: 'kernelsvc_sessions{kind="busy",instance="full"}'
        values: '35x60'
      - series: 'kernelsvc_capacity{kind="sessions",instance="full"}'
        values: '100x60'
      - series: 'kernelsvc_sessions{kind="idle",instance="free"}'
        values: '60x60'
      - series: 'kernelsvc_capacity{kind="sessions",instance="free"}'
        values: '100x60'
      - series: 'kernelsvc_spans_lag_seconds{instance="free"}'
        values: '2x20 0+60x40'
      - series: 'kernelsvc_last_backup_timestamp_seconds{instance="free"}'
        values: '0x60'
    alert_rule_test:
      - eval_time: 30m
        alertname: KernelsvcAtCapacity
        exp_alerts:
          - exp_labels: {instance: full, severity: warning}
            exp_annotations: {summary: "full has 95% of its sessions or memory in use."}
      - eval_time: 20m
        alertname: KernelsvcSpansWait
        exp_alerts: []
      - eval_time: 40m
        alertname: KernelsvcSpansWait
        exp_alerts:
          - exp_labels: {instance: free, severity: warning}
            exp_annotations:
              summary: "Spans of free wait for 19m 0s. Its log has the receiver's error."
      - eval_time: 60m
        alertname: KernelsvcNoBackup
        exp_alerts: []
"""
    )
    assert "SUCCESS" in promtool("test", "rules", "test.yml", cwd=tmp_path)
