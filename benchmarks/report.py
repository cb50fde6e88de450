"""From samples to JSON and Markdown. The README's table is this table: nobody types a figure."""

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

#: What is slow and stays so, for the page.
SLOW = """## What is slow and stays so

* A cell costs the kernel more than twice what `run_cell` costs in process, and after a pause everybody twice as much
  again: a process that slept finds the caches filled by others, and what it runs and touches comes from afar. The
  server's part is some 1,000 calls of Python's, of which none stands out ([what a cell costs](cost-of-a-cell.md)).
* A copy of a small session costs some 10 ms of processor time after the answer: a fork, the copy-on-write faults of the
  pages that its cells write, and the books of server and host. Who thinks between two cells does not meet it; whoever
  sends the second cell at once waits for the copy after the first; in a crowd the copies of all sessions together take
  at most a quarter of the processors (`docs/howto/branches.md`).
* Python 3.11 takes twice the memory of later ones for an idle session: it counts references to the template's objects
  in the objects, so every cell copies the pages that they lie on
  ([immortal objects](../adr/0012-immortal-objects.md)).
* A session is three forks: the middle that makes the namespaces, its init, its kernel. Each copies the mappings and
  page tables of a template with pandas and pyplot, and is a Python process with cold caches; that, and neither
  confinement nor the wire, is most of a new session's time. `--warm-pool` takes it from the one who asks.
* Many busy sessions keep two cores busy with their kernels, each with pages of its own to read anew: `1+1` takes its
  kernel half as long again as alone. Ten times Kernel Gateway's rate would need kernel and server to come to 1.2 ms
  together.
* How many idle sessions fit is counted last, while the peers' servers run too, with the kernels that those which failed
  before have left behind. Alone (`--only density --subject kernelsvc`) all 2,000 fit, 8.5 MB each.
* Short lines go through one frame each: a print's text and its line end are two writes of Python's, and each is with
  the server before the cell's next bytecode, because there is no thread that could send it later.
"""


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


def document(subjects: Mapping[str, Summary], limits: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run, for the JSON file."""
    return {**facts, "limits": dict(limits), "subjects": {name: dict(found) for name, found in subjects.items()}}


def merged(old: Mapping[str, Any], new: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """A run of some sections put over an earlier run; says of which day and machine its parts are.

    Raises:
        ValueError: the two are of different machines.
    """
    if {**old["machine"], "load_before": 0} != {**new["machine"], "load_before": 0}:
        raise ValueError("the earlier run was on another machine; run everything")
    names = [*new["subjects"], *(name for name in old["subjects"] if name not in new["subjects"])]
    subjects = {name: {**old["subjects"].get(name, {}), **new["subjects"].get(name, {})} for name in names}
    parts = {
        **old.get("parts", {}),
        **dict.fromkeys(sections, f"{new['date']}, load {new['machine']['load_before'][0]}"),
    }
    both = {key: {**new[key], **old[key]} for key in ("versions", "limits")}
    return {**old, **both, "subjects": subjects, "parts": parts}


def table(data: Mapping[str, Any], *, main: bool = False) -> str:
    """The Markdown table: a row a measure, a column a subject, the ratio and the limit beside.

    Args:
        data: of ``document``.
        main: only the rows that the README shows.
    """
    subjects, limits = data["subjects"], data["limits"]
    peers = [name for name in subjects if name != OURS]
    head = ["", f"**{OURS}**", *peers, f"times better than {RIVAL}", "limit"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for measure in MEASURES:
        if main and not measure.main:
            continue
        if any(figure(found, measure) is not None for found in subjects.values()):
            lines.append(_row(measure, subjects, peers, limits))
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


def goals(found: Summary) -> list[str]:
    """Each goal, whether it was met, in words."""
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


def conditions(data: Mapping[str, Any]) -> str:
    """What a reader must know to judge the figures."""
    here, limits = data["machine"], data["limits"]
    peers = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    where = (
        f"{here['cores']} cores ({here['cpu']}), {here['memory_gib']} GiB, {here['system']}, Python {here['python']}"
    )
    parts = "; ".join(f"{name} again on {when}" for name, when in data.get("parts", {}).items())
    return (
        f"Measured by `make bench` on {data['date']}: {where}, load before the run {here['load_before'][0]}. All "
        f"subjects ran in one run, taking turns; {data['settings']}{f'; {parts}' if parts else ''}. {peers}. Ours with "
        "confinement, synced journal and automatic checkpoints on. *Limit*: the floor of the same machine in the same "
        "run: `run_cell` in process for a cell, as many as the cores can do of them for busy sessions, a bare `fork` "
        "of a process with the same imports for a session, a checkpoint and a branch, a bare pipe for printed lines, "
        f"an echo over a Unix socket for a line's delay. A synced append of 300 bytes to the same disk took "
        f"{shown(limits.get('fdatasync'))} ms.\n"
    )


def markdown(data: Mapping[str, Any]) -> str:
    """The page: table, conditions, plots."""
    pictures = "\n".join(f"![{title}]({name}.svg)\n" for name, title in PLOTS.items())
    return f"# Benchmarks\n\n{table(data)}\n\n{conditions(data)}\n{pictures}\n{SLOW}"


def excerpt(data: Mapping[str, Any]) -> str:
    """The README's part: the main rows, the conditions, the plots."""
    pictures = "\n".join(f"![{title}](docs/benchmarks/{name}.svg)" for name, title in PLOTS.items())
    more = "Every row, and what is slow and stays so: [docs/benchmarks](docs/benchmarks/latest.md)."
    return f"{table(data, main=True)}\n\n{conditions(data)}\n{more}\n\n{pictures}\n"


def write(directory: Path, readme: Path | None, data: Mapping[str, Any]) -> list[Path]:
    """Write JSON, Markdown and plots, and put the excerpt between the README's markers. Returns what was written."""
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
    """The page with its benchmark part replaced.

    Raises:
        ValueError: the page has no such part.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}"
