"""The cost of a server crash: ``python -m benchmarks.adoption [--sessions 200] [--gigabytes 1] [--dir DIR]``.

The benchmark kills the server while sessions exist and some of them run cells. It measures the time from the start of
the next server to its first response, to the adoption of every session, and to the first results of cells.
``python -m benchmarks.journal`` measures the journal's cost for a cell, and the time to open a large journal.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernelsvc import AsyncClient
from kernelsvc.model import events as ev
from kernelsvc.store.journal import Journal

TOKEN = "adoption"


def serve(root: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start a server on a Unix socket. Return it, and the seconds until it was ready."""
    ready, end = os.pipe()
    began = time.perf_counter()
    where = ["--uds", str(root / "s"), "--data-dir", str(root / "data"), "--runtime-dir", str(root / "run")]
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kernelsvc", "serve", *where, "--token", TOKEN, "--ready-fd", str(end)],
            stdout=log,
            stderr=log,
            pass_fds=[end],
            env={**os.environ, "KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}'},
            start_new_session=True,
        )
    os.close(end)
    if not os.read(ready, 100):
        raise SystemExit((root / "log").read_text())
    os.close(ready)
    return process, time.perf_counter() - began


async def measure(root: Path, count: int) -> None:
    """Create sessions, kill the server, start another one, measure."""
    process, cold = serve(root)
    try:
        async with AsyncClient(f"unix:{root / 's'}", TOKEN, retry_seconds=120) as client:
            sessions = [await client.create_session(keep=True) for _ in range(count)]
            await asyncio.gather(*(session.run("x = 1") for session in sessions))
            for session in sessions[::10]:
                await session.run("import time; time.sleep(3); print('done')", cell="runs", wait="queued")
            process.kill()
            process.wait()
            process, again = serve(root)
            began = time.perf_counter()
            await asyncio.gather(*(session.run("x") for session in sessions[1::10]))
            first = time.perf_counter() - began
            ends = await asyncio.gather(*(session.cell("runs") for session in sessions[::10]))
            print(f"sessions                            {count}, {len(ends)} of them in a cell")
            print(f"cold start, no session              {cold:.2f} s")
            print(f"start after a crash, all adopted    {again:.2f} s")
            print(f"then a cell in {len(sessions[1::10])} of them           {first:.2f} s")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


async def large(root: Path, size: int) -> None:
    """Measure the recovery of a session with a journal of ``size`` bytes, and its effect on ten small sessions."""
    process, _ = serve(root)
    try:
        async with AsyncClient(f"unix:{root / 's'}", TOKEN, retry_seconds=120) as client:
            sessions = [await client.create_session(keep=True) for _ in range(11)]
            await asyncio.gather(*(session.run("x = 1", cell="c") for session in sessions))
            process.kill()
            process.wait()
            path = root / "data" / "sessions" / sessions[0].id / "journal.jsonl"
            journal = Journal.open(path)
            while journal.size < size:
                journal.append([ev.Stream(cell="c", text="x" * 100) for _ in range(500)])
            journal.sync()
            journal.close()
            process, again = serve(root)
            began = time.perf_counter()
            waiting = asyncio.ensure_future(sessions[0].run("x"))
            others: list[float] = []
            while not waiting.done():
                asked = time.perf_counter()
                await sessions[1].run("x")
                others.append((time.perf_counter() - asked) * 1000)
            own = time.perf_counter() - began
            rss = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
            print(f"start with one journal of {size >> 20} MiB, {journal.last_seq} entries: {again:.2f} s")
            print(f"then the first cell in that session {own:.2f} s")
            middle, worst = sorted(others)[len(others) // 2], max(others)
            print(f"cells in another one meanwhile      {len(others)}, p50 {middle:.0f} ms, longest {worst:.0f} ms")
            print(f"the server's memory                 {rss} MiB")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    """Run the benchmark in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument(
        "--gigabytes", type=float, default=0.0, help="also measure a session with a journal of this size"
    )
    parser.add_argument("--dir", type=Path, default=None, help="parent of the data directory (a short path, on a disk)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ka", dir=args.dir))
    try:
        asyncio.run(measure(root, args.sessions))
        if args.gigabytes:
            asyncio.run(large(root, int(args.gigabytes * (1 << 30))))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
