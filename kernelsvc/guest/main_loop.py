"""The process of a session: prepared once in the template, served in each fork of it.

``prepare`` runs in the template and leaves one thread, no socket, no event loop, and a kernel that has run each code
path of a first cell. ``serve`` runs in the forked child and never returns. Its main loop is at the top of the main
thread's stack while no request is handled. Only there may a live kernel be forked (``fork``)::

    serve ─ MainLoop.run ─┬─ idle: the event loop runs until a request arrives
                          ├─ a cell that awaits nothing: runs in the callback that read it
                          ├─ another request: the loop runs until the reply
                          └─ control: survey, fork. The loop is stopped, and the stack is empty
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import linecache
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, NoReturn

from kernelsvc.guest.confine import confine
from kernelsvc.guest.e2b import charts as e2b_charts
from kernelsvc.guest.e2b import images as e2b_images
from kernelsvc.guest.forking import copy_tree, fork, immortal
from kernelsvc.guest.forking.prefault import PagePrefault
from kernelsvc.guest.home_paths import HomePaths
from kernelsvc.guest.installed_packages import InstalledPackages, move_variables
from kernelsvc.guest.interrupt_gate import deliver_again_if_ignored
from kernelsvc.guest.model_view import fonts
from kernelsvc.guest.private_modules import ctypes, current_directory, gc, open_file, os, random, signal, socket
from kernelsvc.guest.stdio.streams import StandardStreams
from kernelsvc.guest.wire_frames import WireRequest
from kernelsvc.guest.wire_server import ControlRequest, WireServer, exit_unreachable

BACKEND = "module://matplotlib_inline.backend_inline"
#: Seconds for which an ending kernel waits for the server to acknowledge its last frames.
DRAIN_SECONDS = 5.0

#: Variables that a session has unless its own environment sets them. Pagers would wait for a key: these print. less
#: ends by itself if the screen has room for all (less(1), ``-F``).
_ENVIRONMENT = {
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "MANPAGER": "cat",
    "SYSTEMD_PAGER": "cat",
    "LESS": "-FRX",
    # Otherwise Python programs keep what they print until they end, since no terminal reads it.
    "PYTHONUNBUFFERED": "1",
}
#: Fields of HELLO about earlier cells. They are not part of the kernel's identity.
_HISTORY_FIELDS = ("execution_count", "ran")

#: One cell for each code path that costs milliseconds on its first run.
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
    """The kernel of a template, for its forks."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.home_paths = HomePaths(kernel.shell)


class _NullWire:
    """A wire that discards everything, for the template."""

    foreign = False

    def text(self, prefix: bytes, text: str) -> None:
        """Discard text."""

    def message(self, payload: bytes, *, hold: bool = False) -> None:
        """Discard a message."""

    def cork(self) -> None:
        """Do nothing."""

    def uncork(self) -> None:
        """Do nothing."""


# --- in the template ------------------------------------------------------------------


def prepare(preload: Sequence[str]) -> PreparedKernel:
    """Import, warm up, make objects immortal, freeze the garbage collector. Afterwards the process has one thread.

    Args:
        preload: Modules that each session finds imported.

    Raises:
        ImportError: A module does not exist.
        RuntimeError: A module started a thread, which a fork would not have (fork(2)).
    """
    os.environ["MPLBACKEND"] = BACKEND
    from kernelsvc.guest.ipython import make_kernel

    kernel = make_kernel()
    with kernel.shell.builtin_trap:  # Libraries look for ``get_ipython`` when they are imported, as pandas' options do.
        for name in preload:
            importlib.import_module(name)
    fonts.register()
    _warm(kernel, preload)
    _end_openblas_threads()
    names = [_read(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task")]
    if len(names) != 1:
        raise RuntimeError(f"A template must have one thread, not {names}. Remove a module from {list(preload)}.")
    # Python 3.13 keeps the code of "python -c" here. It would be shown as the source of all that exec and eval run.
    linecache.cache.pop("<string>", None)
    deliver_again_if_ignored()
    # Garbage of the warm-up must not be frozen with the rest.
    gc.collect()
    prepared = PreparedKernel(kernel)
    immortal.immortalize()
    gc.freeze()
    return prepared


def _end_openblas_threads() -> None:
    """Fork once: OpenBLAS starts a thread pool at import and ends it in its pthread_atfork(3) handler."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _read(path: str) -> str:
    with open_file(path) as file:
        return file.read().strip()


def _warm(kernel: Any, preload: Sequence[str]) -> None:
    streams = sys.stdout, sys.stderr
    null_wire: Any = _NullWire()
    kernel.session.wire = null_wire
    warming = kernel.streams = StandardStreams(null_wire)
    sys.stdout, sys.stderr = warming.out, warming.err
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    handler = signal.getsignal(signal.SIGINT)
    try:
        for request in _warm_requests(preload):
            loop.run_until_complete(kernel.handle(request))
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.stdout, sys.stderr = streams
        asyncio.set_event_loop(None)
        loop.close()
        kernel.session.wire = None
    _reset_after_warming(kernel)


def _warm_requests(preload: Sequence[str]) -> list[WireRequest]:
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
        WireRequest("shell", {"msg_id": f"warm{i}", "msg_type": kind}, b"{}", {}, content, [])
        for i, (kind, content) in enumerate(requests)
    ]


def _reset_after_warming(kernel: Any) -> None:
    """Remove all traces of the warm-up cells: names, history, counts, tracebacks, figures."""
    shell = kernel.shell
    shell.reset(new_session=True)
    history = shell.history_manager
    for entries in (history.outputs, history.exceptions, history.output_hist_reprs):
        entries.clear()
    shell.last_execution_result = None
    shell._last_traceback = None
    shell.execution_count = 1
    kernel.session.new_ids()
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
    """Run a session's kernel until the process ends. Call it in the single-threaded child of a template.

    Args:
        prepared: The result of ``prepare`` before the fork.
        identity: ``kernel``, ``session``, ``workdir`` (new working directory), ``env`` (variables to add), all
            optional.
        listener: A bound socket that does not listen yet.
        raw: Descriptors, owned by the kernel from now on: stdout read, stdout write, stderr read, stderr write.
        on_ready: Called once when the listener listens.
    """
    code = 70
    try:
        main_loop = MainLoop(prepared.kernel, prepared.home_paths)
        main_loop.begin(identity, listener, raw)
        on_ready()
        code = main_loop.run()
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


class MainLoop:
    """The main loop, and all state that must be replaced in a fork of it.

    Attributes:
        identity: Ids and settings of this kernel.
        busy: The request that is being handled.
        pending_identity: Identity that a fork takes at its first HELLO.
        forks: Pids of forks that this process made of itself.
        prefault: Pages that every cell writes.
        landlock_layers: Landlock layers on this process, the session's own confinement included.
        write_paths: Directories that this process may write to since it became the parent of branches.
        forking_itself: Set while this process forks itself, so that the at-fork hook ignores the child.
    """

    def __init__(self, kernel: Any, home_paths: HomePaths) -> None:
        self.kernel = kernel
        self._home_paths = home_paths
        self._installed = InstalledPackages()
        self.identity: dict[str, Any] = {}
        self.wire: WireServer
        self.loop: asyncio.AbstractEventLoop
        self.busy: WireRequest | None = None
        self.forking_itself = False
        self.pending_identity: dict[str, Any] = {}
        self.landlock_layers = 1
        self.write_paths: list[str] = []
        self.forks: list[int] = []
        self.prefault = PagePrefault()
        self._context = copy_context()
        self._reading = False
        self._libc = ctypes.CDLL(None)
        self._c_stdout = ctypes.c_void_p()

    # -- beginnings ------------------------------------------------------------------------

    def begin(self, identity: Mapping[str, Any], listener: socket.socket, raw: Sequence[int]) -> None:
        """Set up the process: identity, streams, wire, loop, signals."""
        self.apply_identity(identity)
        # Confinement replaces the environment that ``prepare`` set.
        os.environ.setdefault("MPLBACKEND", BACKEND)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        reads = self.install_stdio(raw)
        self._reseed()
        kernel = self.kernel
        self.wire = kernel.session.wire = WireServer(listener, reads, self._describe)
        kernel.streams = kernel.session.streams = StandardStreams(self.wire)
        kernel.streams.install()
        kernel._stdout, kernel._stderr = kernel.streams.out, kernel.streams.err
        kernel.session.new_ids()
        kernel.usage.reopen()
        kernel.flush_c = self.flush_c
        kernel.tool_calls.identify = lambda: str(self.identity.get("kernel", ""))
        if "" not in sys.path[:1]:
            # As for an interactive interpreter: modules in the working directory can be imported.
            sys.path.insert(0, "")
        if e2b_charts.wanted():
            e2b_charts.install(kernel.shell)
            e2b_images.install()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.wire.watch_all(self)
        # A crash in C code (SIGSEGV) writes the Python traceback to the cell's stderr.
        faulthandler.enable(2)
        fork.set_oom_score(confine.OOM_LIVE)
        self._unbuffer_c()
        # Also runs in children of multiprocessing and of C code that calls PyOS_AfterFork_Child.
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        signal.signal(signal.SIGINT, kernel.interrupted)
        # The default action ignores SIGURG (signal(7)), so it harms no program that user code starts.
        signal.signal(signal.SIGURG, lambda *_: self.wire.on_sigurg())

    def apply_identity(self, identity: Mapping[str, Any]) -> None:
        """Take a session's identity: working directory, environment, limits."""
        if identity.get("execution_count"):
            self.continue_history(int(identity["execution_count"]), identity.get("ran") or {})
        self.identity.update({k: v for k, v in identity.items() if v is not None and k not in _HISTORY_FIELDS})
        before = os.environ.get("HOME", "")
        os.environ.update({str(k): str(v) for k, v in (identity.get("env") or {}).items()})
        move_variables(before, os.environ.get("HOME", ""))
        self._home_paths.move(os.path.expanduser("~"))
        self._installed.use()
        workdir = identity.get("workdir")
        if workdir and identity.get("copy_from"):
            copy_tree.copy(identity["copy_from"], workdir, identity.get("copy_bytes"))
        if workdir:
            with contextlib.suppress(OSError):  # WELCOME reports the actual directory.
                os.chdir(workdir)
            self.kernel.shell.user_ns["_dh"] = [current_directory() or workdir]
        if identity.get("data_bytes"):
            confine.lower_data(int(identity["data_bytes"]))
        if identity.get("write"):
            confine.restrict_writes([path for path in identity["write"] if os.path.isdir(path)], scope=True)
            self.landlock_layers += 1

    def continue_history(self, count: int, ran: Mapping[str, str]) -> None:
        """Continue the execution count and the history of the kernel that this one replaces."""
        shell = self.kernel.shell
        history = shell.history_manager
        for number in range(shell.execution_count, count + 1):
            for entries in (history.input_hist_parsed, history.input_hist_raw):
                entries.append(str(ran.get(str(number), "")))
        shell.execution_count = max(shell.execution_count, count + 1)

    @staticmethod
    def install_stdio(raw: Sequence[int]) -> list[int]:
        """Put the write ends at 1 and 2. Return the read ends, which no subprocess inherits."""
        out_read, out_write, err_read, err_write = raw
        for write, target in ((out_write, 1), (err_write, 2)):
            # dup2(2) closes the old target, and os.dup2 makes the new one inheritable for subprocesses.
            os.dup2(write, target)
            if write != target:
                os.close(write)
        for read in (out_read, err_read):
            # A subprocess with a read end would keep the pipe open after the kernel has ended (pipe(7)).
            os.set_inheritable(read, False)
        return [out_read, err_read]

    def own_fds(self) -> set[int]:
        """Return all descriptors that belong to the kernel and not to user code."""
        loop: Any = self.loop
        asyncio_fds = {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
        usage: set[int] = self.kernel.usage.fds()
        return self.wire.fds() | usage | asyncio_fds

    @staticmethod
    def _reseed() -> None:
        """Seed the random generators: forks of one template must not share numbers. CPython seeds only ``random``."""
        random.seed()
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed()

    def _unbuffer_c(self) -> None:
        """Make C's stdout line-buffered although descriptor 1 is a pipe (setvbuf(3), ``_IOLBF``)."""
        try:
            self._c_stdout = ctypes.c_void_p.in_dll(self._libc, "stdout")
            self._libc.setvbuf(self._c_stdout, None, 1, 0)
        except ValueError:
            self._c_stdout = ctypes.c_void_p()

    def _after_fork_in_child(self) -> None:
        """In every child: detach a process that user code forked from the wire. It still writes text."""
        if not self.forking_itself:
            self.wire.close_in_child()
            self.kernel.debugging.close_in_child()
            self.kernel.streams.after_fork()
            if self.busy is None:  # Forked by a background task: the process ends when that task yields.
                self.loop.call_soon(os._exit, 0)

    def _describe(self, hello: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of WELCOME. At the first HELLO a fork takes its identity."""
        if self.wire.hello is None:
            wanted = hello.get("identity")
            pending, self.pending_identity = self.pending_identity, {}
            try:
                self.apply_identity({**pending, **(wanted if isinstance(wanted, dict) else {})})
            except (copy_tree.DirectoryTooLarge, confine.StepFailed, OSError) as error:
                return {"refused": str(error)}  # The server reports this and ends the kernel.
        from kernelsvc.guest.ipython import IPYKERNEL_VERSION

        return {
            "kernel": self.identity.get("kernel", ""),
            "session": self.identity.get("session", ""),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "ipykernel": IPYKERNEL_VERSION,
            "execution_count": self.kernel.shell.execution_count,
            "workdir": current_directory(),
            "busy": self.busy.msg_id if self.busy else None,
            **self.kernel.tool_calls.welcome(),
        }

    # -- the main loop ------------------------------------------------------------------------

    def run(self) -> int:
        """Handle requests until a shutdown. Return the exit code."""
        while not self.kernel.ending:
            try:
                self._run()
            except BaseException as error:  # Raised between two cells by a user's signal handler or task.
                self.kernel.log.debug("the main loop continues after an exception", exc_info=True)
                self._exit_if_unreachable()
                self._report_exit(error)
                self._finish_request()
        self.wire.uncork()
        self.wire.drain(DRAIN_SECONDS)
        return 0

    def _run(self) -> None:
        while not self.kernel.ending:
            if self.wire.foreign:
                os._exit(0)
            if self.wire.inbox:
                self._process(self.wire.inbox.popleft())
            else:
                self.loop.run_forever()

    def _process(self, item: WireRequest | ControlRequest) -> None:
        if isinstance(item, ControlRequest):
            self._handle_control(item)
            return
        self.busy = item
        self.wire.cork()
        task = self.loop.create_task(self.kernel.handle(item), context=self._context)
        while not task.done():
            self._run_until_done(task)
        self._finish_request()

    def _run_until_done(self, task: asyncio.Task[None]) -> None:
        """Run the loop until the task is done. Background tasks that raise or stop the loop end no request."""
        try:
            self.loop.run_until_complete(task)
        except BaseException as error:
            self.kernel.log.debug("the event loop continues after an exception", exc_info=True)
            self._exit_if_unreachable()
            self.loop.call_soon(self._report_exit, error)  # The cell that awaits the task shows the error first.

    @staticmethod
    def _report_exit(error: BaseException) -> None:
        from kernelsvc.guest import exit_calls  # needs IPython, which is imported in ``prepare``

        exit_calls.report_exit(error, "a callback or task of the event loop")

    def _exit_if_unreachable(self) -> None:
        """End the process if user code closed the descriptors of the event loop, which then fails on every call."""
        loop: Any = self.loop
        try:
            loop._selector.select(0)
        except (OSError, ValueError):
            exit_unreachable("event loop")

    def _run_inline(self) -> bool:
        """Run the next cell in this callback if it awaits nothing, which saves a task and a loop iteration.

        The loop is running, as always during a cell. Callbacks that the cell schedules run afterwards.
        """
        item = self.wire.inbox[0]
        if isinstance(item, ControlRequest) or not self.kernel.can_run_inline(item):
            return False
        self.wire.inbox.popleft()
        self.busy = item
        self.wire.cork()
        coroutine = self.kernel.handle(item)
        try:
            self._context.run(coroutine.send, None)
            coroutine.close()  # The cell awaits after all. Closing the coroutine ends the request.
        except StopIteration:
            pass
        self._finish_request()
        if self.kernel.ending:
            self.loop.stop()
        elif self.wire.inbox:
            self.loop.call_soon(self._dispatch)
        return True

    def _finish_request(self) -> None:
        """Send the end of the current request and its frames."""
        self.flush_c()
        if self.busy is not None:
            self.kernel.ensure_end(self.busy)
            self.busy = None
        self.wire.uncork()

    def flush_c(self) -> None:
        """Flush the output of C code (fflush(3))."""
        if self._c_stdout:
            self._libc.fflush(self._c_stdout)

    def _handle_control(self, control: ControlRequest) -> None:
        try:
            fork.handle_control(self, control)
        except BaseException as error:  # The server waits for an answer, and records the reason.
            self.wire.reply(control.number, {"ok": False, "refused": [f"{type(error).__name__}: {error}"]})
            if not isinstance(error, Exception):
                raise  # Of a signal handler of user code: the main loop reports it.
        finally:
            control.close()

    # -- while the loop runs (wire.Watcher) -------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Start to poll a descriptor."""
        self.loop.add_reader(fd, self._readable, fd)

    def unwatch(self, fd: int) -> None:
        """Stop polling a descriptor."""
        self.loop.remove_reader(fd)

    def arrived(self) -> None:
        """Dispatch requests that the wire read outside of ``_readable``."""
        if not self._reading:  # Also when the loop is stopped, since it may be about to start.
            # ``call_soon_threadsafe`` also wakes a loop that is blocked in its selector.
            self.loop.call_soon_threadsafe(self._dispatch)

    def _readable(self, fd: int) -> None:
        if self.wire.foreign:
            return
        self._reading = True
        try:
            self.wire.serve(fd)
        except MemoryError:
            os.write(2, b"The kernel ends: it has no memory left to read a request.\n")
            os._exit(70)
        finally:
            self._reading = False
        self._dispatch()

    def _dispatch(self) -> None:
        """Idle: stop the loop to handle a request. In an async cell: answer requests that need not wait for its end."""
        if not self.wire.inbox:
            return
        if self.busy is None:
            if not self._run_inline():
                self.loop.stop()
            return
        for item in [i for i in self.wire.inbox if _runs_concurrently(i)]:
            self.wire.inbox.remove(item)
            if isinstance(item, ControlRequest) and item.op == "fence":
                self._handle_control(item)
            elif isinstance(item, ControlRequest):
                self.wire.reply(item.number, {"ok": False, "refused": ["A cell is still running; wait for its end."]})
                item.close()
            else:
                self.loop.create_task(self.kernel.handle(item, concurrent=True))


def _runs_concurrently(item: WireRequest | ControlRequest) -> bool:
    if isinstance(item, ControlRequest) or item.msg_type.startswith("comm_"):
        return True
    return item.channel == "control" and item.msg_type != "execute_request"  # A cell waits for the running one.
