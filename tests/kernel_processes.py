"""Real kernels over the real wire, with no host: a template in a process of its own that forks when asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waiting import wait_until

from kernelsvc.kernels.forked.wire_client import WireClient, WireLost
from kernelsvc.kernels.port import KernelMessage, Output, StreamText
from kernelsvc.linux import procfs

DEADLINE = 30.0

_numbers = itertools.count(1)

_TEMPLATE = """
import json, os, signal, socket, sys
from kernelsvc.guest.main_loop import prepare, serve
control = socket.socket(fileno=int(sys.argv[1]))
prepared = prepare(json.loads(sys.argv[2]))
control.send(b"ready")
while True:
    data, fds, _, _ = socket.recv_fds(control, 65536, 5)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    if not data:
        break
    pid = os.fork()
    if pid == 0:
        control.close()
        os.setsid()
        serve(prepared, json.loads(data), socket.socket(fileno=fds[0]), fds[1:], lambda: None)
    for fd in fds:
        os.close(fd)
    control.send(str(pid).encode())
"""


def bound(path: Path) -> list[int]:
    """What a kernel is given: a bound listener and two pipes; the caller closes them."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    return [sock.detach(), *os.pipe(), *os.pipe()]


class Template:
    """A prepared process and the kernels that were forked from it."""

    def __init__(self, preload: Sequence[str] = ("numpy", "pandas", "matplotlib.pyplot")) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-W", "error::DeprecationWarning:kernelsvc", "-c", _TEMPLATE, str(theirs.fileno())]
        self.process = subprocess.Popen([*argv, json.dumps(list(preload))], pass_fds=[theirs.fileno()], cwd=self.folder)
        theirs.close()
        self.control.settimeout(DEADLINE)
        assert self.control.recv(64) == b"ready"
        self.pids: list[int] = []
        self.clients: list[Client] = []
        self._count = 0

    def path(self) -> Path:
        """Where the next kernel listens."""
        self._count += 1
        return self.folder / f"{self._count}.k"

    def spawn(self, **identity: Any) -> Path:
        """Fork a kernel; the socket it listens on."""
        path = self.path()
        fds = bound(path)
        workdir = self.folder / f"{path.stem}.d"
        workdir.mkdir()
        said = {"kernel": path.stem, "session": f"s{path.stem}", "workdir": str(workdir), **identity}
        socket.send_fds(self.control, [json.dumps(said).encode()], fds)
        self.pids.append(int(self.control.recv(64)))
        for fd in fds:
            os.close(fd)
        return path

    def close(self) -> None:
        """End the template and every kernel."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.control.close()
        self.process.wait(DEADLINE)


@dataclass
class Answer:
    """Everything that one request brought."""

    items: list[Output] = field(default_factory=list)

    def messages(self, msg_type: str) -> list[KernelMessage]:
        return [m for m in self.items if isinstance(m, KernelMessage) and m.msg_type == msg_type]

    @property
    def stdout(self) -> str:
        return "".join(t.text for t in self.items if isinstance(t, StreamText) and t.name == "stdout")

    @property
    def stderr(self) -> str:
        return "".join(t.text for t in self.items if isinstance(t, StreamText) and t.name == "stderr")

    @property
    def result(self) -> str | None:
        found = self.messages("execute_result")
        return found[-1].content["data"]["text/plain"] if found else None

    @property
    def displays(self) -> list[dict[str, Any]]:
        return [m.content["data"] for m in self.items if isinstance(m, KernelMessage) and m.msg_type == "display_data"]

    @property
    def error(self) -> str | None:
        found = self.messages("error")
        return found[-1].content["ename"] if found else None

    @property
    def reply(self) -> KernelMessage:
        (found,) = [m for m in self.items if isinstance(m, KernelMessage) and m.msg_type.endswith("_reply")]
        return found


class Client:
    """The server's end of one kernel, as a test wants it."""

    def __init__(self, wire: WireClient, template: Template) -> None:
        self.wire = wire
        self.template = template
        self.got: list[Output] = []
        self.batches: list[list[Output]] = []
        self.loss: WireLost | None = None
        self.refusing = False
        self.pid = wire.peer_pid
        self._news = asyncio.Event()
        wire.start(self.deliver, self._lost)

    @classmethod
    async def open(cls, template: Template, path: Path, **options: Any) -> Client:
        client = cls(await WireClient.connect(str(path), **options), template)
        template.pids.append(client.pid)
        template.clients.append(client)
        return client

    def deliver(self, batch: Sequence[Output]) -> None:
        if self.refusing:
            raise OSError(28, "No space left on device")
        self.got += batch
        self.batches.append(list(batch))
        self._news.set()

    def _lost(self, loss: WireLost) -> None:
        self.loss = loss
        self._news.set()

    async def until(self, condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
        """Wait for something that a delivery makes true."""
        end = now() + deadline
        while not (value := condition()):
            if self.loss is not None:
                raise self.loss
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), end - now())
            except TimeoutError:
                raise AssertionError(f"not within {deadline} s; the kernel was at:\n{await self._where()}") from None
        return value

    async def _where(self) -> str:
        """Where a kernel that does not answer is; it does not survive the question."""
        before = len(self.got)
        os.kill(self.pid, signal.SIGABRT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self.loss is None:
                    self._news.clear()
                    await self._news.wait()
        return "".join(i.text for i in self.got[before:] if isinstance(i, StreamText))

    def send(self, msg_type: str, content: dict[str, Any], channel: Any = "shell", **options: Any) -> str:
        msg_id = f"request-{next(_numbers)}"
        self.wire.send_message(channel, msg_type, content, msg_id=msg_id, **options)
        return msg_id

    def execute(self, code: str, **options: Any) -> str:
        """As the server sends a cell; with ``terse=False`` as a client of Jupyter's does."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True}
        return self.send("execute_request", {**content, "terse": True, **options})

    def answer(self, msg_id: str) -> Answer:
        """What belongs to a request so far; raw text is counted to all."""
        return Answer([i for i in self.got if i.parent == msg_id or (isinstance(i, StreamText) and not i.parent)])

    def idle(self, msg_id: str) -> bool:
        """Whether a request is done: it says so itself, or by the reply of a terse cell."""
        answer = self.answer(msg_id)
        said = [m.content["execution_state"] for m in answer.messages("status")]
        return "idle" in said if said else bool(answer.messages("execute_reply"))

    async def finish(self, msg_id: str, deadline: float = DEADLINE) -> Answer:
        await self.until(lambda: self.idle(msg_id), deadline)
        return self.answer(msg_id)

    async def run(self, code: str, deadline: float = DEADLINE, **options: Any) -> Answer:
        """Run a cell from beginning to end."""
        self.got.clear()
        self.batches.clear()
        return await self.finish(self.execute(code, **options), deadline)

    async def ask(self, msg_type: str, content: dict[str, Any], channel: Any = "shell") -> dict[str, Any]:
        """Any other request, and the content of its reply."""
        self.got.clear()
        return (await self.finish(self.send(msg_type, content, channel))).reply.content

    def interrupt(self) -> None:
        os.kill(self.pid, signal.SIGINT)

    async def interrupted(self, msg_id: str) -> Answer:
        """Interrupt a cell until it ends: a signal that comes just before a blocking call only strikes after it."""
        for _ in range(int(DEADLINE)):
            self.interrupt()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while not self.idle(msg_id):
                        self._news.clear()
                        await self._news.wait()
            if self.idle(msg_id):
                break
        return await self.finish(msg_id)

    async def fork(self, mode: str = "branch", **fields: Any) -> tuple[Path, dict[str, Any]]:
        """Ask for a copy: where it listens, and what the original answered."""
        path = self.template.path()
        fds = bound(path)
        try:
            reply = await self.wire.control("fork", fds, mode=mode, **{"identity": {"kernel": path.stem}, **fields})
        finally:
            for fd in fds:
                os.close(fd)
        if "pid" in reply:
            self.template.pids.append(reply["pid"])
        return path, reply

    async def branch(self, **fields: Any) -> Client:
        """A copy that is live."""
        path, reply = await self.fork(**fields)
        assert reply["ok"], reply
        return await Client.open(self.template, path)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def kernel(template: Template, **identity: Any) -> AsyncIterator[Client]:
    """A fresh kernel; it and its copies are killed at the end."""
    known, pids = len(template.clients), len(template.pids)
    client = await Client.open(template, template.spawn(**identity))
    try:
        yield client
    finally:
        for made in template.clients[known:]:
            made.wire.close()
        for pid in template.pids[pids:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        del template.clients[known:], template.pids[pids:]  # their ids may become those of other processes


async def wait_blocked(pid: int) -> None:
    """Wait until a process sleeps and has used no processor over twenty looks."""
    seen: list[float] = []

    def blocked() -> bool:
        found = procfs.stat(pid)
        assert found is not None, f"process {pid} has ended"
        seen.append(found.cpu_seconds)
        if found.state != "S":  # also one that waits for a processor
            seen.clear()
        return len(seen) >= 20 and len(set(seen[-20:])) == 1

    await wait_until(blocked, what=f"process {pid} to block", deadline=30)


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def now() -> float:
    """Seconds on the clock that asyncio uses."""
    return time.monotonic()
