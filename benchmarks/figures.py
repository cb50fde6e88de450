"""Samples and what is said of them. Values only: no clock, no process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; ``share`` is between 0 and 1.

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
        name: stable, for the JSON.
        title: what a reader sees.
        unit: of the samples.
        share: which percentile stands in the table.
        goal: what the project wants of itself, in the same unit.
        higher_is_better: for rates.
    """

    name: str
    title: str
    unit: str = "ms"
    share: float = 0.5
    goal: float | None = None
    higher_is_better: bool = False
    source: str = ""

    @property
    def samples(self) -> str:
        """The name under which the samples were gathered."""
        return self.source or self.name


#: Every row, in the order of the table. A row whose samples nobody gathered is left out.
MEASURES = (
    Measure("create", "new session, numpy, pandas and pyplot imported, p50", goal=20),
    Measure("create_p99", "the same, p99", share=0.99, goal=60, source="create"),
    Measure("first_cell", "first cell of a new session, p50"),
    Measure("next_cell", "the cell after it, p50"),
    Measure("cell", "`1+1` there and back, p50", goal=2.5),
    Measure("cell_p99", "the same, p99", share=0.99, source="cell"),
    Measure("cell_cpu", "CPU of the server for it"),
    Measure("delay", "a printed line to the client, p50"),
    Measure("delay_p99", "the same, p99", share=0.99, source="delay"),
    Measure("burst", "20 sessions asked for at once, all ready", unit="s"),
    Measure("busy", "`1+1` in 20 busy sessions", unit="cells/s", higher_is_better=True),
    Measure("prints", "100,000 printed lines to the last byte", goal=1500),
    Measure("prints_lost", "of these lines lost", unit="lines", share=1.0, goal=0),
    Measure("big_print", "one print of 100 MB to the last byte", unit="s"),
    Measure("big_print_lost", "of these bytes lost", unit="MB", share=1.0, goal=0),
    Measure("big_print_memory", "growth of the server meanwhile", unit="MB", share=1.0, goal=64),
    Measure("idle_kernel", "memory of an idle session: its kernel alone, USS", unit="MB", goal=12),
    Measure("idle_session", "all its processes, PSS", unit="MB"),
    Measure("idle_server", "memory of an idle session in the server", unit="KB", goal=200),
)


@dataclass
class Samples:
    """What one subject gave, by measure; and why, where it gave nothing."""

    values: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """Keep these."""
        self.values.setdefault(name, []).extend(values)

    def figure(self, measure: Measure) -> float | None:
        """The measure's percentile, None without samples."""
        values = self.values.get(measure.samples)
        return percentile(values, measure.share) if values else None

    def summary(self) -> dict[str, Any]:
        """Count and percentiles of every kind of sample, for the JSON."""
        return {
            name: {
                "count": len(values),
                **{label: round(percentile(values, share), 4) for label, share in _SHARES.items()},
            }
            for name, values in self.values.items()
            if values
        } | {name: {"missing": why} for name, why in self.missing.items()}


_SHARES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def ratio(ours: float | None, theirs: float | None, measure: Measure) -> float | None:
    """How many times better we are; below 1 the peer is better. None where it can't be said."""
    if ours is None or theirs is None or not ours or not theirs:
        return None
    return ours / theirs if measure.higher_is_better else theirs / ours


def shown(value: float | None) -> str:
    """A figure with three digits that mean something."""
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
