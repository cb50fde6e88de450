"""IPython as ipykernel runs it, on one wire instead of five ZMQ sockets.

All code that depends on ipykernel's classes is in this module. Three classes are replaced where they touch the
transport: ``Session.send`` writes a frame, the shell stores no second copy of printed text, and the kernel reads
``input()`` from the wire and knows when an interrupt may be delivered.

Interrupts: SIGINT raises ``KeyboardInterrupt`` only in the cell's own code. An async cell that waits for the loop is
cancelled instead, and its ``CancelledError`` is displayed as ``KeyboardInterrupt``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import importlib
import inspect
import logging
import pdb
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from kernelsvc.guest import environment, limit_errors, variables
from kernelsvc.guest.cell_meter import CellMeter
from kernelsvc.guest.private_modules import os, signal, threading
from kernelsvc.guest.stdio.streams import StandardStreams
from kernelsvc.guest.wire_frames import WireRequest, join, size_error, stream_prefix
from kernelsvc.guest.wire_server import WireServer


def _without_debugpy() -> None:
    """Replace debugpy with a stub. ipykernel would import it, which costs 110 ms and starts a thread."""
    if "ipykernel.debugger" not in sys.modules:
        stand_in = types.ModuleType("ipykernel.debugger")
        stand_in._is_debugpy_available = False  # type: ignore[attr-defined]
        stand_in.Debugger = object  # type: ignore[attr-defined]
        sys.modules["ipykernel.debugger"] = stand_in


_without_debugpy()

import ipykernel  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.zmqshell import ZMQInteractiveShell  # noqa: E402
from IPython.core import debugger  # noqa: E402
from IPython.core.error import UsageError  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from jupyter_client.session import Session, protocol_version, utcnow  # noqa: E402
from traitlets import Any as AnyTrait  # noqa: E402
from traitlets import Bool, Type, default  # noqa: E402
from traitlets.config import Config  # noqa: E402

from kernelsvc.guest import exit_calls, shell_commands  # noqa: E402
from kernelsvc.guest.data import value_data  # noqa: E402
from kernelsvc.guest.data.content_json import encode  # noqa: E402
from kernelsvc.guest.debugger import KernelDebugger, available  # noqa: E402
from kernelsvc.guest.display import DisplayHook, DisplayPublisher, SelectiveFormatter  # noqa: E402
from kernelsvc.guest.interrupt_gate import InterruptGate  # noqa: E402
from kernelsvc.guest.kept_builtins import KeptBuiltins  # noqa: E402
from kernelsvc.guest.model_view.changes import Changes  # noqa: E402
from kernelsvc.guest.model_view.shell_errors import ErrorReports  # noqa: E402
from kernelsvc.guest.plain_cells import PlainCellDetector  # noqa: E402
from kernelsvc.guest.stdio import cell_input  # noqa: E402
from kernelsvc.guest.tools.calls import KernelCalls  # noqa: E402
from kernelsvc.guest.tools.namespace import ToolNamespace  # noqa: E402

IPYKERNEL_VERSION: str = ipykernel.__version__
VARIABLES_REQUEST = "kernelsvc_variables_request"
VALUE_REQUEST = "kernelsvc_value_request"
ENVIRONMENT_REQUEST = "kernelsvc_surroundings_request"
#: The header of a message as JSON: number, type, session, date.
_HEAD = (
    '{"msg_id":"%s_%d","msg_type":"%s","username":"kernel","session":"%s","date":"%s","version":"'
    + protocol_version
    + '"}'
)
#: Largest content that ``send_fast`` encodes itself, in bytes.
_SHORT_BYTES = 64 * 1024
#: Parameters of IPython's ``run_cell``. Later releases have more.
_RUN_CELL_TAKES = frozenset(inspect.signature(InteractiveShell.run_cell).parameters)
#: In place of ``environment.during`` for cells without variables of their own.
_NOTHING = contextlib.nullcontext()
#: Request headers whose JSON is cached for the replies that quote them.
_MAX_PARENTS = 32

#: The C function, without the conversions to enums, which cost more than the call.
_set_handler: Callable[..., Any] = importlib.import_module("_signal").signal
_SIGINT = int(signal.SIGINT)


class ChannelName:
    """Takes the place of a socket in ipykernel. Only its name is used."""

    closed = False

    def __init__(self, name: str) -> None:
        self.name = name.encode()

    def flush(self, *_: Any) -> None:
        """Do nothing: no message is buffered."""


SHELL, CONTROL, IOPUB, STDIN = (ChannelName(name) for name in ("shell", "control", "iopub", "stdin"))


class WireSession(Session):  # type: ignore[misc]
    """Builds Jupyter messages and sends them as MESSAGE frames."""

    wire: WireServer | None = None
    #: Their incomplete lines go out before the next message.
    streams: StandardStreams | None = None
    #: Whether a message that is sent now may be sent together with the next one.
    hold_next = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parents: OrderedDict[str, bytes] = OrderedDict()
        self._name = ""
        self.check_pid = False
        self.new_ids()

    def new_ids(self) -> None:
        """Take new ids after a fork."""
        self._name = self.session = os.urandom(16).hex()
        self._parents.clear()

    def msg_header(self, msg_type: str) -> dict[str, Any]:
        """Return a message header. The date is text already, which is cheaper to encode."""
        self.message_count += 1
        return {
            "msg_id": f"{self._name}_{self.message_count}",
            "msg_type": msg_type,
            "username": "kernel",
            "session": self._name,
            "date": utcnow().isoformat(),
            "version": protocol_version,
        }

    def send_fast(
        self,
        channel: ChannelName,
        msg_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Send a message of the kernel's own like ``send``, without building the message dictionaries."""
        if self.streams is not None:
            self.streams.flush_lines()
        wire, data = self.wire, encode(content)
        if len(data) > _SHORT_BYTES or size_error(data):
            self.send(channel, msg_type, content, parent, metadata=metadata)
        elif wire is not None and not wire.foreign:
            self.message_count += 1
            head = _HEAD % (self._name, self.message_count, msg_type, self._name, utcnow().isoformat())
            wire.message(join(channel.name, head.encode(), self._parent(parent["header"]), encode(metadata), data))

    def send_tool(self, msg_type: str, data: bytes, parent: dict[str, Any]) -> None:
        """Send a message about calls of clients' functions, at once. ``data`` is JSON within the wire's limits."""
        if self.streams is not None:
            self.streams.flush_lines()
        wire = self.wire
        if wire is not None and not wire.foreign:
            self.message_count += 1
            head = _HEAD % (self._name, self.message_count, msg_type, self._name, utcnow().isoformat())
            wire.message(join(b"tools", head.encode(), self._parent(parent.get("header") or {}), b"{}", data))
            if wire.corked:  # code that runs outside of a cell, for example for a completion, waits for an answer
                wire.uncork()

    def remember_header(self, request: WireRequest) -> None:
        """Quote this request's header in its replies byte for byte."""
        self._parents[request.msg_id] = request.raw_header
        if len(self._parents) > _MAX_PARENTS:
            self._parents.popitem(last=False)

    def _parent(self, header: dict[str, Any]) -> bytes:
        known = self._parents.get(header.get("msg_id", ""))
        return known if known is not None else encode(header)

    def send(
        self,
        stream: Any,
        msg_or_type: Any,
        content: Any = None,
        parent: Any = None,
        ident: Any = None,
        buffers: Any = None,
        track: bool = False,
        header: Any = None,
        metadata: Any = None,
    ) -> dict[str, Any]:
        """Send one message on the channel that ``stream`` names."""
        if isinstance(msg_or_type, dict):
            msg = msg_or_type
            buffers = buffers or msg.get("buffers")
        else:
            msg = self.msg(msg_or_type, content=content, parent=parent, header=header, metadata=metadata)
        wire = self.wire
        if self.streams is not None:
            self.streams.flush_lines()
        if wire is not None and not wire.foreign:
            self._send(wire, getattr(stream, "name", b"iopub"), msg, [bytes(b) for b in buffers or ()])
        return msg

    def _send(self, wire: WireServer, channel: bytes, msg: dict[str, Any], buffers: list[bytes]) -> None:
        head = (encode(msg["header"]), self._parent(msg["parent_header"]))
        metadata, content = encode(msg["metadata"]), encode(msg["content"])
        why = size_error(content) or size_error(metadata)
        if why is None:
            try:
                wire.message(join(channel, *head, metadata, content, *buffers), hold=self.hold_next)
                return
            except ValueError as error:
                why = str(error)
        self._send_too_large(wire, channel, head, msg, why)

    def _send_too_large(
        self, wire: WireServer, channel: bytes, head: tuple[bytes, bytes], msg: dict[str, Any], why: str
    ) -> None:
        """Replace a message that is too large for the wire by a text about it. A reply remains a reply."""
        kind = msg["header"]["msg_type"]
        text = f"A {kind} message was not sent: {why}. Show less of it, or write it to a file."
        if channel == b"iopub":
            wire.text(stream_prefix("stderr", msg["parent_header"].get("msg_id", "")), text + "\n")
            return
        count = msg["content"].get("execution_count")
        content = {"status": "error", "ename": "TooLarge", "evalue": text, "traceback": [], "execution_count": count}
        wire.message(join(channel, *head, b"{}", encode(content)))


#: ``tools`` of every session. It has no state.
_TOOLS = ToolNamespace()


class Shell(KeptBuiltins, ErrorReports, shell_commands.ShellCommands, ZMQInteractiveShell):  # type: ignore[misc]
    """The shell of a session."""

    displayhook_class = Type(DisplayHook)
    display_pub_class = Type(DisplayPublisher)

    @default("exiter")  # type: ignore[untyped-decorator]
    def _default_exiter(self) -> Any:
        return exit_calls.Exiter(self)

    def init_builtins(self) -> None:
        """See IPython. ``exit`` and ``quit`` also exist in modules and scripts, where IPython has none."""
        super().init_builtins()
        self.builtin_trap.auto_builtins.update(exit=self.exiter, quit=self.exiter)

    def init_user_ns(self) -> None:
        """See IPython. After a reset ``__main__`` still has the attributes of a module, which multiprocessing reads."""
        super().init_user_ns()
        for name in ("__doc__", "__loader__", "__package__", "__spec__"):
            self.user_ns.setdefault(name, None)
        self.user_ns.setdefault("tools", _TOOLS)
        self.user_ns_hidden["tools"] = _TOOLS

    def init_events(self) -> None:
        """See IPython. A hook that exits does not end the cell."""
        super().init_events()
        hooks: dict[str, Any] = self.events.callbacks
        self.events: exit_calls.SessionHooks = exit_calls.SessionHooks(self, hooks)
        self.events.callbacks.update(hooks)

    def ask_exit(self) -> None:
        """End the code that calls it. ipykernel would end the kernel.

        Raises:
            SystemExit: Always.
        """
        raise SystemExit

    def init_display_formatter(self) -> None:
        """See IPython. Installs ``SelectiveFormatter``."""
        self.display_formatter = SelectiveFormatter(parent=self)
        self.configurables.append(self.display_formatter)

    def set_parent(self, parent: dict[str, Any]) -> None:
        """Set the request that outputs name as their parent. ipykernel would look for streams in ``sys``."""
        self.parent_header = parent
        self.displayhook.set_parent(parent)
        self.display_pub.set_parent(parent)
        self.kernel.streams.set_parent(parent)

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """Do nothing. IPython 9 stores printed text for ``%notebook``, and the session's journal has it already."""
        yield

    def transform_cell(self, raw_cell: str) -> str:
        """Transform a cell once: ipykernel calls this, and IPython calls it again for the same cell."""
        known, self._transformed = self._transformed, None
        if known is not None and known[0] == raw_cell:
            return known[1]
        if self.plain is not None and self.plain.is_plain(raw_cell):
            transformed: str = raw_cell if raw_cell.endswith("\n") else raw_cell + "\n"
        else:
            transformed = super().transform_cell(raw_cell)
        if self.kernel.gate.open:
            self._transformed = raw_cell, transformed
        return transformed

    _transformed: tuple[str, str] | None = None
    _frames_left_out = 0
    #: Set when the shell is complete.
    plain: PlainCellDetector | None = None

    def should_run_async(self, raw_cell: str, *, transformed_cell: str | None = None, **more: Any) -> bool:
        """Whether a cell awaits.

        IPython compiles the cell to find out, so only cells that contain ``await`` or ``async`` get there.
        """
        if transformed_cell is not None and not _may_await(transformed_cell):
            return False
        return bool(super().should_run_async(raw_cell, transformed_cell=transformed_cell, **more))

    def enable_gui(self, gui: Any = None) -> None:
        """Refuse GUI event loops: a session has no screen, and figures are inline."""
        if gui not in (None, "inline", "asyncio"):
            raise UsageError(f"A session has no screen, so {gui!r} can't run in it. Figures appear inline without it.")
        self.active_eventloop = gui

    def _update_exit_now(self, change: Any) -> None:
        """Do nothing. ipykernel would stop the loop, but only ``shutdown_request`` ends the kernel."""


def _wants_reply_only(request: WireRequest) -> bool:
    """Whether the sender wants only the outputs and the reply of a cell, and no status messages or echo."""
    return request.msg_type == "execute_request" and request.content.get("terse") is True


def _may_await(code: str) -> bool:
    return "await" in code or "async" in code


class ForkableKernel(IPythonKernel):  # type: ignore[misc]
    """IPython's kernel without sockets, threads or debugger."""

    shell_class = Type(Shell)
    shell_stream = AnyTrait(SHELL)
    control_stream = AnyTrait(CONTROL)
    iopub_socket = AnyTrait(IOPUB)
    stdin_socket = AnyTrait(STDIN)
    debugpy_stream = AnyTrait(None)
    _supports_kernel_subshells = Bool(False)
    _execute_sleep = 0

    def __init__(self, **kwargs: Any) -> None:
        self.gate = InterruptGate()
        self.usage = CellMeter()
        self.changes = Changes()
        #: Set by a ``shutdown_request``. The main loop then ends.
        self.ending = False
        self._unanswered: dict[str, WireRequest] = {}
        #: Ids of cells that waited when an earlier cell failed (``stop_on_error``).
        self._aborted: set[str] = set()
        self.flush_c: Callable[[], None] = lambda: None
        self.debugging = KernelDebugger(self)
        self.tool_calls = KernelCalls(self)
        self.streams: StandardStreams
        super().__init__(**kwargs)
        self.shell_channel_thread = types.SimpleNamespace(parent_thread=threading.main_thread())
        self.shell_handlers[VARIABLES_REQUEST] = self.variables_request
        self.shell_handlers[VALUE_REQUEST] = self.value_request
        self.shell_handlers[ENVIRONMENT_REQUEST] = self.environment_request
        for action in ("create", "delete", "list"):  # Subshells are threads: see docs/adr/0015. They are refused.
            del self.control_handlers[f"{action}_subshell_request"]

    @property
    def wire(self) -> WireServer | None:
        """The wire, or None in the template."""
        return self.session.wire  # type: ignore[no-any-return]

    def send_tool(self, msg_type: str, data: bytes) -> None:
        """Send a message on the channel ``tools``. See ``WireSession.send_tool``."""
        self.session.send_tool(msg_type, data, self.get_parent("shell") or {})

    @property
    def foreign(self) -> bool:
        """Whether user code forked this process."""
        wire = self.session.wire
        return wire is not None and bool(wire.foreign)

    # -- one request -------------------------------------------------------------------

    async def handle(self, request: WireRequest, *, concurrent: bool = False) -> None:
        """Answer one request: busy, reply, idle. Never raises.

        Args:
            request: A request of any channel.
            concurrent: It came while an async cell runs, which remains the parent of outputs.
        """
        message = request.message()
        channel = CONTROL if request.channel == "control" else SHELL
        handlers = self.control_handlers if channel is CONTROL else self.shell_handlers
        handler = handlers.get(request.msg_type) or self.shell_handlers.get(request.msg_type)
        self.session.remember_header(request)
        # ipykernel's identity is that of a ZMQ socket, which is the client's session id.
        ident = [str(request.header.get("session", "")).encode()]
        self.set_parent(ident, message, channel="control" if concurrent or channel is CONTROL else "shell")
        self._unanswered[request.msg_id] = request
        if not _wants_reply_only(request):
            self._status("busy", message)
        why = "The kernel did not answer."
        try:
            if handler is None:
                self._refuse(channel, message, f"There is no request {request.msg_type!r}.")
            elif request.msg_id in self._aborted:
                self._aborted.discard(request.msg_id)
                self.session.send(channel, "execute_reply", {"status": "aborted"}, parent=message)
            else:
                result = handler(channel, ident, message)
                if result is not None:
                    await result
                if request.msg_type.startswith("comm_"):
                    self.streams.end_cell()
        except BaseException as error:  # Also a SystemExit, such as one from an object that is only inspected.
            self.log.debug("a request failed", exc_info=True)
            why = f"{type(error).__name__}: {error}"
            if request.msg_type.startswith("comm_"):  # A comm message has no reply that could report the error.
                exit_calls.report_exit(error, f"the answer to a {request.msg_type}")
            if not _wants_reply_only(request):
                self._refuse(channel, message, why)
        finally:
            self.ensure_end(request, why)

    def can_run_inline(self, request: WireRequest) -> bool:
        """Whether a request is a cell that awaits nothing, as far as this is known before it runs."""
        code, plain = request.content.get("code"), self.shell.plain
        return _wants_reply_only(request) and isinstance(code, str) and not _may_await(code) and plain.is_plain(code)

    def ensure_end(self, request: WireRequest, why: str = "The kernel did not answer.") -> None:
        """Report once that the request is done: by the idle status, or for a terse cell by the missing reply."""
        if self._unanswered.pop(request.msg_id, None) is None:
            return
        if _wants_reply_only(request):
            self._refuse(SHELL, request.message(), why)
        else:
            self._status("idle", request.message())

    def _status(self, state: str, message: dict[str, Any]) -> None:
        self.session.send_fast(IOPUB, "status", {"execution_state": state}, message)

    def _refuse(self, channel: ChannelName, message: dict[str, Any], why: str) -> None:
        if message["msg_type"].endswith("_request"):
            kind = message["msg_type"].removesuffix("_request") + "_reply"
            content = {"status": "error", "ename": "BadRequest", "evalue": why, "traceback": []}
            self.session.send(channel, kind, content, parent=message)

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """Set the request that outputs name as their parent."""
        super().set_parent(ident, parent, channel)

    # -- cells ----------------------------------------------------------------------------

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a cell. Frames are corked outside of user code, so that a small terse cell costs one write.

        Like ipykernel's, without its support for older IPython releases, subshells and a queue.
        """
        self.usage.begin()
        content, meta = parent["content"], parent["metadata"]
        self.shell.for_model = asked = content.get("changes") is True
        if asked:
            self.changes.begin(self.shell.user_ns, self.shell.user_ns_hidden)
        code, silent, terse = content["code"], bool(content.get("silent", False)), content.get("terse") is True
        metadata = self.init_metadata(parent)
        if not (silent or terse):
            text = {"code": code, "execution_count": self.shell.execution_count}
            self.session.send_fast(IOPUB, "execute_input", text, parent)
        environ = content.get("environ")
        with _NOTHING if environ is None else environment.during(environ):
            reply = await self.do_execute(
                code,
                silent,
                content.get("store_history", not silent),
                content.get("user_expressions", {}),
                content.get("allow_stdin", False),
                cell_meta=meta,
                cell_id=meta.get("cellId"),
            )
        self.streams.end_cell()
        self.flush_c()
        self.session.send_fast(stream, "execute_reply", reply, parent, self.finish_metadata(parent, metadata, reply))
        if terse:  # After the reply: if sending fails, ensure_end() sends an error in its place.
            self._unanswered.pop(parent["header"]["msg_id"], None)
        if reply["status"] == "error" and not (terse or silent) and content.get("stop_on_error", True):
            self._abort_queues()

    async def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run user code. An interrupt can be delivered until this returns."""
        gate, wire = self.gate, self.session.wire
        _set_handler(_SIGINT, self.interrupted)
        if wire is not None:
            wire.uncork()
        self.shell._transformed = self.shell._last_traceback = self.shell.model_lines = None
        gate.cancelled = False
        gate.open = True
        try:
            if self._awaits(code):
                reply: dict[str, Any] = await super().do_execute(code, silent, *args, **kwargs)
            else:
                reply = self._run_cell(code, silent, *args, **kwargs)
            gate.open = False
        except (KeyboardInterrupt, SystemExit) as error:
            gate.open = False
            self.shell.showtraceback(exception_only=isinstance(error, SystemExit))
            reply = self._aborted_reply(error)
        finally:
            gate.open = False
        if self.foreign:
            self._exit_user_fork(reply)
        if self.tool_calls.unused and (warning := self.tool_calls.end_of_cell()):
            self.streams.err.write(warning)
        if wire is not None:
            wire.cork()
        if gate.cancelled and reply.get("ename") == "CancelledError":
            reply["ename"] = "KeyboardInterrupt"
        return reply

    def _awaits(self, code: str) -> bool:
        """Whether a cell may await. Also true for a cell that can't be parsed: ipykernel reports that error."""
        try:
            return _may_await(self.shell.transform_cell(code))
        except Exception:
            return True

    def _run_cell(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a cell that does not await and return its reply, as ipykernel's ``do_execute`` would."""
        shell = self.shell
        self._forward_input(allow_stdin)
        try:
            options = {name: value for name, value in options.items() if name in _RUN_CELL_TAKES}
            result = shell.run_cell(code, store_history=store_history, silent=silent, **options)
        finally:
            self._restore_input()
        good = result.success and not getattr(shell, "_last_traceback_during_displayhook", False)
        reply = {"status": "ok"} if good else self._failure(result)
        reply["execution_count"] = shell.execution_count - 1
        reply["user_expressions"] = shell.user_expressions(user_expressions) if good and user_expressions else {}
        reply["payload"] = shell.payload_manager.read_payload()
        if reply["payload"]:
            shell.payload_manager.clear_payload()
        return reply

    def _failure(self, result: Any) -> dict[str, Any]:
        error = result.error_in_exec if result.error_before_exec is None else result.error_before_exec
        return {
            "status": "error",
            "traceback": self.shell._last_traceback or [],
            "ename": type(error).__name__,
            "evalue": str(error),
            "engine_info": {"engine_uuid": self.ident, "engine_id": self.int_id, "method": "execute"},
        }

    def _aborted_reply(self, error: BaseException) -> dict[str, Any]:
        shell = self.shell
        shell.payload_manager.clear_payload()
        return {
            "status": "error",
            "ename": type(error).__name__,
            "evalue": str(error),
            "traceback": shell._last_traceback or [],
            "execution_count": shell.execution_count - 1,
            "user_expressions": {},
            "payload": [],
        }

    def _exit_user_fork(self, reply: dict[str, Any]) -> None:
        """End a process that user code forked when it leaves its cell, as a script would end."""
        error = getattr(self.shell.last_execution_result, "error_in_exec", None)
        code = exit_calls.status_of(error)[0] if isinstance(error, SystemExit) else int(reply["status"] == "error")
        self.streams.flush()
        os._exit(code)

    def interrupted(self, signum: int, frame: Any) -> None:
        """Handle SIGINT."""
        wire = self.session.wire
        if wire is None or wire.foreign:
            raise KeyboardInterrupt
        self.debugging.resume_stopped()
        wire.run_unlocked(self.gate.deliver)

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        self.gate.waiting = future
        try:
            yield
        finally:
            self.gate.waiting = None

    def init_metadata(self, parent: Any) -> dict[str, Any]:
        """Return the metadata of an execute_reply."""
        return {"started": utcnow().isoformat()}

    def finish_metadata(self, parent: Any, metadata: dict[str, Any], reply_content: Any) -> dict[str, Any]:
        """Add the resources that the cell used."""
        metadata["status"] = reply_content["status"]
        used = metadata["kernelsvc"] = self.usage.end()
        if self.shell.for_model:
            used["changes"] = self.changes.end(self.shell.user_ns, self.shell.user_ns_hidden)
        if reply_content["status"] == "error":
            reply_content["model"] = self.shell.model_lines
            limit = limit_errors.limit_of(getattr(self.shell.last_execution_result, "error_in_exec", None))
            if limit is not None:
                used["struck"] = limit
        return metadata

    def _abort_queues(self, subshell_id: Any = None) -> None:
        """Abort the cells that wait behind one that failed. For clients without a server, which has its own queue."""
        wire = self.session.wire
        if wire is not None and not wire.foreign:
            wire.serve()  # Cells that arrived while the failed one ran are still in the socket.
            self._aborted.update(
                item.msg_id
                for item in wire.inbox
                if isinstance(item, WireRequest) and item.msg_type == "execute_request"
            )

    # -- input -----------------------------------------------------------------------------

    def raw_input(self, prompt: str = "") -> str:
        """``input()`` of cells: asks the client, or reads what user code has put in the place of ``sys.stdin``.

        Raises:
            EOFError: There is no more input, or the client answers no requests.
        """
        stdin = getattr(sys, "stdin", None)  # User code may have deleted it.
        if stdin is not None and stdin is not sys.__stdin__:
            return cell_input.read_line(stdin, prompt)
        if not self._allow_stdin:
            raise cell_input.NoInputRequests(cell_input.NOTE)
        answer: str = super().raw_input(prompt)
        return answer

    def _input_request(self, prompt: str, ident: Any, parent: Any, password: bool = False) -> str:
        if self.foreign or self.session.wire is None:
            raise EOFError("a forked process has no input. Call input() in the cell itself.")
        wire = self.session.wire
        while self._pop_input(wire, []):
            pass  # An answer to a question that was interrupted.
        content = {"prompt": str(prompt), "password": password}
        self.session.send(STDIN, "input_request", content, parent)
        answer: list[str] = []
        wire.wait_for(lambda: bool(answer) or self._pop_input(wire, answer))
        if answer[0] == "\x04":
            raise EOFError
        return answer[0]

    @staticmethod
    def _pop_input(wire: WireServer, into: list[str]) -> bool:
        for item in wire.inbox:
            if isinstance(item, WireRequest) and item.channel == "stdin":
                wire.inbox.remove(item)
                into.append(str(item.content.get("value", "")))
                return True
        return False

    # -- requests between cells ----------------------------------------------------------------

    def do_complete(self, code: str, cursor_pos: int | None) -> Any:
        """Return completions."""
        return _resolved(super().do_complete(code, cursor_pos))

    def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()) -> Any:
        """Return documentation."""
        return _resolved(super().do_inspect(code, cursor_pos, detail_level, omit_sections))

    def do_is_complete(self, code: str) -> Any:
        """Return whether the code is complete."""
        return _resolved(super().do_is_complete(code))

    async def do_debug_request(self, msg: dict[str, Any]) -> dict[str, Any]:
        """Answer a request for the debugger."""
        return await self.debugging.answer(msg) if available() else {}

    @property
    def kernel_info(self) -> dict[str, Any]:
        """The content of ``kernel_info_reply``. ipykernel imports debugpy to find out whether it is installed."""
        return {**super().kernel_info, "supported_features": ["debugger"] if available() else []}

    def do_shutdown(self, restart: bool) -> Any:
        """End the code that calls it. ipykernel would end the kernel.

        Raises:
            SystemExit: Always.
        """
        raise SystemExit

    async def shutdown_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer, and let the main loop end. The host ends child processes with the cgroup."""
        self.ending = True
        content = {"status": "ok", "restart": bool(parent["content"].get("restart"))}
        self.session.send(stream, "shutdown_reply", content, parent)
        self.session.send(IOPUB, "shutdown_reply", content, parent)

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Interrupt the running cell. Between cells, only answer."""
        self.session.send(stream, "interrupt_reply", {"status": "ok"}, parent)
        os.kill(os.getpid(), signal.SIGINT)

    def do_history(self, hist_access_type: str, output: bool, raw: bool, **kwargs: Any) -> Any:
        """Return this session's history. There is no database, so sessions share nothing."""
        history = self.shell.history_manager
        n, pattern = kwargs.get("n"), kwargs.get("pattern") or "*"
        if hist_access_type == "range":
            found = list(history.get_range(0, kwargs.get("start") or 1, kwargs.get("stop"), raw=raw, output=output))
        else:
            found = [e for e in history.get_range(0, 1, None, raw=raw, output=output) if e[1]]
        if hist_access_type == "search":
            found = [e for e in found if fnmatch.fnmatchcase(e[2][0] if output else e[2], pattern)]
            if kwargs.get("unique"):
                found = list({e[2]: e for e in found}.values())
        if hist_access_type in ("tail", "search") and isinstance(n, int):
            found = found[-n:] if n > 0 else []
        if output:
            found = [(s, line, (i, None if o is None else repr(o))) for s, line, (i, o) in found]
        return _resolved({"status": "ok", "history": found})

    async def variables_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer ``kernelsvc_variables_request``: the variables of the namespace (``variables.describe``)."""
        found = variables.describe(self.shell.user_ns, self.shell.user_ns_hidden)
        self.session.send(stream, "kernelsvc_variables_reply", {"status": "ok", "variables": found}, parent)

    async def value_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer ``kernelsvc_value_request``: the data of a variable (``value_data.reply``)."""
        found = value_data.reply(self.shell.user_ns, parent["content"])
        self.session.send(stream, "kernelsvc_value_reply", found, parent)

    async def environment_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer ``kernelsvc_surroundings_request``: change environment variables and working directory."""
        wanted = parent["content"]
        reply = environment.change(wanted.get("environ") or {}, wanted.get("directory"))
        self.session.send(stream, "kernelsvc_surroundings_reply", reply, parent)


def _resolved(value: Any) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def make_kernel() -> ForkableKernel:
    """Create the process's only kernel. It sends nothing until its session has a wire."""
    config = Config()
    config.HistoryManager.enabled = False
    # ``do_execute`` reads the signature for each cell, which costs more than all frames of the cell.
    ZMQInteractiveShell.run_cell_async.__signature__ = inspect.signature(ZMQInteractiveShell.run_cell_async)
    shell_commands.install()
    session = WireSession(key=b"", username="kernel")
    kernel: ForkableKernel = ForkableKernel.instance(
        session=session, config=config, log=logging.getLogger("kernelsvc.guest"), user_ns=None
    )
    kernel.shell.extension_manager.load_extension("storemagic")  # as ipykernel's application does
    kernel.shell.plain = PlainCellDetector(kernel.shell)
    # The modules of user code read the hook here, not in the private copy.
    vars(sys.modules["threading"])["excepthook"] = kernel.shell.report_thread
    exit_calls.without_advice()
    # The plain ``pdb.Pdb`` continues after a KeyboardInterrupt, so an interrupt would not end its cell.
    debugger.Pdb = debugger.InterruptiblePdb
    pdb.Pdb = debugger.InterruptiblePdb  # type: ignore[misc]
    pdb.set_trace = debugger.set_trace
    return kernel
