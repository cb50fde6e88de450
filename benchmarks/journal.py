"""The cost of the journal: ``python -m benchmarks.journal [--gigabytes 1] [--dir DIR]``.

The benchmark measures:

* The journal's share of a trivial cell. Cells over the WebSocket, one at a time, with a server that never syncs and one
  that syncs each end (``journal_sync = "ack"``, the default), and the time that the server itself counts for journals.
* Append and sync without a server, with the sync inline and in a thread, and the notebook's share.
* The time to open a large journal.

Run it on an idle machine, with ``--dir`` on the disk to measure. A sync on tmpfs costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kernelsvc import AsyncClient
from kernelsvc.client.sessions import AsyncSession
from kernelsvc.model import events as ev
from kernelsvc.service.projections import FLUSH_SECONDS
from kernelsvc.store.journal import Journal
from kernelsvc.store.notebook_file import NotebookFile

TOKEN = "journal"


def cell(n: int) -> list[ev.Event]:
    """Return the events of a trivial cell."""
    name = f"c{n}"
    return [
        ev.CellStarted(cell=name, execution_count=n),
        ev.Stream(cell=name, text="hello\n", frame=4),
        ev.Result(cell=name, data={"text/plain": "2"}, execution_count=n),
        ev.CellFinished(cell=name, execution_count=n),
    ]


def spread(seconds: Sequence[float]) -> str:
    """Return p50 and p99 in microseconds."""
    ordered = sorted(seconds)
    return f"p50 {ordered[len(ordered) // 2] * 1e6:8.1f} µs   p99 {ordered[int(len(ordered) * 0.99)] * 1e6:8.1f} µs"


async def costs(directory: Path, rounds: int = 500) -> None:
    """Measure append, sync inline, sync in a thread, and the notebook, interleaved."""
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


#: The share of a trivial cell that the journal may have.
GOAL = 0.15


async def share(directory: Path, rounds: int = 500) -> None:
    """Measure the journal's share of a trivial cell, from the server's own metrics."""
    for sync in ("off", "ack"):
        with Running(directory / sync, "--journal-sync", sync) as server:
            async with AsyncClient(server.url, TOKEN) as client, await client.create_session() as session:
                await _cells(session, 50)
                before = await server.spent()
                taken = await _cells(session, rounds)
                spent = await server.spent()
        append, synced = (after - earlier for after, earlier in zip(spent, before, strict=True))
        part = (append + synced) / sum(taken)
        print(f"cell, journal_sync={sync:8} {spread(taken)}")
        each = f"entries {append / rounds * 1e6:.0f} µs, sync {synced / rounds * 1e6:.0f} µs"
        print(f"  its journal, mean      {each}: {part:.1%} of the cell" + f" (goal {GOAL:.0%})" * (sync == "ack"))


async def _cells(session: AsyncSession, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await session.run("1+1")
        taken.append(time.perf_counter() - began)
    return taken


class Running:
    """A context manager for a server on a Unix socket, with its directories below ``root``."""

    def __init__(self, root: Path, *args: str) -> None:
        root.mkdir()
        self.url = f"unix:{root / 's'}"
        where = ["--uds", str(root / "s"), "--data-dir", str(root / "data"), "--runtime-dir", str(root / "run")]
        self._command = [sys.executable, "-m", "kernelsvc", "serve", *where, "--token", TOKEN, *args]
        self._log = root / "log"

    def __enter__(self) -> Running:
        ready, end = os.pipe()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--ready-fd", str(end)], stdout=log, stderr=log, pass_fds=[end], start_new_session=True
            )
        os.close(end)
        if not os.read(ready, 100):
            raise SystemExit(self._log.read_text())
        os.close(ready)
        return self

    async def spent(self) -> list[float]:
        """Return the seconds that the server has spent on journals: on entries, and on syncs."""
        await asyncio.sleep(2 * FLUSH_SECONDS)  # by then all is told
        reader, writer = await asyncio.open_unix_connection(self.url.removeprefix("unix:"))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        names = "kernelsvc_journal_append_seconds_total ", "kernelsvc_journal_sync_seconds_sum "
        return [float(line.split()[1]) for name in names for line in lines if line.startswith(name)]

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


def opening(directory: Path, size: int) -> None:
    """Write a journal of ``size`` bytes, and measure the time to open it."""
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
    """Run the benchmark in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dir", type=Path, default=None, help="where the data lies (a disk, not a tmpfs)")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="kj", dir=args.dir))
    try:
        asyncio.run(share(directory))
        asyncio.run(costs(directory))
        if args.gigabytes:
            opening(directory, int(args.gigabytes * (1 << 30)))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
