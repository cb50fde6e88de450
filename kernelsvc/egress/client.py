"""The server's side of the egress proxy: start it for the first rules, hand listeners over, receive reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import kernelsvc
from kernelsvc.egress.protocol import FIRST_LISTENER, SOCKET_NAME, EgressSettings, Report
from kernelsvc.errors import Internal
from kernelsvc.linux import seqpacket

log = logging.getLogger(__name__)

#: Seconds for a proxy to accept its server.
START_SECONDS = 30.0
_RETRY_SECONDS = 0.02, 1.0


class _Opened(NamedTuple):
    rules: Any
    fds: list[int]


class EgressClient:
    """One server's connection to its egress proxy. Without rules there is none, and no proxy.

    It keeps copies of the listeners. If the proxy ends, the next one gets them, and connections wait meanwhile.

    Args:
        settings: settings of the proxy.
        start: whether to start a proxy if none answers.
        on_report: receives each report.
    """

    def __init__(self, settings: EgressSettings, *, start: bool, on_report: Callable[[Report], None]) -> None:
        self._settings = settings
        # A server removes the variables with secrets from its own environment, and may start several proxies.
        self._environment = _proxy_environment(settings)
        self._may_start = start
        self._on_report = on_report
        self._opened: dict[str, _Opened] = {}
        self._channel: seqpacket.SeqpacketChannel | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def ensure(self) -> None:
        """Wait until a proxy is connected, and start one if this client may. Safe to cancel.

        Raises:
            Internal: there is none. The message names the log.
        """
        while self._channel is None:
            if self._connecting is None:
                self._connecting = asyncio.ensure_future(self._connect())
                self._connecting.add_done_callback(self._connected)
            await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error)

    async def _connect(self) -> None:
        pause, longest = _RETRY_SECONDS
        path = str(Path(self._settings.runtime_dir) / SOCKET_NAME)
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                    try:
                        sock.connect(path)
                        break
                    except OSError:
                        sock.close()
                    self._start()
                    await asyncio.sleep(pause)
                    pause = min(longest, pause * 1.5)
        except TimeoutError:
            log_path = Path(self._settings.runtime_dir) / "egress.log"
            hint = f"See {log_path}" if self._may_start else "Start kernelsvc-egress.service"
            raise Internal(f"The egress proxy does not answer, so network rules can't be applied. {hint}.") from None
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._lost, fds=0)
        for container, opened in self._opened.items():
            self._send(container, opened)

    def _start(self) -> None:
        if not self._may_start or (self._process is not None and self._process.poll() is None):
            return
        runtime = Path(self._settings.runtime_dir)
        with (runtime / "egress.log").open("ab") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernelsvc.egress.daemon"],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                env=self._environment,
                start_new_session=True,
                cwd="/",
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(self._settings))
            self._process.stdin.close()

    def open(self, container: str, rules: Any, fds: list[int]) -> None:
        """Hand a container's listeners to the proxy, now or when there is one. Owns the descriptors.

        A container that is open stays as it is: its connections and its names belong to all of its kernels.

        Args:
            container: its id.
            rules: its rules, as plain JSON.
            fds: a pidfd of its init, its sockets for look-ups and its listeners.
        """
        if container in self._opened:
            seqpacket.close_all(fds)
            return
        self._opened[container] = opened = _Opened(rules, fds)
        if self._channel is not None:
            self._send(container, opened)
        elif self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connected)

    def ports(self, container: str) -> set[int] | None:
        """Return the ports on which a container has listeners, or None if it is not open."""
        opened = self._opened.get(container)
        if opened is None:
            return None
        found = set()
        for fd in opened.fds[FIRST_LISTENER:]:
            with socket.socket(fileno=os.dup(fd)) as listener:
                found.add(int(listener.getsockname()[1]))
        return found

    def update(self, container: str, rules: Any) -> None:
        """Replace the rules of a container that is open, now or for the next proxy.

        Args:
            container: its id.
            rules: its rules, as plain JSON.
        """
        opened = self._opened.get(container)
        if opened is not None:
            self._opened[container] = opened._replace(rules=rules)
            if self._channel is not None:
                self._channel.send({"container": container, "rules": rules, "update": True}, [])

    def _send(self, container: str, opened: _Opened) -> None:
        assert self._channel is not None
        self._channel.send({"container": container, "rules": opened.rules}, opened.fds)

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        report = msgspec.convert(body, Report)
        if report.kind == "ended":
            self._forget(report.container)
        self._on_report(report)

    def _forget(self, container: str) -> None:
        opened = self._opened.pop(container, None)
        if opened is not None:
            seqpacket.close_all(opened.fds)

    def _lost(self) -> None:
        self._channel = None
        if self._closed:
            return
        log.warning("the egress proxy has ended. Connections of sessions with network rules wait for the next one.")
        if self._opened and self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connected)

    async def close(self) -> None:
        """Disconnect. A proxy that this client has started ends."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for container in list(self._opened):
            self._forget(container)
        if self._process is not None:
            await asyncio.to_thread(self._end_process, self._process)

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        """The proxy ends when its server's socket closes. One that hangs is killed."""
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _proxy_environment(settings: EgressSettings) -> dict[str, str]:
    """Return the environment of the proxy: paths and locale, the variables with secrets, and no token."""
    secrets = [source.env for source in settings.secrets.values() if source.env]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH", *secrets) if name in os.environ}
    paths = [str(Path(kernelsvc.__file__).parent.parent), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}
