"""The SandboxFusion API: ``/run_code`` for Python, and ``/run_jupyter``.

Each request has a session of its own, a fork of the template with numpy and pandas
loaded. The session ends with the request, and its log stays. SandboxFusion's client
sends no token, so the endpoint contains it: ``http://HOST:PORT/t/TOKEN``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellInfo, CellRequest, SessionRequest
from kernelsvc.protocol.jsonrpc import decode_json
from kernelsvc.server.handler import ApiHandler
from kernelsvc.server.jupyter.handlers import token_of
from kernelsvc.server.sandboxai import PREFIX

MAIN = "main.py"
#: Most files of one request, and most bytes of all files that the response returns: the server holds them in memory.
MAX_FILES, MAX_FETCHED = 1000, 32 * 1024 * 1024
MAX_CELLS = 1000


class RunCodeRequest(msgspec.Struct):
    """``POST /run_code``."""

    code: str
    language: str
    run_timeout: float = 10
    compile_timeout: float = 10
    stdin: str | None = None
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []


class RunJupyterRequest(msgspec.Struct):
    """``POST /run_jupyter``."""

    cells: list[str]
    cell_timeout: float = 0
    total_timeout: float = 45
    kernel: str = "python3"
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []


_code_decoder = msgspec.json.Decoder(RunCodeRequest)
_jupyter_decoder = msgspec.json.Decoder(RunJupyterRequest)

#: Runs main.py as a program in the warm process, and returns its exit status as the cell's value. Its own frames are
#: removed from a traceback, so that the first frame is the program's.
_PROGRAM = """\
def _run(stdin):
    import builtins, io, runpy, sys, traceback
    sys.stdin, sys.argv = io.StringIO(stdin), ["main.py"]
    def read(prompt=""):
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError("EOF when reading a line")
        return line.removesuffix("\\n")
    builtins.input, builtins.exit, builtins.quit = read, sys.exit, sys.exit
    try:
        runpy.run_path("main.py", run_name="__main__")
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 255
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != "main.py":
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
        return 1
_run({stdin!r})
"""


def program(stdin: str | None) -> str:
    """Return the cell that runs ``main.py``."""
    return _PROGRAM.replace("{stdin!r}", repr(stdin or ""))


def stream(cell: CellInfo, name: str) -> str:
    """Return the text that a cell wrote to one stream."""
    texts = (each["text"] for each in cell.outputs if each["output_type"] == "stream" and each["name"] == name)
    return "".join("".join(text) if isinstance(text, list) else text for text in texts)


def program_result(cell: CellInfo) -> dict[str, Any]:
    """Return ``run_result``: how a program ended."""
    seconds, cpu = (cell.usage.wall_ms or 0) / 1000, (cell.usage.cpu_ms or 0) / 1000
    common = {"execution_time": seconds, "cpu_time": cpu, "stdout": stream(cell, "stdout")}
    errors = stream(cell, "stderr")
    if cell.reason is Reason.TIMEOUT:
        return {**common, "status": "TimeLimitExceeded", "return_code": None, "stderr": errors}
    code = _exit_status(cell)
    if code is None:
        errors += f"{cell.message or cell.text}\n"
    return {**common, "status": "Finished", "return_code": 1 if code is None else code, "stderr": errors}


def _exit_status(cell: CellInfo) -> int | None:
    """Return the program's exit status. None if its process died first."""
    for each in reversed(cell.outputs):
        if each["output_type"] == "execute_result":
            text = str(each["data"].get("text/plain", ""))
            return int(text) if text.isascii() and text.isdecimal() else None
    return None


def cell_result(cell: CellInfo) -> dict[str, Any]:
    """Return one cell's result for ``/run_jupyter``."""
    display = [each["data"] for each in cell.outputs if each["output_type"] in ("display_data", "execute_result")]
    error = [] if cell.error is None else [msgspec.to_builtins(cell.error)]
    if cell.error is None and cell.reason is not Reason.OK:
        error = [{"ename": str(cell.reason), "evalue": cell.message or "", "traceback": []}]
    return {"stdout": stream(cell, "stdout"), "stderr": stream(cell, "stderr"), "display": display, "error": error}


class SandboxFusionHandler(ApiHandler):
    """Base of SandboxFusion's handlers: one session for each request."""

    transport = "sandboxfusion"
    route = "/"
    session = ""

    def token(self) -> str | None:
        """Return the token that the request carries."""
        return token_of(self, query=False)

    async def post(self) -> None:
        """Serve the request. A refusal has SandboxFusion's format, which its client raises as an error."""
        self.auth_scope("run")
        body = self.body()
        try:
            self.answer(await self.while_connected(self.in_session(body)))
        except (BadRequest, NotFound) as error:
            refused = {"status": "SandboxError", "message": error.message, "files": {}, "cells": []}
            self.answer(refused)

    async def in_session(self, body: bytes) -> dict[str, Any]:
        """Create the session, run the request in it, and close it."""
        asked, files = self.parse_request(body)
        labels = {"door": "sandboxfusion"}
        made = await self.context.service.create(self.who, SessionRequest(name=self.route[1:], labels=labels))
        self.session = made.id
        try:
            await self.upload(files)
            return await self.run(asked)
        finally:
            await asyncio.shield(self.context.service.close(self.who, made.id, reason="closed"))

    def parse_request(self, body: bytes) -> tuple[Any, dict[bytes, bytes]]:
        """Decode the request and the files to write first. Has no side effects."""
        raise NotImplementedError

    async def run(self, asked: Any) -> dict[str, Any]:
        """Run the decoded request in the current session."""
        raise NotImplementedError

    async def execute(self, code: str, seconds: float) -> CellInfo:
        """Run one cell to its end."""
        request = CellRequest(code=code, timeout_seconds=seconds, on_error="continue")
        return await self.context.service.execute(self.who, self.session, request, client=self)

    async def upload(self, files: dict[bytes, bytes]) -> None:
        """Write files into the session's directory."""
        for name, data in files.items():
            await self.context.service.files.put(self.who, self.session, name, data, record=False)

    async def read_files(self, names: list[str]) -> dict[str, str]:
        """Return files of the session's directory in base64. Missing files are omitted.

        Raises:
            BadRequest: Together they are too large.
        """
        found: dict[str, str] = {}
        room = MAX_FETCHED
        for name in names:
            try:
                reader = await self.context.service.files.open(self.who, self.session, os.fsencode(name))
            except KernelsvcError:
                continue
            try:
                content = await reader.read(0, room + 1)
                room -= len(content)
                if room < 0:
                    raise BadRequest(f"The files to fetch have more than {MAX_FETCHED} bytes. Fetch fewer of them.")
                found[name] = (await asyncio.to_thread(base64.b64encode, content)).decode()
            finally:
                reader.close()
        return found


class RunCodeHandler(SandboxFusionHandler):
    """Handler of ``/run_code``."""

    route = "/run_code"

    def parse_request(self, body: bytes) -> tuple[RunCodeRequest, dict[bytes, bytes]]:
        """Decode the request. The program becomes one of its files."""
        asked = decode_json(_code_decoder, body, "body")
        if asked.language != "python":
            raise BadRequest(f"The language {asked.language!r} is not supported. Use 'python'.")
        _check_limits(asked.run_timeout, asked.files, asked.fetch_files)
        return asked, {**_decode_files(asked.files), MAIN.encode(): asked.code.encode()}

    async def run(self, asked: RunCodeRequest) -> dict[str, Any]:
        """Run the program."""
        cell = await self.execute(program(asked.stdin), asked.run_timeout)
        ended = program_result(cell)
        good = ended["status"] == "Finished" and ended["return_code"] == 0
        return {
            "status": "Success" if good else "Failed",
            "message": "",
            "compile_result": None,
            "run_result": ended,
            "executor_pod_name": self.session,
            "files": await self.read_files(asked.fetch_files),
        }


class RunJupyterHandler(SandboxFusionHandler):
    """Handler of ``/run_jupyter``."""

    route = "/run_jupyter"

    def parse_request(self, body: bytes) -> tuple[RunJupyterRequest, dict[bytes, bytes]]:
        """Decode the request and its files."""
        asked = decode_json(_jupyter_decoder, body, "body")
        if asked.kernel != "python3" or len(asked.cells) > MAX_CELLS:
            raise BadRequest(f"Give at most {MAX_CELLS} cells, and the kernel 'python3'.")
        _check_limits(asked.total_timeout, asked.files, asked.fetch_files)
        return asked, _decode_files(asked.files)

    async def run(self, asked: RunJupyterRequest) -> dict[str, Any]:
        """Run the cells in order."""
        clock = asyncio.get_running_loop().time
        began, late = clock(), False
        cells: list[CellInfo] = []
        for code in asked.cells:
            left = asked.total_timeout - (clock() - began)
            if left <= 0:
                late = True
                break
            # A cell_timeout of 0 means no limit for the cell.
            cells.append(await self.execute(code, min(left, asked.cell_timeout or left)))
            late = late or cells[-1].reason is Reason.TIMEOUT
        driver = {
            "status": "TimeLimitExceeded" if late else "Finished",
            "execution_time": clock() - began,
            "return_code": None if late else 0,
            "stdout": "",
            "stderr": "",
        }
        return {
            "status": "Failed" if late else "Success",
            "message": "",
            "driver": driver,
            "cells": [cell_result(cell) for cell in cells],
            "executor_pod_name": self.session,
            "files": await self.read_files(asked.fetch_files),
        }


def _check_limits(seconds: float, files: dict[str, str | None], read_files: list[str]) -> None:
    if not 0 < seconds <= 24 * 3600:
        raise BadRequest("A time-out is more than 0 and at most a day. Give it in seconds.")
    if len(files) > MAX_FILES or len(read_files) > MAX_FILES:
        raise BadRequest(f"One request carries at most {MAX_FILES} files. Put them into an archive.")


def _decode_files(files: dict[str, str | None]) -> dict[bytes, bytes]:
    try:
        return {os.fsencode(name): base64.b64decode(content) for name, content in files.items() if content is not None}
    except (binascii.Error, ValueError):
        raise BadRequest("A file is not base64. Encode its content and send it again.") from None


def routes(shared: dict[str, Any]) -> list[Any]:
    """Return Tornado's routes of the SandboxFusion API.

    Args:
        shared: Passed to each handler's ``initialize``.
    """
    return [(rf"{PREFIX}/run_code", RunCodeHandler, shared), (rf"{PREFIX}/run_jupyter", RunJupyterHandler, shared)]
