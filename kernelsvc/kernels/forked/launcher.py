"""Start, adopt, resume and end forked kernels through the kernel host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, KernelDead, KernelsvcError, NotFound, Timeout
from kernelsvc.host.client import HostClient, KernelHandle
from kernelsvc.host.protocol import RegisterCopyRequest, SpawnRequest
from kernelsvc.kernels.forked.kernel import MAX_REASON, UNREACHABLE, ForkedKernel, branch_identity, continued_cells
from kernelsvc.kernels.forked.wire_client import WireClient, WireLost
from kernelsvc.kernels.forked.wire_connection import connect
from kernelsvc.kernels.port import Sink, StartRequest
from kernelsvc.kernels.read_budget import ReadBudgets
from kernelsvc.linux import peer, seqpacket
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Cause, Exit

log = logging.getLogger(__name__)

#: Seconds for a new checkpoint or branch to listen.
LISTEN_SECONDS = 15.0
#: The same once its original has ended: a copy that is not registered can end with it.
ORPHAN_SECONDS = 1.0
#: Seconds for a kernel to answer the first connection: a new one, or a checkpoint that becomes the kernel.
CONNECT_SECONDS = 10.0
#: The same for a branch, which copies its parent's directory first.
COPY_SECONDS = 120.0
#: Seconds for an adopted kernel to answer, before its adoption is tried again later. C code may keep it from answering.
ADOPT_SECONDS = 2.0
#: Attempts to adopt a kernel that listens and does not accept, before it is ended.
ADOPT_ATTEMPTS = 20
#: Seconds for Linux to refuse a connection, if it does.
REFUSE_SECONDS = 0.2
#: Seconds between two attempts to connect to a listener that does not listen yet.
LISTEN_PAUSE = 0.001


class ForkedLauncher:
    """``port.Launcher`` for forked kernels. It makes every socket and pipe of a kernel and passes them to the host.

    Args:
        host: connection to the kernel host.
        runtime: directory of the kernels' sockets.
        budgets: the shares of the event loop.
    """

    def __init__(self, host: HostClient, runtime: Path, budgets: ReadBudgets | None = None) -> None:
        self.host = host
        self._budgets = budgets or ReadBudgets()
        self._runtime = runtime
        self._tasks = OwnedTasks()
        self._prestarted: dict[str, ForkedKernel] = {}
        self._given_up: dict[str, Exit] = {}  # kernels that can't be adopted
        self._unanswered: dict[str, int] = {}  # attempts to adopt, by kernel

    def path(self, kernel: str) -> Path:
        """Return the path of a kernel's listening socket."""
        return self._runtime / f"{kernel}.k"

    def make_endpoints(self, kernel: str) -> list[int]:
        """Make a bound socket and two pipes: the five descriptors that a kernel gets. The caller closes them."""
        path = self.path(kernel)
        path.unlink(missing_ok=True)
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            undo.callback(path.unlink)
            path.chmod(0o600)
            ends = list(os.pipe2(os.O_CLOEXEC))
            undo.callback(seqpacket.close_all, ends)
            ends = [*ends, *os.pipe2(os.O_CLOEXEC)]
            undo.pop_all()
        return [listener.detach(), *ends]

    async def start(self, request: StartRequest, sink: Sink) -> ForkedKernel:
        """See ``port.Launcher``. Returns the kernel that ``prestart`` has started under this id, if there is one."""
        kernel = self._prestarted.pop(request.kernel, None)
        if kernel is None or not kernel.alive:
            return await self._start(request, sink)
        if request.env:
            await self._set_environment(kernel, request)
        kernel.set_sink(sink)
        return kernel

    async def _set_environment(self, kernel: ForkedKernel, request: StartRequest) -> None:
        try:
            if await kernel.set_environment(request.env):
                return
        except BaseException:
            self._tasks.start(self._end_quietly(request.kernel))
            raise
        await self._end_quietly(request.kernel)
        raise KernelDead("The prepared kernel did not take the session's environment. Try again.")

    async def prestart(self, request: StartRequest, sink: Sink) -> None:
        """Start a kernel for the next ``start`` of the same id. Until then ``sink`` receives its output and its end.

        Raises:
            KernelsvcError: see ``start``.
        """
        self._prestarted[request.kernel] = await self._start(request, sink)

    async def _start(self, request: StartRequest, sink: Sink) -> ForkedKernel:
        ends = self.make_endpoints(request.kernel)
        try:
            spawn = SpawnRequest(
                kernel=request.kernel,
                session=request.session,
                template=request.template,
                workdir=request.workdir,
                env=request.env,
                limits=request.limits,
                group_dir=request.family,
                binds=request.binds,
            )
            handle = await self.host.spawn(spawn, ends)
        except BaseException:
            self.path(request.kernel).unlink(missing_ok=True)
            self._tasks.start(self._end_quietly(request.kernel))
            raise
        finally:
            for fd in ends:
                os.close(fd)
        return await self._connect(request, handle, sink, 0, identity=continued_cells(request))

    async def _end_quietly(self, kernel: str) -> None:
        with contextlib.suppress(KernelsvcError):
            await self.end(kernel)

    async def _connect(
        self,
        request: StartRequest,
        handle: KernelHandle,
        sink: Sink,
        last_frame: int,
        *,
        identity: dict[str, Any] | None = None,
        seconds: float = CONNECT_SECONDS,
        adopting: bool = False,
    ) -> ForkedKernel:
        """Connect to a kernel. On failure end it, except a kernel to be adopted that only does not answer."""
        path = str(self.path(request.kernel))
        try:
            wire = await WireClient.connect(
                path,
                last_frame=last_frame,
                deadline=seconds,
                identity=identity,
                busy_ok=adopting,
                budget=self._budgets.open(request.kernel),
            )
        except BaseException as error:
            os.close(handle.pidfd)
            if adopting and not isinstance(error, WireLost):
                raise
            await asyncio.shield(self._end_quietly(request.kernel))
            raise
        refused = str(wire.welcome["refused"])[:MAX_REASON]
        if refused:
            wire.close()
            os.close(handle.pidfd)
            await asyncio.shield(self._end_quietly(request.kernel))
            raise AtCapacity(f"The branch can't copy its files: {refused}.")
        return ForkedKernel(self, request, wire, handle, sink)

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> ForkedKernel | None:
        """See ``port.Launcher``."""
        try:
            handle = await self.host.find(request.kernel, request.limits.network)
        except NotFound:
            self.path(request.kernel).unlink(missing_ok=True)
            return None
        try:
            kernel = await self._connect(request, handle, sink, last_frame, seconds=ADOPT_SECONDS, adopting=True)
            self._unanswered.pop(request.kernel, None)
            return kernel
        except WireLost as error:
            log.warning("kernel %s can't be adopted: %s. The server ends it.", request.kernel, error.message)
            if error.violation:
                message = error.message.rstrip(".")
                self._given_up[request.kernel] = Exit(cause=Cause.PROTOCOL, message=message, signal=signal.SIGKILL)
        except Timeout:
            attempts = self._unanswered[request.kernel] = self._unanswered.get(request.kernel, 0) + 1
            if attempts < ADOPT_ATTEMPTS and not await _refuses(self.path(request.kernel)):
                raise  # while C code runs, the kernel accepts nothing and the queue of its listener is full
            log.warning(
                "kernel %s can't be adopted, because it accepts no connection. The server ends it.", request.kernel
            )
            await asyncio.shield(self._end_quietly(request.kernel))
            self._given_up[request.kernel] = UNREACHABLE
        self._unanswered.pop(request.kernel, None)
        return None

    async def how_ended(self, kernel: str) -> Exit | None:
        """See ``port.Launcher``."""
        if (exit := self._given_up.pop(kernel, None)) is not None:
            return exit
        try:
            os.close((await self.host.find(kernel)).pidfd)
        except NotFound as error:
            exit_fields = error.details.get("exit")
            return msgspec.convert(exit_fields, Exit) if exit_fields else None
        except KernelsvcError:
            return None
        return None

    async def resume_copy(self, request: StartRequest, sink: Sink) -> ForkedKernel:
        """See ``port.Launcher``.

        Raises:
            AtCapacity: the branch can't copy its parent's directory. It has ended.
        """
        try:
            handle = await self.host.find(request.kernel, request.limits.network)
        except NotFound:
            self.path(request.kernel).unlink(missing_ok=True)
            raise KernelDead("The checkpoint's process is gone.") from None
        if not request.home:
            return await self._resume_checkpoint(request, handle, sink)
        return await self._connect(
            request, handle, sink, 0, identity=branch_identity(request, handle.sandbox), seconds=COPY_SECONDS
        )

    async def _resume_checkpoint(self, request: StartRequest, handle: KernelHandle, sink: Sink) -> ForkedKernel:
        """Connect to a checkpoint. Continue one that was stopped (SIGSTOP), and give up one that is stopped again."""
        continued = False

        def continue_process(pid: int) -> None:
            nonlocal continued
            log.warning("checkpoint %s was stopped (SIGSTOP). The server sends SIGCONT.", request.kernel)
            self.host.signal(request.kernel, signal.SIGCONT)
            if continued:
                timeout.reschedule(0)
            continued = True

        try:
            async with asyncio.timeout(None) as timeout:
                with ResumeIfStopped(lambda: handle.pid, continue_process):
                    return await self._connect(request, handle, sink, 0, identity=continued_cells(request))
        except TimeoutError:
            raise KernelDead("The checkpoint is stopped (SIGSTOP) and can't be continued.") from None

    async def register_copy(
        self, copy: StartRequest, *, of: str, home: str, ended: asyncio.Future[Exit]
    ) -> tuple[int | None, list[str]]:
        """Register a checkpoint or branch with the host.

        Linux identifies the process that listens on the copy's socket, so the kernel need not be trusted.

        Args:
            copy: the request for the copy.
            of: the original's id.
            home: directory of the copy.
            ended: the original's exit.

        Returns:
            See ``HostClient.register_copy``.
        """
        pidfd = await _listener(self.path(copy.kernel), ended)
        # A branch has a directory of its own, and so limits of its own.
        limits = copy.limits if copy.home and not copy.beside else None
        request = RegisterCopyRequest(kernel=copy.kernel, original=of, home=home, limits=limits, sidecar_of=copy.beside)
        try:
            return await self.host.register_copy(request, pidfd)
        finally:
            os.close(pidfd)

    async def discard(self, kernel: str) -> None:
        """See ``port.Launcher``."""
        prestarted = self._prestarted.pop(kernel, None)
        if prestarted is not None:
            prestarted.detach()
        await self._end_quietly(kernel)

    async def end(self, kernel: str) -> None:
        """End a kernel through the host, and remove its socket."""
        try:
            await self.host.end(kernel)
        finally:
            self.path(kernel).unlink(missing_ok=True)


async def _refuses(path: Path) -> bool:
    """Return whether no process listens at ``path``. One whose queue is full does listen."""
    try:
        async with asyncio.timeout(REFUSE_SECONDS):
            (await connect(str(path), wait=False)).close()
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


async def _listener(path: Path, ended: asyncio.Future[Exit]) -> int:
    """Return a pidfd of the process that listens at ``path``. The caller closes it.

    Raises:
        KernelDead: the process has ended, or its original has.
        Timeout: no process listens.
    """
    try:
        async with asyncio.timeout(LISTEN_SECONDS) as timeout:
            loop, orphan = asyncio.get_running_loop(), False
            while True:
                if ended.done() and not orphan:
                    orphan = True
                    timeout.reschedule(loop.time() + ORPHAN_SECONDS)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with sock:
                    try:
                        sock.connect(str(path))
                        return _peer(sock)
                    except (ConnectionRefusedError, BlockingIOError):
                        pass
                await asyncio.sleep(LISTEN_PAUSE)
    except TimeoutError:
        if ended.done():
            raise KernelDead("The kernel ended before its copy was ready.") from None
        raise Timeout("The copy does not listen. Wait for the running cell, and try again.") from None


def _peer(sock: socket.socket) -> int:
    try:
        # unix(7), SO_PEERCRED: "the credentials [...] in effect at the time of the call to [...] listen(2)". Before
        # Linux 6.5 the process is found by its pid, which may be another's by then: the host checks its ancestors.
        return peer.pidfd(sock)
    except OSError as error:
        raise KernelDead("The copy ended immediately after the fork.") from error
