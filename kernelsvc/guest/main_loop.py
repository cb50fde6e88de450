"""A session's process: prepared once in the template, served in each fork of it.

``prepare`` runs in the template and leaves one thread, no socket, no event loop
and a kernel that has run every path a first cell takes. ``serve`` runs in the
forked child and never returns. Its main loop stands at the top of the main
thread's stack whenever no request is being answered, which is where a live
kernel may be forked (``fork``)::

    serve ─ Runner.run ─┬─ idle: the event loop runs until a request arrives
                        ├─ a cell that awaits nothing: run where it was read, in the loop's own callback
                        ├─ another request: the loop runs until it is answered
                        └─ control: survey, fork; loop not running, nothing on the stack
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import os
import platform
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, NoReturn

from kernelsvc.guest import e2b_charts
from kernelsvc.guest.confine import confine
from kernelsvc.guest.forking import copy_tree, fork, immortal
from kernelsvc.guest.forking.prefault import PagePrefault
from kernelsvc.guest.streams import OutputStream
from kernelsvc.guest.wire_frames import KernelRequest
from kernelsvc.guest.wire_server import ControlRequest, WireServer, exit_unreachable

BACKEND = "module://matplotlib_inline.backend_inline"
#: Seconds that a kernel which ends waits for the server to take its last frames.
LAST_WORDS = 5.0

#: What HELLO may say of cells that others have run, and that is no part of who a kernel is.
_PAST = ("execution_count", "ran")

#: One cell for each path that costs milliseconds when it is first taken.
_WARM = (
    "import asyncio\n1 + 1",
    "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))",
    "print('x')\nawait asyncio.sleep(0)",
    "def broken():\n    return 1 / 0\nbroken()",
    "raise KeyError('x')",
)
_WARM_PANDAS = "import pandas as pd\ndf = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})\ndf\ndf.groupby('b').a.mean()"
_WARM_PLOT = "import matplotlib.pyplot as plt\nplt.figure()\nplt.plot([1, 2])\nplt.title('x')\nplt.show()"


class PreparedKernel:
    """What a template holds for its forks."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel


class _Silence:
    """A wire that leads nowhere, for the template."""

    foreign = False

    def text(self, prefix: bytes, text: str) -> None:
        """Drop it."""

    def message(self, payload: bytes, *, hold: bool = False) -> None:
        """Drop it."""

    def cork(self) -> None:
        """Nothing to hold back."""

    def uncork(self) -> None:
        """Nothing was held back."""


# --- in the template ------------------------------------------------------------------


def prepare(preload: Sequence[str]) -> PreparedKernel:
    """Import, warm, make immortal, freeze. The process has one thread afterwards.

    Args:
        preload: modules that every session finds imported already.

    Raises:
        ImportError: one of them is not there.
        RuntimeError: one of them started a thread, which no fork would have.
    """
    os.environ["MPLBACKEND"] = BACKEND
    for name in preload:
        importlib.import_module(name)
    from kernelsvc.guest.ipython import make_kernel

    kernel = make_kernel()
    _warm(kernel, preload)
    _shed_threads()
    names = [_read(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task")]
    if len(names) != 1:
        raise RuntimeError(f"A template must have one thread, not {names}; a module of {list(preload)} starts others.")
    gc.collect()
    prepared = PreparedKernel(kernel)
    immortal.immortalize()
    gc.freeze()
    return prepared


def _shed_threads() -> None:
    """OpenBLAS starts its pool at import and ends it before any fork (pthread_atfork); so fork once, for nothing."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _warm(kernel: Any, preload: Sequence[str]) -> None:
    streams = sys.stdout, sys.stderr
    silence: Any = _Silence()
    kernel.session.wire = silence
    sys.stdout, sys.stderr = OutputStream("stdout", silence), OutputStream("stderr", silence)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    handler = signal.getsignal(signal.SIGINT)
    try:
        for request in _warming(preload):
            loop.run_until_complete(kernel.handle(request))
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.stdout, sys.stderr = streams
        asyncio.set_event_loop(None)
        loop.close()
        kernel.session.wire = None
    _forget(kernel)


def _warming(preload: Sequence[str]) -> list[KernelRequest]:
    cells = [*_WARM]
    if "pandas" in preload:
        cells.append(_WARM_PANDAS)
    if any(name.startswith("matplotlib") for name in preload):
        cells.append(_WARM_PLOT)
    at = {"code": "asyncio.sl", "cursor_pos": 10}
    requests = [("execute_request", {"code": code, "silent": False, "allow_stdin": False}) for code in cells]
    requests += [
        ("complete_request", at),
        ("inspect_request", {**at, "detail_level": 0}),
        ("is_complete_request", at),
        ("kernel_info_request", {}),
        ("kernelsvc_variables_request", {}),
    ]
    return [
        KernelRequest("shell", {"msg_id": f"warm{i}", "msg_type": kind}, b"{}", {}, content, [])
        for i, (kind, content) in enumerate(requests)
    ]


def _forget(kernel: Any) -> None:
    """Leave no trace of warming: names, history, counts, tracebacks, figures."""
    shell = kernel.shell
    shell.reset(new_session=True)
    history = shell.history_manager
    for kept in (history.outputs, history.exceptions, history.output_hist_reprs):
        kept.clear()
    shell.last_execution_result = None
    shell._last_traceback = None
    shell.execution_count = 1
    kernel.session.renew()
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)


# --- in the session --------------------------------------------------------------------


def serve(
    prepared: PreparedKernel,
    identity: Mapping[str, Any],
    listener: socket.socket,
    raw: Sequence[int],
    on_ready: Callable[[], None],
) -> NoReturn:
    """Be a session's kernel until the process ends. For the child of a template, single-threaded.

    Args:
        prepared: from ``prepare``, before the fork.
        identity: ``kernel``, ``session``; ``workdir`` to change to; ``env`` to add; all optional.
        listener: bound, not listening.
        raw: descriptors: stdout read, stdout write, stderr read, stderr write. They are the kernel's from here on.
        on_ready: called once, when the listener listens.
    """
    code = 70
    try:
        runner = MainLoop(prepared.kernel)
        runner.begin(identity, listener, raw)
        on_ready()
        code = runner.run()
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


class MainLoop:
    """The main loop, and what a fork of it must renew.

    Attributes:
        identity: who this kernel is.
        busy: the request that is being answered.
        promised: who a copy becomes at its first HELLO.
        forks: pids of the copies that this process made of itself.
        hot: pages that every cell writes.
        fences: how often Landlock was laid on this process, the session's own confinement included.
        fenced: what it may write to since the last time, when it was the parent of branches.
        ours: set while this process forks itself, so that the at-fork hook lets the child be.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.identity: dict[str, Any] = {}
        self.wire: WireServer
        self.loop: asyncio.AbstractEventLoop
        self.busy: KernelRequest | None = None
        self.ours = False
        self.promised: dict[str, Any] = {}
        self.fences = 1
        self.fenced: list[str] = []
        self.forks: list[int] = []
        self.hot = PagePrefault()
        self._context = copy_context()
        self._reading = False
        self._libc = ctypes.CDLL(None)
        self._c_stdout = ctypes.c_void_p()

    # -- beginnings ------------------------------------------------------------------------

    def begin(self, identity: Mapping[str, Any], listener: socket.socket, raw: Sequence[int]) -> None:
        """Take over the process: identity, streams, wire, loop, signals."""
        self.take_identity(identity)
        reads = self.take_raw(raw)
        self._reseed()
        kernel = self.kernel
        self.wire = kernel.session.wire = WireServer(listener, reads, self._describe)
        sys.stdout, sys.stderr = OutputStream("stdout", self.wire), OutputStream("stderr", self.wire)
        kernel._stdout, kernel._stderr = sys.stdout, sys.stderr
        kernel.session.renew()
        kernel.usage.reopen()
        kernel.flush_c = self.flush_c
        if "" not in sys.path[:1]:
            sys.path.insert(0, "")
        if e2b_charts.wanted():
            e2b_charts.install(kernel.shell)
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.wire.watch_all(self)
        faulthandler.enable(2)
        fork.set_oom_score(fork.OOM_LIVE)
        self._unbuffer_c()
        os.register_at_fork(after_in_child=self._forked)
        signal.signal(signal.SIGINT, kernel.interrupted)
        signal.signal(signal.SIGURG, lambda *_: self.wire.on_sigurg())

    def take_identity(self, identity: Mapping[str, Any]) -> None:
        """Become this session: directory, environment."""
        if identity.get("execution_count"):
            self._catch_up(int(identity["execution_count"]), identity.get("ran") or {})
        self.identity.update({k: v for k, v in identity.items() if v is not None and k not in _PAST})
        os.environ.update({str(k): str(v) for k, v in (identity.get("env") or {}).items()})
        workdir = identity.get("workdir")
        if workdir and identity.get("copy_from"):
            copy_tree.copy(identity["copy_from"], workdir, identity.get("copy_bytes"))
        if workdir:
            with contextlib.suppress(OSError):  # WELCOME tells where we are
                os.chdir(workdir)
            self.kernel.shell.user_ns["_dh"] = [os.getcwd()]
        if identity.get("data_bytes"):
            confine.lower_data(int(identity["data_bytes"]))
        if identity.get("write"):
            confine.restrict_writes([path for path in identity["write"] if os.path.isdir(path)], scope=True)
            self.fences += 1

    def _catch_up(self, count: int, ran: Mapping[str, str]) -> None:
        """Go on counting where the kernel did that this one is woken in the place of; its cells are history too."""
        shell = self.kernel.shell
        history = shell.history_manager
        for number in range(shell.execution_count, count + 1):
            for kept in (history.input_hist_parsed, history.input_hist_raw):
                kept.append(str(ran.get(str(number), "")))
        shell.execution_count = max(shell.execution_count, count + 1)

    @staticmethod
    def take_raw(raw: Sequence[int]) -> list[int]:
        """Put the write ends at 1 and 2; return the read ends, which no subprocess inherits."""
        out_read, out_write, err_read, err_write = raw
        for write, target in ((out_write, 1), (err_write, 2)):
            os.dup2(write, target)
            if write != target:
                os.close(write)
        for read in (out_read, err_read):
            os.set_inheritable(read, False)
        return [out_read, err_read]

    def own_fds(self) -> set[int]:
        """Every descriptor that is the kernel's and not the user's."""
        loop: Any = self.loop
        asyncio_fds = {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
        usage: set[int] = self.kernel.usage.fds()
        return self.wire.fds() | usage | asyncio_fds

    @staticmethod
    def _reseed() -> None:
        """Sessions from one template must not share random numbers; CPython reseeds ``random`` alone."""
        random.seed()
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed()

    def _unbuffer_c(self) -> None:
        """What C code prints should be seen when it is a line, though descriptor 1 is a pipe (setvbuf(3))."""
        try:
            self._c_stdout = ctypes.c_void_p.in_dll(self._libc, "stdout")
            self._libc.setvbuf(self._c_stdout, None, 1, 0)
        except ValueError:
            self._c_stdout = ctypes.c_void_p()

    def _forked(self) -> None:
        """In every child: one that the user forked has no part in the session but its text."""
        if not self.ours:
            self.wire.close_in_child()
            if self.busy is None:  # forked by a background task: it ends when that gives way
                self.loop.call_soon(os._exit, 0)

    def _describe(self, hello: dict[str, Any]) -> dict[str, Any]:
        """What WELCOME says. With the first HELLO a copy becomes who it is told to be."""
        if self.wire.woken is None:
            said = hello.get("identity")
            promised, self.promised = self.promised, {}
            try:
                self.take_identity({**promised, **(said if isinstance(said, dict) else {})})
            except (copy_tree.DirectoryTooLarge, confine.StepFailed, OSError) as error:
                return {"refused": str(error)}  # its server says so and ends it
        from kernelsvc.guest.ipython import IPYKERNEL_VERSION

        return {
            "kernel": self.identity.get("kernel", ""),
            "session": self.identity.get("session", ""),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "ipykernel": IPYKERNEL_VERSION,
            "execution_count": self.kernel.shell.execution_count,
            "workdir": os.getcwd(),
            "busy": self.busy.msg_id if self.busy else None,
        }

    # -- the main loop ------------------------------------------------------------------------

    def run(self) -> int:
        """Answer until told to end; return the exit code."""
        while not self.kernel.ending:
            try:
                self._run()
            except BaseException as error:  # a handler of the user's that raised between two cells, or a task that did
                self.kernel.log.debug("the main loop goes on", exc_info=True)
                self._end_if_deaf()
                self._tell_exit(error)
                self._finish_request()
        self.wire.uncork()
        self.wire.drain(LAST_WORDS)
        return 0

    def _run(self) -> None:
        while not self.kernel.ending:
            if self.wire.foreign:
                os._exit(0)
            if self.wire.inbox:
                self._take(self.wire.inbox.popleft())
            else:
                self.loop.run_forever()

    def _take(self, item: KernelRequest | ControlRequest) -> None:
        if isinstance(item, ControlRequest):
            self._control(item)
            return
        self.busy = item
        self.wire.cork()
        task = self.loop.create_task(self.kernel.handle(item), context=self._context)
        while not task.done():
            self._until_done(task)
        self._finish_request()

    def _until_done(self, task: asyncio.Task[None]) -> None:
        """Run the loop; what a background task throws at it, or user code that stops it, ends no request."""
        try:
            self.loop.run_until_complete(task)
        except BaseException as error:
            self.kernel.log.debug("the loop goes on", exc_info=True)
            self._end_if_deaf()
            self.loop.call_soon(self._tell_exit, error)  # the cell that awaits it shows it first

    @staticmethod
    def _tell_exit(error: BaseException) -> None:
        from kernelsvc.guest import exit_calls  # needs IPython, which is imported in ``prepare``

        exit_calls.tell(error, "a callback or task of the event loop")

    def _end_if_deaf(self) -> None:
        """End when user code closed what the loop polls with: it would fail for ever, and hear nobody."""
        loop: Any = self.loop
        try:
            loop._selector.select(0)
        except (OSError, ValueError):
            exit_unreachable("event loop")

    def _answered_at_once(self) -> bool:
        """Run the next cell here, if it awaits nothing: no task, and no turn of the loop for it.

        The loop is running, as ever while a cell runs; what the cell leaves with it runs next.
        """
        item = self.wire.inbox[0]
        if isinstance(item, ControlRequest) or not self.kernel.runs_through(item):
            return False
        self.wire.inbox.popleft()
        self.busy = item
        self.wire.cork()
        answering = self.kernel.handle(item)
        try:
            self._context.run(answering.send, None)
            answering.close()  # it waits after all, and can't: its end says so
        except StopIteration:
            pass
        self._finish_request()
        if self.kernel.ending:
            self.loop.stop()
        elif self.wire.inbox:
            self.loop.call_soon(self._dispatch)
        return True

    def _finish_request(self) -> None:
        """Every request has an end, and what it brought is sent."""
        self.flush_c()
        if self.busy is not None:
            self.kernel.ensure_end(self.busy)
            self.busy = None
        self.wire.uncork()

    def flush_c(self) -> None:
        """Write out what C code printed."""
        if self._c_stdout:
            self._libc.fflush(self._c_stdout)

    def _control(self, control: ControlRequest) -> None:
        try:
            fork.answer(self, control)
        finally:
            control.close()

    # -- while the loop runs (wire.Watcher) -------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Poll this."""
        self.loop.add_reader(fd, self._readable, fd)

    def unwatch(self, fd: int) -> None:
        """No more."""
        self.loop.remove_reader(fd)

    def arrived(self) -> None:
        """The wire read something outside of ``_readable``."""
        if not self._reading:  # also when the loop is not running: it may be about to
            self.loop.call_soon_threadsafe(self._dispatch)

    def _readable(self, fd: int) -> None:
        if self.wire.foreign:
            return
        self._reading = True
        try:
            self.wire.serve(fd)
        except MemoryError:
            os.write(2, b"There is no memory left to read a request with; the kernel can't go on.\n")
            os._exit(70)
        finally:
            self._reading = False
        self._dispatch()

    def _dispatch(self) -> None:
        """Idle: leave the loop. In an async cell: answer what need not wait for its end."""
        if not self.wire.inbox:
            return
        if self.busy is None:
            if not self._answered_at_once():
                self.loop.stop()
            return
        for item in [i for i in self.wire.inbox if _at_once(i)]:
            self.wire.inbox.remove(item)
            if isinstance(item, ControlRequest) and item.op == "fence":
                self._control(item)
            elif isinstance(item, ControlRequest):
                self.wire.reply(item.number, {"ok": False, "refused": ["A cell is still running; wait for its end."]})
                item.close()
            else:
                self.loop.create_task(self.kernel.handle(item, concurrent=True))


def _at_once(item: KernelRequest | ControlRequest) -> bool:
    return isinstance(item, ControlRequest) or item.channel == "control" or item.msg_type.startswith("comm_")
