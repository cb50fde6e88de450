"""Who runs the process of a cold kernel, and the Jupyter provisioner that asks them.

``Processes`` is the small protocol: the kernel host answers it in the product
(``HostProcesses`` in ``cold``), ``LocalProcesses`` in tests and for programs
that use the adapter without a kernel host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from kernelsvc.errors import Internal, NotSupported
from kernelsvc.model.events import NotEnforced, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits

#: Marks every process of a kernel, so that those it leaves behind can be found.
MARK = "KERNELSVC_KERNEL"
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


# --- on this machine, as children of this process ----------------------------------------


@dataclass
class _Child:
    popen: subprocess.Popen[bytes]
    ended: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LocalProcesses:
    """``Processes`` without a kernel host: unconfined children of this process.

    They die with nothing and are confined by nothing; the report says so.
    """

    def __init__(self) -> None:
        self._children: dict[str, _Child] = {}

    async def start(self, request: ProcessRequest) -> Started:
        """See ``Processes``."""
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220
                request.argv,
                env=inherited() | {"HOME": request.cwd} | request.env | {MARK: request.kernel},
                cwd=request.cwd,
                stdin=request.stdin,
                stdout=request.stdout,
                stderr=request.stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise Internal(
                f"The kernel's program can't be started ({error.strerror}); check its kernelspec."
            ) from error
        child = self._children[request.kernel] = _Child(popen)
        pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(pidfd, self._reap, pidfd, child)
        return Started(popen.pid, os.dup(pidfd), _unconfined())

    def _reap(self, pidfd: int, child: _Child) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        child.ended.set_result(exit_of(child.popen.wait()))

    async def find(self, kernel: str) -> Started | None:
        """See ``Processes``."""
        child = self._children.get(kernel)
        if child is None or child.ended.done():
            return None
        return Started(child.popen.pid, os.pidfd_open(child.popen.pid), _unconfined())

    def signal(self, kernel: str, signum: int, *, everyone: bool = False) -> None:
        """See ``Processes``."""
        child = self._children.get(kernel)
        if child is not None and not child.ended.done():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if everyone else os.kill)(child.popen.pid, signum)

    async def end(self, kernel: str) -> None:
        """See ``Processes``."""
        child = self._children.pop(kernel, None)
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.popen.pid, signal.SIGKILL)
        _kill_marked(kernel)
        await asyncio.shield(child.ended)

    async def wait_exit(self, kernel: str) -> Exit:
        """See ``Processes``."""
        child = self._children.get(kernel)
        if child is None:
            return Exit(cause=Cause.LOST, message="The kernel is gone and nobody saw how.")
        return await asyncio.shield(child.ended)


def _unconfined() -> SandboxReport:
    why = "started without a kernel host"
    return SandboxReport(policy="off", not_enforced=[NotEnforced(layer="all", why=why)])


def _kill_marked(kernel: str) -> None:
    """Kill what left the kernel's process group; their environment still tells whose they are."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and process.environ().get(MARK) == kernel:
                process.kill()


def exit_of(status: int) -> Exit:
    """A ``Popen`` status in words."""
    if status >= 0:
        return Exit(cause=Cause.EXITED, message=f"The kernel's process ended with status {status}.", exit_code=status)
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    return Exit(cause=Cause.SIGNALLED, message=f"The kernel was killed by {name}.", signal=-status)


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
            raise NotSupported(f"The kernelspec's program {cmd[0]!r} is not installed; install it or remove the spec.")
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
