"""Which launcher a template belongs to: forked environments first, then installed kernelspecs."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from kernelsvc.errors import KernelsvcError, NotFound
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import HostSettings
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.port import Launcher, Sink, StartRequest
from kernelsvc.kernels.zmq.host_processes import HostProcesses
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher
from kernelsvc.model.events import SandboxReport

log = logging.getLogger(__name__)

#: Seconds for which the list of installed kernelspecs is believed.
SPECS_SECONDS = 5.0


class Launchers:
    """Every way to start a kernel on this machine. One kernel host stands behind them all."""

    def __init__(self, settings: HostSettings, *, start_host: bool = True) -> None:
        self.host = HostClient(settings, start=start_host)
        self._runtime = runtime = Path(settings.runtime_dir)
        self._forked = ForkedLauncher(self.host, runtime)
        self._cold = KernelspecLauncher(HostProcesses(self.host), runtime)
        self._found: set[Path] = set()
        self._specs: dict[str, str] = {}  # name -> language
        self._specs_at = -SPECS_SECONDS

    async def start(self) -> None:
        """Connect to the kernel host, or start one.

        Raises:
            Internal: there is none.
        """
        self._found = set(self._runtime.glob("k_*.k"))
        await self.host.start()

    async def stop(self, *, end_kernels: bool) -> None:
        """Let go of the host; with ``end_kernels`` it and everything it runs ends."""
        if end_kernels:
            await self.host.shutdown(end_kernels=True)
        await self.host.close()

    async def end_strays(self, known: set[str]) -> None:
        """End kernels that no server holds and no session knows: what a crash left of starts and replacements."""
        for kernel in await self.host.orphans():
            if kernel not in known:
                log.warning("kernel %s belongs to no session; it is ended", kernel)
                with contextlib.suppress(KernelsvcError):
                    await self._forked.end(kernel)
        listed = {*known, *await self.host.kernels()}
        for path in self._found:  # and not what was made since
            if path.stem not in listed:
                path.unlink(missing_ok=True)

    def _kernelspecs(self) -> list[str]:
        now = time.monotonic()
        if now - self._specs_at > SPECS_SECONDS:
            self._specs, self._specs_at = self._cold.languages(), now
        return [name for name in self._specs if name not in self.host.templates]

    def launcher(self, template: str) -> Launcher:
        """The launcher for a template's name.

        Raises:
            NotFound: neither a configured environment nor an installed kernelspec.
        """
        if template in self.host.templates:
            return self._forked
        if template in self._kernelspecs():
            return self._cold
        names = ", ".join([*self.host.templates, *self._kernelspecs()])
        raise NotFound(f"There is no template {template!r}; there are {names}.")

    def forks(self, template: str) -> bool:
        """Whether this template is one that is up and forks."""
        return self.host.templates.get(template, {}).get("state") == "ready"

    async def start_for_later(self, request: StartRequest, sink: Sink) -> None:
        """Have a forked kernel ready; ``start`` hands it over, ``discard`` ends it.

        Raises:
            KernelsvcError: it can't be started.
        """
        await self._forked.prestart(request, sink)

    async def discard(self, kernel: str) -> None:
        """End a forked kernel that nobody needs."""
        await self._forked.discard(kernel)

    def templates(self) -> list[dict[str, Any]]:
        """What a session can be made from, as ``GET /v1/templates`` shows it."""
        forked = [{**about, "kind": "forked"} for about in self.host.templates.values()]
        cold = {"kind": "cold", "state": "ready"}
        return [*forked, *({"name": name, **cold, "language": self._specs[name]} for name in self._kernelspecs())]

    def ready(self) -> bool:
        """Whether every template is up, so that a session would not wait for one."""
        return all(about.get("state") == "ready" for about in self.host.templates.values())

    def sandbox(self) -> SandboxReport:
        """What this machine enforces."""
        return self.host.sandbox
