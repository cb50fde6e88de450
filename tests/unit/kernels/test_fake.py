"""What the fake has beyond the contract: its script, and the handles for tests above it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from waiting import wait_until

from kernelsvc.errors import AtCapacity, CannotFork, KernelDead
from kernelsvc.kernels.fake import FakeKernel, FakeLauncher
from kernelsvc.kernels.port import KernelMessage, Output, StartRequest, StreamText
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest


@dataclass
class Sink:
    got: list[Output] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)

    def deliver(self, batch: Sequence[Output]) -> None:
        self.got += batch

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    def text(self, name: str = "stdout") -> str:
        return "".join(o.text for o in self.got if isinstance(o, StreamText) and o.name == name)

    def kinds(self) -> list[str]:
        return [o.msg_type for o in self.got if isinstance(o, KernelMessage)]

    def reply(self) -> KernelMessage | None:
        found = [o for o in self.got if isinstance(o, KernelMessage) and o.msg_type == "execute_reply"]
        return found[-1] if found else None


def request(kernel: str = "k") -> StartRequest:
    return StartRequest(session="s", kernel=kernel, template="fake", workdir="/", limits=Limits())


@pytest.fixture
async def launcher() -> AsyncIterator[FakeLauncher]:
    made = FakeLauncher()
    yield made
    made.close()


async def run(launcher: FakeLauncher, code: str) -> tuple[FakeKernel, Sink]:
    sink = Sink()
    kernel = await launcher.start(request(), sink)
    kernel.execute(ExecuteRequest("c", code, allow_stdin=True))
    await wait_until(lambda: sink.reply() or sink.exits)
    return kernel, sink


async def test_every_word_of_the_script(launcher: FakeLauncher) -> None:
    code = "# words\n\nprint a\nerr b\nraw c\nbig 3\nlines 2\nshow text/html <b>\nclear\nset x 1\nget x\nresult 2"
    _, sink = await run(launcher, code)
    assert sink.text() == "a\nc\nxxx0\n1\n"
    assert sink.text("stderr") == "b\n"
    assert sink.kinds() == ["display_data", "clear_output", "execute_result", "execute_result", "execute_reply"]
    assert [o.frame for o in sink.got] == list(range(1, len(sink.got) + 1))


@pytest.mark.parametrize(("code", "name"), [("nonsense", "SyntaxError"), ("get y", "NameError"), ("error Oh no", "Oh")])
async def test_errors_of_the_script(launcher: FakeLauncher, code: str, name: str) -> None:
    _, sink = await run(launcher, f"{code}\nprint never")
    reply = sink.reply()
    assert reply is not None
    assert reply.content["ename"] == name
    assert sink.text() == ""


@pytest.mark.parametrize(
    ("code", "cause"),
    [("die 11", Cause.SIGNALLED), ("exit 3", Cause.EXITED), ("oom", Cause.MEMORY), ("garble", Cause.PROTOCOL)],
)
async def test_ends_of_the_script(launcher: FakeLauncher, code: str, cause: Cause) -> None:
    _, sink = await run(launcher, f"print before\n{code}")
    assert [e.cause for e in sink.exits] == [cause]
    assert sink.text() == "before\n"
    assert launcher.alive() == []


async def test_a_cell_waits_until_it_is_released(launcher: FakeLauncher) -> None:
    sink = Sink()
    kernel = await launcher.start(request(), sink)
    kernel.execute(ExecuteRequest("c", "print before\nwait gate\nprint after"))
    await wait_until(lambda: sink.text() == "before\n")
    assert sink.reply() is None
    launcher.release("gate")
    await wait_until(sink.reply)
    assert sink.text() == "before\nafter\n"


async def test_a_deaf_cell_hears_no_interrupt(launcher: FakeLauncher) -> None:
    sink = Sink()
    kernel = await launcher.start(request(), sink)
    kernel.execute(ExecuteRequest("c", "print deaf\nhang"))
    await wait_until(sink.text)
    kernel.interrupt()
    for _ in range(20):
        await asyncio.sleep(0)
    assert sink.reply() is None
    kernel.kill()
    await wait_until(lambda: sink.exits)


async def test_a_password_is_asked_as_one(launcher: FakeLauncher) -> None:
    sink = Sink()
    kernel = await launcher.start(request(), sink)
    kernel.execute(ExecuteRequest("c", "password secret?", allow_stdin=True))
    await wait_until(lambda: "input_request" in sink.kinds())
    asked = next(o for o in sink.got if isinstance(o, KernelMessage) and o.channel == "stdin")
    assert asked.content == {"prompt": "secret?", "password": True}
    kernel.send(KernelRequest("input_reply", {"value": "x"}, "i", "stdin"))
    await wait_until(sink.reply)


async def test_a_start_can_be_refused_or_held_up(launcher: FakeLauncher) -> None:
    launcher.refusals = [AtCapacity()]
    with pytest.raises(AtCapacity):
        await launcher.start(request(), Sink())
    launcher.delay = asyncio.Event()
    starting = asyncio.ensure_future(launcher.start(request(), Sink()))
    await asyncio.sleep(0)
    assert not starting.done()
    launcher.delay.set()
    assert (await starting).info.id == "k"


async def test_a_copy_has_the_variables_and_a_life_of_its_own(launcher: FakeLauncher) -> None:
    kernel, sink = await run(launcher, "set x 1")
    await kernel.fork(request("copy"), mode="branch")
    kernel.execute(ExecuteRequest("d", "set x 2"))
    other = Sink()
    copy = await launcher.resume_copy(request("copy"), other)
    copy.execute(ExecuteRequest("e", "get x"))
    await wait_until(lambda: "execute_result" in other.kinds())
    (result,) = [o for o in other.got if isinstance(o, KernelMessage) and o.msg_type == "execute_result"]
    assert result.content["data"]["text/plain"] == "1"
    await launcher.discard("copy")
    await launcher.discard("nobody")
    with pytest.raises(KernelDead):
        await launcher.resume_copy(request("copy"), other)
    assert not sink.exits


async def test_what_can_t_be_forked(launcher: FakeLauncher) -> None:
    kernel, _ = await run(launcher, "set thread 1")
    with pytest.raises(CannotFork):
        await kernel.fork(request("copy"), mode="checkpoint")
    await kernel.fork(request("copy"), mode="checkpoint", force=True)
