"""A front against a node directly, two workers against one, and a front with the reports of many nodes.

    python -m benchmarks.front [--turns N] [--busy N] [--nodes N] [--skip-workers] [--skip-calls] [--skip-faults]

The calls of a pair take turns, so that other load of the machine meets both. Times are medians in milliseconds, as one
client sees them. The processor time is that of the front's process, for each call. ``--busy`` sessions run short cells
at the same time for the cells a second of one and of two workers. ``--nodes`` simulated nodes with 2,000 sessions each
join a front as real ones do, and send it their reports. They serve no requests. A node is stopped and killed, for the
seconds until its front notices, and until a cell that waits for its next server has run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
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
from kernelsvc.model.cluster.reports import NodeReport
from kernelsvc.protocol import e2b
from kernelsvc.server.joining import Membership

TOKEN, KEY = "benchmark-token-of-fronts", "benchmark-key-of-the-cluster"
SECONDS = 10.0
#: Sessions of a simulated node, and the principals that own them.
SESSIONS, PRINCIPALS = 2000, 20


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
        process.send_signal(signal.SIGINT)
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


class SimulatedNode:
    """The state of a node with many sessions (``server.joining.NodeStateApi``)."""

    def report(self) -> NodeReport:
        """Return a report as large as that of a real node."""
        return NodeReport(
            sessions=SESSIONS,
            max_sessions=SESSIONS,
            promised_bytes=SESSIONS << 31,
            cells=SESSIONS // 20,
            ready=True,
            templates=["python3"],
            principals={f"principal-{number}": SESSIONS // PRINCIPALS for number in range(PRINCIPALS)},
            guests=[],
        )

    def knows_key(self, principal: str, key: str) -> bool:
        """Return that no key is known."""
        return False

    def session_of_signed(self, purpose: str, signed: e2b.SignedAddress) -> str | None:
        """Return that no session signed an address."""
        return None


async def ready(front: str, wanted: int) -> float:
    """Wait until a front has so many ready nodes. Return the seconds that it took."""
    http, began = AsyncHTTPClient(), time.monotonic()
    while True:
        answer = await http.fetch(f"{front}/v1/nodes", headers={"Authorization": f"Bearer {TOKEN}"})
        if sum(each["state"] == "ready" for each in json.loads(answer.body)["nodes"]) == wanted:
            return time.monotonic() - began
        await asyncio.sleep(0.005)


async def faults(root: Path, front: str) -> dict[str, float]:
    """Stop a node, then kill it, and start its next server at once."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as servers:
        _, pid = servers.enter_context(running(root, "serve", "--join", front))
        await ready(front, 1)
        async with AsyncClient(front, TOKEN) as client:
            session = await client.create_session()
            await session.run("1 + 1")
            os.kill(pid, signal.SIGSTOP)
            found["stopped node noticed, s"] = await ready(front, 0)
            os.kill(pid, signal.SIGCONT)
            await ready(front, 1)
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            found["killed node noticed, s"] = await ready(front, 0)
            cell = asyncio.ensure_future(session.run("1 + 1"))
            await asyncio.to_thread(servers.enter_context, running(root, "serve", "--join", front))
            await cell
            found["pause of a cell while a killed server is started again, s"] = time.monotonic() - began
            await session.close()
    return {name: round(value, 3) for name, value in found.items()}


async def reports(front: str, pid: int, nodes: int) -> dict[str, float]:
    """Measure a front that only gets the reports of so many nodes."""
    state, process = SimulatedNode(), psutil.Process(pid)
    members = [
        Membership([front], KEY, f"{number:06x}", f"http://127.0.0.1:{number + 1}", "", state, lambda _: None)
        for number in range(nodes)
    ]
    joined = [asyncio.ensure_future(each.run()) for each in members]
    try:
        await ready(front, nodes)
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(SECONDS)
        spent = sum(process.cpu_times()[:2]) - before
        return {"% of a core": round(spent / SECONDS * 100, 1), "MiB": round(process.memory_info().rss / 2**20)}
    finally:
        for each in joined:
            each.cancel()
        await asyncio.gather(*joined, return_exceptions=True)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1500)
    parser.add_argument("--busy", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--skip-workers", action="store_true")
    parser.add_argument("--skip-calls", action="store_true")
    parser.add_argument("--skip-faults", action="store_true")
    args = parser.parse_args()
    found: dict[str, object] = {"load before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="kf", dir="/tmp") as place:
        root = Path(place)
        if not args.skip_calls:
            with (
                running(root / "f", "front") as (front, pid),
                running(root / "n", "serve", "--join", front) as (node, _),
            ):
                time.sleep(1.5)  # the first report
                found["front"] = asyncio.run(compare(node, front, pid, args.turns))
        with running(root / "many", "front") as (front, pid):
            found[f"front with {args.nodes} nodes"] = asyncio.run(reports(front, pid, args.nodes))
        if not args.skip_faults:
            with running(root / "fault", "front") as (front, _):
                found["faults"] = asyncio.run(faults(root / "node", front))
        for workers in () if args.skip_workers else (1, 2):
            with running(root / f"w{workers}", "serve", "--workers", str(workers)) as (url, _):
                found[f"cells a second, {workers} workers"] = round(asyncio.run(rate(url, args.busy)))
    found["load after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
