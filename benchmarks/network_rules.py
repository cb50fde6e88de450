"""Sessions with network rules against sessions on the host's network: starts, look-ups, connections, requests.

    python -m benchmarks.network_rules [--turns N]

Both reach the same HTTP server on loopback, which has port 80, so it must run as root. Starts take turns. The figures
are medians in milliseconds, as the client and the session's code see them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from kernelsvc import Client

ADDRESS, TOKEN = "127.77.0.2", "benchmark-token-of-network-rules"
RULES = {"allow": ["bench.test"], "private": ["127.77.0.0/16"]}
#: Sessions that are idle while the proxy's memory is read.
IDLE = 50
#: Runs in a session. ``HOST`` is the name, or the address on the host's network.
CODE = """
import json, socket, statistics, time

def timed(act, turns):
    spent = []
    for _ in range(turns):
        began = time.perf_counter()
        act()
        spent.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(spent), 3)

def request(sock):
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: " + HOST.encode() + b"\\r\\n\\r\\n")
    sock.recv(4096)

def connect():
    with socket.create_connection((HOST, 80)) as sock:
        request(sock)

kept = socket.create_connection((HOST, 80))
kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(json.dumps({
    "look-up": timed(lambda: socket.getaddrinfo(HOST, 80), TURNS),
    "new connection with a request": timed(connect, TURNS),
    "request on a kept connection": timed(lambda: request(kept), TURNS),
}))
"""


def serve(listener: socket.socket) -> None:
    """Answer each request of each connection."""

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(4096):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def server(root: Path) -> Iterator[tuple[str, int]]:
    """Run a kernelsvc server. Yield its address and its pid."""
    environment = os.environ | {
        "KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}',
        "KERNELSVC_EGRESS_HOSTS": json.dumps({"bench.test": ADDRESS}),
        "KERNELSVC_WARM_POOL": "0",
    }
    ready, ready_end = os.pipe()
    options = ["--port", "0", "--data-dir", f"{root}/data", "--runtime-dir", f"{root}/run", "--token", TOKEN]
    command = [sys.executable, "-m", "kernelsvc", "serve", *options, "--limits-network", "host"]
    process = subprocess.Popen(
        [*command, "--ready-fd", str(ready_end)], pass_fds=[ready_end], env=environment, stdout=subprocess.PIPE
    )
    os.close(ready_end)
    try:
        os.read(ready, 1)
        assert process.stdout is not None
        yield process.stdout.readline().split()[3].decode(), process.pid
    finally:
        os.close(ready)
        process.terminate()
        process.wait()


def proxy_of(server: int) -> psutil.Process:
    """Return the egress proxy of a server."""
    children = psutil.Process(server).children()
    return next(child for child in children if "kernelsvc.egress.daemon" in child.cmdline())


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--turns", type=int, default=80, help="connections and requests of each kind (100 connections are not slowed)"
    )
    turns = parser.parse_args().turns
    listener = socket.create_server((ADDRESS, 80))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    kinds = {"host": ("host", ADDRESS), "rules": (RULES, "bench.test")}
    starts: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root,
        server(Path(root)) as (url, pid),
        Client(url, TOKEN) as client,
    ):
        client.create_session(limits={"network": RULES}).close()  # starts the proxy
        proxy = proxy_of(pid)
        for _ in range(20):
            for kind, (network, _) in kinds.items():
                began = time.perf_counter()
                session = client.create_session(limits={"network": network})
                starts[kind].append((time.perf_counter() - began) * 1000)
                session.close()
        found = {kind: {"start": round(statistics.median(spent), 1)} for kind, spent in starts.items()}
        for kind, (network, host) in kinds.items():
            with client.create_session(limits={"network": network}) as session:
                spent = sum(proxy.cpu_times()[:2])
                cell = session.run(f"HOST, TURNS = {host!r}, {turns}\n{CODE}")
                found[kind] |= json.loads(cell.raise_for_error().text)
                spent = (sum(proxy.cpu_times()[:2]) - spent) * 1000 / turns
                found[kind]["proxy's CPU for one of each"] = round(spent, 2)
        before = proxy.memory_info().rss
        idle = [client.create_session(limits={"network": RULES}) for _ in range(IDLE)]
        grown = (proxy.memory_info().rss - before) / IDLE
        print(f"{'ms, median':<32} {'host':>8} {'rules':>8}")
        for name in found["rules"]:
            print(f"{name:<32} {found['host'][name]:>8} {found['rules'][name]:>8}")
        print(f"proxy: {before / 1e6:.0f} MB, and {grown / 1024:.1f} KiB for each of {len(idle)} idle sessions")
    listener.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
