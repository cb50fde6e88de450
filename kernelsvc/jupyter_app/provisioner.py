"""``kernelsvc-fork``: a kernel provisioner that forks kernels for any Jupyter application, without a server.

A kernelspec whose ``metadata`` has ``{"kernel_provisioner": {"provisioner_name": "kernelsvc-fork"}}`` starts in
milliseconds in JupyterLab, nbclient, papermill or ``jupyter_client``. The provisioner asks the kernel host for a fork.
A ``ZmqServer`` serves the fork on the ZMQ sockets that the application expects (jupyter_client, "Kernel Provisioning").

Theory of operation
-------------------
``jupyter_client`` calls a provisioner from any event loop, and its blocking manager from a loop that stops after each
call. So all kernels and ZMQ servers of an application live in one background thread with its own loop. The provisioner
submits its work there and waits for the result. When the application ends, its connection to the host closes, and the
host ends the kernels after the grace time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jupyter_client.connect import LocalPortCache
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import List, Unicode

from kernelsvc.jupyter_app.user_host import TEMPLATE, Environment, connect
from kernelsvc.jupyter_app.zmq_server import ZmqServer
from kernelsvc.kernels.port import Kernel, Launcher, StartRequest
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits

T = TypeVar("T")
Connect = Callable[[Environment], Awaitable[Launcher]]

#: Kernels of a Jupyter application belong to its user: they have no limits but those of the machine.
NO_LIMITS = Limits(
    memory_bytes=None,
    cell_seconds=None,
    processes=None,
    open_files=None,
    disk_bytes=None,
    files=None,
    output_bytes=None,
    idle_seconds=None,
    lifetime_seconds=None,
    network="host",
)
#: Exit of a kernel that was ended on request.
ENDED_ON_REQUEST = Exit(cause=Cause.SIGNALLED, message="The kernel was ended.", signal=signal.SIGKILL)
#: Variables of the application's environment that are for its own child processes and would harm a fork.
NOT_PASSED_ON = ("JPY_PARENT_PID", "JPY_INTERRUPT_EVENT", "MPLBACKEND", "PYTHONEXECUTABLE")


class BackgroundLoop:
    """A thread with an event loop for all kernels of this application."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.launchers: dict[Environment, asyncio.Task[Launcher]] = {}
        self._thread = threading.Thread(target=self.loop.run_forever, name="kernelsvc-fork", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background loop and wait for its result. Cancelling also cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def launcher(self, environment: Environment, connect: Connect) -> Launcher:
        """Return the launcher of this environment's host. Connects on the first call. Use it in the background loop."""
        task = self.launchers.get(environment)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self.launchers[environment] = asyncio.ensure_future(_connect(connect, environment))
        return await asyncio.shield(task)


async def _connect(connect: Connect, environment: Environment) -> Launcher:
    return await connect(environment)


_lock = threading.Lock()
_backgrounds: dict[int, BackgroundLoop] = {}


def background() -> BackgroundLoop:
    """Return the background loop of this process. A forked process has no threads of its parent and gets its own."""
    with _lock:
        # Threads do not survive a fork (fork(2)), and the new process has another pid.
        if os.getpid() not in _backgrounds:
            _backgrounds[os.getpid()] = BackgroundLoop()
        return _backgrounds[os.getpid()]


class ServedKernel:
    """One kernel and its ZMQ server. Use it in the background loop only."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.server = ZmqServer(info, on_exit=self._exited, on_shutdown=self._shut_down)
        self.kernel: Kernel | None = None
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._ending: asyncio.Task[None] | None = None

    async def start(self, launcher: Launcher, request: StartRequest) -> None:
        """Bind the sockets and start the kernel behind them."""
        self.server.open()
        try:
            self.kernel = await launcher.start(request, self.server)
            self.server.serve(self.kernel)
        except BaseException:
            self.server.close()
            raise

    def _exited(self, exit: Exit) -> None:
        if not self.exit.done():
            self.exit.set_result(exit)

    def _shut_down(self) -> None:
        self._ending = asyncio.ensure_future(self.end())

    async def end(self) -> None:
        """End the kernel. Replies that were sent already still reach the clients."""
        if self.kernel is not None:
            await self.kernel.end()
        self._exited(ENDED_ON_REQUEST)
        self.server.close()

    async def signal(self, signum: int) -> None:
        """Interrupt the kernel for SIGINT, and end it for SIGTERM, SIGKILL, SIGHUP and SIGQUIT.

        Other signals are ignored.
        """
        if self.kernel is None or self.exit.done():
            return
        if signum == signal.SIGINT:
            self.kernel.interrupt()
        elif signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT):
            await self.end()

    async def wait(self) -> int:
        """Wait until the kernel has ended and return its status in the form of ``Popen.returncode``."""
        return status_of(await asyncio.shield(self.exit))


def status_of(exit: Exit) -> int:
    """Return an exit as ``Popen.returncode``: the exit code, or the negative number of the signal."""
    return -exit.signal if exit.signal else exit.exit_code or 0


class ForkProvisioner(KernelProvisionerBase):  # type: ignore[misc]
    """The kernel provisioner. Its traits are set in a kernelspec's ``metadata.kernel_provisioner.config``."""

    python = Unicode(sys.executable, config=True, help="The interpreter to fork; it needs ipykernel.")
    preload = List(Unicode(), config=True, help="Modules that are imported once, for all kernels.")

    #: Connects to a launcher. Tests replace it.
    connect: ClassVar[Connect] = staticmethod(connect)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._served: ServedKernel | None = None
        self._workdir = ""

    @property
    def has_process(self) -> bool:
        """Whether a kernel was started and has not been cleaned up."""
        return self._served is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Write the connection file and prepare the environment."""
        if ignored := kwargs.get("extra_arguments"):
            self.log.warning(
                "The kernel's arguments %s have no effect: a fork begins with the shell of its template.", ignored
            )
        manager = self.parent
        if manager.cache_ports and manager.transport == "tcp":
            self._reserve_ports(manager)
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        kwargs = await super().pre_launch(**kwargs)
        return kwargs | {"cmd": list(self.kernel_spec.argv)}

    def _reserve_ports(self, manager: Any) -> None:
        """Reserve ports as ``LocalProvisioner`` does: two managers of one application never get the same port."""
        ports = LocalPortCache.instance()
        for name in ("shell", "iopub", "stdin", "hb", "control"):
            if not getattr(manager, f"{name}_port"):
                setattr(manager, f"{name}_port", ports.find_available_port(manager.ip))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Fork a kernel and return its connection info."""
        env = {name: value for name, value in kwargs["env"].items() if name not in NOT_PASSED_ON}
        self._workdir = os.path.realpath(kwargs.get("cwd") or os.getcwd())  # noqa: ASYNC240
        request = StartRequest(
            session=f"jupyter-{self.kernel_id}",
            kernel=uuid.uuid4().hex,
            template=TEMPLATE,
            workdir=self._workdir,
            limits=NO_LIMITS,
            env=env,
        )
        self._served = await background().run(self._serve(request))
        return dict(self.connection_info)

    def resolve_path(self, path_str: str) -> str | None:
        """Return the absolute path of a file that a path in a traceback names, or None if there is no such file."""
        path = Path(path_str).expanduser()
        path = path if path.is_absolute() else Path(self._workdir, path).resolve()
        return path.as_posix() if path.exists() else None

    async def _serve(self, request: StartRequest) -> ServedKernel:
        environment = Environment(python=self.python, preload=tuple(self.preload))
        launcher = await background().launcher(environment, type(self).connect)
        served = ServedKernel(dict(self.connection_info))
        await served.start(launcher, request)
        return served

    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its status."""
        served = self._served
        return status_of(served.exit.result()) if served and served.exit.done() else None if served else 0

    async def wait(self) -> int | None:
        """Wait until the kernel has ended and return its status."""
        served, self._served = self._served, None
        return await background().run(served.wait()) if served else 0

    async def send_signal(self, signum: int) -> None:
        """Send a signal: see ``ServedKernel.signal``."""
        if self._served is not None and signum:
            await background().run(self._served.signal(signum))

    async def kill(self, restart: bool = False) -> None:
        """End the kernel and all processes that it started."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        """End the kernel like ``kill``: the host cleans up after a fork."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """End the kernel if it still runs, and release its ports."""
        await self.kill()
        self._served = None
        if not restart and self.parent.cache_ports and self.parent.transport == "tcp":
            ports = LocalPortCache.instance()
            for name in ("shell", "iopub", "stdin", "hb", "control"):
                ports.return_port(self.connection_info.get(f"{name}_port"))
