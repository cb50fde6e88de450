"""Commands of a sandbox: ``process.Process/*``, programs next to its kernel.

A client that starts a program, or connects to one, gets its output from then on.
If the client disconnects, the program continues, and a client can connect to it
later. A time limit that its caller set ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from functools import partial
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.protocol import connect
from kernelsvc.server.e2b.connect_rpc import RpcHandler
from kernelsvc.server.e2b.exec_files import INTERNAL_TAG
from kernelsvc.server.e2b.models import HOME
from kernelsvc.service.api import ProgramApi, ProgramInfo, ProgramOutput

_SIGNALS = {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL, 15: signal.SIGTERM, 9: signal.SIGKILL}
_DEFAULT_SIZE = (80, 24)
#: Bytes of a read above which the streams of one principal take turns.
MAX_TYPED = 4096


class ProcessConfig(msgspec.Struct, kw_only=True):
    """The command to run."""

    cmd: str
    args: list[str] = []
    envs: dict[str, str] = {}
    cwd: str | None = None


class TerminalSize(msgspec.Struct, kw_only=True):
    """Size of a terminal, in characters."""

    cols: int = _DEFAULT_SIZE[0]
    rows: int = _DEFAULT_SIZE[1]


class TerminalRequest(msgspec.Struct, kw_only=True):
    """A terminal for a program."""

    size: TerminalSize = msgspec.field(default_factory=TerminalSize)


class ProcessStartRequest(msgspec.Struct, kw_only=True):
    """``Start``."""

    process: ProcessConfig
    pty: TerminalRequest | None = None
    tag: str | None = None
    stdin: bool | None = None


class ProcessSelector(msgspec.Struct, kw_only=True):
    """Names a program by pid or tag."""

    pid: int | None = None
    tag: str | None = None


class ProcessInput(msgspec.Struct, kw_only=True):
    """Input for a program, in base64."""

    stdin: str | None = None
    pty: str | None = None


class ProcessCall(msgspec.Struct, kw_only=True):
    """Message of each call except ``Start`` and ``List``: a program, and the call's arguments."""

    process: ProcessSelector = msgspec.field(default_factory=ProcessSelector)
    input: ProcessInput | None = None
    signal: str | int | None = None
    pty: TerminalRequest | None = None


def working_directory(path: str | None) -> str:
    """Convert E2B's path of a directory for ``Programs.start``. A path in the home directory becomes relative."""
    for home in (HOME, "~"):
        if path == home or (path or "").startswith(f"{home}/"):
            return (path or "").removeprefix(home).strip("/")
    return path or ""


class ProcessHandler(RpcHandler):
    """Base of the handlers of a sandbox's programs."""

    route = "/process.Process"

    @property
    def programs(self) -> ProgramApi:
        """The programs of all sandboxes."""
        return self.context.service.programs

    def find(self, selector: ProcessSelector) -> ProgramInfo:
        """Return the selected program.

        Raises:
            NotFound: It does not run.
        """
        return self.programs.find(self.who, self.sandbox, pid=selector.pid, tag=selector.tag)

    def write_input(self, program: ProgramInfo, given: ProcessInput | None) -> None:
        """Write to a program's standard input."""
        if given is not None:
            data = connect.as_bytes(given.pty if given.pty is not None else given.stdin)
            self.programs.write(self.who, self.sandbox, program.id, data)


class ListHandler(ProcessHandler):
    """Handler of ``List``."""

    async def post(self) -> None:
        """List the running programs."""
        running = self.programs.running(self.who, self.sandbox)
        self.answer({"processes": [_model(program) for program in running if program.tag != INTERNAL_TAG]})


class SendInputHandler(ProcessHandler):
    """Handler of ``SendInput``."""

    async def post(self) -> None:
        """Write to the program's input."""
        wanted = self.message(ProcessCall)
        self.write_input(self.find(wanted.process), wanted.input)
        self.answer({})


class CloseStdinHandler(ProcessHandler):
    """Handler of ``CloseStdin``."""

    async def post(self) -> None:
        """Close the program's input."""
        program = self.find(self.message(ProcessCall).process)
        self.programs.close_input(self.who, self.sandbox, program.id)
        self.answer({})


class SendSignalHandler(ProcessHandler):
    """Handler of ``SendSignal``."""

    async def post(self) -> None:
        """Send a signal to the program and its children."""
        wanted = self.message(ProcessCall)
        program = self.find(wanted.process)
        number = _SIGNALS.get(wanted.signal or 0)
        if number is None:
            raise BadRequest(f"The signal must be one of {', '.join(str(name) for name in _SIGNALS)}.")
        self.programs.signal(self.who, self.sandbox, program.id, number)
        self.answer({})


class UpdateHandler(ProcessHandler):
    """Handler of ``Update``."""

    async def post(self) -> None:
        """Resize the program's terminal."""
        wanted = self.message(ProcessCall)
        program = self.find(wanted.process)
        if wanted.pty is not None:
            size = wanted.pty.size
            self.programs.resize(self.who, self.sandbox, program.id, size.cols, size.rows)
        self.answer({})


class StreamHandler(ProcessHandler):
    """Base of the handlers that stream a program's output."""

    async def stream_output(self, program: ProgramInfo, output: ProgramOutput) -> None:
        """Send a program's output until it has ended."""
        try:
            await self._send_event({"start": {"pid": program.pid}})
            while (piece := await self._next(output)) is not None:
                await self._send_event(piece)
        finally:
            output.close()
        if self.is_ended(self.sandbox):
            self.break_off()
        await self._send_event({"end": _end(output.status)})

    async def _next(self, output: ProgramOutput) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(self.pause()):
                piece = await output.next()
        except TimeoutError:
            return {"keepalive": {}}
        return None if piece is None else {"data": {piece[0]: connect.as_text(piece[1])}}

    async def _send_event(self, event: dict[str, Any]) -> None:
        await self.send_message({"event": event})


class StartHandler(StreamHandler):
    """Handler of ``Start``."""

    async def post(self) -> None:
        """Start a program and stream its output."""
        await self.stream(self._start())

    async def _start(self) -> None:
        wanted: ProcessStartRequest = self.message(ProcessStartRequest)
        size = wanted.pty.size if wanted.pty is not None else None
        program, output = await self.programs.start(
            self.who,
            self.sandbox,
            [wanted.process.cmd, *wanted.process.args],
            env={"USER": self.user, "LOGNAME": self.user, **wanted.process.envs},
            cwd=working_directory(wanted.process.cwd),
            tag=wanted.tag,
            with_input=wanted.stdin is not False,  # older clients don't send the field and expect an input
            terminal=(size.cols, size.rows) if size is not None else None,
        )
        limit = connect.seconds(self.request.headers.get("Connect-Timeout-Ms"), 0.001)
        if limit is not None:
            kill = partial(self.programs.signal, self.who, self.sandbox, program.id, signal.SIGKILL)
            asyncio.get_running_loop().call_later(limit, kill)
        await self.stream_output(program, output)


class ProcessConnectHandler(StreamHandler):
    """Handler of ``Connect``."""

    async def post(self) -> None:
        """Stream a program's output from now on."""
        await self.stream(self._attach())

    async def _attach(self) -> None:
        program = self.find(self.message(ProcessCall).process)
        await self.stream_output(program, self.programs.watch(self.who, self.sandbox, program.id))


class StreamInputHandler(ProcessHandler):
    """Handler of ``StreamInput``: a stream of input."""

    max_body_bytes = 1 << 30
    _unparsed: bytearray | None = None
    _program: ProgramInfo | None = None
    _failure: KernelsvcError | None = None

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: pass on whole messages. No more is read before it returns."""
        # A read of 64 KiB may hold 13,000 messages. Short input, as a person types it, does not wait.
        long = len(chunk) > MAX_TYPED
        async with self.context.turn_of(self.who, "input") if long else contextlib.nullcontext():
            self._receive(chunk)

    def _receive(self, chunk: bytes) -> None:
        rest = self._unparsed = bytearray() if self._unparsed is None else self._unparsed
        if self._failure is None:
            rest += chunk
        try:
            for message in connect.take(rest):
                self._on_message(message.get("event", message))
        except KernelsvcError as error:
            self._failure = error
            rest.clear()

    def _on_message(self, event: Any) -> None:
        event = event if isinstance(event, dict) else {}
        if "start" in event:
            self._program = self.find(_converted(event["start"]).process)
        elif "data" in event:
            if self._program is None:
                raise BadRequest("The stream's first message must say which program is meant.")
            self.write_input(self._program, _converted(event["data"]).input)

    async def post(self) -> None:
        """Respond at the end of the input."""
        await self.stream(self._answer())

    async def _answer(self) -> None:
        if self._failure is not None:
            raise self._failure
        await self.send_message({})


def _converted(value: object) -> ProcessCall:
    try:
        return msgspec.convert(value, ProcessCall)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The message can't be read: {error}.") from None


def _model(program: ProgramInfo) -> dict[str, Any]:
    config: dict[str, Any] = {"cmd": program.argv[0], "args": program.argv[1:], "envs": program.env}
    if program.cwd:
        config["cwd"] = program.cwd
    return {"pid": program.pid, "config": config} | ({"tag": program.tag} if program.tag is not None else {})


def _end(status: int | None) -> dict[str, Any]:
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is not None and code >= 0:
        return {"exitCode": code, "exited": True, "status": f"exit status {code}"}
    status_text = "the sandbox ended it" if code is None else f"signal: {signal.strsignal(-code) or -code}".lower()
    return {"exitCode": -1, "exited": False, "status": status_text, "error": status_text}


ROUTES: list[tuple[str, Any]] = [
    (r"/process\.Process/List", ListHandler),
    (r"/process\.Process/Start", StartHandler),
    (r"/process\.Process/Connect", ProcessConnectHandler),
    (r"/process\.Process/SendInput", SendInputHandler),
    (r"/process\.Process/StreamInput", StreamInputHandler),
    (r"/process\.Process/SendSignal", SendSignalHandler),
    (r"/process\.Process/CloseStdin", CloseStdinHandler),
    (r"/process\.Process/Update", UpdateHandler),
]
