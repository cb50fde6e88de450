"""What the server counts, in Prometheus' text format. No session's data, no id and no name is ever a label.

Most of it is one more reader of the log: ``record`` takes each event as it is
appended. What is a state and not a happening (sessions by state) is asked for
when somebody looks, through ``watch``.

What happens with every cell is noted in lists and dictionaries of our own and told
to Prometheus' client in portions, at the latest when somebody looks: its locks and
checks cost more than all the counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kernelsvc.model import events as ev

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)

#: Cells, or answers of one kind, that are noted before they are told.
GATHERED = 256

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


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(namespace="kernelsvc_server", registry=self.registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"kernelsvc_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"kernelsvc_{name}", help, labels, buckets=buckets, registry=self.registry)

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
        self._happened: dict[type[ev.Event], int] = {}
        self._ended: list[ev.CellFinished] = []
        self._answered: dict[tuple[str, str, str], list[float]] = {}

    def watch(self, ask: Callable[[], Statistics]) -> None:
        """Ask this for gauges at each scrape, such as ``{"sessions": {"idle": 3}, "memory_bytes": 5}``."""
        self.registry.register(_Watched(ask))

    def record(self, event: ev.Event) -> None:
        """Count one appended event."""
        kind = type(event)
        self._happened[kind] = self._happened.get(kind, 0) + 1
        if isinstance(event, ev.CellFinished):
            self._ended.append(event)
            if len(self._ended) >= GATHERED:
                self._settle()
        elif isinstance(event, ev.KernelDied):
            self.kernel_deaths.labels(event.cause or "lost").inc()
        elif isinstance(event, ev.LimitReached):
            self.limits.labels(event.limit).inc()

    def request(self, transport: str, method: str, code: str, seconds: float) -> None:
        """Count one request; ``code`` is ``ok`` or an error's code."""
        taken = self._answered.setdefault((transport, method, code), [])
        taken.append(seconds)
        if len(taken) >= GATHERED:
            self._settle()

    def _settle(self) -> None:
        """Tell what has gathered."""
        happened, self._happened = self._happened, {}
        ended, self._ended = self._ended, []
        answered, self._answered = self._answered, {}
        for kind, count in happened.items():
            self.events.labels(kind.__struct_config__.tag).inc(count)
        for event in ended:
            self.cells.labels(event.reason.value).inc()
            self.cell_seconds.observe(event.usage.wall_ms / 1000)
            self.output_bytes.inc(event.usage.output_bytes)
        for (transport, method, code), taken in answered.items():
            self.requests.labels(transport, method, code).inc(len(taken))
            for seconds in taken:
                self.request_seconds.labels(transport).observe(seconds)

    def exposition(self) -> bytes:
        """Everything, in the text format."""
        self._settle()
        return generate_latest(self.registry)
