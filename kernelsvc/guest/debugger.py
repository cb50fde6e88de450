"""Jupyter's debugger (``debug_request``) in a kernel that has one thread until a client starts to debug.

Theory of operation
-------------------
``initialize`` starts the debugger: the main thread imports debugpy, a *control thread* starts, and debugpy's server in
this process (pydevd) connects to the control thread. From then on the control thread reads the wire too, and takes each
``debug_request`` from it, also while the main thread computes or is stopped at a breakpoint. ipykernel's ``Debugger``
implements Jupyter's own requests (``dumpCell``, ``richInspectVariables``) and passes the others to pydevd as messages
of the Debug Adapter Protocol (DAP). ``disconnect`` ends all of these threads.

ipykernel also starts debugpy's adapter, a child process that listens on loopback and lets any process of the machine
run code here. It is not needed: pydevd speaks DAP itself. The listener for pydevd's own connection exists for
milliseconds, and a connection of another process is closed.

A fork has none of these threads (fork(2)), so ``fork_safety`` refuses forks while the debugger is on.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ipykernel.compiler import get_tmp_directory, get_tmp_hash_seed
from IPython.core.inputtransformer2 import leading_empty_lines

from kernelsvc.guest.wire_frames import WireRequest
from kernelsvc.guest.wire_server import FdWatcher, WireServer

#: Largest message of pydevd that is read, in bytes.
MAX_MESSAGE = 64 * 1024 * 1024
#: Seconds for pydevd to connect, and for the control thread to end.
CONNECT_SECONDS, END_SECONDS = 10.0, 5.0
#: pydevd's name for the state of a thread that is not stopped.
_STATE_RUN = 1
#: Modules whose code is not stepped into, and where no breakpoint stops: a stop there could hold the wire's lock.
INTERNAL_MODULES = (
    "asyncio",
    "comm",
    "contextlib",
    "debugpy",
    "ipykernel",
    "IPython",
    "jupyter_client",
    "kernelsvc",
    "threading",
    "tornado",
    "traitlets",
    "zmq",
)
#: ipykernel's name of this thread. ``get_parent`` returns the request of the control channel in it.
_THREAD_NAME = "Control"
_REQUESTS_BEFORE_START = ("inspectVariables", "modules", "richInspectVariables")

Message = dict[str, Any]


def available() -> bool:
    """Whether this environment has debugpy."""
    return importlib.util.find_spec("debugpy") is not None


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo changes of environment variables: pydevd sets some, and programs of the user would inherit them."""
    before = dict(os.environ)
    # Else pydevd warns on stderr that stepping into frozen modules of the standard library is not possible.
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _import_debugger() -> Any:
    """Import debugpy, and return ipykernel's module for it."""
    with _environment_kept():
        # Puts pydevd on ``sys.path`` and selects DAP.
        importlib.import_module("debugpy.server.api")
        if not hasattr(sys.modules.get("ipykernel.debugger"), "VariableExplorer"):
            sys.modules.pop("ipykernel.debugger", None)  # The stand-in without debugpy: see ``ipython``.
        return importlib.import_module("ipykernel.debugger")


class DapClient:
    """A connection to pydevd, in the control thread's loop. Takes the place of ipykernel's ``DebugpyClient``.

    Args:
        on_event: Called with each event of pydevd.
    """

    def __init__(self, on_event: Any) -> None:
        self._on_event = on_event
        self._writer: asyncio.StreamWriter
        self._connected = asyncio.Event()
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._number = 0
        self._initialized = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read messages until the connection ends."""
        self._writer = writer
        self._connected.set()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length:")[2].split()[0])
                if length > MAX_MESSAGE:
                    return
                self._process(json.loads(await reader.readexactly(length)))
        except (OSError, EOFError, ValueError, IndexError):
            return  # The session has ended the debugger, or pydevd has failed.
        finally:
            writer.close()
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(ConnectionError("The debugger has ended. Start it again."))

    def _process(self, message: Message) -> None:
        if message.get("type") == "event":
            if message.get("event") == "initialized":
                self._initialized.set()
            self._on_event(message)
            return
        reply = self._replies.pop(message.get("request_seq", 0), None)
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _request(self, command: str, arguments: Message) -> Message:
        async with asyncio.timeout(CONNECT_SECONDS):
            await self._connected.wait()
        if self._writer.is_closing():
            raise ConnectionError("The debugger has ended. Start it again.")
        self._number += 1
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[self._number] = reply
        body = json.dumps({"type": "request", "seq": self._number, "command": command, "arguments": arguments}).encode()
        self._writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return await reply

    async def send_dap_request(self, message: Message) -> Message:
        """Send a request and return its reply. See ipykernel's ``DebugpyClient``.

        Raises:
            ConnectionError, TimeoutError: The debugger has ended, or has not started.
        """
        command, arguments = str(message["command"]), dict(message.get("arguments") or {})
        if command == "initialize":
            arguments.setdefault("adapterID", "")
        elif command == "attach":
            # ipykernel's arguments for the adapter, which would also write a log file.
            arguments.pop("connect", None)
            arguments.pop("logToFile", None)
            arguments["rules"] = [{"module": name, "include": False} for name in INTERNAL_MODULES]
        elif command == "disconnect":
            arguments["terminateDebuggee"] = False  # pydevd would end the kernel.
        reply = await self._request(command, arguments)
        if command == "attach" and reply.get("success"):
            # The client expects that code runs after "attach", as with debugpy's adapter under ipykernel.
            await self._initialized.wait()
            await self._request("configurationDone", {})
        return {**reply, "request_seq": message.get("seq", 0)}

    def get_host_port(self) -> tuple[str, str]:
        """Return placeholders: there is no address to which a client could connect."""
        return "127.0.0.1", "0"

    def connect_tcp_socket(self) -> None:
        """Do nothing: pydevd connects to this process."""

    def disconnect_tcp_socket(self) -> None:
        """Do nothing: ``ControlThread`` closes the connection."""


class ControlThread(threading.Thread):
    """The thread that answers debug requests. It is also a watcher of the wire, together with the main loop.

    Args:
        kernel: Answers the requests (``ForkableKernel.handle``).
        wire: The kernel's wire.
        listener: The listening socket to which pydevd connects.
    """

    # pydevd neither traces nor suspends threads with these attributes.
    pydev_do_not_trace = True
    is_pydev_daemon_thread = True

    def __init__(self, kernel: Any, wire: WireServer, listener: socket.socket) -> None:
        super().__init__(name=_THREAD_NAME, daemon=True)
        self.loop: asyncio.AbstractEventLoop
        self.debugger: Any = None
        #: Address of pydevd's end of the connection. Set when it is connected.
        self.peer: asyncio.Future[Any]
        self.started = threading.Event()
        self._kernel = kernel
        self._wire = wire
        self._listener = listener
        self._queue: asyncio.Queue[WireRequest]
        self._main: FdWatcher | None = None
        self._resuming: asyncio.Task[Message] | None = None

    # -- calls from other threads ---------------------------------------------------------------

    def join_wire(self) -> None:
        """Start to read the wire, and take its debug requests."""
        self._main = self._wire.watcher
        self._wire.divert = self._take
        self._wire.watch_all(self)

    def _take(self, request: WireRequest) -> bool:
        if request.msg_type != "debug_request":
            return False
        self.loop.call_soon_threadsafe(self._queue.put_nowait, request)
        return True

    def watch(self, fd: int) -> None:
        """See ``FdWatcher``."""
        if self._main is not None:
            self._main.watch(fd)
        self.loop.call_soon_threadsafe(self.loop.add_reader, fd, self._readable)

    def unwatch(self, fd: int) -> None:
        """See ``FdWatcher``."""
        if self._main is not None:
            self._main.unwatch(fd)
        self.loop.call_soon_threadsafe(self.loop.remove_reader, fd)

    def arrived(self) -> None:
        """See ``FdWatcher``."""
        if self._main is not None:
            self._main.arrived()

    # -- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Answer requests until ``disconnect``."""
        try:
            asyncio.run(self._serve())
        except Exception:
            self._kernel.log.exception("the debugger failed and is off")
        finally:
            self.started.set()
            self._leave_wire()

    def _readable(self) -> None:
        if not self._wire.foreign:
            self._wire.serve()

    async def _serve(self) -> None:
        self.loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()
        self.peer = self.loop.create_future()
        self.debugger = self._kernel.debugging.make_debugger()
        self.started.set()
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await self._accept()
        tasks = [
            asyncio.create_task(self.debugger.debugpy_client.serve(*await asyncio.open_connection(sock=sock))),
            asyncio.create_task(self._announce_stops()),
        ]
        try:
            ending = False
            while not ending:
                request = await self._queue.get()
                ending = request.content.get("command") == "disconnect"
                if ending:
                    # Before the reply: the client's next request may start the debugger again.
                    self._leave_wire()
                await self._kernel.handle(request, concurrent=True)
        finally:
            self._leave_wire()
            # Waits until pydevd's threads have ended.
            sys.modules["pydevd"].stoptrace()
            for task in tasks:
                task.cancel()

    async def _accept(self) -> socket.socket:
        """Return pydevd's connection, and close those of other processes."""
        self._listener.setblocking(False)
        with self._listener:
            while True:
                sock, address = await self.loop.sock_accept(self._listener)
                if address == await self.peer:
                    return sock
                sock.close()

    async def _announce_stops(self) -> None:
        while True:
            await self.debugger.handle_stopped_event()

    def _leave_wire(self) -> None:
        main, self._main = self._main, None
        if main is not None:
            self._wire.divert = None
            self._wire.watch_all(main)
            while not self._queue.empty():
                self._wire.inbox.append(self._queue.get_nowait())
            main.arrived()

    def resume(self) -> None:
        """Let all threads continue. Call it in this thread."""
        message = {"command": "continue", "arguments": {"threadId": 1}}
        self._resuming = asyncio.create_task(self.debugger.debugpy_client.send_dap_request(message))

    async def process(self, message: Message) -> Message:
        """Answer one debug request. Call it in this thread."""
        reply: Message = await self.debugger.process_request(message)
        return reply


class KernelDebugger:
    """The debugger of one kernel. It costs nothing until a client starts it.

    Args:
        kernel: The kernel.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._thread: ControlThread | None = None
        self._idle: Any = None  # ipykernel's Debugger, for requests that need no running debugger

    @property
    def active(self) -> bool:
        """Whether the debugger is on."""
        return self._thread is not None and self._thread.is_alive()

    def make_debugger(self) -> Any:
        """Create ipykernel's ``Debugger`` with a connection to pydevd."""
        kernel = self._kernel
        debugger = _import_debugger().Debugger(
            kernel.log,
            None,
            self._publish,
            None,
            kernel.session,
            [],
            kernel.debug_just_my_code,
            kernel.filter_internal_frames,
        )
        debugger.debugpy_client = DapClient(debugger._handle_event)
        debugger.start = lambda: self._keep_empty_lines(debugger)
        return debugger

    def _publish(self, event: Message) -> None:
        kernel, channel = self._kernel, self._kernel.iopub_socket
        kernel.session.send(channel, "debug_event", event, parent=kernel.get_parent("control"))

    def _keep_empty_lines(self, debugger: Any) -> bool:
        """Let IPython keep empty lines at the start of a cell, which would move its breakpoints. ``stop`` undoes it."""
        transforms = self._kernel.shell.input_transformer_manager.cleanup_transforms
        if leading_empty_lines in transforms:
            index = transforms.index(leading_empty_lines)
            debugger._removed_cleanup[index] = transforms.pop(index)
        os.makedirs(get_tmp_directory(), mode=0o700, exist_ok=True)  # ``dumpCell`` writes cells there.
        return True

    async def answer(self, message: Message) -> Message:
        """Answer a ``debug_request``. Call it in the main thread, or in the control thread if the debugger is on."""
        command = message.get("command")
        thread = self._thread
        if thread is not None and thread is threading.current_thread():
            return await thread.process(message)
        if command == "debugInfo":
            return self._info(message)
        if command == "initialize":
            thread = await self._start()
            work = asyncio.run_coroutine_threadsafe(thread.process(message), thread.loop)
            return await asyncio.wrap_future(work)
        if command in _REQUESTS_BEFORE_START:
            self._idle = self._idle or self.make_debugger()
            reply: Message = await self._idle.process_request(message)
            return reply
        return {}  # As ipykernel answers when the debugger is off.

    def _info(self, message: Message) -> Message:
        """Answer ``debugInfo``, which JupyterLab sends to each kernel, without an import of debugpy."""
        body = {
            "isStarted": False,
            "hashMethod": "Murmur2",
            "hashSeed": get_tmp_hash_seed(),
            "tmpFilePrefix": get_tmp_directory() + os.sep,
            "tmpFileSuffix": ".py",
            "breakpoints": [],
            "stoppedThreads": [],
            "richRendering": True,
            "exceptionPaths": ["Python Exceptions"],
            "copyToGlobals": True,
        }
        return {
            "type": "response",
            "request_seq": message.get("seq", 0),
            "success": True,
            "command": "debugInfo",
            "body": body,
        }

    async def _start(self) -> ControlThread:
        self.settle()
        _import_debugger()
        listener = socket.create_server(("127.0.0.1", 0))
        thread = self._thread = ControlThread(self._kernel, self._kernel.session.wire, listener)
        thread.start()
        thread.started.wait(CONNECT_SECONDS)
        pydevd = sys.modules["pydevd"]
        with _environment_kept():
            pydevd.settrace(
                "127.0.0.1",
                port=listener.getsockname()[1],
                suspend=False,
                wait_for_ready_to_run=False,
                block_until_connected=True,
                # Python programs that the user starts are not debugged.
                patch_multiprocessing=False,
                notify_stdin=False,
            )
        address = pydevd.get_global_debugger()._client_socket.getsockname()
        thread.loop.call_soon_threadsafe(thread.peer.set_result, address)
        thread.join_wire()
        return thread

    def resume_stopped(self) -> None:
        """Let stopped threads continue before an interrupt raises in the main thread. Call it in the main thread.

        A KeyboardInterrupt in a stopped thread leaves it marked as stopped, and it would stop again at the next line,
        in IPython. The handler of SIGINT sets only attributes here: pydevd's own functions take locks, which the main
        thread may hold at this moment.
        """
        thread, state = self._thread, getattr(threading.main_thread(), "additional_info", None)
        if thread is not None and thread.is_alive() and state is not None:
            state.pydev_step_cmd, state.pydev_step_stop, state.pydev_state = -1, None, _STATE_RUN
            thread.loop.call_soon_threadsafe(thread.resume)

    def settle(self) -> None:
        """Wait until the threads of a debugger that was turned off have ended. Call it in the main thread."""
        thread = self._thread
        if thread is None or self._kernel.session.wire.divert is not None:
            return
        thread.join(END_SECONDS)
        if sys.gettrace() is not None:
            sys.settrace(None)  # Before Python 3.12 tracing is a property of each thread.
        self._thread = None

    def close_in_child(self) -> None:
        """In a process that user code forked: stop tracing, since pydevd's threads do not exist there (fork(2))."""
        if self._thread is not None:
            self._thread = None
            # pydevd's state in the child may be that of another thread. The child must run on untraced in any case.
            with contextlib.suppress(Exception):
                sys.modules["pydevd"].settrace_forked(setup_tracing=False)
            if sys.version_info >= (3, 12):
                sys.monitoring.set_events(sys.monitoring.DEBUGGER_ID, 0)
