"""The Python client and the TypeScript client against one server, in turns.

    python -m benchmarks.clients [--node NODE] [--rounds N] [--cells N] [--lines N]

Rounds of both clients alternate, so that other load of the machine hits both. ``ratio`` is the TypeScript client's
median over the Python client's. Node must run TypeScript without a flag (22.18 or newer).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from kernelsvc import AsyncClient
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import AsyncSession
from kernelsvc.model.events import Stream

SCRIPT = Path(__file__).with_name("client_script.ts")
#: Each measurement and the unit of its samples.
WORK = {"cell": "`1+1`", "lines": "a cell that prints many lines"}


async def python_client(session: AsyncSession, name: str, count: int) -> list[float]:
    """Return the milliseconds of each sample."""
    if name == "cell":
        found = []
        for _ in range(count):
            began = time.perf_counter()
            await session.run("1+1")
            found.append((time.perf_counter() - began) * 1e3)
        return found
    began, seen = time.perf_counter(), 0
    async for event in session.stream(f"for n in range({count}): print(n)"):
        if isinstance(event, Stream):
            seen += event.text.count("\n")
    assert seen == count
    return [(time.perf_counter() - began) * 1e3]


async def typescript_client(process: asyncio.subprocess.Process, name: str, count: int) -> list[float]:
    """As ``python_client``, in the process of Node."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([name, count]).encode() + b"\n")
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("the TypeScript client ended; its error is above")
    return list(json.loads(line))


async def compare(url: str, token: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the medians of both clients and their ratio, by measurement."""
    env = {**os.environ, "KERNELSVC_URL": url, "KERNELSVC_TOKEN": token}
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "limit": 1 << 24}
    process = await asyncio.create_subprocess_exec(args.node, str(SCRIPT), env=env, **pipes)
    found: dict[str, dict[str, list[float]]] = {name: {"python": [], "typescript": []} for name in WORK}
    try:
        async with AsyncClient(url, token) as client, await client.create_session() as session:
            for number in range(args.rounds + 1):
                for name in WORK:
                    count = args.cells if name == "cell" else args.lines
                    took = await python_client(session, name, count)
                    other = await typescript_client(process, name, count)
                    if number:  # the first round warms both up
                        found[name]["python"] += took
                        found[name]["typescript"] += other
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        await process.wait()
    medians = {name: {who: statistics.median(each) for who, each in both.items()} for name, both in found.items()}
    return {name: {**both, "ratio": both["typescript"] / both["python"]} for name, both in medians.items()}


async def measured(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compare the clients at a server of their own."""
    with tempfile.TemporaryDirectory(prefix="bench") as place:
        async with private_server(Terminal(), data_dir=Path(place), tcp=True) as address:
            return await compare(address.base, address.token or "", args)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--node", default=shutil.which("node"), help="the program; default: the one on the path")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--lines", type=int, default=100_000)
    args = parser.parse_args()
    if args.node is None:
        print("No node is on the path. Name one with --node.", file=sys.stderr)
        return 2
    found = asyncio.run(measured(args))
    print(f"{report.machine()}, load {os.getloadavg()[0]:.1f}")
    for name, both in found.items():
        times = f"Python {both['python']:.3g} ms, TypeScript {both['typescript']:.3g} ms"
        print(f"{WORK[name]}: {times}, ratio {both['ratio']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
