"""Branches, checkpoints, rollbacks and crashes of live sessions, compared with the alternatives.

    python -m benchmarks.branches [--rounds N] [--small] [--write]

Each figure is the time over the WebSocket from the request to the first result of a cell. The alternatives, measured
in the same run, are: the same cells in a new ordinary kernel, as a notebook user would do, dill's dump of the variables
and its load in a new process, and the start of an ordinary kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import AsyncKernelManager

from benchmarks import report
from benchmarks.peers import Environment
from kernelsvc import AsyncClient
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import AsyncSession

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".benchmarks"
DILL = Environment("dill", ("dill",), ("dill",))
MIB = 1 << 20

#: What a session holds: the cells that make it, and the one that asks for its first answer.
SMALL = (["import numpy as np\nx = list(range(1000))\nframe = {str(n): n for n in x}"], "len(x)")
ARRAY = (["import numpy as np", "a = np.random.default_rng(1).random({count})"], "float(a[7]) >= 0")
OBJECTS = (["d = {{n: str(n) for n in range({count})}}"], "len(d)")

#: Name, what it is held to, unit.
GOALS: dict[str, tuple[float, str]] = {
    "branch of a session with a 1 GB array, to its first answer": (30, "ms"),
    "branch of a session with 3 million objects, to its first answer": (40, "ms"),
    "branch of a small session, to its first answer": (0, "ms"),
    "16 branches, until each has answered": (400, "ms"),
    "a crash, to the next cell's answer": (50, "ms"),
    "rollback, to the next cell's answer": (60, "ms"),
    "private memory of an idle branch": (6, "MB"),
    "50 checkpoints of a small session": (300, "MB"),
}


class Sheet:
    """Figures by row, of kernelsvc and of the alternatives."""

    def __init__(self) -> None:
        self.ours: dict[str, list[float]] = {}
        self.others: dict[str, dict[str, float]] = {}

    def add(self, row: str, value: float) -> None:
        """Add a sample of kernelsvc."""
        self.ours.setdefault(row, []).append(value)

    def beside(self, row: str, other: str, value: float) -> None:
        """Add a figure of an alternative."""
        self.others.setdefault(row, {})[other] = value


OTHERS = ("cells run again", "dill", "new kernel, empty")


def table(sheet: Sheet) -> str:
    """Return a Markdown table: the median, the goal, and each alternative with its ratio to the median."""
    lines = [f"| | **kernelsvc** | goal | {' | '.join(OTHERS)} |", "|---|---:|---:|" + "---:|" * len(OTHERS)]
    for row, (goal, unit) in GOALS.items():
        samples = sheet.ours.get(row)
        if not samples:
            continue
        ours = statistics.median(samples)
        cells = [_beside(sheet.others.get(row, {}).get(other), ours, unit) for other in OTHERS]
        lines.append(f"| {row} | **{ours:,.3g} {unit}** | {f'{goal:g} {unit}' if goal else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _beside(value: float | None, ours: float, unit: str) -> str:
    return "" if value is None else f"{value:,.4g} {unit} ({value / ours:,.0f}x)"


def missed(sheet: Sheet) -> list[str]:
    """Return a line for each goal that was missed."""
    found = []
    for row, (goal, unit) in GOALS.items():
        samples = sheet.ours.get(row)
        if goal and samples and statistics.median(samples) > goal:
            found.append(f"missed: {row}: {statistics.median(samples):.3g} {unit}, goal {goal:g}")
    return found


# --- ours --------------------------------------------------------------------------------


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the duration of a coroutine, in milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1e3


async def rest(session: AsyncSession) -> None:
    """Wait for the automatic checkpoint of the last cell."""
    for _ in range(200):
        info = await session.info()
        if any(c.auto for c in info.checkpoints):
            return
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def holding(client: AsyncClient, cells: list[str]) -> AsyncIterator[AsyncSession]:
    """Create a session, run these cells, and wait until it is idle."""
    async with await client.create_session() as session:
        for code in cells:
            (await session.run(code)).raise_for_error()
        await rest(session)
        yield session


async def branch_row(client: AsyncClient, sheet: Sheet, row: str, cells: list[str], ask: str, rounds: int) -> None:
    """Measure single branches, to the first result."""
    async with holding(client, cells) as session:
        for _ in range(rounds):
            made: list[AsyncSession] = []

            async def act(made: list[AsyncSession] = made) -> None:
                made += await session.branch()
                (await made[0].run(ask)).raise_for_error()

            sheet.add(row, await timed(act))
            await made[0].close()
            await asyncio.sleep(0.2)


async def sixteen(client: AsyncClient, sheet: Sheet, rounds: int) -> None:
    """Measure sixteen concurrent branches, to their first results, and the memory of one."""
    cells, ask = SMALL
    async with holding(client, cells) as session:
        for _ in range(rounds):
            made: list[AsyncSession] = []

            async def act(made: list[AsyncSession] = made) -> None:
                made += await session.branch(count=16)
                await asyncio.gather(*(one.run(ask) for one in made))

            sheet.add("16 branches, until each has answered", await timed(act))
            await asyncio.sleep(0.5)
            await asyncio.gather(*(one.close() for one in made))
    async with holding(client, cells) as session:
        made = await session.branch(count=8)
        await asyncio.sleep(0.3)
        for one in made:
            kernel = (await one.info()).kernel
            if kernel is not None:
                sheet.add("private memory of an idle branch", private(kernel.pid) / MIB)
        await asyncio.gather(*(one.close() for one in made))


async def undo(client: AsyncClient, sheet: Sheet, rounds: int) -> None:
    """Measure a crash and a rollback, each to the next cell's result."""
    cells, ask = SMALL
    async with holding(client, cells) as session:
        for _ in range(rounds):

            async def crash() -> None:
                await session.run("import os; os._exit(1)")
                (await session.run(ask)).raise_for_error()

            sheet.add("a crash, to the next cell's answer", await timed(crash))
            await asyncio.sleep(0.3)
            await session.run("y = 1")
            await asyncio.sleep(0.3)

            async def back() -> None:
                await session.rollback()
                (await session.run(ask)).raise_for_error()

            sheet.add("rollback, to the next cell's answer", await timed(back))
            await asyncio.sleep(0.3)


async def fifty(client: AsyncClient, sheet: Sheet) -> None:
    """Measure fifty named checkpoints, with a cell between two."""
    cells, _ = SMALL
    async with holding(client, cells) as session:
        kernel = (await session.info()).kernel
        assert kernel is not None
        before = everything(kernel.pid)
        for number in range(50):
            await session.run(f"y = {number}")
            await session.checkpoint(f"c{number}")
        sheet.add("50 checkpoints of a small session", (everything(kernel.pid) - before) / MIB)


def private(pid: int) -> int:
    """Return the private bytes of a process."""
    return int(psutil.Process(pid).memory_full_info().uss)


def everything(pid: int) -> int:
    """Return the bytes of all processes of a kernel's host. A page that forks share counts once."""
    init = psutil.Process(pid).parent()
    template = init.parent() if init is not None else None
    host = template.parent() if template is not None else None
    assert host is not None
    return sum(int(one.memory_full_info().pss) for one in (host, *host.children(recursive=True)))


# --- what else one could do ------------------------------------------------------------------


async def again(cells: list[str], ask: str) -> tuple[float, float]:
    """Measure an ordinary kernel: milliseconds to its start, and until the cells have run in it."""
    manager = AsyncKernelManager()
    began = time.perf_counter()
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        ready = time.perf_counter()
        for code in [*cells, ask]:
            await client.execute_interactive(code, output_hook=lambda _: None)
        return (ready - began) * 1e3, (time.perf_counter() - began) * 1e3
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


_DUMP = """
import json, sys, time
names = {}
for code in json.loads(sys.argv[1]):
    exec(code, names)
import dill
keep = {k: v for k, v in names.items() if not k.startswith('__') and type(v).__name__ != 'module'}
began = time.perf_counter()
with open(sys.argv[2], 'wb') as file:
    dill.dump(keep, file)
print(time.perf_counter() - began)
"""
_LOAD = "import dill, sys\nwith open(sys.argv[1], 'rb') as file: x = dill.load(file)\nprint(len(x))"


def dill(python: Path, cells: list[str]) -> float:
    """Return the milliseconds to dump a session's variables, and to load them in a new process."""
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        path = str(Path(place) / "dump")
        dumped = subprocess.run(
            [python, "-c", _DUMP, json.dumps(cells), path], capture_output=True, text=True, check=True
        )
        began = time.perf_counter()
        subprocess.run([python, "-c", _LOAD, path], capture_output=True, check=True)
        return (float(dumped.stdout) + time.perf_counter() - began) * 1e3


# --- the run ------------------------------------------------------------------------------------


async def measure(rounds: int, small: bool, python: Path | None) -> Sheet:
    """Measure every row."""
    sheet, share = Sheet(), 100 if small else 1
    rows = {
        "branch of a small session, to its first answer": SMALL,
        "branch of a session with a 1 GB array, to its first answer": _sized(ARRAY, 125_000_000 // share),
        "branch of a session with 3 million objects, to its first answer": _sized(OBJECTS, 1_500_000 // share),
    }
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        options = ("--max-sessions", "100") if small else ()
        async with (
            private_server(Terminal(), *options, data_dir=Path(place), tcp=True) as address,
            AsyncClient(address.base, address.token) as client,
        ):
            for row, (cells, ask) in rows.items():
                await branch_row(client, sheet, row, cells, ask, rounds)
            await sixteen(client, sheet, rounds)
            await undo(client, sheet, rounds)
            await fifty(client, sheet)
    for row, (cells, ask) in rows.items():
        empty, replayed = await again(cells, ask)
        sheet.beside(row, "new kernel, empty", empty)
        sheet.beside(row, "cells run again", replayed)
        if python is not None:
            sheet.beside(row, "dill", dill(python, cells))
    first = sheet.others["branch of a small session, to its first answer"]
    for row in ("a crash, to the next cell's answer", "rollback, to the next cell's answer"):
        for other, value in first.items():
            sheet.beside(row, other, value)
    for other, value in first.items():
        sheet.beside("16 branches, until each has answered", other, 16 * value)
    return sheet


def about(here: dict[str, Any], rounds: int) -> str:
    """Describe the benchmark and the machine.

    Args:
        here: value of ``report.machine`` from before the run.
        rounds: number of samples of a row.
    """
    load = here["load_before"][0]
    return f"""\
Measured through the client and the WebSocket, with confinement, log and automatic checkpoints as they are by default,
medians of {rounds}, by `python -m benchmarks.branches --rounds {rounds} --write` on {here["cores"]} cores
({here["cpu"]}), {here["memory_gib"]} GiB, {here["system"]}, Python {here["python"]}, load {load:g} before the run.

"Cells run again" is a new ordinary Jupyter kernel in which the session's cells run once more. "dill" writes the
variables to a file and loads them in a new process. "New kernel, empty" has no variables. For sixteen branches, these
columns are sixteen times the time of one. A branch's time runs from the call until its first cell's answer. A
checkpoint's memory is the increase of all processes of the kernel host, each page counted once.
"""


def _sized(what: tuple[list[str], str], count: int) -> tuple[list[str], str]:
    cells, ask = what
    return [code.format(count=count) for code in cells], ask


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table and the missed goals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.branches", description="Branches and what they save.")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each row (default: 5)")
    parser.add_argument("--small", action="store_true", help="a hundredth of the data, to test the harness")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/branches.md")
    args = parser.parse_args(argv)
    python = None
    if not args.small:
        try:
            python = DILL.prepared(ENVIRONMENTS) / "python"
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(f"dill is left out: {error}", file=sys.stderr)
    here = report.machine()
    sheet = asyncio.run(measure(args.rounds, args.small, python))
    text = table(sheet)
    print(text)
    for line in missed(sheet):
        print(line)
    if args.write:
        page = f"# Branches\n\n{text}\n{about(here, args.rounds)}"
        (ROOT / "docs" / "benchmarks" / "branches.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
