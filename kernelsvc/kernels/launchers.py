"""Select the launcher of a template: forked environments come first, then installed kernelspecs."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kernelsvc.errors import KernelsvcError, NotFound
from kernelsvc.host.client import HostClient, OnListeners
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.kernels import exec_process
from kernelsvc.kernels.exec_process import ExecProcess
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.port import Launcher, Sink, StartRequest
from kernelsvc.kernels.read_budget import ReadBudgets, ReadPauses
from kernelsvc.kernels.zmq.host_processes import HostProcesses
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher
from kernelsvc.model.events import SandboxReport

log = logging.getLogger(__name__)

#: Seconds for which the list of installed kernelspecs is cached.
SPECS_SECONDS = 5.0


class KernelLaunchers(Protocol):
    """Start kernels and programs: the port between the service and the machine.

    ``Launchers`` implements it for this machine, ``kernelsvc.testing.FakeLaunchers`` for tests.
    """

    def on_cgroup_event(self, callback: Callable[[list[str], str], None]) -> None:
        """Call ``callback`` when Linux has enforced a limit on a process that is not a kernel.

        Its arguments are the ids of the affected sessions' kernels, and the limit's name.
        """

    def on_listeners(self, callback: OnListeners) -> None:
        """Call ``callback`` for each kernel with network rules that starts or is found. See ``HostClient``."""

    def on_read_pauses(self, callback: Callable[[ReadPauses], None]) -> None:
        """Call ``callback`` when a kernel has sent so much that the server reads it with pauses."""

    def read_statistics(self) -> Mapping[str, float]:
        """Return the totals of reading from kernels, as metrics: seconds, pauses and seconds of pauses."""

    async def start(self) -> None:
        """Prepare to start kernels.

        Raises:
            Internal: kernels can't be started on this machine.
        """

    async def stop(self, *, end_kernels: bool) -> None:
        """Disconnect. With ``end_kernels``, end every kernel. Otherwise they wait for the next server."""

    async def set_templates(self, templates: dict[str, ForkServerSettings]) -> None:
        """Have these forked templates from now on. Sessions continue."""

    def ready(self) -> bool:
        """Return whether every template is ready, so that a new session does not wait."""

    def templates(self) -> list[dict[str, Any]]:
        """Return the templates and kernelspecs of new sessions, as ``GET /v1/templates`` shows them."""

    def sandbox(self) -> SandboxReport:
        """Return the confinement and the limits that this machine enforces."""

    def launcher(self, template: str) -> Launcher:
        """Return the launcher for a template's name.

        Raises:
            NotFound: there is no such template.
        """

    def forks(self, template: str) -> bool:
        """Return whether the template is ready and its kernels are forked."""

    async def start_for_later(self, request: StartRequest, sink: Sink) -> None:
        """Start a forked kernel that ``Launcher.start`` hands over later, or ``discard`` ends.

        Raises:
            KernelsvcError: it can't be started.
        """

    async def discard(self, kernel: str) -> None:
        """End a forked kernel that no session has."""

    async def end_strays(self, known: set[str]) -> None:
        """End all kernels to which no server is connected, except the known ones."""

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
        """Start a program in a kernel's sandbox. Safe to cancel: the program is killed. See ``exec_process.start``.

        Raises:
            BadRequest: there is no such program or directory.
            TooLarge: arguments and environment are too large together.
        """

    async def sockets(self, kernel: str, count: int) -> list[socket.socket]:
        """Return unconnected TCP sockets in a kernel's network. Safe to cancel. See ``HostClient.sockets``."""


class Launchers:
    """The launchers of this machine. Implements ``KernelLaunchers`` over one kernel host."""

    def __init__(self, settings: HostSettings, *, start_host: bool = True) -> None:
        self.host = HostClient(settings, start=start_host)
        self._runtime = runtime = Path(settings.runtime_dir)
        self._budgets = ReadBudgets()
        self._forked = ForkedLauncher(self.host, runtime, self._budgets)
        self._kernelspec = KernelspecLauncher(HostProcesses(self.host), runtime, budgets=self._budgets)
        self._found: set[Path] = set()
        self._specs: dict[str, str] = {}  # name -> language
        self._specs_at = -SPECS_SECONDS

    def on_cgroup_event(self, callback: Callable[[list[str], str], None]) -> None:
        """See ``KernelLaunchers``."""
        self.host.on_limit_hit = callback

    def on_listeners(self, callback: OnListeners) -> None:
        """See ``KernelLaunchers``."""
        self.host.on_listeners = callback

    def on_read_pauses(self, callback: Callable[[ReadPauses], None]) -> None:
        """See ``KernelLaunchers``."""
        self._budgets.on_pauses = callback

    def read_statistics(self) -> Mapping[str, float]:
        """See ``KernelLaunchers``."""
        return self._budgets.statistics()

    async def start(self) -> None:
        """Connect to the kernel host, or start one.

        Raises:
            Internal: no host runs, and none can be started.
        """
        self._found = set(self._runtime.glob("k_*.k"))
        await self.host.start()

    async def stop(self, *, end_kernels: bool) -> None:
        """Disconnect from the host. With ``end_kernels``, end the host and all its processes."""
        if end_kernels:
            await self.host.shutdown(end_kernels=True)
        await self.host.close()

    async def end_strays(self, known: set[str]) -> None:
        """End the kernels that a crash left: no server is connected to them, and no session knows them."""
        for kernel in await self.host.orphans():
            if kernel not in known:
                # Also after an ordinary restart: the members of the warm pool are not adopted.
                log.info("kernel %s belongs to no session. The server ends it.", kernel)
                with contextlib.suppress(KernelsvcError):
                    await self._forked.end(kernel)
        listed = {*known, *await self.host.kernels()}
        for path in self._found:  # sockets made since the start may not be listed yet
            if path.stem not in listed:
                path.unlink(missing_ok=True)

    def _kernelspecs(self) -> list[str]:
        now = time.monotonic()
        if now - self._specs_at > SPECS_SECONDS:
            self._specs, self._specs_at = self._kernelspec.languages(), now
        return [name for name in self._specs if name not in self.host.templates]

    def launcher(self, template: str) -> Launcher:
        """Return the launcher for a template's name.

        Raises:
            NotFound: there is neither a configured environment nor an installed kernelspec of this name.
        """
        if template in self.host.templates:
            return self._forked
        if template in self._kernelspecs():
            return self._kernelspec
        names = ", ".join([*self.host.templates, *self._kernelspecs()])
        raise NotFound(f"There is no template {template!r}. Use one of these: {names}.")

    def forks(self, template: str) -> bool:
        """Return whether the template is ready and its kernels are forked."""
        return self.host.templates.get(template, {}).get("state") == "ready"

    async def start_for_later(self, request: StartRequest, sink: Sink) -> None:
        """Start a forked kernel that ``Launcher.start`` hands over later, or ``discard`` ends.

        Raises:
            KernelsvcError: it can't be started.
        """
        await self._forked.prestart(request, sink)

    async def discard(self, kernel: str) -> None:
        """End a forked kernel that no session has."""
        await self._forked.discard(kernel)

    def templates(self) -> list[dict[str, Any]]:
        """Return the templates and kernelspecs of new sessions, as ``GET /v1/templates`` shows them."""
        forked = [{**about, "kind": "forked"} for about in self.host.templates.values()]
        cold = {"kind": "cold", "state": "ready"}
        return [*forked, *({"name": name, **cold, "language": self._specs[name]} for name in self._kernelspecs())]

    async def set_templates(self, templates: dict[str, ForkServerSettings]) -> None:
        """See ``KernelLaunchers``."""
        await self.host.set_templates(templates)

    def ready(self) -> bool:
        """Return whether every template is ready, so that a new session does not wait."""
        return all(about.get("state") == "ready" for about in self.host.templates.values())

    def sandbox(self) -> SandboxReport:
        """Return the confinement and the limits that this machine enforces."""
        return self.host.sandbox

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
        """See ``KernelLaunchers``."""
        return await exec_process.start(
            self.host, kernel, argv, env=env, cwd=cwd, with_input=with_input, terminal=terminal
        )

    async def sockets(self, kernel: str, count: int) -> list[socket.socket]:
        """See ``KernelLaunchers``."""
        return await self.host.sockets(kernel, count)
