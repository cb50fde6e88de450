r"""A real server with fake kernels, for tests. It starts in milliseconds, without a sandbox or another process.

Only the kernels are fake. The HTTP and WebSocket server, sessions, journals,
checkpoints, branches, notebooks and files are real. A cell is Python code that
runs in the process of the test, with top-level ``await`` and without ``input()``.
Such cells are **not confined**: run only code of your own tests.

A test of a program that uses the blocking client::

    from kernelsvc import Client
    from kernelsvc.testing import serve_in_thread

    with serve_in_thread() as server, Client(server.url, server.token) as client:
        with client.create_session() as session:
            assert session.run("print(6 * 7)").text == "42\n"

Within an event loop, ``async with InProcessServer() as server`` does the same,
and ``server.service`` is the service, whose methods a test may call or replace.

Tests can request faults that are rare in real kernels. Errors in
``server.kernels.refusals`` make the next starts fail. With
``FakeLauncher(python=False)``, a cell holds commands such as ``hang``, ``die 9`` and
``oom`` (see ``kernelsvc.kernels.fake``).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import NotFound, NotSupported
from kernelsvc.host.client import OnListeners
from kernelsvc.host.protocol import ForkServerSettings
from kernelsvc.kernels.exec_process import ExecProcess
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.kernels.port import Launcher, Sink, StartRequest
from kernelsvc.kernels.read_budget import ReadPauses
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.tokens import record_for
from kernelsvc.server.app import Server, make_app
from kernelsvc.service import Service
from kernelsvc.settings import Settings

#: The token of a server whose settings have no tokens.
TOKEN = "test-token"


class FakeLaunchers:
    """Start fake kernels. Implements ``kernels.launchers.KernelLaunchers``.

    Args:
        kernels: launcher of the kernels. None makes one whose cells are Python.
        templates: names of the templates of new sessions.
    """

    def __init__(self, kernels: FakeLauncher | None = None, templates: Sequence[str] = ("python3",)) -> None:
        self.kernels = kernels or FakeLauncher(python=True)
        self._templates = templates
        self._report = SandboxReport(policy="off")

    def on_cgroup_event(self, callback: Callable[[list[str], str], None]) -> None:
        """Do nothing: no limit is enforced."""

    def on_listeners(self, callback: OnListeners) -> None:
        """Do nothing: fake kernels have no network."""

    def on_read_pauses(self, callback: Callable[[ReadPauses], None]) -> None:
        """Do nothing: fake kernels are not read."""

    def read_statistics(self) -> Mapping[str, float]:
        """Return no totals."""
        return {}

    async def start(self) -> None:
        """Do nothing: fake kernels need no other process."""

    async def stop(self, *, end_kernels: bool) -> None:
        """With ``end_kernels``, end all kernels. Otherwise a new ``Service`` with this object can adopt them."""
        if end_kernels:
            self.kernels.close()

    def ready(self) -> bool:
        """Return True."""
        return True

    async def set_templates(self, templates: dict[str, ForkServerSettings]) -> None:
        """Have these templates from now on."""
        self._templates = tuple(templates)

    def templates(self) -> list[dict[str, Any]]:
        """Return the templates, as ``GET /v1/templates`` shows them."""
        return [{"name": name, "kind": "forked", "state": "ready", "preload": []} for name in self._templates]

    def sandbox(self) -> SandboxReport:
        """Return the report of a machine that enforces nothing."""
        return self._report

    def launcher(self, template: str) -> Launcher:
        """Return the fake launcher.

        Raises:
            NotFound: there is no such template.
        """
        if template not in self._templates:
            raise NotFound(f"There is no template {template!r}. Use one of these: {', '.join(self._templates)}.")
        return self.kernels

    def forks(self, template: str) -> bool:
        """Return False: the warm pool stays empty."""
        return False

    async def start_for_later(self, request: StartRequest, sink: Sink) -> None:
        """Raise NotSupported: there is no warm pool."""
        raise NotSupported("Fake kernels have no warm pool. Set warm_pool to 0.")

    async def discard(self, kernel: str) -> None:
        """End a kernel."""
        await self.kernels.discard(kernel)

    async def end_strays(self, known: set[str]) -> None:
        """Do nothing: fake kernels end with their process."""

    async def exec(
        self,
        kernel: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        with_input: bool,
        terminal: tuple[int, int] | None,
    ) -> ExecProcess:
        """Raise NotSupported: a fake kernel has no sandbox in which a program could run."""
        raise NotSupported("Fake kernels run no programs. Test programs against a real server.")

    async def sockets(self, kernel: str, count: int) -> list[socket.socket]:
        """Return sockets of this machine's network, in which code of fake kernels runs."""
        made = [socket.socket() for _ in range(count)]
        for one in made:
            one.setblocking(False)
        return made


class InProcessServer:
    """A server with fake kernels in this process and event loop: ``async with InProcessServer() as server``.

    Args:
        settings: the server's settings. The default port becomes a free one, so that servers do not meet. Without
            tokens, ``TOKEN`` is accepted.
        kernels: launcher of the kernels. None makes one whose cells are Python.
        data_dir: the data directory. None takes ``settings.data_dir``, or a temporary directory, removed by ``stop``.
        keys: the keys of the models' servers, by the name of the model.

    Attributes:
        url: the server's address after the start, "" before.
        token: a token with every scope, valid if the settings have no tokens.
        service: the service.
        kernels: the fake kernels.
        settings: the settings in use.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        kernels: FakeLauncher | None = None,
        data_dir: Path | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        given = settings or Settings(port=0, journal_sync="off", shutdown_seconds=1.0)
        data_dir = data_dir or given.data_dir
        self._temporary = None if data_dir is not None else Path(tempfile.mkdtemp(prefix="kernelsvc-test-"))
        self.token = TOKEN
        self.settings = msgspec.structs.replace(
            given,
            port=0 if given.port == Settings().port else given.port,
            tokens=given.tokens or [record_for(TOKEN)],
            data_dir=data_dir or self._temporary,
        )
        self.kernels = kernels or FakeLauncher(python=True)
        self.service = Service(self.settings, launchers=FakeLaunchers(self.kernels))
        self.app = make_app(self.service, self.settings, self.service.metrics, keys)
        self.server = Server(self.app, self.settings)
        self.url = ""

    async def start(self) -> str:
        """Start the server. Return its address."""
        await self.service.start()
        self.url = self.server.start()[0]
        return self.url

    async def stop(self) -> None:
        """Stop the server and end every session."""
        await self.server.stop()
        await self.service.stop(end_sessions=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def __aenter__(self) -> InProcessServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


@contextlib.contextmanager
def serve_in_thread(settings: Settings | None = None) -> Iterator[InProcessServer]:
    """Run an ``InProcessServer`` in a thread of its own, for tests without an event loop.

    Args:
        settings: the server's settings. None takes those of ``InProcessServer``.

    Yields:
        The server. Only ``url``, ``token`` and ``settings`` may be used from the test's thread.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kernelsvc test server", daemon=True)
    thread.start()

    async def start() -> InProcessServer:
        server = InProcessServer(settings)
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
            asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
