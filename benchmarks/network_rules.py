"""Sessions with network rules against sessions on the host's network: starts, look-ups, connections, requests.

    python -m benchmarks.network_rules [--turns N] [--mitmdump PATH]

All reach the same servers on loopback, which have the ports 80 and 443, so it must run as root. Starts take turns. The
figures are medians in milliseconds, as the client and the session's code see them. The columns:

    none   a session without a network. It has a network namespace, as sessions with rules have (only its start)
    host   a session on the host's network
    bare   the same, through a process that copies bytes and decides nothing: the price of any proxy
    rules  a session with rules for a name. TLS is passed through
    read   a session with a rule for methods. The proxy reads the requests, also those over TLS
    mitm   a session on the host's network, through mitmproxy (needs --mitmdump, of an environment of its own)

A figure is good if it is near that of ``bare``: on a machine that has other work, each process on the way waits for its
turn, and a new connection through any proxy has six such waits. A request on a kept connection that the proxy reads
takes CPU in the proxy (two parsers, two writers) and in the server, which writes an event for it. If other work takes
all cores, the scheduler lets such processes wait for milliseconds, and one that only copies bytes for a fraction of
that. No timer and no delayed acknowledgement is in these figures, because all sockets have TCP_NODELAY (tcp(7)). The
rows with CPU are for two new connections and eight requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from kernelsvc import Client
from kernelsvc.egress.authority import Authority, open_authority

ADDRESS, TOKEN = "127.77.0.2", "benchmark-token-of-network-rules"
BARE, MITM = "127.77.0.3", "127.77.0.4"
RULES = {"allow": ["bench.test"], "private": ["127.77.0.0/16"]}
READ = {"allow": [{"host": "bench.test", "methods": ["GET"]}], "private": ["127.77.0.0/16"]}
#: Most turns. A session may open 100 connections together (``egress.session_proxy``), and each turn opens two.
MAX_TURNS = 45
#: Sessions that are idle while the proxy's memory is read.
IDLE = 200
#: Runs in a session. ``HOST`` is the name, or the address on the host's network.
CODE = """
import json, socket, ssl, statistics, time

context = ssl.create_default_context()
context.load_verify_locations(cadata=AUTHORITY)
context.check_hostname, context.verify_mode = False, VERIFY

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

def connected(port):
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock, server_hostname="bench.test") if port == 443 else sock

def connect(port):
    with connected(port) as sock:
        request(sock)

found = {"look-up": timed(lambda: socket.getaddrinfo(HOST, 80), TURNS)}
for name, port in (("HTTP", 80), ("HTTPS", 443)):
    found[f"{name}: new connection, request"] = timed(lambda: connect(port), TURNS)
    with connected(port) as kept:
        found[f"{name}: request, kept connection"] = timed(lambda: request(kept), 4 * TURNS)
print(json.dumps(found))
"""
#: The bare proxy, a process of its own: accepts, connects, copies.
BARE_CODE = """
import asyncio, socket, sys
listening, target = sys.argv[1:]

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def serve(port, reader, writer):
    up_reader, up_writer = await asyncio.open_connection(target, port)
    await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

async def main():
    for port in (80, 443):
        await asyncio.start_server(lambda r, w, port=port: serve(port, r, w), listening, port)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Answer each request of each connection."""

    def answer(plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError), tls(plain) as connection:
            while connection.recv(4096):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    def tls(plain: socket.socket) -> socket.socket:
        return context.wrap_socket(plain, server_side=True) if context is not None else plain

    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def process(*command: str, says: str) -> Iterator[None]:
    """Run a program until the end, from its first line that has ``says``."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            assert running.stdout is not None
            for line in running.stdout:
                if says in line:
                    break
            yield
        finally:
            running.terminate()


@contextlib.contextmanager
def server(root: Path) -> Iterator[tuple[str, int]]:
    """Run a kernelsvc server. Yield its address and its pid."""
    environment = os.environ | {
        "KERNELSVC_TEMPLATES": '{"python3": {"preload": []}}',
        "KERNELSVC_EGRESS_HOSTS": json.dumps({"bench.test": ADDRESS}),
        "KERNELSVC_WARM_POOL": "0",
        "KERNELSVC_EGRESS_CA": f"{root}/authority.pem",
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
        "--turns",
        type=int,
        default=40,
        help="connections of each kind (a session's first 100 connections are not slowed)",
    )
    parser.add_argument("--mitmdump", help="mitmproxy's program")
    asked = parser.parse_args()
    turns = asked.turns
    if not 1 <= turns <= MAX_TURNS:
        parser.error(f"--turns must be 1 to {MAX_TURNS}: more would measure the limit of 50 new connections a second.")
    kinds: dict[str, tuple[Any, str]] = {
        "host": ("host", ADDRESS),
        "bare": ("host", BARE),
        "rules": (RULES, "bench.test"),
        "read": (READ, "bench.test"),
    }
    starts: dict[str, list[float]] = {kind: [] for kind in ("none", *kinds)}
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="k", dir="/tmp"))
        pem = open_authority(Path(root), "")
        authority = pem[pem.index(b"-----BEGIN CERT") :].decode()
        (Path(root) / "authority.pem").write_text(authority)
        for port, context in ((80, None), (443, Authority(pem).context("bench.test"))):
            listener = stack.enter_context(socket.create_server((ADDRESS, port)))
            threading.Thread(target=serve, args=(listener, context), daemon=True).start()
        stack.enter_context(process(sys.executable, "-c", BARE_CODE, BARE, ADDRESS, says="ready"))
        if asked.mitmdump:
            modes = [
                f"--mode=reverse:{kind}://{ADDRESS}@{MITM}:{port}" for kind, port in (("http", 80), ("https", 443))
            ]
            options = [f"--set=confdir={root}/mitm", "--ssl-insecure", *modes]
            stack.enter_context(process(asked.mitmdump, *options, says=f"listening at {MITM}:443"))
            kinds["mitm"] = ("host", MITM)
        url, pid = stack.enter_context(server(Path(root)))
        client = stack.enter_context(Client(url, TOKEN))
        client.create_session(limits={"network": RULES}).close()  # starts the proxy
        proxy = proxy_of(pid)
        before, open_before = proxy.memory_info().rss, proxy.num_fds()
        idle = [client.create_session(limits={"network": RULES}) for _ in range(IDLE)]
        grown, descriptors = (proxy.memory_info().rss - before) / IDLE, (proxy.num_fds() - open_before) / IDLE
        for session in idle:
            session.close()
        for _ in range(20):
            for kind in starts:
                network = kinds[kind][0] if kind in kinds else kind
                began = time.perf_counter()
                session = client.create_session(limits={"network": network})
                starts[kind].append((time.perf_counter() - began) * 1000)
                session.close()
        found: dict[str, dict[str, float]] = {kind: {} for kind in ("none", *kinds)}
        for kind, times in starts.items():
            found[kind]["start"] = round(statistics.median(times), 1)
        for kind, (network, host) in kinds.items():
            with client.create_session(limits={"network": network}) as session:
                processes = {"proxy's": proxy, "server's": psutil.Process(pid)}
                before_run = {whose: sum(one.cpu_times()[:2]) for whose, one in processes.items()}
                verify = "ssl.CERT_NONE" if kind == "mitm" else "ssl.CERT_REQUIRED"
                given = f"import ssl; HOST, TURNS, AUTHORITY, VERIFY = {host!r}, {turns}, {authority!r}, {verify}"
                cell = session.run(f"{given}\n{CODE}")
                found[kind] |= json.loads(cell.raise_for_error().text)
                for whose, one in processes.items():
                    spent = (sum(one.cpu_times()[:2]) - before_run[whose]) * 1000 / turns
                    found[kind][f"{whose} CPU for one of each"] = round(spent, 2)
        after = proxy.memory_info().rss
        print(f"{'ms, median':<32}" + "".join(f"{kind:>9}" for kind in found))
        for name in found["rules"]:
            print(f"{name:<32}" + "".join(f"{found[kind].get(name, ''):>9}" for kind in found))
        print(f"proxy: {before / 1e6:.0f} MB at first, {after / 1e6:.0f} MB after the connections")
        print(f"{grown / 1024:.1f} KiB and {descriptors:.1f} descriptors for each of {IDLE} idle sessions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
