"""The cost of the watchdog: ``python -m benchmarks.watchdog [--sessions 200] [--passes 30]``.

The benchmark starts a kernel host with a number of confined, idle sessions. It measures the CPU time of one pass of the
server's watchdog: with cgroups that limit memory and tasks (as under systemd or root), without them, and in the worst
case, when it must read the proportional memory of every session. For comparison it measures psutil's list of each
session's children, and the kernel host's pass over the cgroups' counters. The watchdog makes a pass a second, so that a
millisecond is a tenth of a percent of a core.

At the end it measures by how much a session can exceed a supervised disk limit, when it writes many files as fast as
possible.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.adoption import TOKEN, serve
from kernelsvc import AsyncClient
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.kernels.forked.kernel import ForkedKernel
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.port import StartRequest
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.sandbox.cgroup import Cgroup
from kernelsvc.sandbox.watchdog import Watchdog, Watched, hard_limits

DISK = 256 * MiB
WRITER = """
import os, time
block, began, n = bytes(1 << 20), time.monotonic(), 0
try:
    while time.monotonic() - began < 20:
        n += 1
        with open(f'f{n}', 'wb') as f:
            f.write(block)
except BaseException as error:
    print(n, time.monotonic() - began)
"""


class Nobody:
    """A sink that discards the messages of kernels."""

    def deliver(self, batch: Any) -> None:
        """Discard a message."""

    def exited(self, exit: Exit) -> None:
        """Ignore the exit: the kernels end with the host."""


def cost(work: Callable[[], object], passes: int) -> tuple[float, float]:
    """Return the median CPU and wall milliseconds of one pass."""
    cpu, wall = [], []
    for _ in range(passes):
        began, spent = time.perf_counter(), time.thread_time()
        work()
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.thread_time() - spent) * 1e3)
    return statistics.median(cpu), statistics.median(wall)


def show(what: str, cpu: float, wall: float) -> None:
    """Print a line of the table."""
    print(f"{what:58}{cpu:9.1f}{wall:9.1f}{cpu / 10:8.2f} %")


async def measure(root: Path, count: int, passes: int) -> None:
    """Start the sessions, measure, end them."""
    run = root / "run"
    run.mkdir(mode=0o700)
    template = ForkServerSettings(python=sys.executable, preload=[])
    client = HostClient(HostSettings(runtime_dir=str(run), templates={"t": template}))
    await client.start()
    try:
        launcher = ForkedLauncher(client, run)
        kernels = [await start(launcher, root, number) for number in range(count)]
        await asyncio.sleep(2)
        print(f"{count} idle sessions, {kernels[0].sandbox.isolation}; {len(psutil.pids())} processes on the machine")
        print(f"{'one pass':58}{'CPU ms':>9}{'wall ms':>9}{'at 1/s':>10}")
        hard = watched(kernels, root, hard_limits(kernels[0].sandbox.limits))
        dog = Watchdog()
        show("caps are hard: look and report", *cost(lambda: dog.poll(hard), passes))
        soft = watched(kernels, root, frozenset())
        show("nothing is hard, nobody suspect", *cost(lambda: dog.poll(soft), passes))
        low = {
            name: msgspec.structs.replace(one, limits=Limits(memory_bytes=MiB, disk_bytes=None))
            for name, one in soft.items()
        }
        show("nothing is hard, everybody suspect", *cost(lambda: dog.poll(low), max(3, passes // 10)))
        show("psutil, children(recursive=True) of each", *cost(lambda: ask_psutil(kernels), 3))
        groups = find_groups(count)
        if groups:
            show(
                f"the host's look at {len(groups)} cgroups",
                *cost(lambda: [one.event_counts() for one in groups], passes),
            )
    finally:
        await client.shutdown(end_kernels=True)
        await client.close()


async def start(launcher: ForkedLauncher, root: Path, number: int) -> ForkedKernel:
    """Start a confined kernel with its own directory."""
    workdir = root / f"w{number}"
    workdir.mkdir(mode=0o755)
    request = StartRequest(
        session=f"s{number}", kernel=f"k{number}", template="t", workdir=str(workdir), limits=Limits()
    )
    return await launcher.start(request, Nobody())


def watched(kernels: list[ForkedKernel], root: Path, hard: frozenset[str]) -> dict[str, Watched]:
    """Return the watchdog's input for the sessions."""
    return {
        f"s{number}": Watched(root=kernel.info.pid, limits=Limits(), workdir=str(root / f"w{number}"), hard=hard)
        for number, kernel in enumerate(kernels)
    }


def ask_psutil(kernels: list[ForkedKernel]) -> None:
    """Read each session's children with psutil, as a simple watchdog would do."""
    for kernel in kernels:
        process = psutil.Process(kernel.info.pid)
        for one in [process, *process.children(recursive=True)]:
            one.memory_info()


def find_groups(count: int) -> list[Cgroup]:
    """Return the newest cgroups of kernelsvc."""
    found = []
    for base, _, _ in os.walk("/sys/fs/cgroup"):
        name = os.path.basename(base)
        if name.startswith("k-k") and name[3:].isdigit() and ("memory" in base or "kernelsvc" in base):
            found.append(base)
    version = 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1
    return [
        Cgroup(version=version, directories={"memory": base, "pids": base.replace("/memory", "/pids", 1)})
        for base in [one for one in found if version == 2 or "/memory/" in one][:count]
    ]


async def write(root: Path, count: int) -> None:
    """Measure how far a writer exceeds its limit."""
    process, _ = serve(root)
    try:
        async with AsyncClient(f"unix:{root / 's'}", TOKEN) as client:
            others = [await client.create_session() for _ in range(count)]
            one = await client.create_session(limits={"disk_bytes": DISK})
            cell = await one.run(WRITER)
            reached, seconds = (cell.text or "0 0").split()[:2]
            print(
                f"a writer among {len(others)} sessions with disk_bytes = {DISK >> 20} MiB got to {reached} MiB "
                f"in {float(seconds):.1f} s"
            )
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """Run the benchmark in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--passes", type=int, default=30)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kw"))
    root.chmod(0o755)
    try:
        asyncio.run(measure(root, args.sessions, args.passes))
        again = root / "again"
        again.mkdir()
        asyncio.run(write(again, 0))
        asyncio.run(write(again, 20))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
