"""``kernelsvc serve --workers N``: N servers on one machine, as nodes of one front in this process.

Python runs one thread at a time, so one server uses little more than one core. Each worker is a server of its own,
with its kernel host and its data directory. The first one has the given directory, so its sessions stay. The others
have directories below it, with links to its tokens and environments.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kernelsvc import settings as conf
from kernelsvc.cli.cluster.front import own_address, serve
from kernelsvc.cli.companions import bridge_process
from kernelsvc.cli.companions.companion_process import CompanionProcess
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import seconds
from kernelsvc.client.address import INFO_FILE, ServerInfo, write_info
from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.front.app import Front
from kernelsvc.linux.systemd import Systemd, ready_fd
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.service.access.principals import Principals
from kernelsvc.service.directories import KEY_ENV
from kernelsvc.settings import Settings
from kernelsvc.store.environments import DIRECTORY as ENVIRONMENTS
from kernelsvc.store.token_file import NAME as TOKENS_NAME
from kernelsvc.store.token_file import TokenFile

log = logging.getLogger(__name__)

#: The directory of the further workers, below the data and the runtime directory.
FOLDER = "workers"
#: Seconds in which a worker may fail to start again and again: an earlier run's worker may still be stopping.
PATIENCE_SECONDS = 30.0
#: Seconds for which requests wait for a worker. It is started again at once, unlike a node of another machine.
HOLD_SECONDS = 30.0
#: Shortest and longest wait before a worker is started again, and between two looks at the workers.
SHORTEST_WAIT, LONGEST_WAIT, POLL_SECONDS = 0.1, 5.0, 0.05
#: Seconds beyond the settings' ``shutdown_seconds`` for a worker to stop.
STOP_SECONDS = 30.0

#: Settings that each worker has of its own, or that the front has for all.
_OWN = frozenset(
    {"token", "tokens", "host", "port", "uds", "uds_group", "data_dir", "runtime_dir", "workers", "join", "advertise"}
    | {"cluster_key_file", "sandbox", "on_stop", "signing_key", "max_sessions", "max_total_memory_bytes", "warm_pool"}
)
#: Variables by which systemd speaks to the process that it started.
_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "SYSTEMD_EXEC_PID")


def count(settings: Settings) -> int:
    """Return the number of workers. ``auto`` is one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers


def run(args: argparse.Namespace, terminal: Terminal, settings: Settings, *, token: str | None, shown: str) -> int:
    """Serve until a signal stops the front and its workers.

    Args:
        args: The command line.
        terminal: Where messages go.
        settings: The settings, with tokens.
        token: A token for local clients.
        shown: The end of the line with the address: a new token, or nothing.

    Raises:
        BadRequest: The settings exclude workers.
    """
    if settings.join:
        raise BadRequest(
            "A node of a cluster has one worker. Run several nodes on this machine, each with a data directory of its "
            "own (docs/howto/cluster.md)."
        )
    if not settings.start_host:
        raise BadRequest(
            "Each worker starts a kernel host, and start_host is false here. Under systemd, run the units "
            "kernelsvc-front.service and kernelsvc-node@N.service (docs/howto/cluster.md)."
        )
    settings, bridge = bridge_process.prepare(settings)
    return asyncio.run(_Workers(args, terminal, settings, token, shown, bridge).run())


class _Workers:
    """The front of one machine, and its workers."""

    def __init__(
        self,
        args: argparse.Namespace,
        terminal: Terminal,
        settings: Settings,
        token: str | None,
        shown: str,
        bridge: CompanionProcess | None,
    ) -> None:
        self._args, self._terminal, self._settings = args, terminal, settings
        self._token, self._shown, self._bridge = token, shown, bridge
        self._count = count(settings)
        self._key = secrets.token_hex(32)
        self._started = time.monotonic()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._signal: signal.Signals | None = None
        self._failure = ""
        self._front: Front | None = None

    async def run(self) -> int:
        principals = Principals(
            self._settings.tokens, TokenFile(self._settings.data_path() / "keys"), self._settings.oidc
        )
        info = self._settings.runtime_path() / INFO_FILE
        try:
            return await serve(
                self._settings,
                principals,
                self._key,
                self._announce,
                beside=self._keep_running,
                hold_seconds=HOLD_SECONDS,
            )
        finally:
            info.unlink(missing_ok=True)

    def _announce(self, front: Front, addresses: list[str]) -> None:
        self._terminal.line(f"kernelsvc listens on {' and '.join(addresses)}{self._shown}")
        self._info = ServerInfo(url=addresses[0], token=self._token, pid=os.getpid())
        write_info(self._settings.runtime_path(), self._info)
        self._warn_of_others()

    def _warn_of_others(self) -> None:
        folder = self._settings.data_path() / FOLDER
        more = [int(each.name) for each in folder.iterdir() if each.name.isdecimal()] if folder.is_dir() else []
        if more and max(more) > self._count:
            self._terminal.message(
                f"{folder} has sessions of {max(more)} workers, and {self._count} run now. The sessions of the others "
                f"can't be reached until 'kernelsvc serve --workers {max(more)}' runs.",
                "yellow",
            )

    # --- the workers ------------------------------------------------------------------------

    async def _keep_running(self, front: Front, addresses: list[str], stopping: asyncio.Event) -> int:
        self._stopping, self._front = stopping, front
        loop, tasks = asyncio.get_running_loop(), OwnedTasks()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(each, self._on_signal, each)
        if self._args.while_fd is not None:
            loop.add_reader(self._args.while_fd, self._on_parent_gone)
        # The workers notice by this pipe that the front has ended, however it ended.
        alive, own_end = os.pipe()
        try:
            for number in range(1, self._count + 1):
                tasks.start(self._keep_one(number, own_address(addresses[0]), alive))
            tasks.start(self._announce_ready(front))
            if self._bridge is not None:
                tasks.start(self._bridge.keep_running(own_address(addresses[0])))
            await stopping.wait()
        finally:
            tasks.cancel()
            if self._bridge is not None:
                await self._bridge.stop()
            await self._stop_all()
            os.close(alive)
            os.close(own_end)
        if self._failure:
            raise Conflict(self._failure)
        return 0

    async def _keep_one(self, number: int, front: str, alive: int) -> None:
        failing_since, wait = time.monotonic(), SHORTEST_WAIT
        while not self._is_ending():
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self._command(number, front, alive),
                env=self._environment(),
                pass_fds=[alive],
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
            self._processes[number] = process
            if self._is_ending():  # since the process was started
                self._send_signal(signal.SIGUSR1)
            code = await process.wait()
            del self._processes[number]
            if self._is_ending():
                break
            now = time.monotonic()
            if (since := failing_from(failing_since, began, now, self._has_served(number, began))) == now:
                failing_since, wait = since, SHORTEST_WAIT
            if time.monotonic() - failing_since > PATIENCE_SECONDS:
                self._failure = f"Worker {number} ends again and again (exit code {code}). Its messages are above."
                self._stopping.set()
                return
            log.warning("Worker %d ended with code %s. It is started again, and its sessions go on.", number, code)
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, wait * 2)
        if not self._processes:
            self._stopping.set()  # the last one has drained

    def _has_served(self, number: int, began: float) -> bool:
        runtime = self._settings.runtime_path()
        url = f"unix:{(runtime / str(number) if number > 1 else runtime) / 'node.sock'}"
        return self._front is not None and any(
            each.url == url and each.reported_at > began and each.candidate.report.ready
            for each in self._front.members.known()
        )

    def _command(self, number: int, front: str, alive: int) -> list[str]:
        settings, name = self._settings, f"{FOLDER}/{number}"
        data, runtime = settings.data_path(), settings.runtime_path()
        if number > 1:
            data, runtime = data / name, runtime / str(number)
            share_files(settings.data_path(), data)
        own = {
            "data-dir": data,
            "runtime-dir": runtime,
            "uds": runtime / "node.sock",
            "join": front,
            "workers": 1,
            "sandbox": settings.sandbox,
            "on-stop": settings.on_stop,
            "max-sessions": share(settings.max_sessions, self._count),
            "warm-pool": -(-settings.warm_pool // self._count),
        }
        if settings.max_total_memory_bytes is not None:
            own["max-total-memory-bytes"] = share(settings.max_total_memory_bytes, self._count)
        if settings.signing_key is not None:
            own["signing-key"] = settings.signing_key
        command = [sys.executable, "-m", "kernelsvc", "serve", "--worker", "--while-fd", str(alive)]
        command += [f"-{'v' * self._args.verbose}"] if self._args.verbose else []
        command += [part for option, value in own.items() for part in (f"--{option}", str(value))]
        return [*command, *given_options(vars(self._args))]

    def _environment(self) -> dict[str, str]:
        """Return the environment of a worker. It has hashes of the tokens, and no token."""
        env = {name: value for name, value in os.environ.items() if name not in (*_OF_SYSTEMD, "KERNELSVC_TOKEN")}
        env["KERNELSVC_TOKENS"] = msgspec.json.encode(self._settings.tokens).decode()
        env[KEY_ENV] = self._key
        return env

    async def _announce_ready(self, front: Front) -> None:
        while sum(each.report.ready for each in front.members.candidates()) < self._count:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        # The first worker's kernel host has removed what it found in the directory.
        write_info(self._settings.runtime_path(), self._info)
        took = seconds(time.monotonic() - self._started)
        hint = ". Ctrl-C ends the server and its sessions." if self._terminal.tty else ""
        self._terminal.line(f"ready after {took}; {self._count} workers{hint}")
        ready_fd(self._args.ready_fd)
        Systemd(os.environ).tell("STATUS=ready")

    # --- the end ----------------------------------------------------------------------------

    def _is_ending(self) -> bool:
        return self._signal is not None

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signal is not None and number is not signal.SIGUSR1 and self._stopping.is_set():
            self._terminal.message("exiting immediately. The workers keep their sessions", "yellow")
            os._exit(130)
        self._signal = number
        if number is signal.SIGUSR1:
            self._terminal.message("draining: no new sessions; each worker stops when no cell runs")
            self._send_signal(number)
            return
        self._stopping.set()

    def _on_parent_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._args.while_fd)
        if self._signal is None:
            self._on_signal(signal.SIGINT)

    def _send_signal(self, number: signal.Signals) -> None:
        for process in [*self._processes.values()]:
            if process.returncode is None:
                process.send_signal(number)

    async def _stop_all(self) -> None:
        """End the workers by the signal that ended the front."""
        processes = [*self._processes.values()]
        self._send_signal(self._signal or signal.SIGHUP)
        waits = [asyncio.ensure_future(process.wait()) for process in processes]
        if waits:
            await asyncio.wait(waits, timeout=self._settings.shutdown_seconds + STOP_SECONDS)
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def failing_from(since: float, began: float, now: float, served: bool) -> float:
    """Return the time from which a worker that has ended fails to start.

    Args:
        since: The time so far.
        began: Time of its last start.
        now: Time of its end, which is returned if its start did not fail.
        served: Whether it was ready in between. Several kills of a worker that serves are no failing starts.
    """
    return now if served or now - began > PATIENCE_SECONDS / 2 else since


def share(whole: int, parts: int) -> int:
    """Return a part of a limit, rounded up."""
    return -(-whole // parts)


def share_files(data: Path, worker: Path) -> None:
    """Let a worker use the tokens of ``kernelsvc token`` and the environments of ``kernelsvc env``.

    Both commands change the given data directory. A worker's own directory of environments, which an earlier release
    made, stays.
    """
    keys, environments = worker / "keys", data / ENVIRONMENTS
    for each in (worker.parent, worker, keys):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    environments.mkdir(mode=0o755, exist_ok=True)
    for link, target in ((keys / TOKENS_NAME, data / "keys" / TOKENS_NAME), (worker / ENVIRONMENTS, environments)):
        if not link.is_symlink() and not link.exists():
            link.symlink_to(os.path.relpath(target, link.parent))


def given_options(args: Mapping[str, object]) -> list[str]:
    """Return the options of the command line that workers get unchanged."""
    found = [f"--config={args['config']}"] if args.get("config") else []
    for row in conf.TABLE:
        value = args.get(row.dest)
        if value is None or row.name in _OWN:
            continue
        for each in value if isinstance(value, list) else [value]:
            found.append(f"{row.option}={each}")
    return found
