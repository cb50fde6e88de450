"""The subjects: kernelsvc and its peers, each with a minimal client of its protocol.

A subject opens sessions. A session runs code and returns the received output. Each client reads every message and
parses its JSON, like any real client, and does nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import signal
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import Server, free_port

IMPORTS = "import numpy, pandas\nimport matplotlib.pyplot as plt"
TOKEN = "benchmark-token"
#: A peer may lose the message that ends a cell; after so long without any other it counts as ended.
SILENCE_SECONDS = 6.0
CELL_SECONDS = 120.0
#: A peer that starts fifty kernels at once answers late; it is waited for.
PATIENT_SECONDS = 300.0


@dataclass
class Ran:
    """The result of a cell.

    Attributes:
        seconds: time from the request to the cell's end, or to its last output if no end arrived.
        text: number of received characters of stdout.
        lines: number of line ends in them.
        ended: whether the cell's end arrived.
        parts: the parts of stdout with their time of arrival, if requested.
    """

    seconds: float
    text: int = 0
    lines: int = 0
    ended: bool = True
    parts: list[tuple[float, str]] = field(default_factory=list)

    @property
    def output(self) -> str:
        """The whole of stdout."""
        return "".join(text for _, text in self.parts)

    def saw(self, text: str, *, keep: bool) -> None:
        """Handle a part of stdout."""
        self.text += len(text)
        self.lines += text.count("\n")
        if keep:
            self.parts.append((time.time(), text))


class Session(ABC):
    """One live session of a subject.

    Attributes:
        kernel: process id of its kernel, after ``learn_pids``.
        pids: process ids of all its processes, after ``learn_pids``.
    """

    kernel: int
    pids: list[int]

    @abstractmethod
    async def learn_pids(self) -> None:
        """Find the session's processes."""

    @abstractmethod
    async def run(self, code: str, *, keep: bool = False) -> Ran:
        """Run a cell to its end. ``keep`` keeps its output."""

    @abstractmethod
    async def close(self) -> None:
        """Close the session."""


class Subject(ABC):
    """A subject of the benchmark, which opens sessions."""

    name: str
    server: Server | None = None
    #: Where the server listens.
    port: int = 0
    #: Whether it is measured as thoroughly as we are, though it is slow.
    rival: bool = False

    @abstractmethod
    async def start(self) -> None:
        """Start the subject and wait until it is ready."""

    @abstractmethod
    async def open(self) -> Session:
        """Open a session with numpy, pandas and pyplot imported."""

    def from_afar(self, port: int) -> contextlib.AbstractAsyncContextManager[Subject]:
        """Return the same server behind another port, for a block.

        Raises:
            NotImplementedError: the subject has no server.
        """
        raise NotImplementedError

    async def recover(self) -> None:
        """Start the server again. A failed section may have left work in it, which would slow the next section."""
        if self.server is not None:
            await self.server.stop()
            await self.server.start()

    async def stop(self) -> None:
        """End the subject and all its processes."""
        if self.server is not None:
            await self.server.stop()


async def http(method: str, url: str, *, token: str = TOKEN, body: Any = None) -> Any:
    """Send an HTTP request. Return the JSON of the response, or None."""
    data = json.dumps(body) if body is not None else ("" if method in ("POST", "PUT", "PATCH") else None)
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    request = HTTPRequest(
        url, method=method, headers=headers, body=data, connect_timeout=PATIENT_SECONDS, request_timeout=PATIENT_SECONDS
    )
    answer = await AsyncHTTPClient(max_clients=1000).fetch(request)
    return json.loads(answer.body) if answer.body else None


# --- ourselves ---------------------------------------------------------------------------


class Kernelsvc(Subject):
    """``kernelsvc serve`` in its default configuration, over JSON-RPC and one WebSocket."""

    name = "kernelsvc"

    def __init__(self, python: str, scratch: Path, *settings: str) -> None:
        port = self.port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Sockets want a short path (unix(7)); the data lies where a user's would.
        self._runtime = tempfile.TemporaryDirectory(prefix="kb", dir="/tmp")
        where = ["--data-dir", str(scratch / "data"), "--runtime-dir", self._runtime.name]
        command = [python, "-m", "kernelsvc", "serve", "--port", str(port), "--token", TOKEN, *where, *settings]
        self.server = Server(command, f"{self.url}/readyz", scratch / "kernelsvc.log")
        self.ids = itertools.count(1)
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.watchers: dict[str, OurSession] = {}

    async def start(self) -> None:
        assert self.server is not None
        await self.server.start()
        await self._connect()

    async def _connect(self) -> None:
        self.socket = await connect(
            f"{self.url.replace('http', 'ws')}/v1/ws",
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            max_size=None,
            compression=None,
            open_timeout=PATIENT_SECONDS,
        )
        self.reader = asyncio.create_task(self._read(), name="reader")

    async def _read(self) -> None:
        async for text in self.socket:
            message = json.loads(text)
            if message.get("method") == "event":
                event = message["params"]
                if watcher := self.watchers.get(event["session"]):
                    watcher.saw(event)
            elif (future := self.waiting.pop(message.get("id"), None)) and not future.done():
                if "error" in message:
                    future.set_exception(RuntimeError(json.dumps(message["error"])))
                else:
                    future.set_result(message["result"])

    def listening(self) -> int:
        """Return the number of kernels and checkpoints that listen for the server."""
        return len(list(Path(self._runtime.name).glob("k_*.k")))

    async def call(self, method: str, **params: Any) -> Any:
        """Send a JSON-RPC request and return its result."""
        id = next(self.ids)
        future = self.waiting[id] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
        return await asyncio.wait_for(future, CELL_SECONDS)

    async def open(self) -> Session:
        details = await self.call("session.create")
        return OurSession(self, details)

    @contextlib.asynccontextmanager
    async def from_afar(self, port: int) -> AsyncIterator[Kernelsvc]:
        distant = copy.copy(self)
        distant.url, distant.waiting, distant.watchers = f"http://127.0.0.1:{port}", {}, {}
        await distant._connect()
        try:
            yield distant
        finally:
            await distant._disconnect()

    async def _disconnect(self) -> None:
        self.reader.cancel()
        await self.socket.close()

    async def recover(self) -> None:
        """Do nothing. Work that a failed section left in our server is a fault, and the next section must show it."""

    async def stop(self) -> None:
        if hasattr(self, "reader"):
            await self._disconnect()
        await super().stop()
        self._runtime.cleanup()


class OurSession(Session):
    """A session of kernelsvc."""

    def __init__(self, subject: Kernelsvc, details: dict[str, Any]) -> None:
        self.subject, self.id = subject, details["id"]
        self.kernel = details["kernel"]["pid"]
        self.ran = Ran(0)
        self.keep = False
        subject.watchers[self.id] = self

    def saw(self, event: dict[str, Any]) -> None:
        """Handle an event of this session."""
        if event["type"] == "stream" and event.get("name") == "stdout":
            self.ran.saw(event["text"], keep=self.keep)

    async def run(self, code: str, *, keep: bool = False) -> Ran:
        self.ran, self.keep = Ran(0), keep
        begun = time.perf_counter()
        cell = await self.subject.call("session.execute", session=self.id, code=code)
        self.ran.seconds = time.perf_counter() - begun
        self.ran.ended = cell["reason"] == "ok"
        return self.ran

    async def batch(self, codes: Sequence[str]) -> None:
        """Run cells in one request."""
        cells = await self.subject.call("session.batch", session=self.id, cells=[{"code": code} for code in codes])
        assert all(cell["reason"] == "ok" for cell in cells)

    async def learn_pids(self) -> None:
        # The kernel's parent is the session's own init, whose other descendants are the parked copies.
        init = psutil.Process(self.kernel).parent()
        self.pids = [init.pid, *(child.pid for child in init.children(recursive=True))] if init else [self.kernel]

    async def close(self) -> None:
        await self.subject.call("session.close", session=self.id)
        self.subject.watchers.pop(self.id, None)


# --- what speaks Jupyter's messages ------------------------------------------------------


class JupyterCell:
    """Follows one request through Jupyter's messages. It ends when both its reply and the idle status have arrived."""

    def __init__(self, id: str, *, keep: bool) -> None:
        self.id, self.keep = id, keep
        self.replied = self.idle = False
        self.begun = self.last = time.perf_counter()
        self.ran = Ran(0)

    def saw(self, message: dict[str, Any]) -> bool:
        """Handle a message. Return True if it was the last."""
        if message.get("parent_header", {}).get("msg_id") != self.id:
            return False
        self.last = time.perf_counter()
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            self.ran.saw(content["text"], keep=self.keep)
        elif kind == "status":
            self.idle |= content["execution_state"] == "idle"
        elif kind.endswith("_reply"):
            self.replied = True
        return self.replied and self.idle

    def result(self) -> Ran:
        """Return the result."""
        self.ran.ended = self.replied and self.idle
        self.ran.seconds = self.last - self.begun
        return self.ran


def request(kind: str, content: dict[str, Any], session: str) -> dict[str, Any]:
    """Return a Jupyter request in the plain JSON framing."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "username": "benchmark",
        "session": session,
        "version": "5.3",
        "date": "2025-01-01T00:00:00.000000Z",
    }
    parts = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    return {**parts, "channel": "shell", "buffers": []}


def execution(code: str) -> dict[str, Any]:
    """Return the content of an ``execute_request``."""
    options = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return {"code": code, "stop_on_error": True, **options}


class JupyterServer(Subject):
    """Kernel Gateway, jupyter_server, or another server with ``/api/kernels`` and its WebSocket."""

    #: Answered with 200 once the server can be used.
    ready = "/api"

    def __init__(self, name: str, command: list[str], scratch: Path, port: int, env: dict[str, str]) -> None:
        self.name, self.port = name, port
        self.url = f"http://127.0.0.1:{port}"
        log = scratch / f"{name.replace(' ', '-')}.log"
        self.server = Server(command, f"{self.url}{self.ready}?token={TOKEN}", log, env)
        self.server.stop_signal = signal.SIGTERM

    async def start(self) -> None:
        assert self.server is not None
        await self.server.start()

    @contextlib.asynccontextmanager
    async def from_afar(self, port: int) -> AsyncIterator[JupyterServer]:
        distant = copy.copy(self)
        distant.url = f"http://127.0.0.1:{port}"
        yield distant

    async def make(self) -> tuple[str, str]:
        """Start a kernel. Return its id, and the path to delete it."""
        kernel = (await http("POST", f"{self.url}/api/kernels", body={"name": "python3"}))["id"]
        return kernel, f"/api/kernels/{kernel}"

    async def open(self) -> Session:
        kernel, path = await self.make()
        session = uuid.uuid4().hex
        socket = await connect(
            f"{self.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?session_id={session}&token={TOKEN}",
            max_size=None,
            compression=None,
            open_timeout=PATIENT_SECONDS,
        )
        found = JupyterSession(socket, session, f"{self.url}{path}")
        await found.ask("kernel_info_request", {})
        await found.run(IMPORTS)
        return found


class JupyverseServer(JupyterServer):
    """jupyverse, which starts a kernel with a session for a notebook."""

    ready = "/api/kernelspecs"

    async def make(self) -> tuple[str, str]:
        name = f"{uuid.uuid4().hex}.ipynb"
        body = {"kernel": {"name": "python3"}, "name": name, "path": name, "type": "notebook"}
        session = await http("POST", f"{self.url}/api/sessions", body=body)
        return session["kernel"]["id"], f"/api/sessions/{session['id']}"


class JupyterSession(Session):
    """A kernel behind a WebSocket."""

    def __init__(self, socket: ClientConnection, session: str, url: str) -> None:
        self.socket, self.session, self.url = socket, session, url

    async def learn_pids(self) -> None:
        self.kernel = int((await self.run("import os; print(os.getpid())", keep=True)).output)
        self.pids = [self.kernel]

    async def ask(self, kind: str, content: dict[str, Any], *, keep: bool = False) -> Ran:
        """Send a request and follow it to its end, or to its last message if no end arrives."""
        message = request(kind, content, self.session)
        cell = JupyterCell(message["header"]["msg_id"], keep=keep)
        await self.socket.send(json.dumps(message))
        with contextlib.suppress(asyncio.TimeoutError):
            # A deadline that moves on is dear to set for each message: look now and then instead.
            async with asyncio.timeout(SILENCE_SECONDS) as silence:
                async for text in self.socket:
                    if cell.saw(json.loads(text)):
                        break
                    silence.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)
        return cell.result()

    async def run(self, code: str, *, keep: bool = False) -> Ran:
        return await self.ask("execute_request", execution(code), keep=keep)

    async def close(self) -> None:
        await self.socket.close()
        await http("DELETE", self.url)


class PlainZmq(Subject):
    """``jupyter_client`` and a kernel over ZMQ, without a server."""

    name = "ZMQ, no server"

    async def start(self) -> None:
        """Do nothing: there is no server."""

    async def open(self) -> Session:
        from jupyter_client.manager import AsyncKernelManager

        # Two managers over ipc would share a path and never come up: each gets a connection file of its own.
        place = tempfile.TemporaryDirectory(prefix="kb", dir="/tmp")
        manager = AsyncKernelManager(kernel_name="python3", connection_file=f"{place.name}/c.json", transport="ipc")
        await manager.start_kernel(stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        found = ZmqSession(place, manager, client)
        await found.run(IMPORTS)
        return found


class ZmqSession(Session):
    """A kernel over ZMQ."""

    def __init__(self, place: tempfile.TemporaryDirectory[str], manager: Any, client: Any) -> None:
        self.place, self.manager, self.client = place, manager, client

    async def learn_pids(self) -> None:
        self.kernel = self.manager.provisioner.pid
        self.pids = [self.kernel]

    async def run(self, code: str, *, keep: bool = False) -> Ran:
        cell = JupyterCell(self.client.execute(code, allow_stdin=False), keep=keep)
        readers = (self.client.get_shell_msg, self.client.get_iopub_msg)
        with contextlib.suppress(asyncio.TimeoutError, Exception):
            await asyncio.gather(*(self._follow(cell, reader) for reader in readers))
        return cell.result()

    async def _follow(self, cell: JupyterCell, reader: Any) -> None:
        shell = reader == self.client.get_shell_msg
        while not (cell.replied if shell else cell.idle):
            try:
                cell.saw(await reader(timeout=SILENCE_SECONDS))
            except Exception:  # jupyter_client raises queue.Empty: silence
                if time.perf_counter() - cell.last > SILENCE_SECONDS:
                    return

    async def close(self) -> None:
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)
        self.place.cleanup()
