"""What the journal costs: ``python -m benchmarks.journal [--gigabytes 1] [--dir DIR]``.

Appending and syncing as a cell does, the sync inline and in a thread, side by
side in one run; the notebook's share; and the time to open a large journal.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kernelsvc.model import events as ev
from kernelsvc.store.journal import Journal
from kernelsvc.store.notebooks import NotebookFile


def cell(n: int) -> list[ev.Event]:
    """The events of a trivial cell."""
    name = f"c{n}"
    return [
        ev.CellStarted(cell=name, execution_count=n),
        ev.Stream(cell=name, text="hello\n", frame=4),
        ev.Result(cell=name, data={"text/plain": "2"}, execution_count=n),
        ev.CellFinished(cell=name, execution_count=n),
    ]


def spread(seconds: Sequence[float]) -> str:
    """p50 and p99 in microseconds."""
    ordered = sorted(seconds)
    return f"p50 {ordered[len(ordered) // 2] * 1e6:8.1f} µs   p99 {ordered[int(len(ordered) * 0.99)] * 1e6:8.1f} µs"


async def costs(directory: Path, rounds: int = 500) -> None:
    """Append, sync inline, sync in a thread, and the notebook, interleaved."""
    journal = Journal.create(directory / "journal.jsonl", "s")
    notebook = NotebookFile(directory / "notebook.ipynb", journal)
    taken: dict[str, list[float]] = {"append 4 events": [], "sync inline": [], "sync in a thread": [], "notebook": []}

    def since(began: float, what: str) -> None:
        taken[what].append(time.perf_counter() - began)

    for n in range(rounds):
        for thread in (False, True):
            events = [ev.CellQueued(cell=f"c{2 * n + thread}", code="1+1"), *cell(2 * n + thread)]
            began = time.perf_counter()
            journal.append(events)
            since(began, "append 4 events")
            began = time.perf_counter()
            await asyncio.to_thread(journal.sync) if thread else journal.sync()
            since(began, "sync in a thread" if thread else "sync inline")
            began = time.perf_counter()
            notebook.feed(events)
            since(began, "notebook")
            await asyncio.sleep(0)
    for what, seconds in taken.items():
        print(f"{what:24}{spread(seconds)}")
    notebook.close()
    journal.close()


def opening(directory: Path, size: int) -> None:
    """Write a journal of ``size`` bytes and open it again."""
    for text in (60, 3000):
        path = directory / f"large-{text}.jsonl"
        journal = Journal.create(path, "s")
        while journal.size < size:
            journal.append([ev.Stream(cell="c", text="x" * text, frame=1) for _ in range(500)])
        journal.close()
        began = time.perf_counter()
        opened = Journal.open(path, "s")
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"open {size >> 20} MiB, {opened.last_seq} entries: {seconds:.2f} s, peak memory {peak} MiB")
        opened.close()
        path.unlink()


def main() -> None:
    """Run all of it in a directory that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dir", type=Path, default=None, help="where the data lies (a disk, not a tmpfs)")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        asyncio.run(costs(directory))
        opening(directory, int(args.gigabytes * (1 << 30)))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
