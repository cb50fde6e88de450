"""The state of the export of spans, which the exporter writes and the server shows as metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: Name of the file in the data directory, and most bytes of it that are read.
FILE, MAX_BYTES = "traces.json", 64 * 1024


class ExportStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the export.

    Attributes:
        clear_at: the spans of all entries up to this time have been sent, in seconds since the epoch.
        counts: spans by outcome.
    """

    clear_at: float
    counts: dict[str, int] = {}


class ExportMetrics(Collector):
    """Metrics of the exporter, read from its file at each scrape. An exporter that does not run shows as a growing lag.

    Args:
        path: the file.
        clock: returns seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._began = clock()

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        status = self._read()
        spans = CounterMetricFamily("kernelsvc_spans", "Spans by outcome: sent or rejected.", labels=["outcome"])
        for outcome in ("sent", "rejected"):
            spans.add_metric([outcome], status.counts.get(outcome, 0))
        yield spans
        lag = max(0.0, self._clock() - status.clear_at)
        yield GaugeMetricFamily("kernelsvc_spans_lag_seconds", "Age of the oldest entry without its spans sent.", lag)

    def _read(self) -> ExportStatus:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=ExportStatus)
        except (OSError, msgspec.DecodeError):
            return ExportStatus(clear_at=self._began)
