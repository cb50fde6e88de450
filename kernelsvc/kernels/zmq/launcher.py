"""Cold kernels: any installed Jupyter kernelspec behind the same port.

``jupyter_client`` prepares the kernel (kernelspec, connection file, command
line) and our provisioner has ``Processes`` start it, so that it is confined and
outlives the server. ``ZmqKernel`` is what then talks to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from kernelsvc.errors import Internal, KernelDead, NotFound, NotSupported, Timeout
from kernelsvc.host.client import HostClient
from kernelsvc.kernels.port import Kernel, Sink, StartRequest
from kernelsvc.kernels.zmq.host_processes import HostProcesses
from kernelsvc.kernels.zmq.kernel import MAX_MESSAGE_BYTES, ZmqKernel
from kernelsvc.kernels.zmq.processes import HostProvisioner, Processes, ProcessRequest, Started, ZmqKernelManager
from kernelsvc.kernels.zmq.runtime_files import KernelRuntimeDir, ZmqKernelRecord
from kernelsvc.model.exit_status import Exit

#: Seconds that a kernel may take to its first answer; R and Julia need several.
START_SECONDS = 60.0
#: The provisioner that means "a process on this machine"; any other brings a way of starting that can't be confined.
LOCAL = "local-provisioner"


def list_kernelspecs() -> list[str]:
    """Names of the kernelspecs installed where Jupyter looks. Reads the disk."""
    return sorted(KernelSpecManager().find_kernel_specs())


class KernelspecLauncher:
    """Starts and adopts kernels of installed kernelspecs (``port.Launcher``); a template is a kernelspec's name.

    Args:
        processes: who runs the processes: a kernel host, or something in its place.
        runtime: directory for sockets and records; short, private to the server.
        kernel_dirs: where to look for kernelspecs; by default where Jupyter looks.
        start_seconds: time to the first answer.
        max_message_bytes: largest part of a message.
    """

    def __init__(
        self,
        processes: Processes | HostClient,
        runtime: Path,
        *,
        kernel_dirs: Sequence[str] | None = None,
        start_seconds: float = START_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._runtime = runtime
        self._processes = HostProcesses(processes) if isinstance(processes, HostClient) else processes
        self._specs = KernelSpecManager() if kernel_dirs is None else KernelSpecManager(kernel_dirs=list(kernel_dirs))
        self._seconds = start_seconds
        self._max = max_message_bytes

    def list_kernelspecs(self) -> list[str]:
        """Names of the installed kernelspecs. Reads the disk."""
        return sorted(self._specs.find_kernel_specs())

    def languages(self) -> dict[str, str]:
        """The installed kernelspecs, and the language of each, empty where it can't be read. Reads the disk."""
        found = {}
        for name in self.list_kernelspecs():
            found[name] = ""
            with contextlib.suppress(NotFound, OSError, TypeError):
                found[name] = self.language(name)
        return found

    def language(self, template: str) -> str:
        """The language that a kernelspec says it runs.

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
            raise NotSupported(f"The kernelspec {request.template!r} brings its own provisioner. It can't be confined.")
        place = KernelRuntimeDir(self._runtime, request.kernel)
        place.make()
        kernel: ZmqKernel | None = None
        manager = self._manager(request, place)
        try:
            with _kernel_fds(place) as fds:  # open until ours are: a FIFO that nobody holds forgets what it has
                started = await self._launch(manager, request, place, fds)
                record = _record(request.kernel, manager.get_connection_info(), spec)
                place.write_record(record)
                kernel = ZmqKernel(place, record, started, self._processes, sink, max_message_bytes=self._max)
            await self._get_ready(kernel)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo(request.kernel, place, kernel)))
            raise
        # Only now: when the manager goes it removes the connection file, which the kernel reads first.
        del manager
        info = kernel.info
        place.write_record(msgspec.structs.replace(record, language=info.language, python=info.python))
        return kernel

    def _manager(self, request: StartRequest, place: KernelRuntimeDir) -> ZmqKernelManager:
        return ZmqKernelManager(
            kernel_name=request.template,
            kernel_spec_manager=self._specs,
            transport="ipc",
            ip=place.socket_prefix,
            connection_file=place.connection_file,
            autorestart=False,
        )

    async def _launch(
        self, manager: ZmqKernelManager, request: StartRequest, place: KernelRuntimeDir, fds: tuple[int, int, int]
    ) -> Started:
        prototype = ProcessRequest(
            kernel=request.kernel,
            session=request.session,
            argv=[],
            env={"IPYTHONDIR": place.ipython} | request.env,
            cwd=request.workdir,
            limits=request.limits,
            share=str(place.share),
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
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

    async def _get_ready(self, kernel: ZmqKernel) -> None:
        """Wait for readiness, for its end, or for the time to be over; whichever comes first."""
        ready = asyncio.ensure_future(kernel.wait_ready())
        died = asyncio.ensure_future(self._processes.wait_exit(kernel.info.id))
        try:
            await asyncio.wait({ready, died}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return ready.result()
            said = kernel.last_line()
            said = f" It said: {said}" if said else ""
            if died.done():
                raise Internal(f"The kernel ended before it was ready. {died.result().message}{said}")
            raise Timeout(f"The kernel was not ready after {self._seconds:g} s. Try again.{said}")
        finally:
            ready.cancel()
            died.cancel()

    async def _undo(self, name: str, place: KernelRuntimeDir, kernel: ZmqKernel | None) -> None:
        if kernel is not None:
            await kernel.end()
        else:
            await self._processes.end(name)
            place.remove()

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> ZmqKernel | None:
        """See ``port.Launcher``. ``last_frame`` means nothing here: cold kernels don't number their frames."""
        place = KernelRuntimeDir(self._runtime, request.kernel)
        record = place.read_record()
        started = await self._processes.find(request.kernel)
        if record is None or started is None or record.kernel != request.kernel:
            if started is not None:
                os.close(started.pidfd)
            await self._processes.end(request.kernel)
            place.remove()
            return None
        kernel = ZmqKernel(place, record, started, self._processes, sink, max_message_bytes=self._max)
        kernel.adopted()
        return kernel

    async def how_ended(self, kernel: str) -> Exit | None:
        """See ``port.Launcher``."""
        return None

    async def resume_copy(self, request: StartRequest, sink: Sink) -> Kernel:
        """Not for cold kernels: there are no copies."""
        raise KernelDead()

    async def discard(self, kernel: str) -> None:
        """Nothing to end: there are no copies."""


@contextlib.contextmanager
def _kernel_fds(place: KernelRuntimeDir) -> Iterator[tuple[int, int, int]]:
    """What becomes the kernel's stdin, stdout and stderr."""
    fds: list[int] = []
    try:
        fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        fds += [place.kernel_fd("stdout"), place.kernel_fd("stderr")]
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
