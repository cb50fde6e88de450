"""What a crash costs: ``python -m benchmarks.adoption [--sessions 200] [--dir DIR]``.

The server is killed while sessions live and some of them run cells. Measured are
the time from the next server's start to its first answer, to every session
adopted, and to the first answers of cells in all of them. (The journal's cost
per cell and the opening of a large one: ``python -m benchmarks.journal``.)
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

TOKEN = "adoption"


def serve(root: Path) -> tuple[subprocess.Popen[bytes], float]:
    """A server on a Unix socket, ready; and how long that took."""
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
    """Make sessions, kill, start, look."""
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


def main() -> None:
    """Run it in a directory that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--dir", type=Path, default=None, help="where the data lies (a short path, on a disk)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ka", dir=args.dir))
    try:
        asyncio.run(measure(root, args.sessions))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
