"""A fake kernel in this process, for tests of the layers above ``kernels.port``.

It implements the whole contract of ``port`` (the same test suite runs on it and on the
real kernels), numbers its frames, and continues after a ``detach`` like a real process.

With ``FakeLauncher(python=True)`` a cell is Python code that runs in this process.
It may use top-level ``await``. Its output is that of ``print``, and the value of the
last expression. An interrupt ends a cell at its next ``await``. Such cells are not
confined: run only code of your own tests. Otherwise a cell is a script, with one
command in each line:

=====================  ==================================================
``print TEXT``         a line on stdout
``err TEXT``           a line on stderr
``raw TEXT``           a line on stdout from no cell, as C code writes it
``lines N``            N numbered lines, one delivery each
``big N``              one text of N characters
``show MIME DATA``     a display
``clear``              clears the output
``result TEXT``        the value of the cell
``error NAME TEXT``    raise
``set NAME VALUE``     a variable
``get NAME``           the value of the variable is that of the cell
``input PROMPT``       wait for input, and print it
``password PROMPT``    the same for a password
``wait NAME``          until ``FakeLauncher.release(NAME)``, or an interrupt
``hang``               without an end, and without a reaction to interrupts
``die SIGNUM``         end as by a signal
``exit CODE``          end with a status
``oom``                end as by the OOM killer
``garble``             break the protocol
=====================  ==================================================
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import CodeType
from typing import Any, Literal

from kernelsvc.errors import CannotFork, KernelDead, KernelsvcError
from kernelsvc.kernels.port import ForkResult, KernelMessage, Output, SaveResult, Sink, StartRequest, StreamText
from kernelsvc.model.events import KernelInfo, SandboxReport
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.protocol.kernel_messages import ExecuteRequest, KernelRequest

Channel = Literal["shell", "control", "stdin"]
Reply = dict[str, Any]


class Raised(Exception):
    """An error that the script raises. ``args`` are its name and its text."""


class Died(Exception):
    """The end of the process, by the script. ``args[0]`` is the ``Exit``."""


class FakeProcess:
    """The process of a fake kernel. It continues while no server is attached."""

    def __init__(self, kernel: str, pid: int, gates: dict[str, asyncio.Event], *, python: bool = False) -> None:
        self.kernel, self.pid, self._gates, self._python = kernel, pid, gates, python
        self.variables: dict[str, Any] = {}
        self.seen: list[str] = []
        self.sink: Sink | None = None
        self.exit: Exit | None = None
        self._loop = asyncio.get_running_loop()
        self._frames = itertools.count(1)
        self._kept: list[Output] = []
        self._refused: list[Output] | None = None
        self._pumping: asyncio.Handle | None = None
        self._count = 0
        self._cell = ""
        self._deaf = False
        self._allow_stdin = False
        self._answer: asyncio.Future[str] | None = None
        self._requests: asyncio.Queue[tuple[str, dict[str, Any]] | Callable[[], None]] = asyncio.Queue()
        self._interrupted = asyncio.Event()
        self._task = self._loop.create_task(self._run(), name=f"fake kernel {kernel}")

    # -- the server's side ----------------------------------------------------------------

    def attach(self, sink: Sink, last_frame: int = 0) -> None:
        """Deliver everything above ``last_frame`` to ``sink``, and all later output."""
        self.sink = sink
        self._kept = [o for o in self._kept if (o.frame or 0) > last_frame]
        self._wake()

    def detach(self) -> None:
        """Keep all output until a server attaches."""
        self.sink, self._refused = None, None

    def resume(self) -> None:
        """Deliver the refused batch again."""
        self._pump()

    def request(self, msg_id: str, content: dict[str, Any]) -> None:
        """Queue a cell."""
        self.seen.append(msg_id)
        self._requests.put_nowait((msg_id, content))

    def interrupt(self) -> None:
        """Raise in the running cell, as SIGINT does. Does nothing without one."""
        if not self._deaf and self._cell:
            self._interrupted.set()

    async def copy(self, kernel: str, processes: dict[str, FakeProcess], force: bool) -> None:
        """Make a process with the same variables and count between two cells. No server is attached to it."""
        made: asyncio.Future[None] = self._loop.create_future()

        def fork() -> None:
            if "thread" in self.variables and not force:
                made.set_exception(CannotFork(reasons=["the thread 'thread' is running"]))
                return
            child = FakeProcess(kernel, 100_000 + len(processes), self._gates, python=self._python)
            child.variables, child._count = dict(self.variables), self._count
            processes[kernel] = child
            made.set_result(None)

        self._requests.put_nowait(fork)
        await asyncio.wait([made, self._task], return_when="FIRST_COMPLETED")
        if not made.done():
            raise KernelDead()
        made.result()

    def answer(self, value: str) -> None:
        """Pass an ``input_reply`` to the cell that waits for it. Without one it is ignored."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(value)

    def end(self, how: Exit) -> None:
        """End the process immediately."""
        if self.exit is None:
            self.exit = how
            self._task.cancel()
            self._wake()

    def emit(self, output: Output) -> None:
        """Number an output and send it."""
        values = {name: getattr(output, name) for name in output.__struct_fields__}
        self._kept.append(type(output)(**values | {"frame": next(self._frames)}))
        self._wake()

    def _wake(self) -> None:
        if self._pumping is None and self._refused is None and self.sink is not None:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        if self.sink is None:
            return
        batch = self._refused or list(self._kept)
        self._refused = None
        if batch:
            try:
                self.sink.deliver(batch)
            except OSError:
                self._refused = batch
                return
            del self._kept[: len(batch)]
        if self._kept:
            self._wake()
        elif self.exit is not None:
            sink, self.sink = self.sink, None
            sink.exited(self.exit)

    # -- the script -----------------------------------------------------------------------

    def _message(self, channel: str, msg_type: str, content: dict[str, Any], parent: str | None = None) -> None:
        parent = self._cell if parent is None else parent
        self.emit(KernelMessage(channel=channel, msg_type=msg_type, parent=parent, content=content))

    def reply(self, msg_type: str, content: dict[str, Any], parent: str) -> None:
        """Answer a request that is not a cell, with the status messages around it."""
        for state in ("busy", "idle"):
            self._message("iopub", "status", {"execution_state": state}, parent)
        self._message("shell", msg_type, {"status": "ok"} | content, parent)

    async def _run(self) -> None:
        try:
            while True:
                wanted = await self._requests.get()
                if callable(wanted):
                    wanted()
                else:
                    await self._cell_of(*wanted)
        except Died as death:
            self.exit = death.args[0]
            self._wake()

    async def _cell_of(self, msg_id: str, content: dict[str, Any]) -> None:
        self._cell, self._allow_stdin = msg_id, bool(content["allow_stdin"])
        wordy = not content.get("terse")
        if wordy:
            self._message("iopub", "status", {"execution_state": "busy"})
        count = self._count
        if not content["silent"]:
            count = self._count = self._count + 1
            if wordy:
                self._message("iopub", "execute_input", {"code": content["code"], "execution_count": count})
        reply: Reply = {"status": "ok", "execution_count": count, "payload": [], "user_expressions": {}}
        try:
            await (self._run_python if self._python else self._run_script)(content["code"])
        except Raised as error:
            name, text = error.args
            failure = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
            self._message("iopub", "error", failure)
            reply |= {"status": "error"} | failure
        self._message("shell", "execute_reply", reply)
        if wordy:
            self._message("iopub", "status", {"execution_state": "idle"})
        self._interrupted.clear()
        self._cell = ""

    async def _run_script(self, code: str) -> None:
        for line in code.splitlines():
            await self._command(*line.strip().partition(" ")[::2])

    async def _run_python(self, code: str) -> None:
        await asyncio.sleep(0)  # a real kernel never answers within the call
        try:
            value = await self._evaluate(code)
        except (Raised, Died):
            raise
        except Exception as error:
            raise Raised(type(error).__name__, str(error)) from error
        if value is not None:
            self._do_result(repr(value))

    async def _evaluate(self, code: str) -> object:
        """Run Python code. Return the value of its last expression, or None."""
        scope = {**self.variables, "print": self._print, "__name__": "__main__"}
        try:
            tree = ast.parse(code)
            last = tree.body[-1] if tree.body else None
            if isinstance(last, ast.Expr):
                tree.body.pop()
            await self._run_block(compile(tree, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
            if not isinstance(last, ast.Expr):
                return None
            expression = ast.Expression(last.value)
            return await self._run_block(compile(expression, "<cell>", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
        finally:
            hidden = {"print", "__name__", "__builtins__"}
            self.variables = {name: value for name, value in scope.items() if name not in hidden}

    async def _run_block(self, code: CodeType, scope: dict[str, Any]) -> object:
        value = eval(code, scope)
        return await self._or_interrupt(value) if inspect.iscoroutine(value) else value

    def _print(
        self, *values: object, sep: str = " ", end: str = "\n", file: object = None, flush: bool = False
    ) -> None:
        text = sep.join(map(str, values)) + end
        name: Literal["stdout", "stderr"] = "stderr" if file is sys.stderr else "stdout"
        self.emit(StreamText(name=name, text=text, parent=self._cell))

    async def _command(self, word: str, rest: str) -> None:
        await asyncio.sleep(0)  # a real kernel never answers within the call
        if not word or word.startswith("#"):
            return
        run: Callable[[str], Awaitable[None] | None] | None = getattr(self, f"_do_{word}", None)
        if run is None:
            raise Raised("SyntaxError", f"unknown command {word!r}")
        waiting = run(rest)
        if waiting is not None:
            await waiting

    def _do_print(self, rest: str) -> None:
        self.emit(StreamText(name="stdout", text=rest + "\n", parent=self._cell))

    def _do_err(self, rest: str) -> None:
        self.emit(StreamText(name="stderr", text=rest + "\n", parent=self._cell))

    def _do_raw(self, rest: str) -> None:
        self.emit(StreamText(name="stdout", text=rest + "\n"))

    def _do_big(self, rest: str) -> None:
        self.emit(StreamText(name="stdout", text="x" * int(rest), parent=self._cell))

    async def _do_lines(self, rest: str) -> None:
        for number in range(int(rest)):
            self._do_print(str(number))
            await asyncio.sleep(0)

    def _do_show(self, rest: str) -> None:
        mime, _, data = rest.partition(" ")
        self._message("iopub", "display_data", {"data": {mime: data}, "metadata": {}, "transient": {}})

    def _do_clear(self, _rest: str) -> None:
        self._message("iopub", "clear_output", {"wait": False})

    def _do_result(self, rest: str) -> None:
        value = {"data": {"text/plain": rest}, "metadata": {}, "execution_count": self._count}
        self._message("iopub", "execute_result", value)

    def _do_error(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        raise Raised(name, text)

    def _do_set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        self.variables[name] = value

    def _do_get(self, rest: str) -> None:
        if rest not in self.variables:
            raise Raised("NameError", f"name {rest!r} is not defined")
        self._do_result(self.variables[rest])

    async def _do_input(self, prompt: str, password: bool = False) -> None:
        if not self._allow_stdin:
            raise Raised("StdinNotImplementedError", "this cell may not ask for input")
        self._answer = self._loop.create_future()
        self._message("stdin", "input_request", {"prompt": prompt, "password": password})
        try:
            await self._or_interrupt(self._answer)
            self._do_print(self._answer.result())
        finally:
            self._answer = None

    async def _do_password(self, prompt: str) -> None:
        await self._do_input(prompt, password=True)

    async def _do_wait(self, name: str) -> None:
        await self._or_interrupt(self._gates.setdefault(name, asyncio.Event()).wait())

    async def _do_hang(self, _rest: str) -> None:
        self._deaf = True
        await self._loop.create_future()

    async def _or_interrupt(self, what: Awaitable[Any]) -> Any:
        """Return the value of an awaitable. An interrupt cancels it and raises KeyboardInterrupt in the cell."""
        waiting = asyncio.ensure_future(what)
        stop = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait({waiting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Raised("KeyboardInterrupt", "")
            return waiting.result()
        finally:
            waiting.cancel()
            stop.cancel()

    def _do_die(self, rest: str) -> None:
        raise Died(killed(int(rest or signal.SIGSEGV)))

    def _do_exit(self, rest: str) -> None:
        code = int(rest or 0)
        raise Died(Exit(cause=Cause.EXITED, message=f"The kernel's process ended with status {code}.", exit_code=code))

    def _do_oom(self, _rest: str) -> None:
        text = "memory: 64 MiB reached; the kernel was killed by the OOM killer"
        raise Died(Exit(cause=Cause.MEMORY, message=text, signal=signal.SIGKILL))

    def _do_garble(self, _rest: str) -> None:
        raise Died(Exit(cause=Cause.PROTOCOL, message="The kernel broke the protocol (garbled) and was ended."))


def killed(signum: int) -> Exit:
    """Return the exit of a process that a signal killed."""
    name = signal.Signals(signum).name
    return Exit(cause=Cause.SIGNALLED, message=f"The kernel was killed by {name}.", signal=signum)


def _variable(name: str, value: object) -> dict[str, Any]:
    return {"name": name, "type": type(value).__name__, "summary": repr(value)[:100]}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


class FakeKernel:
    """``port.Kernel`` on a ``FakeProcess``."""

    forkable = True
    ordered = True

    def __init__(self, process: FakeProcess, processes: dict[str, FakeProcess]) -> None:
        self.process = process
        self.processes = processes
        self.home = "/home/user"
        self.info = KernelInfo(kind="forked", pid=process.pid, python="3.11.0", id=process.kernel, language="fake")
        self.sandbox = SandboxReport()

    def execute(self, request: ExecuteRequest) -> None:
        """See ``port.Kernel``."""
        self.process.request(request.msg_id, request.content(stop_on_error=True) | {"terse": True})

    def send(self, request: KernelRequest) -> None:
        """See ``port.Kernel``."""
        msg_type, content = request.msg_type, request.content
        if msg_type == "input_reply":
            self.process.seen.append(request.msg_id)
            self.process.answer(str(content.get("value", "")))
        elif msg_type == "execute_request":
            self.process.request(request.msg_id, {"silent": False, "allow_stdin": False} | content)
        elif msg_type.endswith("_request"):
            names = sorted(self.process.variables)
            about = {
                "protocol_version": "5.4",
                "language_info": {"name": "fake"},
                "matches": names,
                "cursor_start": 0,
                "cursor_end": content.get("cursor_pos", 0),
                "found": False,
                "data": {},
                "variables": [_variable(name, self.process.variables[name]) for name in names],
            }
            if msg_type == "kernelsvc_value_request":
                failure = f"There is no variable {str(content.get('name'))[:100]!r}."
                about = {"status": "error", "ename": "not_found", "evalue": failure}
            self.process.reply(msg_type.removesuffix("request") + "reply", about, request.msg_id)

    def interrupt(self, seconds: float = 0.0) -> None:
        """See ``port.Kernel``."""
        self.process.interrupt()

    def kill(self, *, everything: bool = False) -> None:
        """See ``port.Kernel``."""
        self.process.end(killed(signal.SIGKILL))

    @property
    def unsent_bytes(self) -> int:
        """See ``port.Kernel``."""
        return 0

    @property
    def kept_bytes(self) -> int:
        """See ``port.Kernel``."""
        return 0

    def resume(self) -> None:
        """See ``port.Kernel``."""
        self.process.resume()

    def detach(self) -> None:
        """See ``port.Kernel``."""
        self.process.detach()

    async def end(self) -> None:
        """See ``port.Kernel``."""
        self.process.detach()
        self.process.end(killed(signal.SIGKILL))

    def has_received(self, msg_id: str) -> bool:
        """See ``port.Kernel``."""
        return msg_id in self.process.seen

    async def fork(
        self, copy: StartRequest, *, mode: Literal["checkpoint", "branch"], force: bool = False
    ) -> ForkResult:
        """See ``port.Kernel``. A kernel with a variable named ``thread`` can't be forked."""
        await self.process.copy(copy.kernel, self.processes, force)
        return ForkResult(cost_ms=1.0, cpu_ms=1.0)

    async def restrict_writes(self, write: Sequence[str]) -> str:
        """See ``port.Kernel``. A fake kernel is not confined."""
        return ""

    async def save(self, fd: int) -> SaveResult:
        """See ``port.Kernel``."""
        kept = {name: value for name, value in self.process.variables.items() if _is_json(value)}
        os.write(fd, json.dumps(kept).encode())
        return SaveResult(count=len(kept))

    async def continue_history(self, execution_count: int, ran: Mapping[int, str]) -> None:
        """See ``port.Kernel``."""
        self.process._count = execution_count

    async def load(self, fd: int, *, execution_count: int) -> SaveResult:
        """See ``port.Kernel``."""
        self.process.variables = json.loads(os.read(fd, 1 << 20))
        self.process._count = execution_count
        return SaveResult(count=len(self.process.variables))


class FakeLauncher:
    """``port.Launcher`` of fake kernels.

    Args:
        python: whether a cell is Python code, and not a script.

    Attributes:
        processes: every process ever started, by kernel id, for tests to inspect.
        refusals: errors that the next starts raise, in this order.
        delay: an event that every start waits for, or None.
    """

    def __init__(self, *, python: bool = False) -> None:
        self.python = python
        self.processes: dict[str, FakeProcess] = {}
        self.refusals: list[KernelsvcError] = []
        self.delay: asyncio.Event | None = None
        self._gates: dict[str, asyncio.Event] = {}

    def release(self, name: str) -> None:
        """Continue cells that ``wait NAME``, now and later."""
        self._gates.setdefault(name, asyncio.Event()).set()

    def alive(self) -> list[str]:
        """The kernels that have not ended."""
        return [name for name, process in self.processes.items() if process.exit is None]

    async def start(self, request: StartRequest, sink: Sink) -> FakeKernel:
        """See ``port.Launcher``."""
        if self.delay is not None:
            await self.delay.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        process = FakeProcess(request.kernel, 100_000 + len(self.processes), self._gates, python=self.python)
        self.processes[request.kernel] = process
        process.attach(sink)
        return FakeKernel(process, self.processes)

    async def adopt(self, request: StartRequest, sink: Sink, *, last_frame: int) -> FakeKernel | None:
        """See ``port.Launcher``."""
        process = self.processes.get(request.kernel)
        if process is None or process.exit is not None:
            return None
        process.attach(sink, last_frame)
        return FakeKernel(process, self.processes)

    async def how_ended(self, kernel: str) -> Exit | None:
        """See ``port.Launcher``."""
        return None

    async def resume_copy(self, request: StartRequest, sink: Sink) -> FakeKernel:
        """See ``port.Launcher``."""
        kernel = await self.adopt(request, sink, last_frame=0)
        if kernel is None:
            raise KernelDead()
        return kernel

    async def discard(self, kernel: str) -> None:
        """See ``port.Launcher``."""
        if kernel in self.processes:
            self.processes[kernel].end(killed(signal.SIGKILL))

    def close(self) -> None:
        """End every process without a report to the sinks. For the end of a test."""
        for process in self.processes.values():
            process.detach()
            process.end(killed(signal.SIGKILL))
