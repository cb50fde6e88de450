"""A forked kernel: ``port.Kernel`` on the kernel wire.

The pidfd reports when the kernel has ended (pidfd_open(2)), the kernel host reports how. The session receives the end
after all output of the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from kernelsvc.errors import CannotFork, KernelDead, NotSupported, Timeout
from kernelsvc.host.client import HostClient, KernelHandle
from kernelsvc.kernels.forked.wire_client import WireClient, WireLost
from kernelsvc.kernels.port import ForkResult, KernelMessage, Output, SaveResult, Sink, StartRequest
from kernelsvc.linux import procfs
from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit, exit_of
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest
from kernelsvc.sandbox.plan import WRITABLE, data_bytes

#: Seconds for the host to report how a kernel ended.
EXIT_REPORT_SECONDS = 1.0
#: Seconds for a kernel to fork a checkpoint or a branch.
FORK_SECONDS = 15.0
#: Seconds to wait until a busy parent has given up its rights to its branches' directories. It does so later, too.
RESTRICT_SECONDS = 1.0
#: Seconds to save or load the variables, and the most lost variables that are named.
SAVE_SECONDS, MAX_LOST = 300.0, 1000
#: Seconds for a kernel of the warm pool to take its environment, the request for it, and the request's id.
ENVIRONMENT_SECONDS = 5.0
ENVIRONMENT_REQUEST, _ENVIRONMENT_ID = "kernelsvc_surroundings_request", "r_handover"
#: Most characters of a kernel's reason that are put into an error, and most reasons.
MAX_REASON, MAX_REASONS = 500, 32
#: The exit of a kernel that runs and that the server can't reach any more.
UNREACHABLE = Exit(
    cause=Cause.UNREACHABLE,
    message="The kernel closed its own socket, can't be reached any more, and was ended",
    signal=signal.SIGKILL,
)


class ForkedKernelOwner(Protocol):
    """The interface of the launcher that a kernel uses.

    Attributes:
        host: connection to the kernel host.
    """

    host: HostClient

    def path(self, kernel: str) -> Path:
        """Return the path of a kernel's listening socket."""

    def make_endpoints(self, kernel: str) -> list[int]:
        """Make the descriptors that a new kernel needs. The caller closes them."""

    async def register_copy(
        self, copy: StartRequest, *, of: str, home: str, ended: asyncio.Future[Exit]
    ) -> tuple[int | None, list[str]]:
        """Register a checkpoint or branch of the kernel ``of`` with the host. See ``HostClient.register_copy``."""

    async def end(self, kernel: str) -> None:
        """End a kernel and free its resources."""


class ForkedKernel:
    """One forked kernel and its wire. Made by ``ForkedLauncher``.

    Args:
        owner: the launcher.
        request: the request that the kernel was started with.
        wire: connected to the kernel, not started.
        handle: the kernel's process. Its pidfd belongs to this object.
        sink: receives the output and the end.
    """

    forkable = True
    ordered = True

    def __init__(
        self, owner: ForkedKernelOwner, request: StartRequest, wire: WireClient, handle: KernelHandle, sink: Sink
    ) -> None:
        self.info = KernelInfo(
            kind="forked", pid=handle.pid, python=str(wire.welcome.get("python", ""))[:32], id=request.kernel
        )
        self.sandbox: SandboxReport = handle.sandbox
        self.home = handle.home
        self._owner = owner
        self._wire = wire
        self._pidfd = handle.pidfd
        self._sink: Sink | None = sink
        self._loss: WireLost | None = None
        self._unreachable = False  # the wire was lost while the process ran
        self._reported: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._wire_ended = asyncio.Event()
        self._resumed = asyncio.Event()
        owner.host.on_end(request.kernel, self._exit_reported)
        self._watching = asyncio.ensure_future(self._watch())
        wire.start(self._deliver, self._wire_lost)

    # -- the wire ----------------------------------------------------------------------

    def _deliver(self, batch: Sequence[Output]) -> None:
        if self._sink is not None:
            self._sink.deliver(batch)

    @property
    def alive(self) -> bool:
        """Whether the end of the kernel is still to be reported."""
        return self._sink is not None

    def set_sink(self, sink: Sink) -> None:
        """Deliver to another sink from now on. For a kernel that has run nothing."""
        self._sink = sink

    def _wire_lost(self, loss: WireLost) -> None:
        self._loss = loss
        self._unreachable = not procfs.ending(self.info.pid)
        self._wire_ended.set()
        self.kill()  # a kernel that can't be reached or that breaks the protocol is of no use

    def execute(self, request: ExecuteRequest) -> None:
        """See ``port.Kernel``."""
        content = request.content(stop_on_error=True) | {"terse": True}
        if request.changes:
            content["changes"] = True
        if request.environ is not None:
            content["environ"] = request.environ
        self.send(KernelRequest("execute_request", content, request.msg_id, metadata=request.metadata))

    def send(self, request: KernelRequest) -> None:
        """See ``port.Kernel``."""
        with contextlib.suppress(KernelDead):  # the sink gets its end
            self._wire.send_message(
                request.channel,
                request.msg_type,
                request.content,
                msg_id=request.msg_id,
                metadata=request.metadata,
                buffers=request.buffers,
                session=request.session,
            )

    @property
    def unsent_bytes(self) -> int:
        """See ``port.Kernel``."""
        return self._wire.unsent_bytes

    @property
    def kept_bytes(self) -> int:
        """See ``port.Kernel``."""
        return self._wire.kept_bytes

    def resume(self) -> None:
        """See ``port.Kernel``."""
        self._wire.resume()
        self._resumed.set()

    def has_received(self, msg_id: str) -> bool:
        """See ``port.Kernel``."""
        return self._wire.seen(msg_id)

    async def set_environment(self, env: Mapping[str, str]) -> bool:
        """Set the environment variables of a kernel that has run nothing. Takes the sink: set another one afterwards.

        A kernel gets its environment when it is forked. One from the warm pool was forked before its session existed,
        so it gets the environment when the session takes it, and answers before any cell is sent.

        Returns:
            Whether the kernel has set them. End it if not, and if this was cancelled.
        """
        waiter = _ReplySink(_ENVIRONMENT_ID)
        self.set_sink(waiter)
        self.send(KernelRequest(ENVIRONMENT_REQUEST, {"environ": dict(env), "directory": None}, _ENVIRONMENT_ID))
        try:
            async with asyncio.timeout(ENVIRONMENT_SECONDS):
                return await waiter.succeeded
        except TimeoutError:
            return False

    # -- its end -------------------------------------------------------------------------

    def _exit_reported(self, exit: Exit) -> None:
        if not self._reported.done():
            self._reported.set_result(exit)

    async def _watch(self) -> None:
        """Wait for the end of the process, then for the last of its output, then for the host's report."""
        await procfs.wait_pidfd(self._pidfd)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_REPORT_SECONDS):
                await self._wire_ended.wait()
        while not (self._wire_ended.is_set() or self._wire.drain()):
            self._resumed.clear()
            await self._resumed.wait()
        exit = await self._exit()
        sink, self._sink = self._sink, None
        self._wire.close()
        if sink is not None:
            sink.exited(exit)

    async def _exit(self) -> Exit:
        exit = exit_of(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_REPORT_SECONDS):
                exit = await asyncio.shield(self._reported)
        if exit.cause is Cause.LOST:  # the host has ended too, or never knew the kernel, so ask Linux
            exit = exit_of(procfs.exit_status(self._pidfd))
        if self._loss is not None and self._loss.violation:
            return Exit(cause=Cause.PROTOCOL, message=self._loss.message.rstrip("."), signal=exit.signal)
        killed_here = exit.cause is Cause.LOST or (exit.cause is Cause.SIGNALLED and exit.signal == signal.SIGKILL)
        return UNREACHABLE if self._unreachable and killed_here else exit

    def _signal(self, number: int) -> None:
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:  # the kernel has a user of its own: its host may send the signal
            self._owner.host.signal(self.info.id, number)

    def interrupt(self, seconds: float = 0.0) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGINT)
        if seconds and self._pidfd >= 0:
            self._owner.host.interrupt_children(self.info.id, seconds)

    def kill(self, *, everything: bool = False) -> None:
        """See ``port.Kernel``."""
        self._signal(signal.SIGKILL)
        if everything:
            self._owner.host.signal(self.info.id, signal.SIGKILL, others=True)

    def detach(self) -> None:
        """See ``port.Kernel``."""
        self._sink = None
        self._close()

    def _close(self) -> None:
        self._owner.host.forget(self.info.id)
        self._watching.cancel()
        self._wire.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def end(self) -> None:
        """See ``port.Kernel``."""
        self._sink = None
        self.kill()  # immediately: perhaps no host is there to do it
        self._close()
        await asyncio.shield(self._owner.end(self.info.id))

    # -- checkpoints, branches, variables ------------------------------------------------

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """See ``port.Kernel``."""
        ends = self._owner.make_endpoints(copy.kernel)
        identity: dict[str, Any] = {"kernel": copy.kernel, "session": copy.session}
        if copy.beside:
            identity = branch_identity(copy, self.sandbox)
        elif copy.home:
            self._owner.host.announce_branch()
        try:
            answer = await self._wire.control(
                "fork", ends, timeout=FORK_SECONDS, mode=mode, force=force, identity=identity
            )
            if not answer.get("ok"):
                reasons = _reasons(answer)
                raise CannotFork(f"The session can't be forked now: {'; '.join(reasons)}", reasons=reasons)
            private, left = await self._owner.register_copy(
                copy, of=self.info.id, home=copy.home or self.home, ended=self._reported
            )
        except BaseException:
            self._owner.path(copy.kernel).unlink(missing_ok=True)
            raise
        finally:
            for fd in ends:
                os.close(fd)
        warnings = _texts(answer.get("warnings"))
        warnings += [
            f"Process {name} was left running in the sandbox. It can read the branch's memory and change its files. "
            "End it and branch again if it must not."
            for name in left
        ]
        cost = _milliseconds(answer.get("cost_ms"))
        cpu = min(cost, _milliseconds(answer.get("cpu_ms", cost)))
        return ForkResult(cost_ms=cost, cpu_ms=cpu, private_bytes=private, warnings=warnings)

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """See ``port.Kernel``."""
        if "landlock" not in self.sandbox.enforced:
            return ""
        try:
            answer = await self._wire.control("fence", timeout=RESTRICT_SECONDS, write=[*write, *WRITABLE])
        except (KernelDead, Timeout) as error:  # a busy kernel restricts itself when its cell has ended
            return error.message
        return "" if answer.get("ok") else "; ".join(_reasons(answer))

    async def save(self, fd: int) -> SaveResult:
        """See ``port.Kernel``."""
        return _save_result(await self._wire.control("save", [fd], timeout=SAVE_SECONDS))

    async def continue_history(self, execution_count: int, ran: Mapping[int, str]) -> None:
        """See ``port.Kernel``."""
        answer = await self._wire.control(
            "continue",
            timeout=RESTRICT_SECONDS,
            execution_count=execution_count,
            ran={str(number): code for number, code in ran.items()},
        )
        if not answer.get("ok"):
            raise NotSupported(f"The kernel can't continue the history: {'; '.join(_reasons(answer))}.")

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """See ``port.Kernel``."""
        return _save_result(await self._wire.control("load", [fd], timeout=SAVE_SECONDS, count=execution_count))


class _ReplySink:
    """A sink that waits for the reply to one request.

    Attributes:
        succeeded: whether the reply has the status "ok". It is False, too, if the kernel ended.
    """

    def __init__(self, msg_id: str) -> None:
        self._msg_id = msg_id
        self.succeeded: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def deliver(self, batch: Sequence[Output]) -> None:
        for output in batch:
            if (
                isinstance(output, KernelMessage)
                and output.parent == self._msg_id
                and output.msg_type.endswith("_reply")
            ):
                self._resolve(succeeded=output.content.get("status") == "ok")

    def exited(self, exit: Exit) -> None:
        self._resolve(succeeded=False)

    def _resolve(self, *, succeeded: bool) -> None:
        if not self.succeeded.done():
            self.succeeded.set_result(succeeded)


def continued_cells(request: StartRequest) -> dict[str, Any] | None:
    """Return execution count and past code for a kernel that continues a session, or None for a new session."""
    if not request.execution_count:
        return None
    return {"execution_count": request.execution_count, "ran": {str(n): code for n, code in request.ran.items()}}


def branch_identity(request: StartRequest, sandbox: SandboxReport) -> dict[str, Any]:
    """Return the identity that a branch takes when it is connected to.

    The branch copies its parent's directory itself, with no more rights than a session has.
    """
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
        identity["write"] = [request.home, f"{request.home}.d", *WRITABLE]
    return identity


def _reasons(answer: Mapping[str, Any]) -> list[str]:
    """Return why a kernel refused a request."""
    return _texts(answer.get("refused")) or ["it gave no reason"]


def _texts(value: object) -> list[str]:
    """Return the texts of a list that a kernel sent. Nothing about it is trusted: not its type, length or texts."""
    return [str(text)[:MAX_REASON] for text in value[:MAX_REASONS]] if isinstance(value, list) else []


def _save_result(answer: dict[str, Any]) -> SaveResult:
    if not answer.get("ok"):
        reasons = "; ".join(_reasons(answer))
        raise NotSupported(f"The session's variables can't be saved or loaded: {reasons}.")
    lost = answer.get("lost")
    pairs = list(lost.items())[:MAX_LOST] if isinstance(lost, dict) else []
    count = answer.get("saved")
    return SaveResult(
        count=count if isinstance(count, int) and 0 <= count < 1 << 31 else 0,
        lost={str(name)[:200]: str(why)[:MAX_REASON] for name, why in pairs},
    )


def _milliseconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0
