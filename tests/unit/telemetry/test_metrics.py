"""What is counted, and that no session's data is."""

from __future__ import annotations

import typing

from kernelsvc.model import events as ev
from kernelsvc.model.limits import CellUsage
from kernelsvc.telemetry.metrics import Metrics


def value(metrics, line):
    for row in metrics.exposition().decode().splitlines():
        if row.startswith(line + " "):
            return float(row.split()[-1])
    return None


def test_events_are_counted():
    metrics = Metrics()
    usage = CellUsage(wall_ms=20.0, output_bytes=7)
    for reason in ev.Reason:
        metrics.record(ev.CellFinished(session="s-secret", cell="c-secret", reason=reason, usage=usage))
    metrics.record(ev.KernelDied(cause="memory"))
    metrics.record(ev.LimitReached(limit="cell_seconds"))
    assert value(metrics, 'kernelsvc_cells_total{reason="ok"}') == 1.0
    assert value(metrics, "kernelsvc_output_bytes_total") == 7.0 * len(ev.Reason)
    assert value(metrics, 'kernelsvc_kernel_deaths_total{cause="memory"}') == 1.0
    assert value(metrics, 'kernelsvc_limits_reached_total{limit="cell_seconds"}') == 1.0
    assert value(metrics, "kernelsvc_cell_seconds_count") == float(len(ev.Reason))
    assert b"secret" not in metrics.exposition()


def test_every_event_can_be_counted():
    metrics = Metrics()
    for cls in typing.get_args(ev.AnyEvent):
        metrics.record(cls())
    assert value(metrics, 'kernelsvc_events_total{type="session_started"}') == 1.0


def test_gauges_are_asked_for_at_each_look():
    metrics = Metrics()
    state = {"sessions": {"idle": 2, "busy": 1}, "queued_cells": 5}
    metrics.watch(lambda: state)
    assert value(metrics, 'kernelsvc_sessions{kind="idle"}') == 2.0
    assert value(metrics, "kernelsvc_queued_cells") == 5.0
    state["queued_cells"] = 6
    assert value(metrics, "kernelsvc_queued_cells") == 6.0


def test_requests_are_counted_by_outcome():
    metrics = Metrics()
    metrics.request("http", "GET /v1/info", "ok", 0.001)
    metrics.request("websocket", "session.get", "not_found", 0.001)
    assert (
        value(metrics, 'kernelsvc_requests_total{code="not_found",method="session.get",transport="websocket"}') == 1.0
    )
    assert value(metrics, 'kernelsvc_request_seconds_count{transport="http"}') == 1.0


def test_two_servers_in_one_process_do_not_share():
    first, second = Metrics(), Metrics()
    first.record(ev.KernelDied(cause="lost"))
    assert value(second, 'kernelsvc_kernel_deaths_total{cause="lost"}') is None
