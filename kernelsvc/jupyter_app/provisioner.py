"""``kernelsvc-fork``: kernels by fork for any Jupyter application, with no server of ours.

A kernelspec whose ``metadata`` says ``{"kernel_provisioner": {"provisioner_name":
"kernelsvc-fork"}}`` starts in milliseconds in JupyterLab, nbclient, papermill or
plain ``jupyter_client``: the provisioner asks the kernel host for a fork and a
``ZmqServer`` serves it on the ZMQ sockets that the application expects.

Theory of operation
-------------------
``jupyter_client`` calls a provisioner from whatever loop it likes, and its
blocking manager from none that goes on running. So kernels and bridges live in
one thread of ours per application, with a loop of its own; what the provisioner
does is handed to it and waited for. When the application is gone, so is its
connection to the host, and the host ends its kernels after the grace time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine
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

#: A Jupyter application's kernels are its user's own: no cap but what the machine has.
NO_LIMITS = Limits(
    memory_bytes=None,
    cell_seconds=None,
    processes=None,
    open_files=None,
    disk_bytes=None,
    output_bytes=None,
    idle_seconds=None,
    lifetime_seconds=None,
    network="host",
)
#: The end of a kernel that was asked to end.
ENDED = Exit(cause=Cause.SIGNALLED, message="The kernel was ended.", signal=signal.SIGKILL)
#: What an application's environment holds for its own kernels and would harm ours.
NOT_PASSED_ON = ("JPY_PARENT_PID", "JPY_INTERRUPT_EVENT", "MPLBACKEND", "PYTHONEXECUTABLE")


class BackgroundLoop:
    """A thread with an event loop, for all kernels of this application."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.launchers: dict[Environment, asyncio.Task[Launcher]] = {}
        self._thread = threading.Thread(target=self.loop.run_forever, name="kernelsvc-fork", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this there and wait for it here. Cancelling cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def launcher(self, environment: Environment, connect: Connect) -> Launcher:
        """The launcher of this environment's host, made when first asked for. Called there."""
        task = self.launchers.get(environment)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self.launchers[environment] = asyncio.ensure_future(_made(connect, environment))
        return await asyncio.shield(task)


async def _made(connect: Connect, environment: Environment) -> Launcher:
    return await connect(environment)


_lock = threading.Lock()
_backgrounds: dict[int, BackgroundLoop] = {}


def background() -> BackgroundLoop:
    """This process's own: a fork of an application has none of its threads, so it gets another."""
    with _lock:
        if os.getpid() not in _backgrounds:
            _backgrounds[os.getpid()] = BackgroundLoop()
        return _backgrounds[os.getpid()]


class ServedKernel:
    """One kernel and its bridge. Everything here runs in the background's loop."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.bridge = ZmqServer(info, on_exit=self._exited, on_shutdown=self._shut_down)
        self.kernel: Kernel | None = None
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._ending: asyncio.Task[None] | None = None

    async def start(self, launcher: Launcher, request: StartRequest) -> None:
        """Bind the sockets and start the kernel behind them."""
        self.bridge.open()
        try:
            self.kernel = await launcher.start(request, self.bridge)
            self.bridge.serve(self.kernel)
        except BaseException:
            self.bridge.close()
            raise

    def _exited(self, exit: Exit) -> None:
        if not self.exit.done():
            self.exit.set_result(exit)

    def _shut_down(self) -> None:
        self._ending = asyncio.ensure_future(self.end())

    async def end(self) -> None:
        """End the kernel; the last replies still go out."""
        if self.kernel is not None:
            await self.kernel.end()
        self._exited(ENDED)
        self.bridge.close()

    async def signal(self, signum: int) -> None:
        """SIGINT interrupts; whatever else ends a process ends this one."""
        if self.kernel is None or self.exit.done():
            return
        if signum == signal.SIGINT:
            self.kernel.interrupt()
        elif signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT):
            await self.end()

    async def wait(self) -> int:
        """How the process ended, as ``Popen`` would say it."""
        return status_of(await asyncio.shield(self.exit))


def status_of(exit: Exit) -> int:
    """An end as a ``Popen`` status."""
    return -exit.signal if exit.signal else exit.exit_code or 0


class ForkProvisioner(KernelProvisionerBase):  # type: ignore[misc]
    """See the module. Configured in a kernelspec's ``metadata.kernel_provisioner.config``."""

    python = Unicode(sys.executable, config=True, help="The interpreter to fork; it needs ipykernel.")
    preload = List(Unicode(), config=True, help="Modules that are imported once, for all kernels.")

    #: How to come to a launcher. Tests put their own here.
    connect: ClassVar[Connect] = staticmethod(connect)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self._served: ServedKernel | None = None

    @property
    def has_process(self) -> bool:
        """Whether a kernel was started and has not been cleaned up."""
        return self._served is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Write the connection file and prepare the environment."""
        manager = self.parent
        if manager.cache_ports and manager.transport == "tcp":
            self._reserve_ports(manager)
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        kwargs = await super().pre_launch(**kwargs)
        return kwargs | {"cmd": list(self.kernel_spec.argv)}

    def _reserve_ports(self, manager: Any) -> None:
        """As ``LocalProvisioner``: two managers of one application never get the same port."""
        ports = LocalPortCache.instance()
        for name in ("shell", "iopub", "stdin", "hb", "control"):
            if not getattr(manager, f"{name}_port"):
                setattr(manager, f"{name}_port", ports.find_available_port(manager.ip))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Fork."""
        env = {name: value for name, value in kwargs["env"].items() if name not in NOT_PASSED_ON}
        request = StartRequest(
            session=f"jupyter-{self.kernel_id}",
            kernel=uuid.uuid4().hex,
            template=TEMPLATE,
            workdir=os.path.realpath(kwargs.get("cwd") or os.getcwd()),  # noqa: ASYNC240
            limits=NO_LIMITS,
            env=env,
        )
        self._served = await background().run(self._serve(request))
        return dict(self.connection_info)

    async def _serve(self, request: StartRequest) -> ServedKernel:
        environment = Environment(python=self.python, preload=tuple(self.preload))
        launcher = await background().launcher(environment, type(self).connect)
        served = ServedKernel(dict(self.connection_info))
        await served.start(launcher, request)
        return served

    async def poll(self) -> int | None:
        """None while it runs."""
        served = self._served
        return status_of(served.exit.result()) if served and served.exit.done() else None if served else 0

    async def wait(self) -> int | None:
        """Wait for its end."""
        served, self._served = self._served, None
        return await background().run(served.wait()) if served else 0

    async def send_signal(self, signum: int) -> None:
        """SIGINT interrupts; signals that end a process end the kernel."""
        if self._served is not None and signum:
            await background().run(self._served.signal(signum))

    async def kill(self, restart: bool = False) -> None:
        """End it and all that it started."""
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        """The same: a fork has nothing to tidy that its host doesn't."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """End it if it still lives, and give the ports back."""
        await self.kill()
        self._served = None
        if not restart and self.parent.cache_ports and self.parent.transport == "tcp":
            ports = LocalPortCache.instance()
            for name in ("shell", "iopub", "stdin", "hb", "control"):
                ports.return_port(self.connection_info.get(f"{name}_port"))
