"""The time that each layer of confinement adds to a fork.

    python -m benchmarks.confinement [rounds] [--write]

The benchmark forks a process with a template's modules (numpy, pandas, pyplot) in the steps of a session's start:
middle process, init, kernel. It measures the time from the fork to the kernel's message that it is confined: without
layers, with each single layer, with all of them, and with all but one. Runs are interleaved, and figures are medians.
``--write`` writes ``docs/benchmarks/confinement.md``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernelsvc.guest.confine import confine
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox.manager import SandboxManager

ROUNDS = 40
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "confinement.md"


def variants(full: dict[str, Any], bare: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return plans by name: without layers, with one layer, with all."""
    spaces = full["namespaces"]
    needed = [name for name in ("user",) if name in spaces]
    plans = {"no layer": bare}
    for layer, changes in {
        "cgroup": {"cgroup": full["cgroup"]},
        "namespaces, empty": {"namespaces": spaces},
        "namespaces and private root": {"namespaces": spaces, "view": full["view"], "home": full["home"]},
        "net namespace alone": {"namespaces": [*needed, "net"]},
        "capabilities and user": {key: full[key] for key in ("become", "no_new_privs")}
        | ({} if needed else {key: full[key] for key in ("bounding", "capabilities")}),
        "rlimits": {"rlimits": full["rlimits"], "data_bytes": full["data_bytes"]},
        "landlock": {
            "landlock": {**full["landlock"], "grants": [["/", "read"], ["/tmp", "write"]]},
            "no_new_privs": True,
        },
        "seccomp": {"seccomp": full["seccomp"], "no_new_privs": True},
    }.items():
        plans[layer] = {**copy.deepcopy(bare), **copy.deepcopy(changes)}
    return plans | {"all layers": full} | {f"all but {name}": plan for name, plan in without_one(full).items()}


def without_one(full: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return plans with all layers but one, for each layer that no other layer needs."""
    left_out: dict[str, dict[str, Any]] = {
        "cgroup": {"cgroup": []},
        "net namespace": {"namespaces": [name for name in full["namespaces"] if name != "net"]},
        "rlimits": {"rlimits": {}, "data_bytes": None},
        "landlock": {"landlock": None},
        "seccomp": {"seccomp": None},
    }
    return {name: {**copy.deepcopy(full), **changes} for name, changes in left_out.items()}


def spawn(plan: dict[str, Any]) -> float:
    """Return the milliseconds from the fork to a confined kernel."""
    reader, writer = os.pipe()
    started = time.perf_counter()
    middle = os.fork()
    if middle == 0:
        try:
            confine.enter(plan)
            if os.fork():
                os._exit(0)
            confine.build(plan)
            kernel = os.fork()
            if kernel == 0:
                confine.seal(plan)
                os.write(writer, b"sealed")
                os._exit(0)
            confine.guard_init(plan)
            os.waitpid(kernel, 0)
        except BaseException as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 1000)
    took = (time.perf_counter() - started) * 1e3
    os.close(reader)
    os.waitpid(middle, 0)
    if said != b"sealed":
        raise RuntimeError(said.decode())
    return took


def percentile(values: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(values)[int(len(values) * 0.95)]


def page(rows: list[tuple[str, float, float, float, float]], rounds: int, how: str) -> str:
    """Return the page: the table and the conditions."""
    lines = [f"| {name} | {a:.1f} | {b:+.1f} | {c:.1f} | {d:.1f} |" for name, a, b, c, d in rows]
    load = os.getloadavg()[0]
    return f"""# Cost of each layer of confinement at a session's start

`python -m benchmarks.confinement --write`, {time.strftime("%Y-%m-%d", time.gmtime())}: {os.cpu_count()} cores,
Linux {platform.release()}, load {load:.1f} at the end of the run, {rounds} rounds, interleaved, {how}. Milliseconds
from the fork of a process with the imports of a fork server (numpy, pandas, pyplot) until its kernel reports that it is
confined.
*Adds* is the difference to the median without a layer.

| layers on | median | adds | least | 95 % |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def main() -> None:
    """Measure and print a table."""
    import matplotlib.pyplot
    import numpy
    import pandas

    print(f"forking a process with {', '.join(m.__name__ for m in (numpy, pandas, matplotlib.pyplot))}")
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=ROUNDS)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[2])}")
    given = parser.parse_args()
    rounds = given.rounds
    with tempfile.TemporaryDirectory() as base:
        run, work = os.path.join(base, "run"), os.path.join(base, "work")
        os.chmod(base, 0o755)  # without a private root another user must be able to walk to it
        os.mkdir(run)
        os.mkdir(work)
        sandbox = SandboxManager(policy="best-effort", runtime_dir=run)
        ticket = sandbox.prepare("bench", workdir=work, limits=Limits(), python=sys.executable)
        off = SandboxManager(policy="off", runtime_dir=run, found=sandbox.probe).prepare(
            "bare", workdir=work, limits=Limits(memory_bytes=None, processes=None), python=sys.executable
        )
        bare = {**off.plan, "cgroup": [], "rlimits": {}, "oom_score_adj": None}
        plans = variants(ticket.plan, bare)
        gc.collect()
        gc.freeze()
        times: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(rounds):
            for name, plan in plans.items():
                times[name].append(spawn(plan))
        floor = statistics.median(times["no layer"])
        rows = [
            (name, statistics.median(values), statistics.median(values) - floor, min(values), percentile(values))
            for name, values in times.items()
        ]
        print(f"{'':32}{'median ms':>10}{'adds':>8}{'least':>8}{'p95':>8}")
        for name, *figures in rows:
            print(f"{name:32}{figures[0]:10.1f}" + "".join(f"{figure:8.1f}" for figure in figures[1:]))
        who = "root" if sandbox.probe.root else "an ordinary user"
        print(f"isolation: {ticket.report.isolation}; {who}")
        if given.write:
            PAGE.write_text(page(rows, rounds, f"isolation {ticket.report.isolation}, as {who}"), "utf-8")
        for one in (ticket, off):
            while not sandbox.release(one):
                time.sleep(0.01)
        sandbox.close()


if __name__ == "__main__":
    main()
