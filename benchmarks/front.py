"""A front against a node directly, and two workers against one.

    python -m benchmarks.front [--turns N] [--busy N] [--skip-workers]

The calls of a pair take turns, so that other load of the machine meets both. Times are medians in milliseconds, as one
client sees them. The processor time is that of the front's process, for each call. ``--busy`` sessions run short cells
at the same time for the cells a second of one and of two workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
from tornado.httpclient import AsyncHTTPClient

from kernelsvc.client import AsyncClient

TOKEN, KEY = "benchmark-token-of-fronts", "benchmark-key-of-the-cluster"
SECONDS = 10.0


@contextlib.contextmanager
def running(root: Path, command: str, *args: str) -> Iterator[tuple[str, int]]:
    """Run a command of kernelsvc. Yield its address and its pid."""
    root.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "KERNELSVC_CLUSTER_KEY": KEY, "KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}'}
    ready, ready_end = os.pipe()
    where = ["--port", "0", "--token", TOKEN, "--data-dir", str(root / "data"), "--runtime-dir", str(root / "run")]
    log = root / f"{command}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "kernelsvc", command, *where, "--ready-fd", str(ready_end), *args],
            stdout=out, stderr=out, env=env, pass_fds=[ready_end],
        )  # fmt: skip
    os.close(ready_end)
    try:
        if not os.read(ready, 16):
            raise SystemExit(log.read_text())
        found = re.search(r"listens on (http://\S+)", log.read_text())
        assert found is not None
        yield found[1], process.pid
    finally:
        process.send_signal(2)
        process.wait(60)
        os.close(ready)


async def turns(number: int, calls: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """Return the median of each call, in milliseconds, with the order changed each time."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls.items())
    for _ in range(number):
        order.reverse()
        for name, call in order:
            began = time.perf_counter()
            await call()
            spent[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(found) for name, found in spent.items()}


async def compare(direct: str, front: str, pid: int, number: int) -> dict[str, dict[str, float]]:
    """Measure each kind of call directly and through the front."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    http = AsyncHTTPClient()
    found: dict[str, dict[str, float]] = {}
    async with AsyncClient(direct, TOKEN) as near, AsyncClient(front, TOKEN) as far:
        one, other = await near.create_session(), await far.create_session()

        async def create(client: AsyncClient) -> None:
            await (await client.create_session()).close()

        def get(url: str, session: str) -> Callable[[], Awaitable[object]]:
            return lambda: http.fetch(f"{url}/v1/sessions/{session}", headers=headers)

        kinds: dict[str, tuple[int, Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            "WebSocket cell": (number, lambda: one.run("1+1"), lambda: other.run("1+1")),
            "REST GET of a session": (number, get(direct, one.id), get(front, other.id)),
            "create and close": (number // 10, lambda: create(near), lambda: create(far)),
        }
        process = psutil.Process(pid)
        for name, (count, straight, through) in kinds.items():
            await turns(10, {"direct": straight, "front": through})
            before = sum(process.cpu_times()[:2])
            medians = await turns(count, {"direct": straight, "front": through})
            cpu = (sum(process.cpu_times()[:2]) - before) * 1000 / count
            added = medians["front"] - medians["direct"]
            found[name] = {**medians, "added": added, "cpu of the front": cpu}
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in found.items()}


async def rate(url: str, busy: int) -> float:
    """Return the cells a second of so many busy sessions."""
    async with AsyncClient(url, TOKEN) as client:
        sessions = [await client.create_session() for _ in range(busy)]
        count = 0
        end = time.monotonic() + SECONDS

        async def work(number: int) -> None:
            nonlocal count
            while time.monotonic() < end:
                await sessions[number].run("1+1")
                count += 1

        await asyncio.gather(*(work(number) for number in range(busy)))
        for session in sessions:
            await session.close()
    return count / SECONDS


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1500)
    parser.add_argument("--busy", type=int, default=100)
    parser.add_argument("--skip-workers", action="store_true")
    args = parser.parse_args()
    found: dict[str, object] = {"load before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="kf", dir="/tmp") as place:
        root = Path(place)
        with (
            running(root / "f", "front") as (front, pid),
            running(root / "n", "serve", "--join", front) as (node, _),
        ):
            time.sleep(1.5)  # the first report
            found["front"] = asyncio.run(compare(node, front, pid, args.turns))
        for workers in () if args.skip_workers else (1, 2):
            with running(root / f"w{workers}", "serve", "--workers", str(workers)) as (url, _):
                found[f"cells a second, {workers} workers"] = round(asyncio.run(rate(url, args.busy)))
    found["load after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
