"""Processes of kernelspec kernels, run by the kernel host: confined, and outliving the server."""

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

#: Maximum bytes of the environment. A request is one datagram.
MAX_ENV_BYTES = 64 * 1024


class HostProcesses:
    """``Processes`` through the kernel host."""

    def __init__(self, host: HostClient) -> None:
        self._host = host
        self._ends: dict[str, asyncio.Future[Exit]] = {}
        self._tasks = OwnedTasks()

    async def start(self, request: ProcessRequest) -> Started:
        """See ``Processes``."""
        size = sum(len(name) + len(value) for name, value in request.env.items())
        if size > MAX_ENV_BYTES:
            raise TooLarge(f"The environment has {size} bytes and may have {MAX_ENV_BYTES}. Put data into a file.")
        self._watch_exit(request.kernel)
        starting = asyncio.ensure_future(self._start_process(request))
        try:
            found = await asyncio.shield(starting)
        except BaseException:
            self._tasks.start(self._abandon(request.kernel, starting))
            raise
        return Started(found.pid, found.pidfd, found.sandbox)

    async def _start_process(self, request: ProcessRequest) -> KernelHandle:
        # Duplicates, because a cancelled caller closes its own before the request is sent.
        fds = [os.dup(fd) for fd in (request.stdin, request.stdout, request.stderr)]
        try:
            start = StartProcessRequest(
                kernel=request.kernel,
                session=request.session,
                argv=request.argv,
                env=request.env,
                cwd=request.cwd,
                limits=request.limits,
                share=request.share,
                program=request.program,
                binds=list(request.binds),
            )
            return await self._host.start_process(start, fds)
        finally:
            for fd in fds:
                os.close(fd)

    async def _abandon(self, kernel: str, starting: asyncio.Future[KernelHandle]) -> None:
        """End the kernel of a cancelled start, after the start: the host does not know it before."""
        with contextlib.suppress(KernelsvcError):
            os.close((await starting).pidfd)
            await self.end(kernel)

    def _watch_exit(self, kernel: str) -> asyncio.Future[Exit]:
        if kernel not in self._ends:
            exited = self._ends[kernel] = asyncio.get_running_loop().create_future()
            self._host.on_end(kernel, lambda exit: None if exited.done() else exited.set_result(exit))
        return self._ends[kernel]

    async def find(self, kernel: str) -> Started | None:
        """See ``Processes``."""
        self._watch_exit(kernel)
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
