"""One contract, every adapter behind ``kernels.port``.

Whatever runs the cells, the session above sees the same: the order of messages,
text, results, errors, input, interrupts, the end of a process, a sink that
refuses. What a language can't do (bash has no results) is left out by its
dialect, which is told in the skip.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psutil
import pytest
import pytest_asyncio
from local_processes import LocalProcesses
from waiting import wait_until

from kernelsvc.errors import KernelDead, NotSupported
from kernelsvc.host.client import HostClient
from kernelsvc.host.protocol import ForkServerSettings, HostSettings
from kernelsvc.kernels.fake import FakeLauncher
from kernelsvc.kernels.forked.launcher import ForkedLauncher
from kernelsvc.kernels.port import Kernel, KernelMessage, Launcher, Output, StartRequest, StreamText
from kernelsvc.kernels.zmq.launcher import KernelspecLauncher
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.limits import Limits
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- who listens ------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A sink that keeps what it got, refuses when told to, and fails on anything after the end."""

    got: list[Output] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    refusing: bool = False
    refused: list[list[Output]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def deliver(self, batch: Sequence[Output]) -> None:
        if self.exits:
            self.broken.append("delivered after the end")
        if self.refusing:
            self.refused.append(list(batch))
            raise OSError(28, "No space left on device")
        if self.refused and not self.got_again:
            self.got_again = list(batch) == self.refused[-1]
            if not self.got_again:
                self.broken.append("another batch than the refused one came after resume")
        self.got += batch

    got_again: bool = False

    def exited(self, exit: Exit) -> None:
        self.exits.append(exit)

    def text(self, name: str = "stdout", parent: str | None = None) -> str:
        found = (o for o in self.got if isinstance(o, StreamText) and o.name == name)
        return "".join(o.text for o in found if parent is None or o.parent in ("", parent))

    def messages(self, parent: str, *types: str) -> list[KernelMessage]:
        found = (o for o in self.got if isinstance(o, KernelMessage) and o.parent == parent)
        return [m for m in found if not types or m.msg_type in types]

    def kinds(self, parent: str) -> list[str]:
        """What came for a cell, in words, texts joined."""
        words = [word_of(o) for o in self.got if o.parent == parent or (isinstance(o, StreamText) and not o.parent)]
        return [word for word, _ in itertools.groupby(words)]

    def ended(self, parent: str) -> bool:
        kinds = self.kinds(parent)
        return "execute_reply" in kinds and ("idle" in kinds or "busy" not in kinds)

    def reply(self, parent: str) -> dict[str, Any]:
        (message,) = self.messages(parent, "execute_reply")
        return message.content


def whole(kernel: Kernel, *kinds: str) -> list[str]:
    """What comes for a cell: these, and around them what a kernel says that is not ordered."""
    return [*kinds] if kernel.ordered else ["busy", "execute_input", *kinds, "idle"]


def word_of(output: Output) -> str:
    if isinstance(output, StreamText):
        return output.name
    if output.msg_type == "status":
        return str(output.content["execution_state"])
    if output.msg_type == "stream":
        return str(output.content["name"])
    return output.msg_type


# --- how each language says it ------------------------------------------------------------------


class Python:
    """Cells of the contract in Python."""

    #: What a language has no cell for; "more": what a second cold language would only prove again.
    cannot: frozenset[str] = frozenset()
    #: How many lines are much.
    much = 5000

    def say(self, text: str) -> str:
        return f"print({text!r})"

    def complain(self, text: str) -> str:
        return f"import sys; print({text!r}, file=sys.stderr)"

    def raw(self, text: str) -> str:
        return f"import os; os.system('echo {text}')"

    def value(self, text: str) -> str:
        return f"{text!r}"

    def fail(self) -> str:
        return "raise ValueError('no')"

    def show(self) -> str:
        return "display({'text/html': '<b>x</b>', 'text/plain': 'x'}, raw=True)"

    def ask(self) -> str:
        return "print('<' + input('who? ') + '>')"

    def wait(self) -> str:
        return "print('waiting', flush=True)\nimport time\ntime.sleep(60)"

    def lines(self, count: int) -> str:
        return f"for i in range({count}): print(i, flush=True)"

    def die(self) -> str:
        return "print('last words', flush=True)\nimport os\nos.kill(os.getpid(), 11)"

    def leave(self) -> str:
        return "import os; os._exit(7)"

    def keep(self) -> str:
        return "x = 42"

    def kept(self) -> str:
        return "print(x)"


class ColdPython(Python):
    def die(self) -> str:
        # libzmq sends from a thread of its own, so what a cold kernel printed in its very last moment dies with it.
        return "print('last words', flush=True)\nimport os, time\ntime.sleep(0.3)\nos.kill(os.getpid(), 11)"


class Bash(Python):
    cannot = frozenset({"complain", "raw", "value", "fail", "show", "ask", "leave", "more"})
    much = 300  # the kernel reads its shell through a terminal, line by line

    def say(self, text: str) -> str:
        return f"echo {text}"

    def wait(self) -> str:
        return "echo waiting; sleep 60"

    def lines(self, count: int) -> str:
        return f"for i in $(seq 0 {count - 1}); do echo $i; done"

    def die(self) -> str:
        return "echo 'last words'; sleep 0.3; kill -SEGV $PPID; sleep 60"

    def keep(self) -> str:
        return "x=42"

    def kept(self) -> str:
        return "echo $x"


class Script(Python):
    def say(self, text: str) -> str:
        return f"print {text}"

    def complain(self, text: str) -> str:
        return f"err {text}"

    def raw(self, text: str) -> str:
        return f"raw {text}"

    def value(self, text: str) -> str:
        return f"result {text!r}"

    def fail(self) -> str:
        return "error ValueError no"

    def show(self) -> str:
        return "show text/html <b>x</b>"

    def ask(self) -> str:
        return "input who? "

    def wait(self) -> str:
        return "print waiting\nwait for-ever"

    def lines(self, count: int) -> str:
        return f"lines {count}"

    def die(self) -> str:
        return "print last words\ndie 11"

    def leave(self) -> str:
        return "exit 7"

    def keep(self) -> str:
        return "set x 42"

    def kept(self) -> str:
        return "get x"


# --- who runs the kernels -----------------------------------------------------------------------


class Backend:
    """One adapter with all it needs. ``launcher`` may be asked for again: that is a server's restart."""

    async def open(self) -> None:
        pass

    dialect: ClassVar[Python] = Python()
    template = ""
    keeps_output = True
    #: What this adapter can't, whatever the language.
    cannot: ClassVar[frozenset[str]] = frozenset()

    async def launcher(self) -> Launcher:
        raise NotImplementedError

    def alive(self, kernel: Kernel) -> bool:
        try:
            return psutil.Process(kernel.info.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def close(self) -> None:
        pass


class Fake(Backend):
    dialect, template = Script(), "fake"

    def __init__(self, runtime: Path) -> None:
        self._launcher = FakeLauncher()

    async def launcher(self) -> Launcher:
        return self._launcher

    def alive(self, kernel: Kernel) -> bool:
        return kernel.info.id in self._launcher.alive()

    async def close(self) -> None:
        self._launcher.close()


class Cold(Backend):
    dialect, template, keeps_output = ColdPython(), "python3", False
    cannot = frozenset({"fork"})

    def __init__(self, runtime: Path) -> None:
        self._runtime, self._processes = runtime, LocalProcesses()

    async def launcher(self) -> Launcher:
        return KernelspecLauncher(self._processes, self._runtime)


class Hosted(Backend):
    """With a kernel host, and confinement as far as this machine has it."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        templates = {"python3": ForkServerSettings(preload=["numpy"])}
        settings = HostSettings(runtime_dir=str(runtime), templates=templates, sandbox="best-effort")
        self._host = HostClient(settings)

    async def open(self) -> None:
        await self._host.start()

    async def close(self) -> None:
        await self._host.shutdown(end_kernels=True)


class Forked(Hosted):
    template = "python3"

    async def launcher(self) -> Launcher:
        return ForkedLauncher(self._host, self._runtime)


class HostedCold(Hosted):
    dialect, template, keeps_output = ColdPython(), "python3", False
    cannot = frozenset({"fork"})

    async def launcher(self) -> Launcher:
        return KernelspecLauncher(self._host, self._runtime)


class ColdBash(HostedCold):
    dialect, template = Bash(), "bash"

    async def launcher(self) -> Launcher:
        pytest.importorskip("bash_kernel")
        specs = self._runtime / "specs"
        (specs / "bash").mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Bash", "language": "bash"}
        (specs / "bash" / "kernel.json").write_text(json.dumps(spec))
        return KernelspecLauncher(self._host, self._runtime, kernel_dirs=[str(specs)])


CELLS = itertools.count(1)
Test = TypeVar("Test", bound=Callable[..., Any])
BACKENDS: dict[str, type[Backend]] = {
    "fake": Fake,
    "forked": Forked,
    "cold": HostedCold,
    "cold-local": Cold,
    "bash": ColdBash,
}


def can(what: str) -> Callable[[Test], Test]:
    """Run this test only with languages that have such a cell."""

    def mark(test: Test) -> Test:
        test.can = what  # type: ignore[attr-defined]
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        what = getattr(metafunc.function, "can", "say")
        able = [name for name, kind in BACKENDS.items() if what not in kind.dialect.cannot | kind.cannot]
        # A cold kernel without a host differs from one with a host in its start only.
        marks = {"cold-local": [pytest.mark.thorough]} if "cold" in able else {}
        params = [pytest.param(name, marks=marks.get(name, [])) for name in able]
        metafunc.parametrize("stage", params, indirect=True, scope="module")


class Relay:
    """Stands between a kernel that several tests use and the recorder of the one that runs."""

    target: Recorder | None = None

    def deliver(self, batch: Sequence[Output]) -> None:
        if self.target is not None:
            self.target.deliver(batch)

    def exited(self, exit: Exit) -> None:
        if self.target is not None:
            self.target.exited(exit)


@dataclass
class Stage:
    """A backend, and one kernel of it for all tests that leave it as it was."""

    backend: Backend
    relay: Relay = field(default_factory=Relay)
    kernel: Kernel | None = None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(request: pytest.FixtureRequest, short_tmp: Path) -> AsyncIterator[Stage]:
    runtime = short_tmp / uuid.uuid4().hex[:6]
    runtime.mkdir()
    made = Stage(BACKENDS[request.param](runtime))
    await made.backend.open()
    yield made
    if made.kernel is not None:
        await made.kernel.end()
    await made.backend.close()


class Bench:
    """Starts kernels of one backend and ends them all."""

    def __init__(self, stage: Stage, tmp: Path) -> None:
        self.backend, self.dialect = stage.backend, stage.backend.dialect
        self._stage = stage
        self.sink = Recorder()
        self._tmp, self._kernels = tmp, list[Kernel]()

    def request(self, kernel: str | None = None) -> StartRequest:
        name = kernel or f"k{uuid.uuid4().hex}"
        return StartRequest(
            session=f"s-{name}", kernel=name, template=self.backend.template, workdir=str(self._tmp), limits=Limits()
        )

    async def shared(self) -> Kernel:
        """A kernel that other tests have used and will use."""
        if self._stage.kernel is None:
            launcher = await self.backend.launcher()
            self._stage.kernel = await launcher.start(self.request(), self._stage.relay)
        self._stage.relay.target = self.sink
        return self._stage.kernel

    async def start(self) -> Kernel:
        """A kernel of this test's own."""
        kernel = await (await self.backend.launcher()).start(self.request(), self.sink)
        self._kernels.append(kernel)
        return kernel

    async def adopt(self, kernel: str, sink: Recorder, last_frame: int) -> Kernel | None:
        found = await (await self.backend.launcher()).adopt(self.request(kernel), sink, last_frame=last_frame)
        if found is not None:
            self._kernels.append(found)
        return found

    async def wake(self, request: StartRequest, sink: Recorder) -> Kernel:
        kernel = await (await self.backend.launcher()).resume_copy(request, sink)
        self._kernels.append(kernel)
        return kernel

    async def run(self, kernel: Kernel, code: str, **options: Any) -> str:
        """Run a cell to its end."""
        cell = self.send(kernel, code, **options)
        await wait_until(lambda: self.sink.ended(cell) or self.sink.exits, what="the cell's end")
        return cell

    def send(self, kernel: Kernel, code: str, **options: Any) -> str:
        cell = f"cell-{next(CELLS)}"
        kernel.execute(ExecuteRequest(cell, code, **options))
        return cell

    async def heard(self, text: str) -> None:
        await wait_until(lambda: text in self.sink.text(), what=f"{text!r} on stdout")

    async def close(self) -> None:
        self._stage.relay.target = None
        for kernel in self._kernels:
            await kernel.end()


@pytest_asyncio.fixture(loop_scope="module")
async def bench(stage: Stage, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(stage, tmp_path)
    yield made
    await made.close()
    assert not made.sink.broken


# --- cells ---------------------------------------------------------------------------------------


async def test_a_kernel_starts_and_reports_its_language(bench: Bench) -> None:
    kernel = await bench.start()
    assert kernel.info.pid > 0
    assert kernel.info.language
    assert bench.backend.alive(kernel)
    assert not kernel.has_received("cell-1")
    assert not bench.sink.exits


async def test_the_messages_of_a_cell_come_in_order(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.say("hello"))
    assert bench.sink.kinds(cell) == whole(kernel, "stdout", "execute_reply")
    assert bench.sink.text(parent=cell) == "hello\n"
    assert bench.sink.reply(cell)["status"] == "ok"


async def test_frame_numbers_increase(bench: Bench) -> None:
    kernel = await bench.shared()
    for text in ("a", "b"):
        await bench.run(kernel, bench.dialect.say(text))
    frames = [o.frame for o in bench.sink.got if o.frame is not None]
    assert frames == sorted(frames)


async def test_execution_counts_increase_except_for_silent_cells(bench: Bench) -> None:
    kernel = await bench.shared()
    first = await bench.run(kernel, bench.dialect.say("a"))
    silent = await bench.run(kernel, bench.dialect.keep(), silent=True, store_history=False)
    second = await bench.run(kernel, bench.dialect.say("b"))
    counts = [bench.sink.reply(c)["execution_count"] for c in (first, second)]
    assert counts[1] == counts[0] + 1
    if not kernel.ordered:
        assert counts == [
            bench.sink.messages(c, "execute_input")[0].content["execution_count"] for c in (first, second)
        ]
    assert "execute_input" not in bench.sink.kinds(silent)


async def test_variables_are_kept_between_cells(bench: Bench) -> None:
    kernel = await bench.shared()
    await bench.run(kernel, bench.dialect.keep())
    cell = await bench.run(kernel, bench.dialect.kept())
    values = [m.content["data"]["text/plain"] for m in bench.sink.messages(cell, "execute_result")]
    assert "42" in bench.sink.text(parent=cell) or values == ["42"]


@can("complain")
async def test_text_on_stderr(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.complain("oh"))
    assert bench.sink.text("stderr", cell) == "oh\n"


@can("raw")
async def test_text_of_c_code_arrives_before_the_cell_ends(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.raw("from-below"))
    assert bench.sink.text(parent=cell) == "from-below\n"
    kinds = bench.sink.kinds(cell)
    assert kinds.index("stdout") < kinds.index("execute_reply")


@can("value")
async def test_the_value_of_a_cell(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.value("v"))
    (result,) = bench.sink.messages(cell, "execute_result")
    assert result.content["data"]["text/plain"] == "'v'"


@can("fail")
async def test_an_error_is_an_output_and_in_the_reply(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.fail())
    (error,) = bench.sink.messages(cell, "error")
    assert (error.content["ename"], error.content["evalue"]) == ("ValueError", "no")
    reply = bench.sink.reply(cell)
    assert (reply["status"], reply["ename"]) == ("error", "ValueError")
    after = await bench.run(kernel, bench.dialect.say("goes on"))
    assert bench.sink.text(parent=after) == "goes on\n"


@can("show")
async def test_a_display(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.show())
    (display,) = bench.sink.messages(cell, "display_data")
    assert display.content["data"]["text/html"] == "<b>x</b>"


@can("ask")
async def test_input_asks_and_gets_its_answer(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = bench.send(kernel, bench.dialect.ask(), allow_stdin=True)
    await wait_until(lambda: bench.sink.messages(cell, "input_request"), what="the question")
    (question,) = bench.sink.messages(cell, "input_request")
    assert question.channel == "stdin"
    assert str(question.content["prompt"]).strip() == "who?"
    kernel.send(KernelRequest("input_reply", {"value": "me", "status": "ok"}, "answer", "stdin"))
    await wait_until(lambda: bench.sink.ended(cell), what="the cell's end")
    assert "me" in bench.sink.text(parent=cell)


@can("ask")
async def test_input_that_is_not_allowed_fails(bench: Bench) -> None:
    kernel = await bench.shared()
    cell = await bench.run(kernel, bench.dialect.ask(), allow_stdin=False)
    assert bench.sink.reply(cell)["ename"] == "StdinNotImplementedError"


async def test_another_request_is_answered(bench: Bench) -> None:
    kernel = await bench.shared()
    kernel.send(KernelRequest("comm_info_request", {}, "ask-1"))
    await wait_until(lambda: bench.sink.messages("ask-1", "comm_info_reply"), what="the reply")
    (reply,) = bench.sink.messages("ask-1", "comm_info_reply")
    assert reply.channel == "shell"
    assert reply.content["status"] == "ok"


async def test_much_output_loses_nothing(bench: Bench) -> None:
    kernel = await bench.shared()
    much = bench.dialect.much
    cell = await bench.run(kernel, bench.dialect.lines(much))
    assert bench.sink.text(parent=cell) == "".join(f"{i}\n" for i in range(much))


# --- interrupts and ends -----------------------------------------------------------------------------


async def test_an_interrupt_ends_the_cell_and_keeps_the_kernel(bench: Bench) -> None:
    kernel = await bench.start()
    await bench.run(kernel, bench.dialect.keep())
    cell = bench.send(kernel, bench.dialect.wait())
    await bench.heard("waiting")
    kernel.interrupt()
    await wait_until(lambda: bench.sink.ended(cell), what="the cell's end")
    assert bench.sink.reply(cell)["status"] != "ok"
    kept = await bench.run(kernel, bench.dialect.kept())
    assert bench.sink.reply(kept)["status"] == "ok"


@can("more")
async def test_an_interrupt_between_cells_does_nothing(bench: Bench) -> None:
    kernel = await bench.start()
    kernel.interrupt()
    cell = await bench.run(kernel, bench.dialect.say("still here"))
    assert bench.sink.text(parent=cell) == "still here\n"


async def test_kill_is_reported_once_after_the_last_output(bench: Bench) -> None:
    kernel = await bench.start()
    bench.send(kernel, bench.dialect.wait())
    await bench.heard("waiting")
    kernel.kill()
    kernel.kill()
    await wait_until(lambda: bench.sink.exits, what="the end")
    (ended,) = bench.sink.exits
    assert (ended.cause, ended.signal) == (Cause.SIGNALLED, 9)
    await wait_until(lambda: not bench.backend.alive(kernel), what="the process's end")
    await kernel.end()
    assert len(bench.sink.exits) == 1


async def test_a_death_in_a_cell_has_its_cause_and_its_last_words(bench: Bench) -> None:
    kernel = await bench.start()
    cell = await bench.run(kernel, bench.dialect.die())
    (ended,) = bench.sink.exits
    assert (ended.cause, ended.signal) == (Cause.SIGNALLED, 11)
    assert "last words" in bench.sink.text(parent=cell)
    assert "SIGSEGV" in ended.message


@can("leave")
async def test_an_exit_in_a_cell_has_its_code(bench: Bench) -> None:
    kernel = await bench.start()
    await bench.run(kernel, bench.dialect.leave())
    (ended,) = bench.sink.exits
    assert (ended.cause, ended.exit_code) == (Cause.EXITED, 7)


async def test_end_leaves_no_process_and_reports_no_death(bench: Bench) -> None:
    kernel = await bench.start()
    bench.send(kernel, bench.dialect.wait())
    await bench.heard("waiting")
    children = psutil.Process(kernel.info.pid).children(recursive=True) if psutil.pid_exists(kernel.info.pid) else []
    await asyncio.gather(kernel.end(), kernel.end())
    await wait_until(lambda: not bench.backend.alive(kernel), what="the process's end")
    await wait_until(lambda: not [c for c in children if c.is_running()], what="its children's end")
    assert not bench.sink.exits


@can("more")
async def test_end_completes_although_its_caller_is_cancelled(bench: Bench) -> None:
    kernel = await bench.start()
    task = asyncio.ensure_future(kernel.end())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await wait_until(lambda: not bench.backend.alive(kernel), what="the process's end")


# --- a sink that refuses -------------------------------------------------------------------------------


async def test_refused_output_is_delivered_again_exactly_once(bench: Bench) -> None:
    kernel = await bench.start()
    bench.sink.refusing = True
    cell = bench.send(kernel, bench.dialect.lines(300))
    await wait_until(lambda: bench.sink.refused, what="a refusal")
    kernel.resume()  # still no room: refused again, with the same batch
    assert len(bench.sink.refused) >= 1
    assert all(batch == bench.sink.refused[0] for batch in bench.sink.refused)
    bench.sink.refusing = False
    kernel.resume()
    await wait_until(lambda: bench.sink.ended(cell), what="the cell's end")
    assert bench.sink.text(parent=cell) == "".join(f"{i}\n" for i in range(300))
    assert bench.sink.kinds(cell) == whole(kernel, "stdout", "execute_reply")


@can("more")
async def test_resume_without_a_refusal_does_nothing(bench: Bench) -> None:
    kernel = await bench.start()
    kernel.resume()
    cell = await bench.run(kernel, bench.dialect.say("a"))
    kernel.resume()
    assert bench.sink.text(parent=cell) == "a\n"


@can("more")
async def test_a_death_while_the_sink_refuses_is_reported_after_it_accepts(bench: Bench) -> None:
    kernel = await bench.start()
    bench.sink.refusing = True
    bench.send(kernel, bench.dialect.say("held"))
    await wait_until(lambda: bench.sink.refused, what="a refusal")
    kernel.kill()
    await wait_until(lambda: not bench.backend.alive(kernel), what="the process's end")
    assert not bench.sink.exits
    bench.sink.refusing = False
    kernel.resume()
    await wait_until(lambda: bench.sink.exits, what="the end")
    assert not bench.sink.broken


# --- a server that goes and comes back -------------------------------------------------------------------


def last_frame(sink: Recorder) -> int:
    return max((o.frame for o in sink.got if o.frame is not None), default=0)


@can("more")
async def test_an_idle_kernel_is_adopted(bench: Bench) -> None:
    kernel = await bench.start()
    await bench.run(kernel, bench.dialect.keep())
    kernel.detach()
    sink = Recorder()
    again = await bench.adopt(kernel.info.id, sink, last_frame(bench.sink))
    assert again is not None
    assert again.info.pid == kernel.info.pid
    assert again.info.language == kernel.info.language
    bench.sink, before = sink, bench.sink
    cell = await bench.run(again, bench.dialect.kept())
    assert sink.reply(cell)["status"] == "ok"
    assert not before.exits


@can("more")
async def test_a_cell_that_runs_over_a_restart_ends_once(bench: Bench) -> None:
    kernel = await bench.start()
    cell = bench.send(kernel, bench.dialect.wait())
    await bench.heard("waiting")
    kernel.detach()
    sink = Recorder()
    again = await bench.adopt(kernel.info.id, sink, last_frame(bench.sink))
    assert again is not None
    assert again.has_received(cell)
    assert not again.has_received("cell-never-sent")
    again.interrupt()
    await wait_until(lambda: sink.ended(cell), what="the cell's end")
    assert sink.reply(cell)["status"] != "ok"
    assert "busy" not in sink.kinds(cell)


@can("more")
async def test_a_cell_that_ended_without_a_server_has_an_end(bench: Bench, tmp_path: Path) -> None:
    kernel = await bench.start()
    cell = bench.send(kernel, bench.dialect.say("unheard"))
    kernel.detach()
    sink = Recorder()
    await asyncio.sleep(0.2)  # the one thing that can't be waited for: nobody is there to see it
    again = await bench.adopt(kernel.info.id, sink, last_frame(bench.sink))
    assert again is not None
    assert again.has_received(cell)
    await wait_until(lambda: sink.ended(cell), what="the cell's end")
    if bench.backend.keeps_output:
        assert sink.text(parent=cell) == "unheard\n"
    else:
        assert "lost" in sink.text("stderr", cell) + str(sink.reply(cell))


@can("more")
async def test_an_ended_kernel_is_not_adopted(bench: Bench) -> None:
    kernel = await bench.start()
    kernel.detach()
    other = await bench.adopt(kernel.info.id, Recorder(), 0)
    assert other is not None
    await other.end()
    assert await bench.adopt(kernel.info.id, Recorder(), 0) is None
    assert await bench.adopt("never-was", Recorder(), 0) is None


@can("more")
async def test_the_death_of_an_adopted_kernel_is_reported(bench: Bench) -> None:
    kernel = await bench.start()
    kernel.detach()
    sink = Recorder()
    again = await bench.adopt(kernel.info.id, sink, last_frame(bench.sink))
    assert again is not None
    again.kill()
    await wait_until(lambda: sink.exits, what="the end")
    assert sink.exits[0].signal == 9
    assert not bench.sink.exits


# --- copies ----------------------------------------------------------------------------------------------


async def values(bench: Bench, kernel: Kernel, sink: Recorder) -> str:
    """What ``kept`` shows of the variable, as text or as a result."""
    cell = bench.send(kernel, bench.dialect.kept())
    await wait_until(lambda: sink.ended(cell), what="the cell's end")
    shown = [m.content["data"]["text/plain"] for m in sink.messages(cell, "execute_result")]
    return sink.text(parent=cell).strip() or "".join(shown)


@can("fork")
async def test_a_copy_has_the_variables_and_runs_independently(bench: Bench) -> None:
    kernel = await bench.start()
    assert kernel.forkable
    await bench.run(kernel, bench.dialect.keep())
    request = bench.request()
    forked = await kernel.fork(request, mode="branch")
    assert 0 <= forked.cpu_ms <= forked.cost_ms
    sink = Recorder()
    copy = await bench.wake(request, sink)
    assert copy.info.id == request.kernel
    assert copy.info.pid != kernel.info.pid
    assert await values(bench, copy, sink) == "42"
    assert await values(bench, kernel, bench.sink) == "42"
    copy.kill()
    await wait_until(lambda: sink.exits, what="the copy's end")
    await bench.run(kernel, bench.dialect.say("still here"))
    assert not bench.sink.exits


@can("fork")
async def test_a_copy_survives_its_original(bench: Bench) -> None:
    kernel = await bench.start()
    await bench.run(kernel, bench.dialect.keep())
    request = bench.request()
    await kernel.fork(request, mode="checkpoint")
    kernel.kill()
    await wait_until(lambda: bench.sink.exits, what="the original's end")
    await kernel.end()
    sink = Recorder()
    copy = await bench.wake(request, sink)
    assert await values(bench, copy, sink) == "42"


@can("fork")
async def test_an_unused_copy_is_discarded(bench: Bench) -> None:
    kernel = await bench.start()
    request = bench.request()
    await kernel.fork(request, mode="checkpoint")
    launcher = await bench.backend.launcher()
    await launcher.discard(request.kernel)
    await launcher.discard(request.kernel)
    with pytest.raises(KernelDead):
        await launcher.resume_copy(request, Recorder())


async def test_a_kernel_that_can_not_fork_refuses_with_a_reason(bench: Bench) -> None:
    kernel = await bench.shared()
    if not kernel.forkable:
        with pytest.raises(NotSupported):
            await kernel.fork(bench.request(), mode="checkpoint")
