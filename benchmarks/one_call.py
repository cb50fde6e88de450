"""Six steps of code and an answer: one request to ``/v1/responses`` against the client's own loop.

    python -m benchmarks.one_call [--round-trip MILLISECONDS] [--runs N]

The model is scripted and answers immediately. The client is distant from both servers by the same round trip. Its own
loop has an open connection for each request before the clock starts, and sends the same code to the same server. The
figures are medians. The last line is the ratio.
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
from pathlib import Path
from typing import Any

from benchmarks.distance import far
from kernelsvc.answers.scripted_model import ScriptedModel

TOKEN = "benchmark-token-of-one-call"
STEPS = ["x = 1", "y = x + 1", "print(y)", "sum(range(100))", "z = [x, y]", "print(z)"]
PROMPT = "\n".join(f"python: {code}" for code in STEPS)
TOOL = {"type": "code_interpreter", "container": {"type": "auto"}}
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def post(connection: Connection, path: str, body: Any) -> bytes:
    """Send a request and return the body of its response."""
    reader, writer = connection
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(data)}"
    writer.write(f"{head}\r\n\r\n".encode() + data)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    assert answer.startswith(("http/1.1 200", "http/1.1 201")), answer
    length = [line.partition(":")[2] for line in answer.split("\r\n") if line.startswith("content-length:")]
    return await (reader.readexactly(int(length[0])) if length else reader.read())


def turn_of(stream: bytes) -> dict[str, Any]:
    """Return the assistant's message of a streamed completion."""
    arguments, call = "", ""
    for line in stream.decode().splitlines():
        chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
        for choice in chunk.get("choices", []):
            for each in choice["delta"].get("tool_calls", []):
                call = each.get("id") or call
                arguments += each["function"].get("arguments") or ""
    function = {"name": "python", "arguments": arguments}
    calls = [{"id": call, "type": "function", "function": function}] if call else []
    return {"role": "assistant", "content": None, "tool_calls": calls}


async def own_loop(model: int, server: int) -> float:
    """Return the seconds of the client's own loop."""
    asking = [await asyncio.open_connection("127.0.0.1", model) for _ in range(len(STEPS) + 1)]
    running = await asyncio.open_connection("127.0.0.1", server)
    messages: list[dict[str, Any]] = [{"role": "user", "content": PROMPT}]
    began = time.perf_counter()
    session = json.loads(await post(running, "/v1/sessions", {}))["id"]
    for connection in asking:
        message = turn_of(await post(connection, "/v1/chat/completions", {"messages": messages, "tools": [{}]}))
        if not message["tool_calls"]:
            break
        code = json.loads(message["tool_calls"][0]["function"]["arguments"])["code"]
        cell = json.loads(await post(running, f"/v1/sessions/{session}/cells", {"code": code}))
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": cell["text"]}
        messages += [message, result]
    took = time.perf_counter() - began
    assert len(messages) == 2 * len(STEPS) + 1
    for _, writer in [*asking, running]:
        writer.close()
    return took


async def one_call(server: int) -> float:
    """Return the seconds of one request for the same work."""
    connection = await asyncio.open_connection("127.0.0.1", server)
    began = time.perf_counter()
    body = {"model": "m", "input": PROMPT, "tools": [TOOL], "store": False}
    response = json.loads(await post(connection, "/v1/responses", body))
    took = time.perf_counter() - began
    assert [each["type"] for each in response["output"]] == ["code_interpreter_call"] * len(STEPS) + ["message"]
    connection[1].close()
    return took


@contextlib.asynccontextmanager
async def serving(root: Path, model_url: str) -> AsyncIterator[tuple[int, int]]:
    """Run a server whose model is at an address. Yield its port and its process id."""
    root.mkdir(exist_ok=True)
    models = json.dumps({"m": {"url": model_url}})
    limits = ["--answers-max-running", "1000", "--answers-max-running-per-principal", "1000"]
    command = [
        "serve", "--port", "0", "--data-dir", str(root / "data"), "--runtime-dir", str(root / "run"), "--token", TOKEN,
        "--models", models, *limits, "--templates", '{"python3": {"preload": []}}',
    ]  # fmt: skip
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kernelsvc", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert server.stdout is not None
        port, ready, said = 0, False, ""
        while not ready:
            line = (await server.stdout.readline()).decode()
            assert line, f"the server has ended: {said}"
            said = line
            if "listens on" in line:
                port = int(line.rpartition(":")[2])
            ready = line.startswith("ready")
        yield port, server.pid
    finally:
        server.terminate()
        await server.wait()


async def measure(root: Path, round_trip: float, runs: int) -> tuple[float, float]:
    """Return the medians of the client's own loop and of one call, in seconds."""
    model = ScriptedModel()
    at = int((await model.start()).removesuffix("/v1").rpartition(":")[2])
    try:
        async with (
            serving(root, model.url) as (port, _),
            far(port, round_trip) as far_server,
            far(at, round_trip) as far_model,
        ):
            both = [(await own_loop(far_model, far_server), await one_call(far_server)) for _ in range(runs + 1)][1:]
    finally:
        await model.stop()
    return statistics.median(each[0] for each in both), statistics.median(each[1] for each in both)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--round-trip", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as root:
        loop, call = asyncio.run(measure(Path(root), options.round_trip, options.runs))
    print(f"round trip {options.round_trip:.0f} ms, {len(STEPS)} steps of code and an answer, {options.runs} runs")
    print(f"client's own loop {loop * 1000:.0f} ms, one call {call * 1000:.0f} ms")
    print(f"ratio {loop / call:.1f}")


if __name__ == "__main__":
    main()
