"""The time that a port of a session adds to a request.

    python -m benchmarks.ports [--turns N]

A session runs a small HTTP server. Its code sends it requests, each on a new connection, and then this program sends
the same through ``/v1/sessions/ID/ports/PORT/``, on one connection to the running server (``KERNELSVC_URL``, or the
local one). The figures are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time

from kernelsvc import Client
from kernelsvc.client.address import find

APP = """
import asyncio, threading

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    writer.close()

async def serve():
    await asyncio.start_server(answer, "127.0.0.1", 3000)
    started.set()
    await asyncio.Event().wait()

started = threading.Event()
threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
started.wait()
"""
DIRECT = """
import socket, statistics, subprocess, sys
program = '''
import socket, statistics, time
spent = []
for _ in range(TURNS):
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", 3000)) as one:
        one.sendall(b"GET / HTTP/1.1\\\\r\\\\nHost: x\\\\r\\\\n\\\\r\\\\n")
        while one.recv(4096): pass
    spent.append((time.perf_counter() - began) * 1000)
print(statistics.median(spent))
'''
print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout)
"""


def median(connection: http.client.HTTPConnection, path: str, headers: dict[str, str], turns: int) -> float:
    """Return the median time of a request on an open connection, in milliseconds."""
    spent = []
    for _ in range(turns):
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The time that a port of a session adds to a request.")
    parser.add_argument("--turns", type=int, default=500, help="requests of each kind")
    turns = parser.parse_args().turns
    address = find()
    key = {"Authorization": f"Bearer {address.token}"}
    with Client() as client, client.create_session() as session:
        session.run(APP).raise_for_error()
        direct = float(session.run(DIRECT.replace("TURNS", str(turns))).text)
        connection = http.client.HTTPConnection(address.base.removeprefix("http://"))
        health = median(connection, "/healthz", {}, turns)
        through = median(connection, f"/v1/sessions/{session.id}/ports/3000/", key, turns)
    figures = {"in the session": direct, "through the port": through, "added": through - direct, "/healthz": health}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
