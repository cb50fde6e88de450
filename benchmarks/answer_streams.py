"""The cost of answers for the server and for its other clients.

    python -m benchmarks.answer_streams [--streams N] [--seconds S]

* overhead: one step of code and an answer, minus two bare calls of the model and one bare cell, for each turn.
* processor time: of the server for each event of a model's stream, which it reads and writes, at 40 paced streams.
* other clients: the round trip of ``1+1`` while N streams run at 50 tokens a second each, against its quiet value.
* disconnect: from the close of a client's connection to the close of the model's, and to the cell's interrupt.

The model is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.one_call import TOKEN, TOOL, Connection, post, serving
from kernelsvc.answers.scripted_model import ScriptedModel

PACED = 40
#: Seconds between two tokens of one stream.
PACE = 0.02
RUNS = 40


@contextlib.asynccontextmanager
async def scripted(delay: float) -> AsyncIterator[str]:
    """Run a scripted model in a process of its own. Yield its address."""
    command = [sys.executable, "-m", "kernelsvc.answers.scripted_model", "--port", "0", "--delay", str(delay)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().split()[-1]
    finally:
        process.terminate()
        await process.wait()


async def connection(port: int) -> Connection:
    """Open a connection."""
    return await asyncio.open_connection("127.0.0.1", port)


async def timed(call: Any) -> float:
    """Await something. Return the milliseconds."""
    began = time.perf_counter()
    await call
    return (time.perf_counter() - began) * 1000


async def overhead(root: Path) -> float:
    """Return the median of the milliseconds that a turn adds."""
    async with scripted(0.0) as url, serving(root, url) as (port, _):
        model = int(url.removesuffix("/v1").rpartition(":")[2])
        server = await connection(port)
        made = json.loads(await post(server, "/v1/containers", {"name": "bench"}))["id"]
        tool = {"type": "code_interpreter", "container": made}
        asked = {"messages": [{"role": "user", "content": "python: 1+1"}], "tools": [{}]}
        body = {"model": "m", "input": "python: 1+1", "tools": [tool], "store": False}
        found = []
        for _ in range(RUNS):
            bare = 0.0
            for _ in range(2):
                model_connection = await connection(model)
                bare += await timed(post(model_connection, "/v1/chat/completions", asked))
                model_connection[1].close()
            cell = post(server, f"/v1/sessions/{made.replace('cntr_', 's_')}/cells", {"code": "1+1"})
            bare += await timed(cell)
            whole = await timed(post(server, "/v1/responses", body))
            found.append((whole - bare) / 2)
        server[1].close()
    return statistics.median(found[5:])


async def stream(port: int, words: int, counted: list[int]) -> None:
    """Read one streamed answer to its end, and count its deltas."""
    reader, writer = await connection(port)
    body = {"model": "m", "input": f"python: 'word ' * {words}", "tools": [TOOL], "store": False, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    try:
        async for line in reader:
            if line.startswith(b"event: response.output_text.delta"):
                counted[0] += 1
            elif line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()


async def paced(root: Path, streams: int, seconds: float) -> tuple[float, float, float]:
    """Return microseconds of processor time an event, and the medians of ``1+1`` in a quiet server and a busy one."""
    words = int(seconds / PACE)
    async with scripted(PACE) as url, serving(root, url) as (port, pid):
        other = await connection(port)
        session = json.loads(await post(other, "/v1/sessions", {}))["id"]

        async def trips(until: asyncio.Task[Any] | None) -> float:
            took = []
            while len(took) < 30 or (until is not None and not until.done()):
                took.append(await timed(post(other, f"/v1/sessions/{session}/cells", {"code": "1+1"})))
                await asyncio.sleep(0.02)
            return statistics.median(took[5:])

        quiet = await trips(None)
        process, counted = psutil.Process(pid), [0]
        waiting = asyncio.gather(*(stream(port, words, counted) for _ in range(streams)))
        # The first third is the start of sessions, which is no cost of an event.
        while counted[0] < streams * words / 3:
            await asyncio.sleep(0.05)
        before, first = process.cpu_times(), counted[0]
        busy = await trips(waiting) if streams > PACED else 0.0
        while counted[0] < streams * words * 0.9:
            await asyncio.sleep(0.05)
        after, last = process.cpu_times(), counted[0]
        await waiting
        assert counted[0] >= streams * words, "events are missing"
        used = (after.user + after.system - before.user - before.system) / max(1, last - first)
    return used * 1e6, quiet, busy


async def disconnects(root: Path) -> tuple[float, float]:
    """Return the longest milliseconds from a client's close to the model's closed connection, and to an interrupt."""
    model = ScriptedModel(delay=0.01)
    interrupts: list[float] = []
    closes: list[float] = []
    try:
        async with serving(root, await model.start()) as (port, _):
            for _ in range(10):
                counted, closed = [0], model.closed
                reading = asyncio.ensure_future(stream(port, 10_000, counted))
                while not counted[0]:
                    await asyncio.sleep(0.005)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                closes.append(await timed(_until(lambda closed=closed: model.closed > closed)))
            server = await connection(port)
            for _ in range(10):
                session = json.loads(await post(server, "/v1/containers", {"name": "bench"}))["id"]
                interrupts.append(await _interrupt(port, server, session))
    finally:
        await model.stop()
    return max(closes), max(interrupts)


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def _interrupt(port: int, server: Connection, container: str) -> float:
    code = "import time; time.sleep(60)"
    tool = {"type": "code_interpreter", "container": container}
    data = json.dumps({"model": "m", "input": f"python: {code}", "tools": [tool], "store": False}).encode()
    _, writer = await connection(port)
    head = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    path = f"/v1/sessions/{container.replace('cntr_', 's_')}"

    async def events(kind: str) -> list[dict[str, Any]]:
        raw = await get(server, f"{path}/journal")
        return [each for each in map(json.loads, raw.splitlines()) if each.get("type") == kind]

    while not await events("cell_started"):
        await asyncio.sleep(0.02)
    left = time.time()
    writer.close()
    while not (found := await events("interrupted")):
        await asyncio.sleep(0.02)
    return (datetime.fromisoformat(found[0]["at"]).timestamp() - left) * 1000


async def get(connection: Connection, path: str) -> bytes:
    """Send a GET and return the body."""
    reader, writer = connection
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    assert head.startswith("http/1.1 200"), head
    if "transfer-encoding: chunked" not in head:
        length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
        return await reader.readexactly(int(length.partition(":")[2]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as name:
        root = Path(name)
        print(f"overhead of a turn {asyncio.run(overhead(root / 'a')):.1f} ms")
        closed, interrupted = asyncio.run(disconnects(root / "b"))
        print(f"disconnect: model closed after {closed:.0f} ms, cell interrupted after {interrupted:.0f} ms, at most")
        used, _, _ = asyncio.run(paced(root / "c", PACED, options.seconds))
        print(f"{PACED} streams: {used:.0f} us of processor time an event")
        used, quiet, busy = asyncio.run(paced(root / "d", options.streams, options.seconds))
        print(f"{options.streams} streams: {used:.0f} us an event, 1+1 {quiet:.1f} ms quiet, {busy:.1f} ms busy")


if __name__ == "__main__":
    main()
