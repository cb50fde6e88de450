"""The port between a session and its kernel.

Three adapters implement it: ``forked`` (a fork of a template, on the kernel wire), ``zmq`` (any Jupyter kernelspec, on
Jupyter's messaging protocol) and ``fake`` (for tests of the layers above). One contract suite holds for all three.

Delivery: the adapter calls ``sink.deliver(batch)`` with all outputs of one read, in order. When the call returns, the
batch is in the journal, and the adapter acknowledges it to the kernel. When the call raises, no output of the batch
counts as delivered. The adapter then stops reading, and delivers the same batch again when ``resume()`` is called. A
sink may be called at any time between ``start`` and ``exited``, and never after ``exited``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.model.storage.mounts import Bind
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest


class KernelMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One Jupyter message from a kernel. Nothing in it is trusted.

    ``content`` is a JSON object whose fields may have any type. ``parent`` is the ``msg_id`` of the request that the
    message claims to answer, or "".
    """

    channel: str
    msg_type: str
    parent: str
    content: dict[str, Any]
    metadata: dict[str, Any] = {}
    buffers: Sequence[bytes] = ()
    msg_id: str = ""
    frame: int | None = None


class StreamText(msgspec.Struct, frozen=True, kw_only=True):
    """Text for stdout or stderr.

    ``parent`` is "" if C code or a subprocess wrote the text directly to file descriptor 1 or 2. Such text belongs to
    the running cell.
    """

    name: Literal["stdout", "stderr"]
    text: str
    parent: str = ""
    frame: int | None = None


Output = KernelMessage | StreamText


class Sink(Protocol):
    """The receiver of a kernel's output. The session implements it."""

    def deliver(self, batch: Sequence[Output]) -> None:
        """Journal this batch.

        Raises:
            OSError: the write failed. Deliver the same batch again after ``resume``.
        """

    def exited(self, exit: Exit) -> None:
        """Handle the end of the kernel. All of its output was delivered before."""


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to start a kernel, or to resume a fork of one.

    Attributes:
        workdir: the session's directory on this machine.
        family: the directory that holds ``workdir`` and those of its branches.
        home: for a branch: its directory as seen inside the sandbox, which exists and is empty.
        copy_from: for a branch: its parent's directory as seen inside the sandbox, which the branch copies.
        beside: for the first checkpoint of a branch: id of the copy that becomes the branch.
        execution_count: for a fork that continues an existing session: the session's execution count.
        binds: directories of the machine that it sees besides its own.
        ran: the code of that session's cells since the fork, by execution count, for the kernel's history.
    """

    session: str
    kernel: str
    template: str
    workdir: str
    limits: Limits
    env: dict[str, str] = {}
    family: str = ""
    home: str = ""
    copy_from: str = ""
    beside: str = ""
    binds: list[Bind] = []
    execution_count: int = 0
    ran: dict[int, str] = {}


class ForkResult(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of a live kernel.

    Attributes:
        cost_ms: time for which the original could not run, in milliseconds.
        cpu_ms: processor time of that, at most ``cost_ms``.
        private_bytes: memory that the copy does not share with the original after the fork, computed from the copy's
            page faults. It grows with each page that the original writes later. None if it is not known.
        warnings: objects that continue in both processes, or that ``force`` lost.
    """

    cost_ms: float
    cpu_ms: float
    private_bytes: int | None = None
    warnings: list[str] = []


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """The number of saved or loaded variables, and the lost ones: name to reason."""

    count: int
    lost: dict[str, str] = {}


class Kernel(Protocol):
    """A running kernel. Every method is called from the server's event loop.

    Attributes:
        ordered: whether all outputs arrive in the order in which the kernel sent them, and the server sends one cell at
            a time. A cell then begins when it is sent, and ends with its reply. Otherwise a cell begins with its
            ``execute_input`` (a silent one with its busy status), and ends with its reply or its idle status, whichever
            comes last.
    """

    info: KernelInfo
    sandbox: SandboxReport
    forkable: bool
    ordered: bool
    home: str  # the session's directory as the kernel sees it

    def execute(self, request: ExecuteRequest) -> None:
        """Send an ``execute_request``. Its replies arrive at the sink."""

    def send(self, request: KernelRequest) -> None:
        """Send any other Jupyter message. Its replies arrive at the sink."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not read, as far as this is known."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of requests in memory that the kernel has not confirmed, as far as this is known."""

    def interrupt(self, seconds: float = 0.0) -> None:
        """Send SIGINT to the kernel, or an interrupt message if its kernelspec asks for one.

        Args:
            seconds: how long ago the cell was sent. A forked kernel's processes that started since then are interrupted
                too, and killed if they do not end.
        """

    def kill(self, *, everything: bool = False) -> None:
        """Send SIGKILL to the kernel and its subprocesses, but not to its copies. ``exited`` follows.

        Args:
            everything: also to daemons and programs, which do not end with the kernel: a limit was exceeded.
        """

    def resume(self) -> None:
        """Deliver the refused batch again, and continue to read."""

    def detach(self) -> None:
        """Disconnect without ending the kernel, because the server stops or restarts. No ``exited`` follows."""

    async def end(self) -> None:
        """End the kernel and its subprocesses, and free their resources. Its copies continue.

        Safe to cancel: the kernel ends anyway.
        """

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """Copy the kernel between two cells, after all requests that were sent to it before.

        A copy waits on its own socket until ``Launcher.resume_copy``. A checkpoint runs no code until then. A branch
        keeps its background tasks running.

        Raises:
            CannotFork: the kernel has objects that a fork would break. ``details["reasons"]`` names them.
            NotSupported: the kernel is not forkable.
            KernelDead, Timeout: the kernel did not answer.
        """

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """Remove permanently the kernel's right to write outside these directories.

        It keeps a parent from writing to the files of its branches. Does nothing if the kernel is not confined.

        Args:
            write: the directories, as seen inside the sandbox.

        Returns:
            The reason of a failure, or "" after success.
        """

    def has_received(self, msg_id: str) -> bool:
        """Return whether the kernel reports that it has received this request. Known after adoption."""

    async def save(self, fd: int) -> SaveResult:
        """Write the variables to ``fd``, durably, between two cells. The caller closes the descriptor.

        Raises:
            NotSupported: this kernel or its environment can't save variables.
            KernelDead, Timeout: the kernel did not answer. Discard the incomplete data.
        """

    async def continue_history(self, execution_count: int, ran: Mapping[int, str]) -> None:
        """Continue from this execution count. ``ran`` has the code of cells that the kernel did not run, by count.

        Raises:
            NotSupported: the kernel can't.
            KernelDead, Timeout: the kernel did not answer.
        """

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """Load saved variables into this new kernel, and continue from this execution count.

        Raises:
            NotSupported: the variables can't be loaded. The kernel is unchanged.
            KernelDead, Timeout: the kernel did not answer.
        """


class Launcher(Protocol):
    """Starts and adopts kernels of one kind."""

    async def start(self, request: StartRequest, sink: Sink) -> Kernel:
        """Start a kernel, and return it when it is ready for its first cell.

        Safe to cancel: a process that was started ends.

        Raises:
            KernelsvcError: ``sandbox_unavailable``, ``at_capacity``, ``timeout``, ``internal``.
        """

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> Kernel | None:
        """Connect to the kernel that an earlier server started. Return None if it is gone.

        Raises:
            KernelsvcError: the kernel runs and does not answer now, or the host can't be reached. The kernel continues.
        """

    async def how_ended(self, kernel: str) -> Exit | None:
        """Return how a kernel ended, or None if the host does not know."""

    async def resume_copy(self, request: StartRequest, sink: Sink) -> Kernel:
        """Resume the copy ``request.kernel`` that ``Kernel.fork`` made. Return it as a kernel of its own.

        Raises:
            KernelDead: the copy is gone.
            Timeout: the copy did not resume in time. The launcher ends it.
        """

    async def discard(self, kernel: str) -> None:
        """End a fork that no session has resumed. Does nothing if it has ended already."""
