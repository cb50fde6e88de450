"""Samples, their summaries, and the rows of the table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Percentiles in the summary of a kind of samples: label to share.
SHARES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
#: Kinds of samples with the whole distribution in their summary, for the plots.
DISTRIBUTED = ("cell", "create", "delay", "busy_cell_10", "busy_cell_100")
_POINTS = 200

#: Summary of one subject in the JSON: by kind the count and percentiles, or the reason why there are none.
Summary = Mapping[str, Mapping[str, Any]]


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile. ``share`` is between 0 and 1.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[rank - 1]


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        name: stable name, for the JSON.
        title: title of the row.
        unit: unit of the samples.
        label: label of the percentile in the table (``SHARES``).
        goal: the project's goal, in the same unit.
        higher_is_better: True for rates.
        source: kind of the samples, if it differs from ``name``.
        headline: title of the row in the README. Empty if the README does not have the row.
    """

    name: str
    title: str
    unit: str = "ms"
    label: str = "p50"
    goal: float | None = None
    higher_is_better: bool = False
    source: str = ""
    headline: str = ""

    @property
    def samples(self) -> str:
        """The kind of the samples."""
        return self.source or self.name


def _cells(count: int) -> list[Measure]:
    """Return the rows for a number of busy sessions."""
    name = f"busy_cell_{count}"
    return [
        Measure(f"busy_{count}", f"`1+1` in {count} busy sessions", "cells/s", higher_is_better=True),
        Measure(f"{name}_p50", "its latency, p50", source=name),
        Measure(f"{name}_p99", "the same, p99", label="p99", source=name),
        Measure(f"{name}_p999", "the same, p99.9", label="p999", source=name),
    ]


#: The rows, in the order of the table. A row without samples is left out.
MEASURES = (
    Measure(
        "create",
        "new session, numpy, pandas and pyplot imported, p50",
        goal=25,
        headline="new session with numpy, pandas and pyplot imported, p50",
    ),
    Measure("create_p99", "the same, p99", label="p99", goal=60, source="create"),
    Measure("burst", "50 sessions requested together, all ready", "s", goal=1.0),
    Measure("warm_create", "new session with a warm pool, p50"),
    Measure("warm_burst", "50 sessions together with a warm pool of 50, all ready", "s", goal=1.0),
    Measure("first_cell", "first cell of a new session, p50"),
    Measure("next_cell", "the cell after it, p50"),
    Measure(
        "cell",
        "`1+1` there and back, p50",
        goal=1.5,
        headline="round trip of the cell `1+1`, p50",
    ),
    Measure("cell_p99", "the same, p99", label="p99", goal=6, source="cell"),
    Measure("cell_p999", "the same, p99.9", label="p999", source="cell"),
    Measure("thought_cell", "`1+1` after a pause of 0.2 s, p50"),
    Measure("cell_cpu", "CPU of the server for `1+1`", goal=0.5),
    *_cells(10),
    *_cells(100),
    Measure("delay", "a printed line to the client, p50"),
    Measure("delay_p99", "the same, p99", label="p99", source="delay"),
    Measure("delay_loaded", "the same under full load, p50"),
    Measure("delay_loaded_p99", "the same, p99", label="p99", source="delay_loaded"),
    Measure("prints", "100,000 printed lines to the last byte", goal=500),
    Measure("lines", "printed lines", "lines/s", goal=200_000, higher_is_better=True),
    Measure("prints_lost", "of these lines lost", "lines", "max", goal=0),
    Measure("big_print", "one print of 100 MB to the last byte", "s"),
    Measure("stream", "the same as a rate", "MB/s", higher_is_better=True),
    Measure("big_print_lost", "of these bytes lost", "MB", "max", goal=0),
    Measure("big_print_memory", "growth of the server meanwhile", "MB", "max", goal=64),
    Measure("stream_cpu", "CPU of the server for a streamed MB"),
    Measure("html", "a DataFrame as 10 MB of HTML to the last byte"),
    Measure("png", "a PNG of 10 MB to the last byte"),
    Measure("far_trips", "20 cells in 20 trips, client 50 ms away", "s"),
    Measure("far_batch", "20 cells in one trip, client 50 ms away", "s"),
    Measure("checkpoint", "a checkpoint on request, p50"),
    Measure(
        "branch", "a branch to its first answer, p50", headline="branch of a live session, until its first answer, p50"
    ),
    Measure(
        "restore",
        "from a crash to the next cell's answer, p50",
        headline="recovery, from a crash to the next cell's answer, p50",
    ),
    Measure("long_first", "CPU of the server for a cell, of the first 1,000 of a session"),
    Measure("long_last", "the same, of the last 1,000 of 10,000"),
    Measure("long_bytes_first", "bytes written for a cell, of the first 1,000", "bytes"),
    Measure("long_bytes_last", "the same, of the last 1,000 of 10,000", "bytes"),
    Measure("idle_kernel", "memory of an idle session: its kernel alone, USS", "MB", goal=12),
    Measure(
        "idle_session", "all its processes, PSS", "MB", headline="memory of an idle session, PSS of all its processes"
    ),
    Measure("idle_server", "memory of an idle session in the server", "KB", goal=200),
    *(
        Measure(f"dense_{count}", f"memory of the machine for an idle session, of {count:,}", "MB")
        for count in (10, 100, 500, 1000)
    ),
    Measure("dense_all", "the same, of all that fitted", "MB"),
    Measure("dense_total", "memory of 1,000 idle sessions", "GB", goal=10),
    Measure("dense_create", "a new session with 1,000 others open, p50"),
    Measure("dense_cell", "`1+1` with 1,000 others open, p50"),
    Measure("dense_count", "idle sessions that fitted (2,000 were tried at most)", "sessions", higher_is_better=True),
)


@dataclass
class Samples:
    """The samples of one subject by kind, and the reasons for missing ones."""

    values: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """Add samples."""
        self.values.setdefault(name, []).extend(values)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return the count and percentiles of each kind of samples, and the distribution of some."""
        found: dict[str, dict[str, Any]] = {}
        for name, values in self.values.items():
            if values:
                ordered = sorted(values)
                found[name] = {"count": len(values)} | {
                    label: round(percentile(ordered, share), 4) for label, share in SHARES.items()
                }
                if name in DISTRIBUTED:
                    found[name]["points"] = [round(percentile(ordered, (i + 0.5) / _POINTS), 4) for i in range(_POINTS)]
        return found | {name: {"missing": why} for name, why in self.missing.items() if name not in found}


def figure(summary: Summary, measure: Measure) -> float | None:
    """Return a subject's figure for a row, or None if there are no samples."""
    value = summary.get(measure.samples, {}).get(measure.label)
    return float(value) if value is not None else None


def ratio(ours: float | None, theirs: float | None, measure: Measure) -> float | None:
    """Return how many times better kernelsvc is. Below 1 the peer is better. None if a figure is missing."""
    if ours is None or theirs is None or not ours or not theirs:
        return None
    return ours / theirs if measure.higher_is_better else theirs / ours


def shown(value: float | None) -> str:
    """Format a figure with three significant digits."""
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
