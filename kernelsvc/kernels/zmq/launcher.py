"""Start and adopt kernels of installed Jupyter kernelspecs.

``jupyter_client`` prepares the kernel (kernelspec, connection file, command line), and kernelsvc's provisioner has
``Processes`` start it, so that it is confined and outlives the server. ``ZmqKernel`` then exchanges its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from kernelsvc.errors import Internal, KernelDead, NotFound, NotSupported, Timeout
from kernelsvc.host.client import HostClient
from kernelsvc.kernels.port import Kernel, Sink, StartRequest
from kernelsvc.kernels.read_budget import ReadBudgets
from kernelsvc.kernels.zmq.host_processes import HostProcesses
from kernelsvc.kernels.zmq.kernel import MAX_MESSAGE_BYTES, ZmqKernel
from kernelsvc.kernels.zmq.processes import HostProvisioner, Processes, ProcessRequest, Started, ZmqKernelManager
from kernelsvc.kernels.zmq.runtime_files import KernelRuntimeDir, ZmqKernelRecord
from kernelsvc.model.exit_status import Exit

#: Seconds for a kernel's first answer. R and Julia need several.
START_SECONDS = 60.0
#: Languages whose kernels (deno, tslab, ijavascript) can't listen on Unix sockets.
_TCP_LANGUAGES = frozenset({"javascript", "typescript"})
#: The provisioner of local processes. Any other starts its kernel in a way that can't be confined.
LOCAL = "local-provisioner"


def needs_tcp(spec: KernelSpec) -> bool:
    """Return whether a kernel must listen on TCP ports, because it can't listen on Unix sockets.

    A kernelspec says so by ``"metadata": {"kernelsvc": {"transport": "tcp"}}``, or the opposite by ``"ipc"``.
    """
    own = spec.metadata.get("kernelsvc")
    wanted = own.get("transport") if isinstance(own, dict) else None
    return str(spec.language).lower() in _TCP_LANGUAGES if wanted not in ("tcp", "ipc") else wanted == "tcp"


def _relay_command(runtime_dir: KernelRuntimeDir) -> list[str]:
    source = resources.files("kernelsvc.guest.agents").joinpath("tcp_relay.py").read_text()
    return [sys.executable, "-I", "-S", "-c", source, runtime_dir.connection_file]


def list_kernelspecs() -> list[str]:
    """Return the names of the kernelspecs on Jupyter's path. Reads the disk."""
    return sorted(KernelSpecManager().find_kernel_specs())


class KernelspecLauncher:
    """Starts and adopts kernels of installed kernelspecs (``port.Launcher``). A template is a kernelspec's name.

    Args:
        processes: runs the processes: a kernel host, or another implementation of the port.
        runtime: private directory of sockets and records, with a short path.
        kernel_dirs: directories of kernelspecs, or None for Jupyter's path.
        start_seconds: time to the first answer.
        max_message_bytes: maximum size of a message.
        budgets: the shares of the event loop.
    """

    def __init__(
        self,
        processes: Processes | HostClient,
        runtime: Path,
        *,
        kernel_dirs: Sequence[str] | None = None,
        start_seconds: float = START_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        budgets: ReadBudgets | None = None,
    ) -> None:
        self._budgets = budgets or ReadBudgets()
        self._runtime = runtime
        self._processes = HostProcesses(processes) if isinstance(processes, HostClient) else processes
        self._specs = KernelSpecManager() if kernel_dirs is None else KernelSpecManager(kernel_dirs=list(kernel_dirs))
        self._seconds = start_seconds
        self._max = max_message_bytes

    def list_kernelspecs(self) -> list[str]:
        """Return the names of the installed kernelspecs. Reads the disk."""
        return sorted(self._specs.find_kernel_specs())

    def languages(self) -> dict[str, str]:
        """Return the language of each installed kernelspec, "" if it can't be read. Reads the disk."""
        found = {}
        for name in self.list_kernelspecs():
            found[name] = ""
            with contextlib.suppress(NotFound, OSError, TypeError):
                found[name] = self.language(name)
        return found

    def language(self, template: str) -> str:
        """Return the language of a kernelspec.

        Raises:
            NotFound: there is no such kernelspec.
        """
        return str(self._spec(template).language)

    def _spec(self, template: str) -> KernelSpec:
        try:
            return self._specs.get_kernel_spec(template)
        except (NoSuchKernel, ValueError):
            known = ", ".join(self.list_kernelspecs())
            raise NotFound(f"There is no kernelspec {template!r}. Installed are: {known}.") from None

    async def start(self, request: StartRequest, sink: Sink) -> ZmqKernel:
        """See ``port.Launcher``."""
        spec = self._spec(request.template)
        provisioner = spec.metadata.get("kernel_provisioner") or {}
        if provisioner.get("provisioner_name", LOCAL) != LOCAL:
            raise NotSupported(
                f"The kernelspec {request.template!r} has a provisioner of its own, which can't be confined. "
                "Use another kernelspec."
            )
        runtime_dir = KernelRuntimeDir(self._runtime, request.kernel)
        runtime_dir.make()
        kernel: ZmqKernel | None = None
        manager = self._manager(request, runtime_dir)
        try:
            with _kernel_fds(
                runtime_dir
            ) as fds:  # kept open until the reader is open, because a FIFO loses its data when all have closed it
                started = await self._launch(manager, request, runtime_dir, fds)
                record = _record(request.kernel, manager.get_connection_info(), spec)
                runtime_dir.write_record(record)
                kernel = self._connect(runtime_dir, record, started, sink)
            await self._get_ready(kernel)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo(request.kernel, runtime_dir, kernel)))
            raise
        # Only now: its destructor removes the connection file, which the kernel reads at its start.
        del manager
        info = kernel.info
        runtime_dir.write_record(msgspec.structs.replace(record, language=info.language, python=info.python))
        return kernel

    def _manager(self, request: StartRequest, runtime_dir: KernelRuntimeDir) -> ZmqKernelManager:
        return ZmqKernelManager(
            kernel_name=request.template,
            kernel_spec_manager=self._specs,
            transport="ipc",
            ip=runtime_dir.socket_prefix,
            connection_file=runtime_dir.connection_file,
            autorestart=False,
        )

    async def _launch(
        self, manager: ZmqKernelManager, request: StartRequest, runtime_dir: KernelRuntimeDir, fds: tuple[int, int, int]
    ) -> Started:
        prototype = ProcessRequest(
            kernel=request.kernel,
            session=request.session,
            argv=_relay_command(runtime_dir) if needs_tcp(self._spec(request.template)) else [],
            env={"IPYTHONDIR": runtime_dir.ipython} | request.env,
            cwd=request.workdir,
            limits=request.limits,
            share=str(runtime_dir.share),
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
            binds=request.binds,
        )
        manager.provisioner = provisioner = HostProvisioner(
            processes=self._processes,
            prototype=prototype,
            parent=manager,
            kernel_id=request.kernel,
            kernel_spec=manager.kernel_spec,
        )
        await manager.start_kernel()
        assert provisioner.started is not None
        return provisioner.started

    def _connect(
        self, runtime_dir: KernelRuntimeDir, record: ZmqKernelRecord, started: Started, sink: Sink
    ) -> ZmqKernel:
        budget = self._budgets.open(record.kernel)
        return ZmqKernel(
            runtime_dir, record, started, self._processes, sink, max_message_bytes=self._max, budget=budget
        )

    async def _get_ready(self, kernel: ZmqKernel) -> None:
        """Wait until the kernel is ready. Raise if it ends or takes too long."""
        ready = asyncio.ensure_future(kernel.wait_ready())
        died = asyncio.ensure_future(self._processes.wait_exit(kernel.info.id))
        try:
            await asyncio.wait({ready, died}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return ready.result()
            output = kernel.last_lines()
            output = f" The end of its output: {output}" if output else ""
            if died.done():
                raise Internal(f"The kernel ended before it was ready. {died.result().message}{output}")
            raise Timeout(f"The kernel was not ready after {self._seconds:g} s. Try again.{output}")
        finally:
            ready.cancel()
            died.cancel()

    async def _undo(self, name: str, runtime_dir: KernelRuntimeDir, kernel: ZmqKernel | None) -> None:
        if kernel is not None:
            await kernel.end()
        else:
            await self._processes.end(name)
            runtime_dir.remove()

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> ZmqKernel | None:
        """See ``port.Launcher``. ``last_frame`` is ignored: kernelspec kernels don't number their frames."""
        runtime_dir = KernelRuntimeDir(self._runtime, request.kernel)
        record = runtime_dir.read_record()
        started = await self._processes.find(request.kernel)
        if record is None or started is None or record.kernel != request.kernel:
            if started is not None:
                os.close(started.pidfd)
            await self._processes.end(request.kernel)
            runtime_dir.remove()
            return None
        kernel = self._connect(runtime_dir, record, started, sink)
        kernel.continue_adopted()
        return kernel

    async def how_ended(self, kernel: str) -> Exit | None:
        """See ``port.Launcher``."""
        return None

    async def resume_copy(self, request: StartRequest, sink: Sink) -> Kernel:
        """Raise ``KernelDead``: a kernelspec kernel has no checkpoints."""
        raise KernelDead()

    async def discard(self, kernel: str) -> None:
        """Do nothing: a kernelspec kernel has no checkpoints."""


@contextlib.contextmanager
def _kernel_fds(runtime_dir: KernelRuntimeDir) -> Iterator[tuple[int, int, int]]:
    """Open the kernel's stdin, stdout and stderr."""
    fds: list[int] = []
    try:
        fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        fds += [runtime_dir.kernel_fd("stdout"), runtime_dir.kernel_fd("stderr")]
        yield fds[0], fds[1], fds[2]
    finally:
        for fd in fds:
            os.close(fd)


def _record(kernel: str, info: dict[str, Any], spec: KernelSpec) -> ZmqKernelRecord:
    key = info["key"]
    return ZmqKernelRecord(
        kernel=kernel,
        key=key.decode() if isinstance(key, bytes) else str(key),
        scheme=str(info["signature_scheme"]),
        ports={name: int(info[f"{name}_port"]) for name in ("shell", "control", "iopub", "stdin")},
        identity=uuid.uuid4().hex,
        interrupt_mode=str(spec.interrupt_mode),
        language=str(spec.language),
    )
