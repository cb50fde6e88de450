"""The port through which kernelspec kernels' processes are run, and the Jupyter provisioner that calls it.

``HostProcesses`` is the implementation: the kernel host starts and confines the processes.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from typing import Any, Protocol

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernelsvc.errors import NotSupported
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits

#: What a kernel inherits of the server's environment, and nothing else.
INHERITED = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class ProcessRequest:
    """A process to start. ``share`` is the one directory that it has in common with the server.

    ``env`` is what comes on top of the environment that a process has anyway. The
    descriptors are the caller's and are closed by the caller.
    """

    kernel: str
    session: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    limits: Limits
    share: str
    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True)
class Started:
    """A process that runs. Whoever gets it owns ``pidfd``."""

    pid: int
    pidfd: int
    sandbox: SandboxReport


class Processes(Protocol):
    """Starts, finds, signals and ends processes of cold kernels. They outlive the server."""

    async def start(self, request: ProcessRequest) -> Started:
        """Start one. Cancelling it ends what was started.

        Raises:
            KernelsvcError: it can't be started or confined.
        """

    async def find(self, kernel: str) -> Started | None:
        """The process of this kernel, or None if it is gone."""

    def signal(self, kernel: str, signum: int, *, everyone: bool = False) -> None:
        """Send a signal to the kernel, or to all that it started too; a process that is gone is no error."""

    async def end(self, kernel: str) -> None:
        """Kill it and all that it started. Safe to cancel and to repeat."""

    async def wait_exit(self, kernel: str) -> Exit:
        """Wait until the process has ended. Safe to cancel."""


# --- jupyter_client's side -------------------------------------------------------------------


def inherited() -> dict[str, str]:
    """The few names of the server's environment that an unconfined kernel gets and a kernelspec may refer to."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


class HostProvisioner(KernelProvisionerBase):  # type: ignore[misc]
    """Has ``Processes`` start the kernel that an ``AsyncKernelManager`` prepares."""

    def __init__(self, *, processes: Processes, prototype: ProcessRequest, **traits: Any) -> None:
        super().__init__(**traits)
        self.processes = processes
        self.prototype = prototype
        self.started: Started | None = None

    @property
    def has_process(self) -> bool:
        """Whether the process was started."""
        return self.started is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Write the connection file and fill in the command line and the environment.

        ``JPY_PARENT_PID`` never gets in, wherever it comes from: with it ipykernel
        polls for its parent, and exits when the server does or at once in a pid namespace.
        """
        manager: AsyncKernelManager = self.parent
        base = inherited()
        kwargs = await super().pre_launch(**kwargs | {"env": base})  # adds the kernelspec's variables
        env = kwargs["env"] | self.prototype.env
        own = {name: value for name, value in env.items() if base.get(name) != value}
        for name in ("JPY_PARENT_PID", "JPY_INTERRUPT_EVENT"):
            own.pop(name, None)
        kwargs["env"] = own
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        return kwargs | {"cmd": manager.format_kernel_cmd()}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Ask for the process."""
        env = dict(kwargs["env"])
        program = shutil.which(cmd[0], path=env.get("PATH") or os.environ.get("PATH"))
        if program is None:
            raise NotSupported(f"The kernelspec's program {cmd[0]!r} is not installed. Install it or remove the spec.")
        values = self.prototype.__dict__ | {"argv": [program, *cmd[1:]], "env": env}
        self.started = await self.processes.start(ProcessRequest(**values))
        return dict(self.connection_info)

    async def poll(self) -> int | None:
        """None while it runs."""
        return None if await self.processes.find(self.prototype.kernel) is not None else 0

    async def wait(self) -> int | None:
        """Wait for its end."""
        ended = await self.processes.wait_exit(self.prototype.kernel)
        return ended.exit_code if ended.exit_code is not None else -(ended.signal or 0)

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel."""
        self.processes.signal(self.prototype.kernel, signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill all of it."""
        self.processes.signal(self.prototype.kernel, signal.SIGKILL, everyone=True)

    async def terminate(self, restart: bool = False) -> None:
        """Ask it to end."""
        self.processes.signal(self.prototype.kernel, signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Nothing: ``ColdKernel.end`` removes what was made."""


class ZmqKernelManager(AsyncKernelManager):  # type: ignore[misc]
    """Prepares and launches; ``Channels`` does the talking, so it opens no socket of its own."""

    def _connect_control_socket(self) -> None:
        pass
