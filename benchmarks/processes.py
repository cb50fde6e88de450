"""Servers as processes: start one on a free port, watch its memory, end it with all its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

START_SECONDS = 90.0
STOP_SECONDS = 20.0
MiB = 1024 * 1024


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process. It is ready when GET ``ready`` returns status 200."""

    #: What a user's Ctrl-C sends. Jupyter's servers would ask whether it was meant; they get SIGTERM.
    stop_signal = signal.SIGINT

    def __init__(self, command: Sequence[str], ready: str, log: Path, env: dict[str, str] | None = None) -> None:
        self.command, self.ready, self.log = list(command), ready, log
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    async def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time. The message has the end of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        while not await asyncio.to_thread(answers, self.ready):
            if self.process.poll() is not None or time.perf_counter() - begun > START_SECONDS:
                tail = self.log.read_text("utf-8", "replace")[-1500:]
                await self.stop()
                raise RuntimeError(f"{self.command[0]} did not come up:\n{tail}")
            await asyncio.sleep(0.05)
        self.start_seconds = time.perf_counter() - begun

    async def stop(self) -> None:
        """Terminate the server, wait, and end its remaining descendants by id."""
        if self.process is None:
            return
        left = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, STOP_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def cpu(self) -> float:
        """Return the CPU seconds of the server process, without its children."""
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def written(self) -> int:
        """Return the bytes that the server process has written to files and sockets (proc(5), ``wchar``)."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).io_counters().write_chars)

    def rss(self) -> int:
        """Return the resident bytes of the server process, without its children."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)


def answers(url: str) -> bool:
    """Whether a GET returns status 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living descendants of a process, without those that have detached themselves."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def uss(pids: Sequence[int]) -> int:
    """Return the private bytes of these processes: the memory that their end would free."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().uss
    return total


def pss(pids: Sequence[int]) -> int:
    """Return the proportional bytes of these processes: a page of n processes counts 1/n for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total


@contextlib.asynccontextmanager
async def peak(server: Server | None) -> AsyncIterator[list[int]]:
    """Watch a server's memory during a block. After it the list has the growth in bytes."""
    grown = [0]
    if server is None:
        yield grown
        return
    start = server.rss()

    async def watch() -> None:
        while True:
            grown[0] = max(grown[0], server.rss() - start)
            await asyncio.sleep(0.02)

    watcher = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        grown[0] = max(grown[0], server.rss() - start)
