"""One Jupyter script with kernelsvc's Jupyter API and with Kernel Gateway. Prints a table with ratios.

    python -m benchmarks.jupyter_api [ROUNDS]

Both use the same client: Jupyter's REST API, and its plain JSON framing over one WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.processes import free_port
from benchmarks.subjects import TOKEN, JupyterServer, Subject

ENVIRONMENTS = Path(__file__).parents[1] / ".benchmarks"
TRIVIAL_CELLS = 100
#: What a notebook does, by the row it is told in.
CELLS = {
    "10,000 printed lines": "for i in range(10000): print(i)",
    "a DataFrame of 1,000 x 10": "pd.DataFrame(np.arange(10000).reshape(1000, 10))",
    "a plot": "plt.plot(range(1000)); plt.show()",
    "an error": "1/0",
}
NAMES = "import numpy as np, pandas as pd, matplotlib.pyplot as plt; plt.plot([1]); plt.show()"

Samples = dict[str, list[float]]


def own_server(scratch: Path, runtime: str) -> JupyterServer:
    """Return this checkout's server as a Jupyter server."""
    port = free_port()
    where = ["--port", str(port), "--data-dir", str(scratch / "data"), "--runtime-dir", runtime]
    command = [sys.executable, "-m", "kernelsvc", "serve", "--token", TOKEN, *where]
    return JupyterServer("kernelsvc", command, scratch, port, {})


async def one_round(subject: Subject, samples: Samples) -> None:
    """Start a kernel, run its cells, stop it. Return the milliseconds of each."""

    def note(row: str, begun: float) -> None:
        samples.setdefault(row, []).append((time.perf_counter() - begun) * 1e3)

    begun = time.perf_counter()
    session = await subject.open()
    note("a new kernel, numpy, pandas and pyplot imported", begun)
    await session.run(NAMES)
    for _ in range(TRIVIAL_CELLS):
        begun = time.perf_counter()
        await session.run("1+1")
        note("`1+1`", begun)
    for row, code in CELLS.items():
        begun = time.perf_counter()
        await session.run(code)
        note(row, begun)
    begun = time.perf_counter()
    await session.close()
    note("its end", begun)


async def measured(subjects: list[Subject], rounds: int) -> list[Samples]:
    """Measure all subjects in turn. The first round is a warm-up, and does not count."""
    samples: list[Samples] = [{} for _ in subjects]
    async with contextlib.AsyncExitStack() as stack:
        for subject in subjects:
            stack.push_async_callback(subject.stop)
            await subject.start()
        for number in range(rounds + 1):
            for subject, found in zip(subjects, samples, strict=True):
                await one_round(subject, found if number else {})
    return samples


def table(ours: Samples, theirs: Samples) -> list[str]:
    """Return a Markdown table of medians."""
    lines = ["| p50 (ms) | kernelsvc | Kernel Gateway | ratio |", "|---|---:|---:|---:|"]
    for row, mine in ours.items():
        us, them = statistics.median(mine), statistics.median(theirs[row])
        lines.append(f"| {row} | {us:,.2f} | {them:,.1f} | {them / us:.1f}x |")
    return lines


def main() -> int:
    """Measure and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    bin = peers.GATEWAY.prepared(ENVIRONMENTS)
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory(prefix="kj", dir="/tmp") as runtime:
        subjects = [own_server(Path(place), runtime), peers.gateway(bin, Path(place), nodelay=False)]
        ours, theirs = asyncio.run(measured(subjects, rounds))
    print("\n".join(table(ours, theirs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
