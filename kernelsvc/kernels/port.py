"""The port between a session and its kernel.

Three adapters implement it: ``forked`` (a fork of a template, on the kernel wire), ``zmq`` (any Jupyter kernelspec, on
Jupyter's messaging protocol) and ``fake`` (for tests of the layers above). One contract suite holds for all three.

Delivery: the adapter calls ``sink.deliver(batch)`` with everything that one
read brought, in order. When it returns, the batch is in the journal and the
adapter acknowledges it to the kernel. When it raises, nothing of the batch
counts as held; the adapter stops reading and calls ``deliver`` again with the
same batch when ``resume()`` is called. A sink may be called at any time between
``start`` and ``exited``, never after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest


class KernelMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One Jupyter message from a kernel. Nothing in it is trusted.

    ``content`` is a JSON object whose fields may have any type. ``parent`` is
    the ``msg_id`` of the request it claims to answer ("" if none).
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

    ``parent`` is "" for what C code and subprocesses wrote straight to file
    descriptors 1 and 2; it then belongs to the running cell.
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
            OSError: it could not be written; deliver the same again after ``resume``.
        """

    def exited(self, exit: Exit) -> None:
        """Handle the end of the kernel. All of its output was delivered before."""


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to start a kernel, or to resume a fork of one.

    Attributes:
        workdir: the session's directory on this machine.
        family: the directory that holds ``workdir`` and those of its branches.
        home: for a branch: its directory as seen inside, made but empty.
        copy_from: for a branch: its parent's directory as seen inside, to be copied.
        beside: for a branch's first checkpoint: the copy that becomes the branch.
        execution_count: for a fork that continues an existing session: the session's execution count.
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
    execution_count: int = 0
    ran: dict[int, str] = {}


class ForkResult(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of a live kernel.

    Attributes:
        cost_ms: how long the original was held up.
        private_bytes: memory that is the copy's alone when it is made, by its page faults; it grows with what the
            original writes from then on. None where it can't be told.
        warnings: what runs on in both copies, or was lost by ``force``.
    """

    cost_ms: float
    private_bytes: int | None = None
    warnings: list[str] = []


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """Variables that were saved or loaded: how many, and which were lost, name to reason."""

    count: int
    lost: dict[str, str] = {}


class Kernel(Protocol):
    """A running kernel. Every method is called from the server's event loop.

    Attributes:
        ordered: what it says comes in one order, and it has one cell at a time: a cell that it is given begins, and
            its reply is its end. Of one that is not, a cell begins with its ``execute_input`` (a silent one with its
            busy status), and ends on its reply and its idle status, whichever comes last.
    """

    info: KernelInfo
    sandbox: SandboxReport
    forkable: bool
    ordered: bool
    home: str  # the session's directory as the kernel sees it

    def execute(self, request: ExecuteRequest) -> None:
        """Send an ``execute_request``; its replies arrive at the sink."""

    def send(self, request: KernelRequest) -> None:
        """Send any other Jupyter message; replies arrive at the sink."""

    def interrupt(self) -> None:
        """SIGINT to the kernel (its own interrupt message for cold ones that want it)."""

    def kill(self) -> None:
        """SIGKILL to the kernel and what it started, not to its copies; ``exited`` follows."""

    def resume(self) -> None:
        """Deliver again what ``deliver`` refused."""

    def detach(self) -> None:
        """Disconnect without ending the kernel: the server stops or restarts. No ``exited`` follows."""

    async def end(self) -> None:
        """End the kernel and all it started, and free what it held; its copies live on.

        Safe to cancel. It ends anyway.
        """

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """Copy the kernel between two cells, after everything that was sent to it before.

        A copy waits on its own socket until ``Launcher.wake``; a checkpoint is
        parked, a branch keeps its background tasks running.

        Raises:
            CannotFork: what the kernel holds would not survive; ``details["reasons"]``.
            NotSupported: not a forkable kernel.
            KernelDead, Timeout: it did not answer.
        """

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """Take from the kernel, for good, the right to write anywhere but beneath these directories.

        A parent is fenced off from its branches so. Where nothing confines the kernel,
        nothing happens.

        Args:
            write: as seen inside.

        Returns:
            Why it could not be done; "" if it was.
        """

    def has_received(self, msg_id: str) -> bool:
        """Whether the kernel says that it has received this request (known after adoption)."""

    async def save(self, fd: int) -> SaveResult:
        """Write the variables to ``fd``, durably, between two cells. The descriptor stays the caller's.

        Raises:
            NotSupported: this kernel or its environment can't.
            KernelDead, Timeout: it did not answer; what was written is of no use.
        """

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """Put saved variables into this fresh kernel and go on counting cells from there.

        Raises:
            NotSupported: they can't be loaded. Nothing was put in.
            KernelDead, Timeout: it did not answer.
        """


class Launcher(Protocol):
    """Starts and adopts kernels of one kind."""

    async def start(self, request: StartRequest, sink: Sink) -> Kernel:
        """Start a kernel, and return it when it is ready for its first cell.

        Cancelling it ends whatever was started.

        Raises:
            KernelsvcError: ``sandbox_unavailable``, ``at_capacity``, ``timeout``, ``internal``.
        """

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> Kernel | None:
        """Connect to the kernel that an earlier server started. Return None if it is gone.

        Raises:
            KernelsvcError: it lives and does not answer now, or nobody could be asked. It is left alone.
        """

    async def how_ended(self, kernel: str) -> Exit | None:
        """Return how a kernel ended, or None if the host does not know."""

    async def resume_copy(self, request: StartRequest, sink: Sink) -> Kernel:
        """A copy that ``Kernel.fork`` made, named by ``request.kernel``, as a kernel of its own.

        Raises:
            KernelDead: the copy is gone.
            Timeout: it did not wake in time. It is ended.
        """

    async def discard(self, kernel: str) -> None:
        """End a fork that no session has resumed. Nothing happens if it is gone."""
