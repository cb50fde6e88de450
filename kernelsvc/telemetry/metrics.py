"""What the server counts, in Prometheus' text format. No session's data, no id and no name is ever a label.

Most of it is one more reader of the log: ``record`` takes each event as it is
appended. What is a state and not a happening (sessions by state) is asked for
when somebody looks, through ``watch``.

What happens with every cell is counted in plain numbers of our own, which Prometheus'
client is told when somebody looks: its locks and checks cost more than all the counting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kernelsvc.model import events as ev

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)

#: What ``watch`` is given: gauge name to a value, or to values by one label.
Statistics = Mapping[str, float | Mapping[str, float]]


class _Watched(Collector):
    def __init__(self, ask: Callable[[], Statistics]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        for name, value in self._ask().items():
            split = isinstance(value, Mapping)
            family = GaugeMetricFamily(f"kernelsvc_{name}", f"Now: {name}.", labels=["kind"] if split else [])
            pairs = value.items() if isinstance(value, Mapping) else [(None, value)]
            for label, number in pairs:
                family.add_metric([label] if label is not None else [], float(number))
            yield family


class Times(Collector):
    """How long things took: a histogram. Called from one thread.

    Args:
        name: in the text format.
        help: one sentence.
        buckets: their upper bounds, in seconds.
        label: the name of the one label, if there is one.
    """

    def __init__(self, name: str, help: str, buckets: tuple[float, ...], label: str | None = None) -> None:
        self._name, self._help, self._label = name, help, label
        self._bounds = buckets
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(buckets) + 1)}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, seconds: float, kind: str = "") -> None:
        """One took this long; ``kind`` is the label's value."""
        counts = self._counts.get(kind)
        if counts is None:
            counts = self._counts[kind] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[kind] += seconds

    def collect(self) -> Iterable[Metric]:
        """Prometheus' hook."""
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label] if self._label else [])
        bounds = [*map(str, self._bounds), "+Inf"]
        for kind, counts in self._counts.items():
            values = [kind] if self._label else []
            family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), self._sums[kind])
        yield family


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(namespace="kernelsvc_server", registry=self.registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"kernelsvc_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], label: str | None = None) -> Times:
            times = Times(f"kernelsvc_{name}", help, buckets, label)
            self.registry.register(times)
            return times

        self.cells = counter("cells", "Cells that ended, by reason.", "reason")
        self.cell_seconds = histogram("cell_seconds", "Wall time of cells.", _LONG)
        self.output_bytes = counter("output_bytes", "Output of cells that ended, in bytes.")
        self.events = counter("events", "Events appended to logs, by type.", "type")
        self.kernel_deaths = counter("kernel_deaths", "Kernels that ended unasked, by cause.", "cause")
        self.limits = counter("limits_reached", "Caps that struck, by limit.", "limit")
        self.create_seconds = histogram("session_create_seconds", "From request to a ready session.", _FAST)
        self.journal_bytes = counter("journal_bytes", "Bytes appended to journals.")
        self.append_seconds = counter("journal_append_seconds", "Time of making and writing entries of journals.")
        self.sync_seconds = histogram("journal_sync_seconds", "Time of one sync of a journal.", _FAST)
        self.requests = counter(
            "requests", "Requests, by transport, method and outcome.", "transport", "method", "code"
        )
        self.request_seconds = histogram("request_seconds", "Time of requests.", _FAST, "transport")
        self.connections = Gauge(
            "kernelsvc_connections", "Open connections, by kind.", ("kind",), registry=self.registry
        )
        self._happened: defaultdict[type[ev.Event], int] = defaultdict(int)
        self._ended: defaultdict[ev.Reason, int] = defaultdict(int)
        self._output_bytes = 0
        self._answered: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def watch(self, ask: Callable[[], Statistics]) -> None:
        """Ask this for gauges at each scrape, such as ``{"sessions": {"idle": 3}, "memory_bytes": 5}``."""
        self.registry.register(_Watched(ask))

    def record(self, event: ev.Event) -> None:
        """Count one appended event."""
        kind = type(event)
        self._happened[kind] += 1
        if isinstance(event, ev.CellFinished):
            self._ended[event.reason] += 1
            self._output_bytes += event.usage.output_bytes
            self.cell_seconds.observe(event.usage.wall_ms / 1000)
        elif kind is ev.KernelDied or kind is ev.LimitReached:
            self._record_rare(event)

    def _record_rare(self, event: ev.Event) -> None:
        if isinstance(event, ev.KernelDied):
            self.kernel_deaths.labels(event.cause or "lost").inc()
        elif isinstance(event, ev.LimitReached):
            self.limits.labels(event.limit).inc()

    def request(self, transport: str, method: str, code: str, seconds: float) -> None:
        """Count one request; ``code`` is ``ok`` or an error's code."""
        self._answered[transport, method, code] += 1
        self.request_seconds.observe(seconds, transport)

    def _settle(self) -> None:
        """Tell what has been counted."""
        for kind, count in self._happened.items():
            self.events.labels(kind.__struct_config__.tag).inc(count)
        for reason, count in self._ended.items():
            self.cells.labels(reason.value).inc(count)
        for (transport, method, code), count in self._answered.items():
            self.requests.labels(transport, method, code).inc(count)
        self.output_bytes.inc(self._output_bytes)
        self._output_bytes = 0
        self._happened.clear()
        self._ended.clear()
        self._answered.clear()

    def exposition(self) -> bytes:
        """Everything, in the text format."""
        self._settle()
        return generate_latest(self.registry)
