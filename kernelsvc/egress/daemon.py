"""The egress proxy's process: ``kernelsvc egress`` under systemd, or started by a server for its first rules."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc import logs
from kernelsvc.egress.confinement import confine_proxy
from kernelsvc.egress.interception import Interception, open_interception
from kernelsvc.egress.protocol import FIRST_LISTENER, MAX_FDS, SOCKET_NAME, EgressSettings, OpenRequest, Report
from kernelsvc.egress.session_proxy import SessionProxy
from kernelsvc.linux import seqpacket
from kernelsvc.linux.acceptor import raise_descriptor_limit

log = logging.getLogger(__name__)

#: Seconds in which a server connects to a proxy that it has started.
FIRST_SERVER_SECONDS = 60.0


class EgressDaemon:
    """All containers of one server. A new server replaces the one before, and opens its containers again.

    Args:
        settings: see ``protocol.EgressSettings``.
        interception: reads requests over TLS.

    Attributes:
        stopped: set when the proxy should end.
    """

    def __init__(self, settings: EgressSettings, interception: Interception) -> None:
        self._settings = settings
        self._interception = interception
        self._proxies: dict[str, SessionProxy] = {}
        self._pidfds: dict[str, int] = {}
        self._server: seqpacket.SeqpacketChannel | None = None
        self._loop = asyncio.get_running_loop()
        self._listener = _bind(Path(settings.runtime_dir) / SOCKET_NAME)
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self.stopped = asyncio.Event()
        if not settings.persistent:
            self._loop.call_later(FIRST_SERVER_SECONDS, self._stop_without_server)

    def _stop_without_server(self) -> None:
        if self._server is None:
            self.stopped.set()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if self._server is not None:
            self._server.close()
            self._close_all()
        self._server = seqpacket.SeqpacketChannel(sock, self._received, self._server_gone, fds=MAX_FDS)

    def _server_gone(self) -> None:
        """Close every container's sockets: the next server opens them again. Until then connections wait."""
        self._server = None
        self._close_all()
        if not self._settings.persistent:
            self.stopped.set()

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        try:
            request = msgspec.convert(body, OpenRequest)
            if request.update:
                self._update(request, fds)
                return
            if len(fds) < FIRST_LISTENER:
                raise ValueError(f"{len(fds)} descriptors came, at least {FIRST_LISTENER} were expected")
        except (msgspec.ValidationError, ValueError) as error:
            seqpacket.close_all(fds)
            log.error("a request of the server is not valid: %s", error)
            return
        self._close(request.container)
        pidfd, *sockets = fds
        name = request.container
        self._proxies[name] = SessionProxy(
            request,
            sockets,
            self._settings.hosts,
            self._interception,
            lambda kind, fields: self._report(name, kind, fields),
        )
        self._pidfds[name] = pidfd
        # pidfd_open(2): it becomes readable when the process ends. Sockets would keep the network namespace alive.
        self._loop.add_reader(pidfd, self._ended, name)

    def _update(self, request: OpenRequest, fds: list[int]) -> None:
        seqpacket.close_all(fds)
        proxy = self._proxies.get(request.container)
        if proxy is not None:  # else its init has ended meanwhile
            proxy.update(request.rules)

    def _report(self, container: str, kind: str, fields: dict[str, Any]) -> None:
        if self._server is not None:
            self._server.send(Report(container=container, kind=kind, fields=fields))

    def _ended(self, container: str) -> None:
        self._close(container)
        self._report(container, "ended", {})

    def _close(self, container: str) -> None:
        proxy = self._proxies.pop(container, None)
        if proxy is not None:
            proxy.close()
            pidfd = self._pidfds.pop(container)
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _close_all(self) -> None:
        for container in list(self._proxies):
            self._close(container)


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(4)
    return listener


def run(settings: EgressSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Run the proxy until it is stopped.

    Args:
        settings: see ``protocol.EgressSettings``.
        ready: called when it accepts a server.
    """
    raise_descriptor_limit()
    Path(settings.runtime_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    interception = open_interception(settings)

    async def main() -> None:
        daemon = EgressDaemon(settings, interception)
        for warning in confine_proxy():
            log.warning("the egress proxy runs without a layer of confinement: %s", warning)
        ready()
        await daemon.stopped.wait()

    asyncio.run(main())


def main() -> int:
    """Run a proxy for ``python -m kernelsvc.egress.daemon``. A server starts it and writes its settings to stdin."""
    logs.configure(logging.WARNING)
    run(msgspec.json.decode(sys.stdin.buffer.read(), type=EgressSettings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
