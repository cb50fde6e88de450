"""From samples to JSON and Markdown. The README's table is this table: nobody types a figure."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import MEASURES, Measure, Samples, ratio, shown

BEGIN = "<!-- benchmark: written by `make bench`, figures are never typed -->"
END = "<!-- end of benchmark -->"
OURS = "kernelsvc"
#: The peer that ratios are given to first.
RIVAL = "Kernel Gateway"


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def versions(*packages: str) -> dict[str, str]:
    """What is installed here of these packages."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def document(subjects: Mapping[str, Samples], limits: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run, for the JSON file."""
    return {
        **facts,
        "limits": dict(limits),
        "subjects": {name: samples.summary() for name, samples in subjects.items()},
    }


def table(subjects: Mapping[str, Samples], limits: Mapping[str, float]) -> str:
    """The Markdown table: a row a measure, a column a subject, the ratio and the limit beside."""
    peers = [name for name in subjects if name != OURS]
    head = ["", f"**{OURS}**", *peers, f"times better than {RIVAL}", "limit"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for measure in MEASURES:
        if any(samples.figure(measure) is not None for samples in subjects.values()):
            lines.append(_row(measure, subjects, peers, limits))
    return "\n".join(lines)


def _row(measure: Measure, subjects: Mapping[str, Samples], peers: list[str], limits: Mapping[str, float]) -> str:
    ours = subjects[OURS].figure(measure) if OURS in subjects else None
    rival = subjects[RIVAL].figure(measure) if RIVAL in subjects else None
    better = ratio(ours, rival, measure)
    limit = limits.get(measure.samples) if measure.share == 0.5 else None
    cells = [
        f"{measure.title} ({measure.unit})",
        f"**{shown(ours)}**",
        *(shown(subjects[name].figure(measure)) for name in peers),
        f"{better:.1f}x" if better else "",
        shown(limit) if limit is not None else "",
    ]
    return "| " + " | ".join(cells) + " |"


def goals(samples: Samples) -> list[str]:
    """Each goal, whether it was met, in words."""
    told = []
    for measure in MEASURES:
        figure = samples.figure(measure)
        if measure.goal is None or figure is None:
            continue
        met = figure >= measure.goal if measure.higher_is_better else figure <= measure.goal
        told.append(
            f"{'met   ' if met else 'MISSED'}  {measure.title}: {shown(figure)} {measure.unit}, "
            f"goal {shown(measure.goal)} {measure.unit}"
        )
    return told


def markdown(subjects: Mapping[str, Samples], limits: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """The table with what a reader must know to judge it."""
    here = facts["machine"]
    peers = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    where = (
        f"{here['cores']} cores ({here['cpu']}), {here['memory_gib']} GiB, {here['system']}, Python {here['python']}"
    )
    return (
        f"{table(subjects, limits)}\n\n"
        f"Measured by `make bench` on {facts['date']}: {where}, load before the run {here['load_before'][0]}. All "
        f"subjects ran in one run, taking turns; {facts['settings']}. {peers}. *Limit*: the floor of the same machine "
        "in the same run: `run_cell` in process for a cell, a bare `fork` of a process with the same imports for a "
        f"session, a bare pipe for printed lines. A synced append of 300 bytes to the same disk took "
        f"{shown(limits.get('fdatasync'))} ms, an echo over a Unix socket {shown(limits.get('socket_echo'))} ms.\n"
    )


def write(directory: Path, readme: Path | None, text: str, data: Mapping[str, Any]) -> list[Path]:
    """Write JSON and Markdown, and put the table between the README's markers. Returns what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    found = [directory / "latest.json", directory / "latest.md"]
    found[0].write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    found[1].write_text(f"# Benchmarks\n\n{text}", "utf-8")
    if readme is not None:
        before = readme.read_text("utf-8")
        readme.write_text(between(before, text), "utf-8")
        found.append(readme)
    return found


def between(page: str, text: str) -> str:
    """The page with its benchmark part replaced.

    Raises:
        ValueError: the page has no such part.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}"
