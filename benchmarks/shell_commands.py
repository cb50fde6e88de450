"""The cost of a shell command in a cell: ``python -m benchmarks.shell_commands``.

The same cells run in a forked kernel and in stock ipykernel, in turns, and each result is the median of one cell with
ten commands, divided by ten. ``subprocess.run`` in the same kernel shows the cost of the command itself.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.processes import Server, free_port
from kernelsvc import Client

REPEATS = 10
TOKEN = "benchmark"
CELLS = {
    "subprocess.run": "subprocess.run(['/bin/sh', '-c', 'true'])",
    "!true": "get_ipython().system('true')",
    "x = !true": "x = get_ipython().getoutput('true')",
    "!echo": "get_ipython().system('echo hi')",
    "%%bash": "get_ipython().run_cell_magic('bash', '', 'true\\n')",
}

Run = Callable[[str], object]


def measured(run: Run, code: str) -> float:
    """Return the milliseconds of one command in a cell that runs it ten times."""
    begun = time.perf_counter()
    run(f"import subprocess\nfor _ in range({REPEATS}): {code};\nNone")
    return (time.perf_counter() - begun) * 1e3 / REPEATS


def in_ipykernel(client: BlockingKernelClient) -> Run:
    """Return a function that runs a cell and waits for its end."""

    def run(code: str) -> None:
        request = client.execute(code)
        while True:
            try:
                message = client.get_iopub_msg(timeout=60)
            except queue.Empty:
                raise SystemExit("ipykernel does not end a cell") from None
            idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
            if idle and message["parent_header"].get("msg_id") == request:
                return

    return run


def table(ours: Run, theirs: Run, rounds: int) -> list[str]:
    """Measure all cells in turns, and return the lines of a table."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CELLS}
    for _ in range(rounds + 1):
        for name, code in CELLS.items():
            for run, found in zip((ours, theirs), times[name], strict=True):
                found.append(measured(run, code))
    lines = ["| command | kernelsvc, ms | ipykernel, ms | ipykernel / kernelsvc |", "|---|---:|---:|---:|"]
    for name, (here, there) in times.items():
        a, b = statistics.median(here[1:]), statistics.median(there[1:])  # The first round imports modules.
        lines.append(f"| `{name}` | {a:.1f} | {b:.1f} | {b / a:.1f} |")
    return lines


def main() -> None:
    """Start both, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each cell is measured in each kernel")
    rounds = parser.parse_args().rounds
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root:  # A short path for sockets (unix(7)).
            url = f"http://127.0.0.1:{free_port()}"
            where = ["--port", url.rpartition(":")[2], "--data-dir", f"{root}/data", "--runtime-dir", f"{root}/run"]
            command = [sys.executable, "-m", "kernelsvc", "serve", "--token", TOKEN, *where]
            server = Server(command, f"{url}/readyz", Path(root, "log"))
            asyncio.run(server.start())
            try:
                with Client(url, TOKEN) as ours, ours.create_session() as session:
                    print("\n".join(table(session.run, in_ipykernel(client), rounds)))
            finally:
                asyncio.run(server.stop())
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
