"""Metrics of the server in Prometheus' text format. Labels hold no session data, no ids and no names.

Most metrics follow from the log: ``record`` takes each event when it is appended. Present states (sessions by state)
are read at each scrape, through ``watch``.

Metrics of every cell are plain numbers, exported to Prometheus' client at each scrape: its locks and checks cost more
than the counting.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kernelsvc import __version__
from kernelsvc.model import events as ev

#: Functions that are counted by name. All others are counted together.
MAX_TOOLS = 1000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)

#: Events that few cells cause, and that have metrics of their own.
_RARE = frozenset(
    (
        ev.KernelDied,
        ev.LimitReached,
        ev.ToolCalled,
        ev.ToolReturned,
        ev.CheckpointMade,
        ev.Egress,
        ev.EgressDenied,
        ev.ModelAnswered,
    )
)
#: Statuses of answers (Responses API).
_ANSWERED = frozenset(("completed", "incomplete", "failed", "cancelled"))

#: Result of a ``watch`` function: gauge name to a value, or to values by one label.
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
    """A histogram of durations. Use it from one thread.

    Args:
        name: The name in the text format.
        help: One sentence.
        buckets: Upper bounds in seconds.
        label: The name of the only label, if there is one.
    """

    def __init__(self, name: str, help: str, buckets: tuple[float, ...], label: str | None = None) -> None:
        self._name, self._help, self._label = name, help, label
        self._bounds = buckets
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(buckets) + 1)}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, seconds: float, kind: str = "") -> None:
        """Add a duration. ``kind`` is the label's value."""
        counts = self._counts.get(kind)
        if counts is None:
            counts = self._counts[kind] = [0] * (len(self._bounds) + 1)
        # Upper bounds are inclusive ("le" in the exposition format), hence bisect_left.
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[kind] += seconds

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label] if self._label else [])
        bounds = [*map(str, self._bounds), "+Inf"]
        for kind, counts in self._counts.items():
            values = [kind] if self._label else []
            family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), self._sums[kind])
        yield family


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        # Without it, registering would collect once, before the server has any state.
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
        self.kernel_deaths = counter("kernel_deaths", "Kernels that ended without a request, by cause.", "cause")
        self.limits = counter("limits_reached", "Limits that were reached, by limit.", "limit")
        self.tool_calls = counter("tool_calls", "Calls of clients' functions that ended.", "tool", "status")
        self.tool_call_seconds = histogram("tool_call_seconds", "Time of calls of clients' functions.", _LONG)
        self.tool_waits = histogram("tool_approval_seconds", "Time of calls until a person had decided.", _LONG)
        self.egress = counter("egress", "Connections by the network's rules: closed, failed or denied.", "outcome")
        self.egress_bytes = counter("egress_bytes", "Bytes of connections by the network's rules.", "direction")
        self.checkpoint_seconds = histogram("checkpoint_seconds", "Time that kernels stand still for a fork.", _FAST)
        self.answers = counter("answers", "Answers of models that ended, by status.", "status")
        self.answer_seconds = histogram("answer_seconds", "Time of answers of models.", _LONG)
        self.answer_tokens = counter("answer_tokens", "Tokens that models read and wrote in answers.", "direction")
        build = Gauge("kernelsvc_build_info", "The server's versions.", ("version", "python"), registry=self.registry)
        build.labels(__version__, sys.version.split()[0]).set(1)
        self._called: dict[str, str] = {}  # open calls, by id
        self._tools: set[str] = set()
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
        self._event_counts: defaultdict[type[ev.Event], int] = defaultdict(int)
        self._cell_counts: defaultdict[ev.Reason, int] = defaultdict(int)
        self._output_bytes = 0
        self._request_counts: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def watch(self, ask: Callable[[], Statistics]) -> None:
        """Call ``ask`` for gauges at each scrape, such as ``{"sessions": {"idle": 3}, "memory_bytes": 5}``."""
        self.registry.register(_Watched(ask))

    def record(self, event: ev.Event) -> None:
        """Count one appended event."""
        kind = type(event)
        self._event_counts[kind] += 1
        if isinstance(event, ev.CellFinished):
            self._cell_counts[event.reason] += 1
            self._output_bytes += event.usage.output_bytes
            self.cell_seconds.observe(event.usage.wall_ms / 1000)
        elif kind in _RARE:
            self._record_rare(event)

    def _record_rare(self, event: ev.Event) -> None:
        match event:
            case ev.KernelDied():
                self.kernel_deaths.labels(event.cause or "lost").inc()
            case ev.LimitReached():
                self.limits.labels(event.limit).inc()
            case ev.ToolCalled():
                self._called[event.call] = event.tool
            case ev.ToolReturned():
                self._record_call(event)
            case ev.CheckpointMade():
                self.checkpoint_seconds.observe(event.cost_ms / 1000)
            case ev.Egress():
                self.egress.labels("failed" if event.end.startswith("failed") else "closed").inc()
                self.egress_bytes.labels("sent").inc(event.sent)
                self.egress_bytes.labels("received").inc(event.received)
            case ev.EgressDenied():
                self.egress.labels("denied").inc()
            case ev.ModelAnswered():
                self.answers.labels(event.status if event.status in _ANSWERED else "other").inc()
                self.answer_seconds.observe(event.seconds)
                self.answer_tokens.labels("input").inc(event.input_tokens)
                self.answer_tokens.labels("output").inc(event.output_tokens)
            case _:
                pass

    def _record_call(self, event: ev.ToolReturned) -> None:
        tool = self._called.pop(event.call, "")
        # Code chooses the names of refused calls, and a label for each would fill the memory.
        known = event.status != "refused" and (tool in self._tools or len(self._tools) < MAX_TOOLS)
        if known:
            self._tools.add(tool)
        self.tool_calls.labels(tool if known else "", event.status).inc()
        self.tool_call_seconds.observe(event.ms / 1000)
        if event.waited_ms:
            self.tool_waits.observe(event.waited_ms / 1000)

    def request(self, transport: str, method: str, code: str, seconds: float) -> None:
        """Count one request. ``code`` is ``ok`` or an error's code."""
        self._request_counts[transport, method, code] += 1
        self.request_seconds.observe(seconds, transport)

    def _export_counts(self) -> None:
        """Add the counts since the last scrape to Prometheus' counters."""
        for kind, count in self._event_counts.items():
            self.events.labels(kind.__struct_config__.tag).inc(count)
        for reason, count in self._cell_counts.items():
            self.cells.labels(reason.value).inc(count)
        for (transport, method, code), count in self._request_counts.items():
            self.requests.labels(transport, method, code).inc(count)
        self.output_bytes.inc(self._output_bytes)
        self._output_bytes = 0
        self._event_counts.clear()
        self._cell_counts.clear()
        self._request_counts.clear()

    def exposition(self) -> bytes:
        """Return all metrics in the text format."""
        self._export_counts()
        return generate_latest(self.registry)
