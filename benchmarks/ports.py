"""The time that a port of a session adds to a request.

    python -m benchmarks.ports [--rounds N] [--turns N]

A small HTTP server runs in a session and, from the same code, in a process of this machine. Blocks of requests take
turns: to the process, each on a new connection, which is the way without kernelsvc, and to the session through
``/v1/sessions/ID/ports/PORT/`` of a server that the benchmark starts. ``/healthz`` is a request that the server answers
itself. The figures are medians in milliseconds. ``added`` is the median of the differences within a round. On a busy
machine look at the CPU time of the server's process for each request instead.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.spans import TOKEN, cpu_seconds, server
from kernelsvc import Client

APP = """
import asyncio, threading

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    writer.close()

async def serve():
    found = await asyncio.start_server(answer, "127.0.0.1", PORT)
    places.append(found.sockets[0].getsockname()[1])
    started.set()
    await asyncio.Event().wait()

places, started = [], threading.Event()
threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
started.wait()
"""
#: The process of this machine prints its port, and ends with its input.
OUTSIDE = APP.replace("PORT", "0") + "print(places[0], flush=True)\ninput()\n"


def median(request: Callable[[], http.client.HTTPResponse], turns: int) -> float:
    """Return the median time of a request, in milliseconds."""
    spent = []
    for _ in range(turns):
        began = time.perf_counter()
        response = request()
        response.read()
        assert response.status == 200, response.status
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each kind")
    parser.add_argument("--turns", type=int, default=100, help="requests of a block")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k")))
        url, pid = stack.enter_context(server(root))
        client = stack.enter_context(Client(url, TOKEN))
        session = stack.enter_context(client.create_session())
        session.run(APP.replace("PORT", "3000")).raise_for_error()
        outside = subprocess.Popen(
            [sys.executable, "-c", OUTSIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.enter_context(outside)
        assert outside.stdout is not None
        port = int(outside.stdout.readline())
        kept = http.client.HTTPConnection(url.removeprefix("http://"))
        key = {"Authorization": f"Bearer {TOKEN}"}

        def through(path: str) -> Callable[[], http.client.HTTPResponse]:
            def request() -> http.client.HTTPResponse:
                kept.request("GET", path, headers=key)
                return kept.getresponse()

            return request

        def direct() -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection(f"127.0.0.1:{port}")
            connection.request("GET", "/")
            return connection.getresponse()

        kinds = {
            "direct": direct,
            "through the port": through(f"/v1/sessions/{session.id}/ports/3000/"),
            "/healthz": through("/healthz"),
        }
        rounds: dict[str, list[float]] = {name: [] for name in kinds}
        spent = dict.fromkeys(kinds, 0.0)
        for request in kinds.values():
            median(request, chosen.turns)
        for _ in range(chosen.rounds):
            for name, request in kinds.items():
                before = cpu_seconds(pid)
                rounds[name].append(median(request, chosen.turns))
                spent[name] += (cpu_seconds(pid) - before) * 1000
    figures = {name: statistics.median(values) for name, values in rounds.items()}
    figures["added"] = statistics.median(
        there - here for there, here in zip(rounds["through the port"], rounds["direct"], strict=True)
    )
    figures |= {f"CPU of the server, {name}": value / chosen.rounds / chosen.turns for name, value in spent.items()}
    figures["load of the machine"] = os.getloadavg()[0]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
