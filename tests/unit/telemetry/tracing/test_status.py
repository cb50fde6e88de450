from prometheus_client import CollectorRegistry, generate_latest

from kernelsvc.telemetry.tracing.status import ExportMetrics


def test_the_state_of_the_exporter_is_read_at_each_scrape(tmp_path):
    now = [100.0]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ExportMetrics(tmp_path / "traces.json", lambda: now[0]))
    assert b"kernelsvc_spans_lag_seconds 0.0" in generate_latest(registry)
    now[0] = 130.0
    assert b"kernelsvc_spans_lag_seconds 30.0" in generate_latest(registry), "an exporter that never ran shows"
    (tmp_path / "traces.json").write_text('{"clear_at": 128.0, "counts": {"sent": 7}, "later": 1}')
    shown = generate_latest(registry)
    assert b"kernelsvc_spans_lag_seconds 2.0" in shown
    assert b'kernelsvc_spans_total{outcome="sent"} 7.0' in shown
    assert b'kernelsvc_spans_total{outcome="rejected"} 0.0' in shown
    (tmp_path / "traces.json").write_text("{")
    assert b"kernelsvc_spans_lag_seconds 30.0" in generate_latest(registry)
