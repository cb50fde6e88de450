"""E2B's SDK with this server, compared with the installable parts of E2B's stack.

    python -m benchmarks.e2b_sdk [--rounds N] [--against API_URL SANDBOX_URL KEY] [--write]

The same unmodified script (``e2b_script``) runs against kernelsvc and, with ``--against``, against another server of
E2B's API: E2B's cloud (two empty addresses and your key), or your own. E2B's interpreter server is in no package
registry. Its base, jupyter_server, is: E2B's server sends each cell to it, so that its figures are a lower limit for
E2B's. E2B's chart extractor (e2b-charts) can be installed too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import peers, report
from benchmarks.peers import Environment
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.guest import e2b_charts

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".benchmarks"
SCRIPT = Path(__file__).with_name("e2b_script.py")
SDK = Environment("e2b", ("e2b-code-interpreter", "e2b-charts"), ("e2b-code-interpreter", "e2b", "e2b-charts"))
US, ENGINE, OTHER, CHARTS = "kernelsvc", "jupyter_server, beneath E2B's", "the other server", "e2b-charts"
#: Rows of jupyter_server, by the row of the SDK for which they are a lower limit.
EXTRACTION = "a line's 1,000 points read back from its figure"

_EXTRACT = """
import importlib.util, json, statistics, sys, time
import matplotlib.dates, matplotlib.pyplot as plt
plt.switch_backend('agg')
spec = importlib.util.spec_from_file_location('ours', sys.argv[1])
ours = importlib.util.module_from_spec(spec); sys.modules['ours'] = ours; spec.loader.exec_module(ours)
from e2b_charts import chart_figure_to_dict
figure, ax = plt.subplots(); ax.plot(range(1000)); figure.canvas.draw()
def timed(work):
    found = []
    for _ in range(20):
        began = time.perf_counter(); work(figure); found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found)
print(json.dumps([timed(ours.chart), timed(chart_figure_to_dict)]))
"""

ABOUT = """
Medians of {rounds} rounds by `python -m benchmarks.e2b_sdk`: {place}, Python {python}, load before the run {load};
{versions}. Ours with confinement, synced journal and automatic checkpoints on.

E2B's interpreter server is in no registry; jupyter_server, on which it is built, is measured by itself, through a
WebSocket that is kept open: a floor of E2B's figures. `--against` runs the same script against E2B's cloud or a server
that you host.
"""

Sheet = dict[str, dict[str, float]]


def script(python: Path, api: str, sandbox: str, key: str, rounds: int) -> dict[str, float]:
    """Run the SDK's script against one server. Return the medians in milliseconds."""
    command = [str(python), str(SCRIPT), api, sandbox, key, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"the script failed: {done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return {row: statistics.median(values) for row, values in found.items()}


async def against_us(python: Path, rounds: int) -> dict[str, float]:
    """Run the script against this checkout."""
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        async with private_server(Terminal(), data_dir=Path(place), tcp=True) as address:
            return await asyncio.to_thread(script, python, address.base, address.base, address.token, rounds)


async def engine(rounds: int, scratch: Path) -> dict[str, float]:
    """Measure jupyter_server over one WebSocket, which is the part of E2B's server that runs cells."""
    subject = peers.jupyter_server(peers.GATEWAY.prepared(ENVIRONMENTS), scratch)
    samples: dict[str, list[float]] = {}

    async def timed(row: str, work: Callable[[], Awaitable[Any]]) -> Any:
        began = time.perf_counter()
        made = await work()
        samples.setdefault(row, []).append((time.perf_counter() - began) * 1e3)
        return made

    await subject.start()
    try:
        for _ in range(min(rounds, 3)):
            session = await timed("a new context, to its first answer", subject.open)
            for _ in range(20):
                await timed("run_code('1 + 1')", lambda session=session: session.run("1 + 1"))
            await timed("10,000 printed lines", lambda session=session: session.run("for i in range(10000): print(i)"))
            await session.close()
    finally:
        await subject.stop()
    return {row: statistics.median(values) for row, values in samples.items()}


def extraction(python: Path) -> tuple[float, float]:
    """Return the milliseconds of kernelsvc's and E2B's chart extractors for the same figure."""
    command = [str(python), "-c", _EXTRACT, str(e2b_charts.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, theirs = json.loads(done.stdout)
    return ours, theirs


def table(sheet: Sheet) -> str:
    """Return a Markdown table: kernelsvc, and each other subject with its ratio."""
    others = [name for name in (OTHER, ENGINE, CHARTS) if any(name in row for row in sheet.values())]
    lines = [
        f"| ms, median | **kernelsvc** |{''.join(f' {name} |' for name in others)}",
        "|---|---:|" + "---:|" * len(others),
    ]
    for row, found in sheet.items():
        beside = "".join(f" {_beside(found.get(name), found[US])} |" for name in others)
        lines.append(f"| {row} | **{found[US]:,.3g}** |{beside}")
    return "\n".join(lines) + "\n"


def _beside(value: float | None, ours: float) -> str:
    return "" if value is None else f"{value:,.3g} ({value / ours:,.1f}x)"


def put(sheet: Sheet, who: str, found: dict[str, float]) -> None:
    """Add the column of one server."""
    for row, value in found.items():
        if who == US or row in sheet:
            sheet.setdefault(row, {})[who] = value


async def measure(rounds: int, other: list[str] | None) -> Sheet:
    """Measure each row that this machine can measure."""
    python = SDK.prepared(ENVIRONMENTS) / "python"
    sheet: Sheet = {}
    put(sheet, US, await against_us(python, rounds))
    if other:
        put(sheet, OTHER, script(python, *other, rounds))
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        try:
            put(sheet, ENGINE, await engine(rounds, Path(scratch)))
        except RuntimeError as error:
            print(f"benchmarks: not measured: {error}", file=sys.stderr)
    ours, theirs = extraction(python)
    sheet[EXTRACTION] = {US: ours, CHARTS: theirs}
    return sheet


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.e2b_sdk", description="E2B's SDK against this server.")
    parser.add_argument("--rounds", type=int, default=5, help="sandboxes (default: 5)")
    parser.add_argument("--against", nargs=3, metavar=("API_URL", "SANDBOX_URL", "KEY"), help="another server")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/e2b.md")
    args = parser.parse_args(argv)
    text = table(asyncio.run(measure(args.rounds, args.against)))
    print(text)
    if args.write:
        versions = ", ".join(f"{name} {release}" for name, release in SDK.versions(ENVIRONMENTS).items())
        here = report.machine()
        place = f"{here['cores']} cores ({here['cpu']}), {here['memory_gib']} GiB, {here['system']}"
        about = ABOUT.format(
            rounds=args.rounds, place=place, python=here["python"], load=here["load_before"][0], versions=versions
        )
        (ROOT / "docs" / "benchmarks" / "e2b.md").write_text(f"# E2B's SDK\n\n{text}{about}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
