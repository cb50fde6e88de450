"""Forked kernels: the adapter between ``port`` and the kernel wire.

Linux says when a kernel has ended (its pidfd), the kernel host says how. Neither
is told to the session before everything that the kernel had sent was delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from kernelsvc.errors import AtCapacity, CannotFork, KernelDead, KernelsvcError, NotFound, NotSupported, Timeout
from kernelsvc.host.client import HostClient, KernelHandle
from kernelsvc.host.protocol import RegisterCopyRequest, SpawnRequest
from kernelsvc.kernels.forked import environment as handover
from kernelsvc.kernels.forked.wire_client import WireClient, WireLost
from kernelsvc.kernels.forked.wire_connection import connect
from kernelsvc.kernels.port import ForkResult, Output, SaveResult, Sink, StartRequest
from kernelsvc.linux import peer, procfs
from kernelsvc.linux import seqpacket as channel
from kernelsvc.linux.stopped_process import ResumeIfStopped
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit, exit_of
from kernelsvc.sandbox.plan import SCRATCH, data_bytes

log = logging.getLogger(__name__)

#: Seconds that the host gets to say how a kernel ended.
TELL_SECONDS = 1.0
#: Seconds a copy gets to be made, and to wake.
FORK_SECONDS, WAKE_SECONDS = 15.0, 10.0
#: Seconds an adopted kernel gets to answer before its server asks again: C code may keep it from listening.
ADOPT_SECONDS = 2.0
#: Seconds in which a listener refuses a connection, if it does.
REFUSE_SECONDS = 0.2
#: Attempts to adopt a kernel that listens and does not accept, a few seconds each, before it is ended.
ADOPT_ATTEMPTS = 20
#: Seconds a busy parent is waited for until it is fenced off from its branches; it may be done later.
FENCE_SECONDS = 1.0
#: Seconds a branch gets to copy its parent's directory.
COPY_SECONDS = 120.0
#: Seconds for saving or loading the variables, and most lost ones that are named.
SAVE_SECONDS, MAX_LOST = 300.0, 1000

#: Most characters of a kernel's reason that are put into an error.
MAX_REASON = 500
#: The end of a kernel that nobody can talk to any more.
UNREACHABLE = Exit(
    cause=Cause.UNREACHABLE,
    message="The kernel closed its own socket, can't be reached any more, and was ended",
    signal=signal.SIGKILL,
)


class ForkedKernel:
    """``port.Kernel`` on the kernel wire."""

    forkable = True
    ordered = True

    def __init__(
        self, launcher: ForkedLauncher, request: StartRequest, wire: WireClient, found: KernelHandle, sink: Sink
    ) -> None:
        welcome = wire.welcome
        self.info = KernelInfo(
            kind="forked", pid=found.pid, python=str(welcome.get("python", ""))[:32], id=request.kernel
        )
        self.sandbox: SandboxReport = found.sandbox
        self.home = found.home
        self._launcher = launcher
        self._request = request
        self._wire = wire
        self._pidfd = found.pidfd
        self._sink: Sink | None = sink
        self._loss: WireLost | None = None
        self._cut = False  # the wire was lost while the process lived
        self._told: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._resumed = asyncio.Event()
        launcher.host.on_end(request.kernel, self._host_said)
        self._watching = asyncio.ensure_future(self._watch())
        wire.start(self._deliver, self._wire_lost)

    # -- the wire ----------------------------------------------------------------------

    def _deliver(self, batch: Sequence[Output]) -> None:
        if self._sink is not None:
            self._sink.deliver(batch)

    @property
    def alive(self) -> bool:
        """Whether its end would still be told."""
        return self._sink is not None

    def set_sink(self, sink: Sink) -> None:
        """Tell another one from now on; for a kernel that has run nothing."""
        self._sink = sink

    def _wire_lost(self, loss: WireLost) -> None:
        self._loss = loss
        self._cut = not procfs.ending(self.info.pid)
        self._lost.set()
        self.kill()  # one that can't be talked to is of no use, and one that breaks the protocol is none of ours

    def execute(
        self,
        msg_id: str,
        code: str,
        *,
        silent: bool = False,
        allow_stdin: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
    ) -> None:
        """See ``port.Kernel``."""
        content = {
            "code": code,
            "silent": silent,
            "store_history": store_history,
            "user_expressions": dict(user_expressions or {}),
            "allow_stdin": allow_stdin,
            "stop_on_error": True,
            "terse": True,
        }
        self.send("shell", "execute_request", content, msg_id=msg_id)

    def send(
        self,
        channel: Literal["shell", "control", "stdin"],
        msg_type: str,
        content: dict[str, Any],
        *,
        msg_id: str,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """See ``port.Kernel``."""
        with contextlib.suppress(KernelDead):  # its end is told to the sink
            self._wire.send_message(channel, msg_type, content, msg_id=msg_id, metadata=metadata, buffers=buffers)

    def resume(self) -> None:
        """See ``port.Kernel``."""
        self._wire.resume()
        self._resumed.set()

    def has_received(self, msg_id: str) -> bool:
        """See ``port.Kernel``."""
        return self._wire.seen(msg_id)

    # -- its end -------------------------------------------------------------------------

    def _host_said(self, exit: Exit) -> None:
        if not self._told.done():
            self._told.set_result(exit)

    async def _watch(self) -> None:
        """Wait for the process's end, then for the last of what it sent, then for the host's word."""
        await procfs.wait_pidfd(self._pidfd)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_SECONDS):
                await self._lost.wait()
        while not (self._lost.is_set() or self._wire.drain()):
            self._resumed.clear()
            await self._resumed.wait()
        exit = await self._how()
        sink, self._sink = self._sink, None
        self._wire.close()
        if sink is not None:
            sink.exited(exit)

    async def _how(self) -> Exit:
        exit = exit_of(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_SECONDS):
                exit = await asyncio.shield(self._told)
        if exit.cause is Cause.LOST:  # the host is gone too, or never knew it; Linux may still know
            exit = exit_of(procfs.exit_status(self._pidfd))
        if self._loss is not None and self._loss.violation:
            return Exit(cause=Cause.PROTOCOL, message=self._loss.message.rstrip("."), signal=exit.signal)
        ours = exit.cause is Cause.LOST or (exit.cause is Cause.SIGNALLED and exit.signal == signal.SIGKILL)
        return UNREACHABLE if self._cut and ours else exit

    def _signal(self, number: int) -> None:
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:  # it runs as another user: its host may
            self._launcher.host.signal(self.info.id, number)

    def interrupt(self) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGKILL)

    def detach(self) -> None:
        """See ``port.Kernel``."""
        self._sink = None
        self._close()

    def _close(self) -> None:
        self._launcher.host.forget(self.info.id)
        self._watching.cancel()
        self._wire.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def end(self) -> None:
        """See ``port.Kernel``."""
        self._sink = None
        self.kill()  # now, whether or not there is a host to see to the rest
        self._close()
        await asyncio.shield(self._launcher.end(self.info.id))

    # -- copies --------------------------------------------------------------------------

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """See ``port.Kernel``."""
        ends = self._launcher.make_endpoints(copy.kernel)
        identity: dict[str, Any] = {"kernel": copy.kernel, "session": copy.session}
        if copy.beside:
            identity = _branch_identity(copy, self.sandbox)
        elif copy.home:
            self._launcher.host.expect()
        try:
            said = await self._wire.control(
                "fork", ends, timeout=FORK_SECONDS, mode=mode, force=force, identity=identity
            )
            if not said.get("ok"):
                reasons = [str(reason)[:500] for reason in said.get("refused") or ["it gave no reason"]][:32]
                raise CannotFork(f"The session can't be forked now: {'; '.join(reasons)}", reasons=reasons)
            private = await self._launcher.register_copy(copy, of=self.info.id, home=copy.home or self.home)
        except BaseException:
            self._launcher.path(copy.kernel).unlink(missing_ok=True)
            raise
        finally:
            for fd in ends:
                os.close(fd)
        warnings = [str(w)[:500] for w in said.get("warnings") or []]
        return ForkResult(cost_ms=_figure(said.get("cost_ms")), private_bytes=private, warnings=warnings)

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """See ``port.Kernel``."""
        if "landlock" not in self.sandbox.enforced:
            return ""
        try:
            said = await self._wire.control("fence", timeout=FENCE_SECONDS, write=[*write, *SCRATCH])
        except (KernelDead, Timeout) as error:  # it is busy, and does it when its cell has ended
            return error.message
        return "" if said.get("ok") else "; ".join(str(reason)[:500] for reason in said.get("refused") or ["no reason"])

    async def save(self, fd: int) -> SaveResult:
        """See ``port.Kernel``."""
        return _saved(await self._wire.control("save", [fd], timeout=SAVE_SECONDS))

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """See ``port.Kernel``."""
        said = await self._wire.control("load", [fd], timeout=SAVE_SECONDS, count=execution_count)
        return _saved(said)


def _saved(said: dict[str, Any]) -> SaveResult:
    if not said.get("ok"):
        reasons = "; ".join(str(reason)[:500] for reason in said.get("refused") or ["no reason was given"])
        raise NotSupported(f"The session's variables can't be saved or loaded: {reasons}.")
    lost = said.get("lost")
    pairs = list(lost.items())[:MAX_LOST] if isinstance(lost, dict) else []
    count = said.get("saved")
    return SaveResult(
        count=count if isinstance(count, int) and 0 <= count < 1 << 31 else 0,
        lost={str(name)[:200]: str(why)[:500] for name, why in pairs},
    )


def _figure(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0


class ForkedLauncher:
    """``port.Launcher`` for forked kernels. The server makes every socket and pipe, and hands them on."""

    def __init__(self, host: HostClient, runtime: Path) -> None:
        self.host = host
        self._runtime = runtime
        self._tasks = OwnedTasks()
        self._ready: dict[str, ForkedKernel] = {}
        self._given_up: dict[str, Exit] = {}  # kernels that can't be adopted
        self._unanswered: dict[str, int] = {}  # attempts to adopt, by kernel

    def path(self, kernel: str) -> Path:
        """Where a kernel listens."""
        return self._runtime / f"{kernel}.k"

    def make_endpoints(self, kernel: str) -> list[int]:
        """A bound socket and two pipes: the five descriptors that a kernel gets."""
        path = self.path(kernel)
        path.unlink(missing_ok=True)
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            undo.callback(path.unlink)
            path.chmod(0o600)
            ends = list(os.pipe2(os.O_CLOEXEC))
            undo.callback(channel.close_all, ends)
            ends = [*ends, *os.pipe2(os.O_CLOEXEC)]
            undo.pop_all()
        return [listener.detach(), *ends]

    async def start(self, request: StartRequest, sink: Sink) -> ForkedKernel:
        """See ``port.Launcher``. A kernel of that id that was started for later is handed over."""
        ready = self._ready.pop(request.kernel, None)
        if ready is None or not ready.alive:
            return await self._start(request, sink)
        if request.env:
            await self._dress(ready, request)
        ready.set_sink(sink)
        return ready

    async def _dress(self, ready: ForkedKernel, request: StartRequest) -> None:
        try:
            if await handover.set_environment(ready, request.env):
                return
        except BaseException:
            self._tasks.start(self._end_quietly(request.kernel))
            raise
        await self._end_quietly(request.kernel)
        raise KernelDead("The kernel that was ready can't be used; try again.")

    async def prestart(self, request: StartRequest, sink: Sink) -> None:
        """Start a kernel that the next ``start`` of the same id gets at once; until then, or its end, ``sink`` is told.

        Raises:
            KernelsvcError: as ``start``.
        """
        self._ready[request.kernel] = await self._start(request, sink)

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
            )
            found = await self.host.spawn(spawn, ends)
        except BaseException:
            self.path(request.kernel).unlink(missing_ok=True)
            self._tasks.start(self._end_quietly(request.kernel))
            raise
        finally:
            for fd in ends:
                os.close(fd)
        return await self._connect(request, found, sink, 0, identity=_past(request))

    async def _end_quietly(self, kernel: str) -> None:
        with contextlib.suppress(KernelsvcError):
            await self.end(kernel)

    async def _connect(
        self,
        request: StartRequest,
        found: KernelHandle,
        sink: Sink,
        last_frame: int,
        *,
        identity: dict[str, Any] | None = None,
        seconds: float = WAKE_SECONDS,
        patient: bool = False,
    ) -> ForkedKernel:
        path = str(self.path(request.kernel))
        try:
            wire = await WireClient.connect(
                path, last_frame=last_frame, deadline=seconds, identity=identity, busy_ok=patient
            )
        except BaseException as error:
            os.close(found.pidfd)
            if patient and not isinstance(error, WireLost):
                raise
            await asyncio.shield(self._end_quietly(request.kernel))
            raise
        refused = str(wire.welcome["refused"])[:MAX_REASON]
        if refused:
            wire.close()
            os.close(found.pidfd)
            await asyncio.shield(self._end_quietly(request.kernel))
            raise AtCapacity(f"The branch could not be made: {refused}.")
        return ForkedKernel(self, request, wire, found, sink)

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> ForkedKernel | None:
        """See ``port.Launcher``."""
        try:
            found = await self.host.find(request.kernel)
        except NotFound:
            self.path(request.kernel).unlink(missing_ok=True)
            return None
        try:
            kernel = await self._connect(request, found, sink, last_frame, seconds=ADOPT_SECONDS, patient=True)
            self._unanswered.pop(request.kernel, None)
            return kernel
        except WireLost as error:
            log.warning("kernel %s can't be adopted and was ended: %s", request.kernel, error.message)
            if error.violation:
                message = error.message.rstrip(".")
                self._given_up[request.kernel] = Exit(cause=Cause.PROTOCOL, message=message, signal=signal.SIGKILL)
        except Timeout:
            tries = self._unanswered[request.kernel] = self._unanswered.get(request.kernel, 0) + 1
            if tries < ADOPT_ATTEMPTS and not await _refuses(self.path(request.kernel)):
                raise  # a connection waits for C code to end, so that the queue of the listener is full
            log.warning("kernel %s can't be adopted and was ended: it accepts no connection", request.kernel)
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
            said = error.details.get("exit")
            return msgspec.convert(said, Exit) if said else None
        except KernelsvcError:
            return None
        return None

    async def resume_copy(self, request: StartRequest, sink: Sink) -> ForkedKernel:
        """See ``port.Launcher``."""
        try:
            found = await self.host.find(request.kernel)
        except NotFound:
            self.path(request.kernel).unlink(missing_ok=True)
            raise KernelDead("The checkpoint's process is gone.") from None
        if not request.home:
            return await self._wake_checkpoint(request, found, sink)
        return await self._connect(
            request, found, sink, 0, identity=_branch_identity(request, found.sandbox), seconds=COPY_SECONDS
        )

    async def _wake_checkpoint(self, request: StartRequest, found: KernelHandle, sink: Sink) -> ForkedKernel:
        """Wake one, also if it was stopped; one that is stopped again and again is given up."""
        told = False

        def go_on(pid: int) -> None:
            nonlocal told
            log.warning("checkpoint %s was stopped (SIGSTOP) and told to go on", request.kernel)
            self.host.signal(request.kernel, signal.SIGCONT)
            if told:
                limit.reschedule(0)
            told = True

        try:
            async with asyncio.timeout(None) as limit:
                with ResumeIfStopped(lambda: found.pid, go_on):
                    return await self._connect(request, found, sink, 0, identity=_past(request))
        except TimeoutError:
            raise KernelDead("The checkpoint is stopped (SIGSTOP), and stays so.") from None

    async def register_copy(self, copy: StartRequest, *, of: str, home: str) -> int | None:
        """Find out which process a copy is, from Linux and not from the kernel, and tell the host.

        Returns:
            Bytes that it has to itself.
        """
        pidfd = await _listener(self.path(copy.kernel))
        # One with a directory of its own is a branch, and has its caps to itself.
        limits = copy.limits if copy.home and not copy.beside else None
        request = RegisterCopyRequest(kernel=copy.kernel, original=of, home=home, limits=limits, sidecar_of=copy.beside)
        try:
            return await self.host.register_copy(request, pidfd)
        finally:
            os.close(pidfd)

    async def discard(self, kernel: str) -> None:
        """See ``port.Launcher``."""
        ready = self._ready.pop(kernel, None)
        if ready is not None:
            ready.detach()
        await self._end_quietly(kernel)

    async def end(self, kernel: str) -> None:
        """End a kernel through the host, and remove its socket."""
        try:
            await self.host.end(kernel)
        finally:
            self.path(kernel).unlink(missing_ok=True)


def _past(request: StartRequest) -> dict[str, Any] | None:
    """What a kernel is told that goes on where others have been."""
    if not request.execution_count:
        return None
    return {"execution_count": request.execution_count, "ran": {str(n): code for n, code in request.ran.items()}}


def _branch_identity(request: StartRequest, sandbox: SandboxReport) -> dict[str, Any]:
    """Who a branch is from now on. It copies its parent's directory itself, with no more rights than it has."""
    identity: dict[str, Any] = {
        "kernel": request.kernel,
        "session": request.session,
        "workdir": request.home,
        "copy_from": request.copy_from or None,
        "copy_bytes": request.limits.disk_bytes,
        "env": {"HOME": request.home},
        "data_bytes": data_bytes(request.limits, hard=sandbox.limits.get("memory_bytes") == "hard"),
    }
    if "landlock" in sandbox.enforced:
        identity["write"] = [request.home, f"{request.home}.d", *SCRATCH]
    return identity


async def _refuses(path: Path) -> bool:
    """Whether no process listens at ``path``. One whose queue is full does."""
    try:
        async with asyncio.timeout(REFUSE_SECONDS):
            (await connect(str(path), patient=False)).close()
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


async def _listener(path: Path) -> int:
    """A pidfd of the process that listens at ``path``, as Linux vouches for it on a connection to it (unix(7)).

    Raises:
        KernelDead: it is gone.
        Timeout: nobody listens.
    """
    try:
        async with asyncio.timeout(FORK_SECONDS):
            while True:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                with sock:
                    try:
                        sock.connect(str(path))
                        return _peer(sock)
                    except (ConnectionRefusedError, BlockingIOError):
                        pass
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise Timeout("The copy does not listen; wait for the running cell, and try again.") from None


def _peer(sock: socket.socket) -> int:
    try:
        return peer.pidfd(sock)  # before Linux 6.5 perhaps of another process: the host checks its ancestors
    except OSError as error:
        raise KernelDead("The copy ended as soon as it was made.") from error
