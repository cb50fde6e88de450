"""Turn samples into JSON and Markdown. The tables of the page and of the README come from the same document."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import MEASURES, Measure, Summary, figure, ratio, shown
from benchmarks.plots import PLOTS, draw

BEGIN = "<!-- benchmark: written by `make bench`, figures are never typed -->"
END = "<!-- end of benchmark -->"
OURS = "kernelsvc"
#: The peer that ratios are given to first.
RIVAL = "Kernel Gateway"

#: Known costs, for the page.
SLOW = """## What is slow, and why

* **A cell costs its kernel more than twice the time of `run_cell` in process.** After a pause every process needs twice
  as much again, because other programs have filled the processor caches. The server runs about 1,000 Python calls for a
  cell, and none of them dominates ([cost of a cell](cost-of-a-cell.md)).
* **A checkpoint of a small session takes about 10 ms of processor time**, after the answer was sent: the fork, the
  copy-on-write faults of the pages that its cells write, and the accounting of server and host. A client that pauses
  between two cells does not notice it. A client that sends the second cell immediately waits for the checkpoint after
  the first. Under load, the checkpoints of all sessions together take at most a quarter of the processors
  ([branches](../howto/branches.md)).
* **Python 3.11 needs twice the memory of later versions for an idle session.** It counts references inside the fork
  server's objects, so every cell copies the pages that hold them
  ([immortal objects](../adr/0012-immortal-objects.md)).
* **A session is three forks**: the process that creates the namespaces, the init, and the kernel. Each copies the
  mappings and page tables of a fork server with pandas and pyplot, and starts with cold caches. These forks take most
  of the time of a new session. Confinement and the wire take little. `--warm-pool` creates sessions ahead of requests.
* **Many busy sessions keep two cores busy with their kernels.** Each kernel has its own pages to read, and `1+1` takes
  its kernel half as long again as alone. Ten times the rate of Kernel Gateway would need 1.2 ms for kernel and server
  together.
* **The number of idle sessions that fit is measured last**, while the servers of the peers and the kernels that failed
  runs left behind still use memory. Alone (`--only density --subject kernelsvc`) all 2,000 fit, 8.5 MB each.
* **Short lines go through one frame each.** Python writes a print's text and its line end separately. Each write
  reaches the server before the cell's next bytecode, because the kernel has no thread that could send it later.
"""


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
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
    """Return the installed versions of packages."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def document(subjects: Mapping[str, Summary], limits: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the JSON file for a run."""
    return {**facts, "limits": dict(limits), "subjects": {name: dict(found) for name, found in subjects.items()}}


def merged(old: Mapping[str, Any], new: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """Merge a run of some sections into an earlier run, with the date and machine of each part.

    Raises:
        ValueError: the runs are from different machines.
    """
    if {**old["machine"], "load_before": 0} != {**new["machine"], "load_before": 0}:
        raise ValueError("the earlier run was on another machine. Run everything")
    names = [*new["subjects"], *(name for name in old["subjects"] if name not in new["subjects"])]
    subjects = {name: {**old["subjects"].get(name, {}), **new["subjects"].get(name, {})} for name in names}
    parts = {
        **old.get("parts", {}),
        **dict.fromkeys(sections, f"{new['date']}, load {new['machine']['load_before'][0]}"),
    }
    both = {key: {**new[key], **old[key]} for key in ("versions", "limits")}
    return {**old, **both, "subjects": subjects, "parts": parts}


def table(data: Mapping[str, Any]) -> str:
    """Return the Markdown table: a row a measure, a column a subject, then the ratio and the limit.

    Args:
        data: value of ``document``.
    """
    subjects, limits = data["subjects"], data["limits"]
    peers = [name for name in subjects if name != OURS]
    head = ["", f"**{OURS}**", *peers, f"times better than {RIVAL}", "limit"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [
        _row(measure, subjects, peers, limits)
        for measure in MEASURES
        if any(figure(found, measure) is not None for found in subjects.values())
    ]
    return "\n".join(lines)


def _row(measure: Measure, subjects: Mapping[str, Summary], peers: list[str], limits: Mapping[str, float]) -> str:
    ours, rival = figure(subjects.get(OURS, {}), measure), figure(subjects.get(RIVAL, {}), measure)
    better = ratio(ours, rival, measure)
    limit = limits.get(measure.samples) if measure.label == "p50" else None
    cells = [
        f"{measure.title} ({measure.unit})",
        f"**{shown(ours)}**",
        *(shown(figure(subjects[name], measure)) for name in peers),
        f"{better:.1f}x" if better else "",
        shown(limit) if limit is not None else "",
    ]
    return "| " + " | ".join(cells) + " |"


def headlines(data: Mapping[str, Any]) -> str:
    """Return the README's table: the few rows that have a headline, next to one peer."""
    subjects = data["subjects"]
    lines = [f"| | **{OURS}** | {RIVAL} |", "|---|---:|---:|"]
    for measure in MEASURES:
        ours, rival = figure(subjects.get(OURS, {}), measure), figure(subjects.get(RIVAL, {}), measure)
        if measure.headline and (ours is not None or rival is not None):
            lines.append(f"| {measure.headline} ({measure.unit}) | **{shown(ours)}** | {shown(rival)} |")
    return "\n".join(lines)


def goals(found: Summary) -> list[str]:
    """Return a line for each goal, and whether it was met."""
    told = []
    for measure in MEASURES:
        value = figure(found, measure)
        if measure.goal is None or value is None:
            continue
        met = value >= measure.goal if measure.higher_is_better else value <= measure.goal
        told.append(
            f"{'met   ' if met else 'MISSED'}  {measure.title}: {shown(value)} {measure.unit}, "
            f"goal {shown(measure.goal)} {measure.unit}"
        )
    return told


def machine_line(data: Mapping[str, Any]) -> str:
    """Return the machine of a run in a phrase."""
    here = data["machine"]
    return f"{here['cores']} cores ({here['cpu']}), {here['memory_gib']} GiB, {here['system']}, Python {here['python']}"


def conditions(data: Mapping[str, Any]) -> str:
    """Return the conditions of a run, which a reader needs to judge the figures."""
    limits = data["limits"]
    peers = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    parts = ", ".join(f"{name} again on {when}" for name, when in data.get("parts", {}).items())
    return (
        f"Measured by `make bench` on {data['date']}: {machine_line(data)}, load before the run "
        f"{data['machine']['load_before'][0]}. All subjects ran in one run, in turns: {data['settings']}"
        f"{f'. Measured again: {parts}' if parts else ''}. Versions: {peers}. kernelsvc ran with confinement, synced "
        "journal and automatic checkpoints on.\n\n*Limit* is the floor of the same machine in the same run: `run_cell` "
        "in process for a cell, as many as the cores can do of them for busy sessions, a bare `fork` of a process with "
        "the same imports for a session, a checkpoint and a branch, a bare pipe for printed lines, an echo over a Unix "
        "socket for the delay of a line. A synced append of 300 bytes to the same disk took "
        f"{shown(limits.get('fdatasync'))} ms.\n"
    )


def markdown(data: Mapping[str, Any]) -> str:
    """Return the page: table, conditions, plots."""
    pictures = "\n".join(f"![{title}]({name}.svg)\n" for name, title in PLOTS.items())
    return f"# Benchmarks\n\n{table(data)}\n\n{conditions(data)}\n{pictures}\n{SLOW}"


def excerpt(data: Mapping[str, Any]) -> str:
    """Return the README's part: the headline rows and the machine."""
    return (
        f"{headlines(data)}\n\nMeasured by `make bench` on {data['date']}: {machine_line(data)}. All rows, five peers, "
        "the conditions and the known costs: [benchmarks](docs/benchmarks/latest.md).\n"
    )


def write(directory: Path, readme: Path | None, data: Mapping[str, Any]) -> list[Path]:
    """Write JSON, Markdown and plots, and the excerpt between the README's markers. Return the written files."""
    directory.mkdir(parents=True, exist_ok=True)
    found = [directory / "latest.json", directory / "latest.md", *draw(data, directory)]
    found[0].write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
    found[1].write_text(markdown(data), "utf-8")
    if readme is not None:
        before = readme.read_text("utf-8")
        readme.write_text(between(before, excerpt(data)), "utf-8")
        found.append(readme)
    return found


def between(page: str, text: str) -> str:
    """Return the page with a new benchmark part.

    Raises:
        ValueError: the page has no such part.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}"
