"""The port through which kernelspec kernels' processes are run, and the Jupyter provisioner that calls it.

``HostProcesses`` is the implementation: the kernel host starts and confines the processes.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernelsvc.errors import NotSupported
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.model.storage.mounts import Bind

#: The only variables of the server's environment that a kernel inherits.
INHERITED = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class ProcessRequest:
    """A process to start.

    Attributes:
        kernel: id of the kernel.
        session: id of the session.
        argv: the program and its arguments.
        env: variables in addition to the environment that every process gets.
        cwd: directory in which it starts.
        limits: the session's limits.
        share: the directory that it shares with the server.
        stdin: descriptor, which the caller closes.
        stdout: descriptor, which the caller closes.
        stderr: descriptor, which the caller closes.
        program: the kernel's program if another one starts it.
        binds: directories of the machine that it sees besides its own.
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
    program: str = ""
    binds: Sequence[Bind] = ()


@dataclass(frozen=True)
class Started:
    """A running process. The receiver closes ``pidfd``."""

    pid: int
    pidfd: int
    sandbox: SandboxReport


class Processes(Protocol):
    """Starts, finds, signals and ends processes of kernelspec kernels. They outlive the server."""

    async def start(self, request: ProcessRequest) -> Started:
        """Start a process. Cancelling ends it.

        Raises:
            KernelsvcError: it can't be started or confined.
        """

    async def find(self, kernel: str) -> Started | None:
        """Return the process of a kernel, or None if it has ended."""

    def signal(self, kernel: str, signum: int, *, everyone: bool = False) -> None:
        """Send a signal to the kernel, or also to everything it started. A process that has ended is no error."""

    async def end(self, kernel: str) -> None:
        """Kill the kernel and everything it started. Idempotent. Safe to cancel."""

    async def wait_exit(self, kernel: str) -> Exit:
        """Wait until the process has ended. Safe to cancel."""


# --- jupyter_client's side -------------------------------------------------------------------


def inherited() -> dict[str, str]:
    """Return the variables of the server's environment that an unconfined kernel gets and a kernelspec may use."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


class HostProvisioner(KernelProvisionerBase):  # type: ignore[misc]
    """Has ``Processes`` start the kernel that an ``AsyncKernelManager`` prepares.

    The prototype's ``argv`` is a program in front of the kernel's command, or empty.
    """

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
        """Write the connection file, and complete the command line and the environment.

        ``JPY_PARENT_PID`` is removed: with it ipykernel polls its parent, and exits when the server does or, in a pid
        namespace, immediately.
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
        """Start the process."""
        env = dict(kwargs["env"])
        program = shutil.which(cmd[0], path=env.get("PATH") or os.environ.get("PATH"))
        if program is None:
            raise NotSupported(
                f"The kernelspec's program {cmd[0]!r} is not installed. Install it or remove the kernelspec."
            )
        first = self.prototype.argv
        values = {"argv": [*first, program, *cmd[1:]], "env": env, "program": program if first else ""}
        self.started = await self.processes.start(ProcessRequest(**self.prototype.__dict__ | values))
        return dict(self.connection_info)

    async def poll(self) -> int | None:
        """Return None while the process runs."""
        return None if await self.processes.find(self.prototype.kernel) is not None else 0

    async def wait(self) -> int | None:
        """Wait for its end."""
        ended = await self.processes.wait_exit(self.prototype.kernel)
        return ended.exit_code if ended.exit_code is not None else -(ended.signal or 0)

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel."""
        self.processes.signal(self.prototype.kernel, signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel and everything it started."""
        self.processes.signal(self.prototype.kernel, signal.SIGKILL, everyone=True)

    async def terminate(self, restart: bool = False) -> None:
        """Send SIGTERM."""
        self.processes.signal(self.prototype.kernel, signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Do nothing: ``ZmqKernel.end`` removes the files."""


class ZmqKernelManager(AsyncKernelManager):  # type: ignore[misc]
    """Prepares and launches the kernel. ``Channels`` exchanges the messages, so this opens no socket."""

    def _connect_control_socket(self) -> None:
        pass
