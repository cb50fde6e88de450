"""Run past cells again in a kernel that the session does not use yet, for a rollback to a state without a checkpoint.

The cells run with their code only: their outputs are dropped, and nothing answers their ``input()``. Their effects
outside of the kernel happen again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kernelsvc.errors import Conflict
from kernelsvc.kernels.port import Kernel, KernelMessage, Output, Sink
from kernelsvc.model.exit_status import Exit
from kernelsvc.protocol.kernel_messages import ExecuteRequest
from kernelsvc.session.kernel_requests import new_id

#: A cell without a time limit may take so many times its earlier time, and so many seconds more.
SLOWER, MORE_SECONDS = 10.0, 60.0


@dataclass(frozen=True)
class PastCell:
    """A cell to run again.

    Attributes:
        id: its id, for errors.
        code: its source text.
        succeeded: whether it ended without an error.
        silent: whether it has no execution count.
        seconds: the longest time that it may take.
    """

    id: str
    code: str
    succeeded: bool
    silent: bool
    seconds: float


def longest(limit: float | None, wall_ms: float) -> float:
    """Return the seconds that a cell may take when it runs again.

    Args:
        limit: the session's limit in seconds, or None.
        wall_ms: the time that the cell took before, in milliseconds.
    """
    return limit if limit is not None else SLOWER * wall_ms / 1000 + MORE_SECONDS


class ReplaySink:
    """A kernel's sink during a replay. Afterwards it passes everything to the session.

    Args:
        session: the session's sink.
    """

    def __init__(self, session: Sink) -> None:
        self._session = session
        self._attached = False
        self._exit: Exit | None = None
        self._waiting: tuple[str, asyncio.Future[str]] | None = None

    async def run(self, kernel: Kernel, cells: Sequence[PastCell]) -> None:
        """Run the cells in their order. Cancelling leaves the kernel in the middle of them: end it.

        Raises:
            Conflict: a cell that had succeeded fails now, took too long, or ended the kernel.
        """
        for cell in cells:
            try:
                async with asyncio.timeout(cell.seconds):
                    status = await self._run(kernel, cell)
            except TimeoutError:
                status = f"took more than {cell.seconds:g} s"
            if status != "ok" and (cell.succeeded or self._exit is not None):
                raise Conflict(
                    f"Cell {cell.id} {status} when it ran again. The session is unchanged. Roll back to a checkpoint, "
                    "or to before an earlier cell.",
                    cell=cell.id,
                )

    async def _run(self, kernel: Kernel, cell: PastCell) -> str:
        message = new_id("r")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting = message, answer
        if self._exit is not None:
            return _ended(self._exit)
        kernel.execute(ExecuteRequest(message, cell.code, silent=cell.silent, store_history=not cell.silent))
        return await answer

    def attach(self) -> None:
        """Pass all further output, and the end of the kernel, to the session."""
        self._attached = True
        if self._exit is not None:
            self._session.exited(self._exit)

    def deliver(self, batch: Sequence[Output]) -> None:
        """See ``kernels.port.Sink``."""
        if self._attached:
            self._session.deliver(batch)
            return
        for output in batch:
            if (
                self._waiting is not None
                and isinstance(output, KernelMessage)
                and output.msg_type == "execute_reply"
                and output.parent == self._waiting[0]
            ):
                self._resolve(_status(output))

    def exited(self, exit: Exit) -> None:
        """See ``kernels.port.Sink``."""
        self._exit = exit
        if self._attached:
            self._session.exited(exit)
        else:
            self._resolve(_ended(exit))

    def _resolve(self, status: str) -> None:
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_result(status)


def _status(reply: KernelMessage) -> str:
    if reply.content.get("status") == "ok":
        return "ok"
    return f"failed ({str(reply.content.get('ename'))[:100]}: {str(reply.content.get('evalue'))[:200]})"


def _ended(exit: Exit) -> str:
    return f"ended the kernel ({exit.message})"
