"""Kernelspec kernels' processes as children of the test process, without a kernel host and without confinement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field

import psutil

from kernelsvc.errors import Internal
from kernelsvc.kernels.zmq.processes import ProcessRequest, Started, inherited
from kernelsvc.model.events import NotEnforced, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit

#: Marks every process of a kernel, so that those it leaves behind can be found.
MARK = "KERNELSVC_KERNEL"


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
            popen = subprocess.Popen(
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
