"""Cold kernels' processes in the care of the kernel host: confined, and outliving the server."""

from __future__ import annotations

import asyncio
import contextlib
import os

from kernelsvc.errors import KernelsvcError, NotFound, TooLarge
from kernelsvc.host.client import HostClient, KernelHandle
from kernelsvc.host.protocol import StartProcessRequest
from kernelsvc.kernels.zmq.processes import ProcessRequest, Started
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Exit, exit_of

#: Largest environment; it travels in one datagram.
MAX_ENV_BYTES = 64 * 1024


class HostProcesses:
    """``cold_process.Processes`` by the kernel host."""

    def __init__(self, host: HostClient) -> None:
        self._host = host
        self._ends: dict[str, asyncio.Future[Exit]] = {}
        self._tasks = OwnedTasks()

    async def start(self, request: ProcessRequest) -> Started:
        """See ``Processes``."""
        size = sum(len(name) + len(value) for name, value in request.env.items())
        if size > MAX_ENV_BYTES:
            raise TooLarge(f"The environment has {size} bytes and may have {MAX_ENV_BYTES}. Put data into a file.")
        self._listen(request.kernel)
        starting = asyncio.ensure_future(self._ask(request))
        try:
            found = await asyncio.shield(starting)
        except BaseException:
            self._tasks.start(self._abandon(request.kernel, starting))
            raise
        return Started(found.pid, found.pidfd, found.sandbox)

    async def _ask(self, request: ProcessRequest) -> KernelHandle:
        # Copies: a caller who is cancelled closes its own before the host has been reached.
        fds = [os.dup(fd) for fd in (request.stdin, request.stdout, request.stderr)]
        try:
            order = StartProcessRequest(
                kernel=request.kernel,
                session=request.session,
                argv=request.argv,
                env=request.env,
                cwd=request.cwd,
                limits=request.limits,
                share=request.share,
            )
            return await self._host.start_process(order, fds)
        finally:
            for fd in fds:
                os.close(fd)

    async def _abandon(self, kernel: str, starting: asyncio.Future[KernelHandle]) -> None:
        """End what a cancelled start may still bring; the host knows no kernel by name before it has begun."""
        with contextlib.suppress(KernelsvcError):
            os.close((await starting).pidfd)
            await self.end(kernel)

    def _listen(self, kernel: str) -> asyncio.Future[Exit]:
        if kernel not in self._ends:
            ended = self._ends[kernel] = asyncio.get_running_loop().create_future()
            self._host.on_end(kernel, lambda exit: None if ended.done() else ended.set_result(exit))
        return self._ends[kernel]

    async def find(self, kernel: str) -> Started | None:
        """See ``Processes``."""
        self._listen(kernel)
        try:
            found = await self._host.find(kernel)
        except NotFound:
            return None
        return Started(found.pid, found.pidfd, found.sandbox)

    def signal(self, kernel: str, signum: int, *, everyone: bool = False) -> None:
        """See ``Processes``."""
        self._host.signal(kernel, signum, everyone=everyone)

    async def end(self, kernel: str) -> None:
        """See ``Processes``."""
        self._ends.pop(kernel, None)
        await self._host.end(kernel)

    async def wait_exit(self, kernel: str) -> Exit:
        """See ``Processes``."""
        known = self._ends.get(kernel)
        return exit_of(None) if known is None else await asyncio.shield(known)
