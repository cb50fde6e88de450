"""Draw the plots from the JSON of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: File names and what they show.
PLOTS = {
    "latency": "Latency of a trivial cell, share of cells below",
    "throughput": "Trivial cells per second against busy sessions",
    "memory": "Memory of an idle session against the number of sessions",
}
_COLOURS = ("#c0392b", "#2c3e50", "#7f8c8d", "#16a085", "#8e44ad", "#d68910")
_COUNTS = (1, 10, 100)
_DENSE = (10, 100, 500, 1000, 1500, 2000)


def draw(data: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw the plots that have figures. Return the files."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "kernelsvc", "font.size": 9, "axes.spines.top": False})
    drawn = []
    for name, paint in _PAINT.items():
        figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        paint(axes, data["subjects"])
        axes.set_title(PLOTS[name])
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        axes.spines["right"].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        drawn.append(directory / f"{name}.svg")
        figure.savefig(drawn[-1], metadata={"Date": None})
        pyplot.close(figure)
    return drawn


def _latency(axes: Any, subjects: Mapping[str, Any]) -> None:
    for colour, (name, found) in zip(_COLOURS, subjects.items(), strict=False):
        points = found.get("cell", {}).get("points")
        if points:
            axes.plot(points, [(i + 0.5) / len(points) for i in range(len(points))], color=colour, label=name)
    axes.set(xscale="log", xlabel="ms from request to answer", ylabel="share of cells", ylim=(0, 1))


def _throughput(axes: Any, subjects: Mapping[str, Any]) -> None:
    for colour, (name, found) in zip(_COLOURS, subjects.items(), strict=False):
        rates = {count: found.get(f"busy_{count}", {}).get("p50") for count in _COUNTS}
        if one := found.get("cell", {}).get("p50"):
            rates[1] = 1000 / one
        known = [(count, rate) for count, rate in rates.items() if rate]
        if known:
            axes.plot(*zip(*known, strict=True), "o-", color=colour, label=name)
    axes.set(xscale="log", xlabel="busy sessions", ylabel="cells per second")
    axes.set_ylim(bottom=0)


def _memory(axes: Any, subjects: Mapping[str, Any]) -> None:
    for colour, (name, found) in zip(_COLOURS, subjects.items(), strict=False):
        sizes = [(count, found.get(f"dense_{count}", {}).get("p50")) for count in _DENSE]
        known = [(count, size) for count, size in sizes if size]
        if known:
            axes.plot(*zip(*known, strict=True), "o-", color=colour, label=f"{name}: all of the machine, per session")
        elif each := found.get("idle_session", {}).get("p50"):
            axes.axhline(each, color=colour, linewidth=1, linestyle="--", label=f"{name}: its processes, of 10")
    axes.set(xscale="log", yscale="log", xlabel="idle sessions", ylabel="MB per session")


_PAINT: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
}
