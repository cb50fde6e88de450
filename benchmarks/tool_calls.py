"""Time of calls of a client's function, beside a bare JSON-RPC request, in one run.

``python -m benchmarks.tool_calls`` starts a server of its own and prints JSON: p50 and p99 of a trivial blocking call
as code in the kernel sees it, of 50 calls by ``gather``, calls in a second, and of the method ``session.get``, which
takes the same socket and does no work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernelsvc import Client

BLOCKING = """
import time
times = []
for n in range({count}):
    began = time.perf_counter()
    tools.same(n=n)
    times.append(time.perf_counter() - began)
print(times)
"""
GATHER = """
import asyncio, time
times = []
for _ in range({count}):
    began = time.perf_counter()
    await asyncio.gather(*(tools.same(n=n) for n in range(50)))
    times.append(time.perf_counter() - began)
print(times)
"""


def percentiles(times: list[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds."""
    ordered = sorted(times)
    at = min(len(ordered) - 1, int(len(ordered) * 0.99))
    return {"p50_ms": round(ordered[len(ordered) // 2] * 1000, 3), "p99_ms": round(ordered[at] * 1000, 3)}


def server_cpu(pid: int) -> float:
    """Return the seconds that the server's main thread has run (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(client: Client, pid: int, count: int) -> dict[str, Any]:
    """Return the figures of one run."""
    with client.create_session() as session:
        before = len(session.journal())
        session.run("1")
        plain = len(session.journal()) - before

        @session.tool(effects="read")
        async def same(n: int) -> int:
            return n

        session.run(BLOCKING.format(count=20)).raise_for_error()
        cpu = server_cpu(pid)
        blocking = json.loads(session.run(BLOCKING.format(count=count)).raise_for_error().text)
        cpu = server_cpu(pid) - cpu
        gather = json.loads(session.run(GATHER.format(count=max(3, count // 50))).raise_for_error().text)
        bare = []
        for _ in range(count):
            began = time.perf_counter()
            session.info()
            bare.append(time.perf_counter() - began)
        return {
            "call": percentiles(blocking),
            "gather_50": percentiles(gather),
            "calls_per_second_by_gather": round(50 * len(gather) / sum(gather)),
            "server_cpu_ms_per_call": round(cpu * 1000 / count, 3),
            "bare_request": percentiles(bare),
            "log_bytes_of_a_cell_without_offers": plain,
        }


def main() -> None:
    """Start a server, measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="blocking calls")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root:
        ready, ready_end = os.pipe()
        where = ["--uds", f"{root}/s", "--data-dir", f"{root}/data", "--runtime-dir", f"{root}/run"]
        command = [sys.executable, "-m", "kernelsvc", "serve", *where, "--token", "bench-token-1"]
        with (
            Path(f"{root}/log").open("wb") as log,
            subprocess.Popen(
                [*command, "--ready-fd", str(ready_end)], pass_fds=[ready_end], stdout=log, stderr=log
            ) as server,
        ):
            os.close(ready_end)
            try:
                os.read(ready, 1)
                with Client(f"unix:{root}/s", "bench-token-1") as client:
                    print(json.dumps(measure(client, server.pid, count), indent=2))
            finally:
                os.close(ready)
                server.terminate()
                server.wait()


if __name__ == "__main__":
    main()
