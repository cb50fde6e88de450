"""The cost of a trivial cell with the export of spans on and off, in turns in one run.

    python -m benchmarks.spans [--pairs N] [--rounds N] [--cells N] [--receiver good|slow|lying|down]

Two servers run at the same time, one of which exports spans to a receiver in this process. A slow one never answers, a
lying one answers with a page, and where one is down, nothing listens. Blocks of cells alternate between the servers.
The figure is the CPU time of the server's process (schedstat, in nanoseconds) for each cell, because wall times differ
by more than a per cent on any machine that does something else. The exporter's own CPU time is separate. Two servers
with the same settings differ by some per cent, too, so several pairs are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kernelsvc import Client
from kernelsvc.cli.companions.companion_process import holder

TOKEN = "benchmark-token"


class _Sink(BaseHTTPRequestHandler):
    answer: bytes | None = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.answer is None:
            self.rfile.read(1)  # until the exporter gives up
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.send_header("Content-Type", "text/html" if self.answer else "application/x-protobuf")
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def receiver(kind: str) -> Iterator[str]:
    """A receiver that takes everything, or one that fails."""
    _Sink.answer = {"good": b"", "lying": b"<html>", "slow": None, "down": b""}[kind]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    if kind == "down":
        server.server_close()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        return
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def server(root: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server and its process id."""
    where = ["--port", "0", "--data-dir", str(root / "data"), "--runtime-dir", str(root / "run"), "--token", TOKEN]
    more = ["--templates", '{"python3": {"preload": []}}', "--checkpoints", "0", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelsvc", "serve", *where, *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        url = ""
        for line in process.stdout:
            url = url or next((word for word in line.split() if word.startswith("http://")), "")
            if line.startswith("ready"):
                break
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process (proc(5), schedstat: nanoseconds on the CPU)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(url: str, root: Path, rounds: int, cells: int, first: str) -> tuple[float, float, float, int]:
    """One pair of servers. The one that starts first costs some per cent more, so ``first`` is "off" or "on" in turns.

    Returns:
        Microseconds of CPU for a cell without and with spans (medians of the blocks), the exporter's own, and its MiB.
    """
    found: dict[str, list[float]] = {"off": [], "on": []}
    with contextlib.ExitStack() as stack:
        options: dict[str, list[str]] = {"off": [], "on": ["--telemetry-endpoint", url]}
        names = sorted(options, key=lambda name: name != first)
        started = {name: stack.enter_context(server(root / name, *options[name])) for name in names}
        sessions = {}
        for name, (address, _) in started.items():
            client = stack.enter_context(Client(address, TOKEN))
            sessions[name] = stack.enter_context(client.create_session())
            for _ in range(cells):
                sessions[name].run("1+1")
        exporter = holder(root / "on" / "data" / "traces.lock")
        assert exporter
        began = cpu_seconds(exporter)
        for number in range(rounds):
            # The order alternates, too.
            for name in ("off", "on") if number % 2 else ("on", "off"):
                before = cpu_seconds(started[name][1])
                for _ in range(cells):
                    sessions[name].run("1+1")
                found[name].append((cpu_seconds(started[name][1]) - before) / cells * 1e6)
        memory = int(Path(f"/proc/{exporter}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        spent = (cpu_seconds(exporter) - began) / cells / rounds * 1e6
    return statistics.median(found["off"]), statistics.median(found["on"]), spent, memory


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of servers")
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each server")
    parser.add_argument("--cells", type=int, default=100, help="cells of a block")
    parser.add_argument("--receiver", choices=["good", "slow", "lying", "down"], default="good")
    chosen = parser.parse_args()
    ratios = []
    print(f"CPU of the server for a trivial cell, {chosen.rounds} blocks of {chosen.cells} cells on each server")
    with receiver(chosen.receiver) as url:
        for pair in range(chosen.pairs):
            first = ("off", "on")[pair % 2]
            with tempfile.TemporaryDirectory(prefix="k") as root:
                off, on, spent, memory = measure(url, Path(root), chosen.rounds, chosen.cells, first)
            ratios.append((on / off - 1) * 100)
            print(
                f"{first:3} first: spans off {off:7.1f} us, on {on:7.1f} us ({ratios[-1]:+.1f} %); "
                f"exporter {spent:.1f} us for a cell, in its own process, {memory} MiB",
                flush=True,
            )
    if len(ratios) > 1:
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        print(f"mean {statistics.mean(ratios):+.1f} % ± {error:.1f} (standard error of {len(ratios)} pairs)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
