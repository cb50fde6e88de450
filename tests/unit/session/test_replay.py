"""Past cells that run again, without a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from kernelsvc.errors import Conflict
from kernelsvc.kernels.port import Kernel, KernelMessage, Output, StreamText
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.protocol.kernel_messages import ExecuteRequest
from kernelsvc.session.replay import PastCell, ReplaySink, longest

EXIT = Exit(cause=Cause.SIGNALLED, message="gone", signal=9)


class Recorder:
    def __init__(self) -> None:
        self.got: list[Output] = []
        self.exits: list[Exit] = []

    def deliver(self, batch: Sequence[Output]) -> None:
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)


class Answering:
    """A kernel that answers each cell by a function."""

    def __init__(self, answer: Callable[[ExecuteRequest], None]) -> None:
        self._answer = answer
        self.ran: list[str] = []

    def execute(self, request: ExecuteRequest) -> None:
        self.ran.append(request.code)
        self._answer(request)


def past(code: str, *, succeeded: bool = True, seconds: float = 5.0) -> PastCell:
    return PastCell(f"cell-{code}", code, succeeded, False, seconds)


def reply(parent: str, content: dict[str, Any]) -> KernelMessage:
    return KernelMessage(channel="shell", msg_type="execute_reply", content=content, parent=parent)


async def run(sink: ReplaySink, answer: Callable[[ExecuteRequest], None], *cells: PastCell) -> list[str]:
    kernel = Answering(answer)
    await sink.run(cast("Kernel", kernel), cells)
    return kernel.ran


async def test_cells_run_in_order_and_output_is_dropped_until_the_kernel_is_attached() -> None:
    session = Recorder()
    sink = ReplaySink(session)
    text = StreamText(name="stdout", text="x", parent="p")

    def answer(request: ExecuteRequest) -> None:
        status = "error" if request.code == "b" else "ok"
        sink.deliver([text, reply("another", {"status": "error"}), reply(request.msg_id, {"status": status})])

    assert await run(sink, answer, past("a"), past("b", succeeded=False), past("c")) == ["a", "b", "c"]
    assert session.got == []
    sink.attach()
    sink.deliver([text])
    sink.exited(EXIT)
    assert (session.got, session.exits) == ([text], [EXIT])


async def test_a_cell_that_had_succeeded_and_fails_stops_the_replay() -> None:
    sink = ReplaySink(Recorder())
    content = {"status": "error", "ename": "KeyError", "evalue": "'x'"}
    with pytest.raises(Conflict, match=r"cell-a failed .KeyError: 'x'."):
        await run(sink, lambda request: sink.deliver([reply(request.msg_id, content)]), past("a"), past("b"))


async def test_the_end_of_the_kernel_stops_the_replay() -> None:
    sink = ReplaySink(Recorder())
    with pytest.raises(Conflict, match=r"cell-a ended the kernel .gone."):
        await run(sink, lambda _: sink.exited(EXIT), past("a", succeeded=False))


async def test_an_end_during_the_last_step_reaches_the_session() -> None:
    session = Recorder()
    sink = ReplaySink(session)
    sink.exited(EXIT)
    sink.attach()
    assert session.exits == [EXIT]


async def test_a_cell_without_an_answer_stops_the_replay_after_its_time() -> None:
    with pytest.raises(Conflict, match=r"took more than 0.01 s"):
        await run(ReplaySink(Recorder()), lambda _: None, past("a", seconds=0.01))


def test_a_cell_may_take_the_limit_or_else_much_longer_than_before() -> None:
    assert longest(30.0, 100.0) == 30.0
    assert longest(None, 2000.0) == 80.0
