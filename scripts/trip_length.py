"""Which files of the package one trivial cell crosses in the server's process.

    python scripts/trip_length.py [--list] [--at-most N]

A server with fake kernels runs in this process (``kernelsvc.testing``). A client, which is no part of the package,
sends ``1+1`` over the native WebSocket, and ``sys.setprofile`` notes every function of the package that runs from the
request to its answer. A file counts if each of several cells crosses it, because timers of the server run now and then.
The first cell is not counted, since it imports modules. A real kernel's files (``kernels/forked``) take the place of
``kernels/fake.py``, which counts as one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

import kernelsvc
from kernelsvc.settings import Settings
from kernelsvc.testing import InProcessServer

PACKAGE = Path(kernelsvc.__file__).parent
#: Seconds for one answer, and for the server to become quiet.
DEADLINE = 10.0
#: Seconds without work of the server after which it is quiet. Its monitors run less often.
QUIET_SECONDS = 0.05
#: Number of cells that are counted.
CELLS = 4


async def call(connection: WebSocketClientConnection, method: str, **params: Any) -> Any:
    """Send a request and return its result. Notifications before it are skipped."""
    await connection.write_message(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
    async with asyncio.timeout(DEADLINE):
        while True:
            message = json.loads(await connection.read_message() or "{}")
            if message.get("id") == 1:
                return message["result"]


class Recorder:
    """Notes the functions of the package that run in this thread, by file relative to the package."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {}

    def __enter__(self) -> Recorder:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            name = str(Path(code.co_filename).relative_to(PACKAGE))
            self.found.setdefault(name, set()).add(code.co_qualname)


async def quiet() -> None:
    """Wait until the work that follows an answer (notebook, index) is done: nothing of the package runs for a while."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with Recorder() as recorder:
                await asyncio.sleep(QUIET_SECONDS)
            if not recorder.found:
                return


async def crossed() -> dict[str, list[str]]:
    """Return the functions that every one of ``CELLS`` cells ran, by file relative to the package."""
    trips: list[dict[str, set[str]]] = []
    # Checkpoints follow a cell, or its successor, at a time of their own.
    settings = Settings(port=0, journal_sync="off", shutdown_seconds=1.0, checkpoints=0)
    async with InProcessServer(settings) as server:
        request = HTTPRequest(
            server.url.replace("http", "ws") + "/v1/ws", headers={"Authorization": f"Bearer {server.token}"}
        )
        connection = await websocket_connect(request)
        session = (await call(connection, "session.create"))["id"]
        for _ in range(CELLS + 1):
            await quiet()
            with Recorder() as recorder:
                cell = await call(connection, "session.execute", session=session, code="1+1")
            assert cell["reason"] == "ok", cell
            trips.append(recorder.found)
        connection.close()
    every = set.intersection(*(set(trip) for trip in trips[1:]))
    return {name: sorted(trips[-1][name]) for name in sorted(every)}


def main() -> int:
    """Print the number of files, and with ``--list`` their functions. Return 1 if there are more than ``--at-most``."""
    parser = argparse.ArgumentParser(description="Count the files that one trivial cell crosses in the server.")
    parser.add_argument("--list", action="store_true", help="print each file with the functions that ran")
    parser.add_argument("--at-most", type=int, default=sys.maxsize, help="number of files above which this fails")
    wanted = parser.parse_args()
    found = asyncio.run(crossed())
    if wanted.list:
        for name, functions in found.items():
            print(f"{name}: {', '.join(functions)}")
    print(len(found), "files")
    return int(len(found) > wanted.at_most)


if __name__ == "__main__":
    sys.exit(main())
