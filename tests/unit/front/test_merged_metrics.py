"""Metrics of several servers as one text."""

from __future__ import annotations

from kernelsvc.front.merged_metrics import merge
from kernelsvc.telemetry.metrics import Metrics


def test_each_metric_is_one_group_with_the_nodes_as_labels() -> None:
    metrics = Metrics()
    metrics.request("http", "GET /", "ok", 0.01)
    own = metrics.exposition().decode()
    lines = merge(own, {"a": own, "b": own}).decode().splitlines()
    heads = [line for line in lines if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads))
    requests = [line for line in lines if line.startswith("kernelsvc_requests_total{")]
    labels = 'code="ok",method="GET /",{}transport="http"'
    nodes = ["", 'node="a",', 'node="b",']
    assert requests == [f"kernelsvc_requests_total{{{labels.format(node)}}} 1.0" for node in nodes]
