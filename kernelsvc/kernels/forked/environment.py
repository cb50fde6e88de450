"""A kernel that was ready before anybody asked gets the environment of the session that it becomes.

A forked kernel's environment is otherwise part of what it is told at its
beginning. Nothing has run in one that was kept ready, so it is told now, and
answers, before it is the session's: no cell comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kernelsvc.kernels.port import KernelMessage, Output
from kernelsvc.model.exit_status import Exit

if TYPE_CHECKING:
    from kernelsvc.kernels.forked.launcher import ForkedKernel

#: What the kernel understands (``guest.surroundings``), and seconds for its answer.
REQUEST = "kernelsvc_surroundings_request"
SECONDS = 5.0
_ID = "r_handover"


class _Listener:
    """The kernel's sink until it has answered."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def deliver(self, batch: Sequence[Output]) -> None:
        for said in batch:
            if isinstance(said, KernelMessage) and said.parent == _ID and said.msg_type.endswith("_reply"):
                self._settle(good=said.content.get("status") == "ok")

    def exited(self, exit: Exit) -> None:
        self._settle(good=False)

    def _settle(self, *, good: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(good)


async def set_environment(kernel: ForkedKernel, env: Mapping[str, str]) -> bool:
    """Give a kernel that has run nothing its environment; False if it could not be given. Safe to cancel: end it."""
    listener = _Listener()
    kernel.set_sink(listener)
    kernel.send("shell", REQUEST, {"environ": dict(env), "directory": None}, msg_id=_ID)
    try:
        async with asyncio.timeout(SECONDS):
            return await listener.answered
    except TimeoutError:
        return False
