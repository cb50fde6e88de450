"""Time of calls of a client's function, beside a bare JSON-RPC echo and ipybox, in one run.

``python -m benchmarks.tool_calls`` starts a server of its own and prints JSON:

* ``call``: p50 and p99 of a trivial blocking call, journaled, as code sees it. ``gather_50``: fifty calls.
* ``calls_per_second_10_sessions``: calls by ``gather`` in ten sessions of one client at the same time.
* ``in_flight_1000``: seconds for 1,000 calls of one gather of which none ends before all have begun.
* ``bare_echo``: one request and its answer over the same WebSocket library, between two processes, without any work.
  A call is two such trips, and two over the kernel's socket.
* ``ipybox``: the same call in ipybox, from its own environment below ``.benchmarks/``. Left out with ``--no-peer``.

``load`` has the machine's load averages before the run: with a load above the number of processors, the times are those
of the scheduler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tornado.ioloop
import tornado.web
import tornado.websocket

from benchmarks.peers import Environment
from benchmarks.processes import free_port
from kernelsvc import Client

SCRIPT = Path(__file__).with_name("ipybox_script.py")
#: ipybox imports names that the second major release of mcp does not have.
IPYBOX = Environment("ipybox", ("ipybox", "mcp<2"), ("ipybox", "mcp"))
BLOCKING = """
import time
times = []
for n in range({count}):
    began = time.perf_counter()
    tools.same(n=n)
    times.append(time.perf_counter() - began)
print(times)
"""
FLIGHT = """
import asyncio, time
began = time.perf_counter()
found = await asyncio.gather(*(tools.together(n=n) for n in range(1000)))
assert found == list(range(1000))
print(time.perf_counter() - began)
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


class Echo(tornado.websocket.WebSocketHandler):
    """Answers each JSON-RPC request with its parameters."""

    def open(self, *args: str, **kwargs: str) -> None:
        """Tornado's hook: send without Nagle's delay."""
        self.set_nodelay(True)

    def on_message(self, message: str | bytes) -> None:
        """Tornado's hook: answer."""
        request = json.loads(message)
        self.write_message(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": request["params"]}))


async def _echo(port: int) -> None:
    tornado.web.Application([("/", Echo)]).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


async def _ask(port: int, count: int) -> list[float]:
    end = time.perf_counter() + 30
    while True:
        try:
            socket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{port}/")
            break
        except OSError:
            if time.perf_counter() > end:
                raise
            await asyncio.sleep(0.05)
    times = []
    for n in range(count):
        began = time.perf_counter()
        await socket.write_message(json.dumps({"jsonrpc": "2.0", "id": n, "method": "echo", "params": {"n": n}}))
        await socket.read_message()
        times.append(time.perf_counter() - began)
    socket.close()
    return times


def bare_echo(count: int) -> list[float]:
    """Return the times of requests to a server in another process that only answers, in seconds."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.tool_calls", "--echo", str(port)]) as server:
        try:
            return asyncio.run(_ask(port, count))
        finally:
            server.terminate()


def ipybox(count: int) -> dict[str, Any]:
    """Return the percentiles of the same call in ipybox, or why there are none."""
    below = Path(__file__).parents[1] / ".benchmarks"
    try:
        python = IPYBOX.prepared(below) / "python"
        done = subprocess.run([python, SCRIPT, str(count)], capture_output=True, text=True, timeout=300)
        return {**percentiles(json.loads(done.stdout)), **IPYBOX.versions(below)}
    except (RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
        return {"missing": str(error)}


def in_ten_sessions(client: Client, rounds: int) -> int:
    """Return the calls in a second of ten sessions that call at the same time."""
    sessions = [client.create_session() for _ in range(10)]
    try:
        for each in sessions:
            each.run("1")
        with ThreadPoolExecutor(10) as pool:
            began = time.perf_counter()
            cells = [*pool.map(lambda each: each.run(GATHER.format(count=rounds)), sessions)]
            seconds = time.perf_counter() - began
        for cell in cells:
            cell.raise_for_error()
        return round(10 * rounds * 50 / seconds)
    finally:
        for each in sessions:
            each.close()


def measure(client: Client, pid: int, count: int) -> dict[str, Any]:
    """Return the figures of one run."""
    load = os.getloadavg()
    with client.create_session() as session:
        before = len(session.journal())
        session.run("1")
        plain = len(session.journal()) - before
        begun = 0
        all_begun = asyncio.Event()

        @client.tool(effects="read")
        async def same(n: int) -> int:
            return n

        @session.tool(effects="read", max_in_flight=1000)
        async def together(n: int) -> int:
            nonlocal begun
            begun += 1
            if begun == 1000:
                all_begun.set()
            await all_begun.wait()
            return n

        session.run(BLOCKING.format(count=20)).raise_for_error()
        cpu = server_cpu(pid)
        blocking = json.loads(session.run(BLOCKING.format(count=count)).raise_for_error().text)
        cpu = server_cpu(pid) - cpu
        gather = json.loads(session.run(GATHER.format(count=max(3, count // 50))).raise_for_error().text)
        flight = float(session.run(FLIGHT).raise_for_error().text)
    return {
        "load": [round(each, 1) for each in load],
        "call": percentiles(blocking),
        "gather_50": percentiles(gather),
        "calls_per_second_10_sessions": in_ten_sessions(client, max(3, count // 50)),
        "in_flight_1000": round(flight, 3),
        "server_cpu_ms_per_call": round(cpu * 1000 / count, 3),
        "bare_echo": percentiles(bare_echo(count)),
        "log_bytes_of_a_cell_without_offers": plain,
    }


def main() -> None:
    """Start a server, measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="blocking calls")
    parser.add_argument("--no-peer", action="store_true", help="leave ipybox out")
    parser.add_argument("--echo", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    count = args.count
    if args.echo:
        asyncio.run(_echo(args.echo))
        return
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
                    figures = measure(client, server.pid, count)
            finally:
                os.close(ready)
                server.terminate()
                server.wait()
    if not args.no_peer:
        figures["ipybox"] = ipybox(count)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
