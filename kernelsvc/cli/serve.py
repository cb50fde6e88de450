"""``kernelsvc serve``: run the server in the foreground, until a signal stops it.

=================  =================================================================
SIGINT (Ctrl-C)    stop, end every session
SIGTERM            stop, and do with sessions as the setting ``on_stop`` says
SIGHUP             stop, keep sessions
SIGUSR1            refuse new sessions, wait for running cells, then stop as after SIGTERM
=================  =================================================================

The next server on the same data directory adopts kept sessions, also after a crash. A second SIGINT or SIGTERM exits
immediately. Sessions without a server end after ``adoption_seconds``: the kernel host ends them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Literal

import msgspec

from kernelsvc import logs
from kernelsvc import settings as conf
from kernelsvc.cli import memory_tuning
from kernelsvc.cli.companions import bridge_process, traces
from kernelsvc.cli.companions.companion_process import CompanionProcess, locked
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import seconds
from kernelsvc.client.address import INFO_FILE, ServerInfo, write_info
from kernelsvc.errors import BadRequest, Conflict
from kernelsvc.linux.acceptor import raise_descriptor_limit
from kernelsvc.linux.systemd import Systemd, ready_fd
from kernelsvc.model.events import SandboxReport
from kernelsvc.server.app import Server, make_app
from kernelsvc.service import Service
from kernelsvc.service.directories import (
    check_clock,
    check_form,
    cluster_key,
    missing_mounts,
    node_name,
    prepare_directories,
    with_kept_token,
)
from kernelsvc.store.backups.restore import remove_unfinished
from kernelsvc.telemetry import operator_log

#: Interval of the check whether the first template is ready.
POLL_SECONDS = 0.02
FORCED_EXIT_CODE = 130
OnStop = Literal["end", "hibernate", "keep"]
_CONSEQUENCES: dict[OnStop, str] = {
    "end": "ending every session",
    "hibernate": "saving the variables of every session to disk",
    "keep": "sessions wait for the next server",
}
#: A second signal within this time is the same Ctrl-C: the terminal signals the whole process group, and a wrapper
#: such as timeout(1) or npm forwards its own signal.
DUPLICATE_SIGNAL_SECONDS = 0.5


def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Serve until a signal stops the server."""
    started = time.monotonic()
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    settings = conf.load(vars(args), os.environ)
    # A person at a terminal sees warnings. A log that is kept has each session.
    logs.configure(level, operator_level=logging.WARNING if terminal.tty else logging.INFO, form=settings.log_format)
    raise_descriptor_limit()
    prepare_directories(settings)
    check_form(settings)
    check_clock(settings, time.time())
    settings, generated_token = with_kept_token(settings)
    token = generated_token or next(iter(getattr(args, "token", None) or []), None) or os.environ.get("KERNELSVC_TOKEN")
    if settings.workers != 1:
        workers = importlib.import_module("kernelsvc.cli.cluster.workers")
        if workers.count(settings) > 1:
            shown = f" with token {generated_token}" if generated_token else ""
            with _data_dir_lock(settings, "workers.lock"):
                return int(workers.run(args, terminal, settings, token=token, shown=shown))
    settings, bridge = (settings, None) if args.worker else bridge_process.prepare(settings)
    exporter = traces.prepare(settings, os.environ)
    key = ""
    if settings.join:
        addresses = [*settings.join, *([settings.advertise] if settings.advertise else [])]
        importlib.import_module("kernelsvc.server.joining").check_addresses(*addresses)
        key = cluster_key(settings, os.environ)
        settings = msgspec.structs.replace(settings, node=node_name(settings))
    with _data_dir_lock(settings):
        remove_unfinished(settings.data_path())
        return asyncio.run(
            _ServerRun(
                settings,
                args,
                terminal,
                started,
                generated_token=generated_token,
                token=token,
                bridge=bridge,
                exporter=exporter,
                cluster_key=key,
            ).run()
        )


@contextlib.contextmanager
def _data_dir_lock(settings: conf.Settings, name: str = "server.lock") -> Iterator[None]:
    """Lock the data directory: two servers would both write its journals.

    Raises:
        BadRequest: the directory is not writable.
        Conflict: another server has the lock.
    """
    data = settings.data_path()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(data / name))
        except OSError as error:
            raise BadRequest(
                f"Can't write to the data directory {data} ({error.strerror}). "
                "Make it writable, or give another --data-dir."
            ) from None
        except Conflict:
            raise Conflict(f"Another server uses {data}. Stop it, or give another --data-dir.") from None
        yield


class _ServerRun:
    """One run of the server: start, serve, stop."""

    def __init__(
        self,
        settings: conf.Settings,
        args: argparse.Namespace,
        terminal: Terminal,
        started: float,
        *,
        generated_token: str | None,
        token: str | None,
        bridge: CompanionProcess | None = None,
        exporter: CompanionProcess | None = None,
        cluster_key: str = "",
    ) -> None:
        self.settings, self.args, self.terminal = settings, args, terminal
        self.started, self.generated_token, self.token = started, generated_token, token
        self.bridge, self.exporter = bridge, exporter
        self.cluster_key = cluster_key
        self.systemd = Systemd(os.environ)
        self.stopping, self.draining = asyncio.Event(), asyncio.Event()
        self.on_stop: OnStop = "end"
        self.on_drained: OnStop = settings.on_stop
        self.stop_requested_at = 0.0
        #: The nodes that get the sessions of this one after its drain: addresses by name.
        self.targets: dict[str, str] = {}

    async def run(self) -> int:
        """Start, serve, stop."""
        self._catch_signals()
        service = Service(self.settings, spans=self.exporter is not None)
        # Before the kernel host starts, because it inherits the environment.
        keys = read_model_keys(self.settings)
        for secret in self.settings.secrets.values():
            os.environ.pop(secret.env or "", None)  # The service has a copy for the egress proxy.
        app = make_app(service, self.settings, service.metrics, keys)
        if self.settings.join:
            moving = importlib.import_module("kernelsvc.server.moving")
            data = self.settings.data_path()
            app.add_handlers(".*", moving.routes(app.settings["context"], self.cluster_key, data, service.moves().take))
        server = Server(app, self.settings, os.environ)
        # Before anything else starts, so that an address in use costs nothing. Clients that connect now wait.
        server.bind()
        await service.start()
        # After all imports and the start, because it freezes the objects that exist now.
        memory_tuning.tune()
        info = self.settings.runtime_path() / INFO_FILE
        tasks: list[asyncio.Task[None]] = []
        try:
            addresses = server.start()
            self._announce(addresses)
            operator_log.server_started(addresses)
            tasks = [
                *(
                    asyncio.create_task(each.keep_running(addresses[0]))
                    for each in (self.bridge, self.exporter)
                    if each is not None
                ),
                asyncio.create_task(self._announce_ready(service)),
                asyncio.create_task(self.systemd.feed_watchdog()),
                asyncio.create_task(logs.flush_regularly()),
                asyncio.create_task(self._drain(service)),
                *([asyncio.create_task(self._stay_joined(service, addresses[0]))] if self.settings.join else []),
            ]
            await self.stopping.wait()
        except BaseException:
            # A failed start, for example a port in use, must not end sessions that an earlier server kept.
            self.on_stop = "keep"
            raise
        finally:
            for task in tasks:
                task.cancel()
            if not self.args.worker:
                info.unlink(missing_ok=True)
            await self._stop(server, service)
        return 0

    def _announce(self, addresses: list[str]) -> None:
        url = addresses[0]
        token = f" with token {self.generated_token}" if self.generated_token else ""
        self.terminal.line(f"kernelsvc listens on {' and '.join(addresses)}{token}")
        if not self.args.worker:
            write_info(self.settings.runtime_path(), ServerInfo(url=url, token=self.token, pid=os.getpid()))
        self.systemd.tell("STATUS=starting the template", f"MAINPID={os.getpid()}")

    async def _announce_ready(self, service: Service) -> None:
        failed: dict[str, str] = {}
        while not service.ready():
            for one in service.templates():
                message = str(one.get("message", ""))
                if one.get("state") == "failed" and failed.get(one["name"]) != message:
                    failed[one["name"]] = message
                    self.terminal.message(f"The template {one['name']!r} can't be started: {message}", "red")
            await asyncio.sleep(POLL_SECONDS)
        for line in [*missing_layers(service.info()["sandbox"]), *missing_mounts(self.settings)]:
            self.terminal.message(line, "yellow")
        took = seconds(time.monotonic() - self.started)
        names = ", ".join(one["name"] for one in service.templates() if one.get("kind") == "forked")
        hint = ". Ctrl-C ends the server and its sessions." if self.terminal.tty else ""
        self.terminal.line(f"ready after {took}; templates: {names}{hint}")
        ready_fd(self.args.ready_fd)
        self.systemd.tell("READY=1", f"STATUS=ready; templates: {names}")

    async def _stay_joined(self, service: Service, address: str) -> None:
        """Be a node of a cluster, until cancelled."""
        joining = importlib.import_module("kernelsvc.server.joining")
        settings = self.settings
        membership = joining.Membership(
            settings.join,
            self.cluster_key,
            settings.node,
            settings.advertise or address,
            service.info()["public_key"],
            service.node_state(),
            self._on_drain_of_front,
        )
        await membership.run()

    def _on_drain_of_front(self, targets: dict[str, str]) -> None:
        # A person who drains a node wants its sessions back later.
        if self.settings.on_stop == "end" or targets:
            self.on_drained = "hibernate"
        self.targets = targets
        self.draining.set()

    async def _drain(self, service: Service) -> None:
        await self.draining.wait()
        seconds_left = seconds(self.settings.drain_seconds)
        self.terminal.message(f"draining: no new sessions; stops when no cell runs, after {seconds_left} at the latest")
        self.systemd.tell("STATUS=draining")
        await service.drain(self.settings.drain_seconds)
        if not self.stopping.is_set():
            self._on_stop_signal(self.on_drained)

    async def _stop(self, server: Server, service: Service) -> None:
        self.systemd.tell("STOPPING=1")
        operator_log.server_stopped(self.on_stop)
        if self.bridge is not None:
            await self.bridge.stop()
        await server.stop()
        if self.on_stop == "hibernate":
            await service.hibernate_all(self.settings.shutdown_seconds)
        movable = service.moves().movable() if self.targets else []
        await service.stop(end_sessions=self.on_stop == "end")
        if self.targets:
            giving = importlib.import_module("kernelsvc.cli.cluster.giving")
            data = self.settings.data_path()
            for line in await giving.move_out(data, service.signing_key, self.cluster_key, self.targets, movable):
                self.terminal.message(line)
        if self.exporter is not None:  # Last, so that it has the last entries.
            await self.exporter.stop()

    # --- signals --------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_stop_signal, "end")
        # systemd stops and restarts a unit with SIGTERM (systemd.kill(5)). Sessions must survive an upgrade.
        loop.add_signal_handler(signal.SIGTERM, self._on_stop_signal, self.settings.on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_stop_signal, "keep")
        loop.add_signal_handler(signal.SIGUSR1, self.draining.set)
        if self.args.while_fd is not None:
            loop.add_reader(self.args.while_fd, self._on_while_fd_closed)

    def _on_stop_signal(self, on_stop: OnStop) -> None:
        now = asyncio.get_running_loop().time()
        if self.stopping.is_set() and now < self.stop_requested_at + DUPLICATE_SIGNAL_SECONDS:
            return
        if self.stopping.is_set():
            self.terminal.message("exiting immediately. The kernel host ends the remaining sessions", "yellow")
            os._exit(FORCED_EXIT_CODE)
        self.stop_requested_at, self.on_stop = now, on_stop
        self.terminal.message(f"stopping: {_CONSEQUENCES[on_stop]} …")
        self.stopping.set()

    def _on_while_fd_closed(self) -> None:
        asyncio.get_running_loop().remove_reader(self.args.while_fd)
        if not self.stopping.is_set():
            # A worker's front may have been killed. The next one finds the sessions.
            self._on_stop_signal("keep" if self.args.worker else "end")


def read_model_keys(settings: conf.Settings) -> dict[str, str]:
    """Return the keys of the models' servers, and remove them from the environment.

    Raises:
        BadRequest: a variable is not set, or a file can't be read.
    """
    if not settings.models:
        return {}
    module = importlib.import_module("kernelsvc.answers.answers")
    keys: dict[str, str] = module.read_keys(settings.models, os.environ)
    return keys


def missing_layers(report: SandboxReport) -> list[str]:
    """Return a warning for each layer of confinement that is missing. If the policy is ``off``, return one warning."""
    if report.policy == "off":
        return ["Sessions are not confined (sandbox = off): run only code that you would run yourself."]
    return [
        f"Not enforced here: {one.layer} ({one.why}). Run 'kernelsvc doctor' for details."
        for one in report.not_enforced
    ]
