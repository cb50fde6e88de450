"""One sandbox in the care of the kernel host: its init, its kernels, its cgroup, its sockets.

A sandbox begins with one kernel. Copies of that kernel (checkpoints, branches)
live in the same namespaces under the same init and are *enlisted*; the sandbox
ends with its last member. What the host must know to find it again after a crash
of its own is written beside the init's door: ``<runtime>/<kernel>.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import Internal, KernelsvcError, SandboxUnavailable, Timeout
from kernelsvc.kernels import channel
from kernelsvc.kernels.exits import exit_of
from kernelsvc.kernels.port import Exit
from kernelsvc.sandbox.sandbox import Sandbox, Ticket

log = logging.getLogger(__name__)

#: Seconds an init gets to end its sandbox before it is killed itself.
END_SECONDS = 3.0
#: Seconds between looks at a cgroup that must become empty, and for how long.
RELEASE_PAUSE, RELEASE_SECONDS = 0.005, 5.0
#: Seconds to wait for the init's word on how a kernel ended, once its pidfd says that it has.
STATUS_SECONDS = 0.5


class Record(msgspec.Struct, kw_only=True):
    """What a host writes down of a sandbox."""

    kernel: str
    session: str
    kind: str
    ticket: Ticket


@dataclass
class Member:
    """One kernel of a sandbox."""

    kernel: str
    pidfd: int
    pid: int
    inner_pid: int
    home: str = ""
    exit: Exit | None = None


class Ward:
    """See the module's docstring.

    Attributes:
        members: kernels that live here, by id.
        ended: set when every process is gone and everything given back.
    """

    def __init__(self, record: Record, sandbox: Sandbox, runtime: Path, exited: Callable[[Ward, Member], None]) -> None:
        self.record = record
        self.members: dict[str, Member] = {}
        self.ended = asyncio.Event()
        self._sandbox = sandbox
        self._runtime = runtime
        self._exited = exited
        self._channel: channel.Channel | None = None
        self._init_pidfd = -1
        self._introduced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_before = self._oom_kills()
        self._ending = False

    # -- beginnings -----------------------------------------------------------------

    @staticmethod
    def door_path(runtime: Path, kernel: str) -> Path:
        """Where the init of a sandbox listens for a host."""
        return runtime / f"{kernel}.i"

    @staticmethod
    def record_path(runtime: Path, kernel: str) -> Path:
        """Where the host's record of a sandbox lies."""
        return runtime / f"{kernel}.json"

    def make_door(self) -> socket.socket:
        """The init's socket, bound and not yet listening."""
        path = self.door_path(self._runtime, self.record.kernel)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            path.unlink(missing_ok=True)
            door.bind(str(path))
            path.chmod(0o600)
        except BaseException:
            door.close()
            raise
        return door

    def write(self) -> None:
        """Write the record, whole or not at all."""
        path = self.record_path(self._runtime, self.record.kernel)
        fresh = path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(self.record))
        finally:
            os.close(fd)
        fresh.rename(path)

    def listen(self, sock: socket.socket) -> None:
        """Take the host's end of the channel to the init."""
        self._channel = channel.Channel(sock, self._received, self._init_gone)

    async def wait_ready(self, seconds: float) -> Member:
        """Wait until the kernel listens. Safe to cancel.

        Raises:
            KernelsvcError: it could not be started or confined.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._introduced
                await self._ready
        except TimeoutError:
            raise Timeout("The kernel did not start in time; try again.") from None
        return self.members[self.record.kernel]

    async def wait_introduced(self, seconds: float) -> None:
        """Wait until the init has said who it is. Safe to cancel.

        Raises:
            TimeoutError: it did not.
        """
        async with asyncio.timeout(seconds):
            await self._introduced

    # -- what the init says ------------------------------------------------------------

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        if "kernel" in body and len(fds) == 2:
            self._introduce(body, fds)
            return
        for fd in fds:
            os.close(fd)
        if body.get("ready"):
            if not self._ready.done():
                self._ready.set_result(None)
        elif "failed" in body:
            self._failed(body)
        elif isinstance(body.get("exited"), dict):
            said = body["exited"]
            pid = 0 if said.get("kernel") else int(said.get("pid", -1))
            self._status(pid).set_result(int(said.get("status", 0))) if not self._status(pid).done() else None

    def _status(self, inner_pid: int) -> asyncio.Future[int]:
        """The wait status of a process, by its pid inside; 0 stands for the first kernel."""
        if inner_pid not in self._statuses:
            self._statuses[inner_pid] = asyncio.get_running_loop().create_future()
        if len(self._statuses) > 1000:  # strays that nobody asks about
            self._statuses = {k: f for k, f in self._statuses.items() if not f.done() or k == 0}
        return self._statuses[inner_pid]

    def _introduce(self, body: dict[str, Any], fds: list[int]) -> None:
        if self._init_pidfd >= 0:
            for fd in fds:
                os.close(fd)
            return
        self._init_pidfd = fds[0]
        if body.get("status") is not None:
            self._status(0).set_result(int(body["status"]))
        home = str(self.record.ticket.plan["home"])
        self._add(Member(self.record.kernel, fds[1], channel.pid_of(fds[1]), 0, home))
        if not self._introduced.done():
            self._introduced.set_result(None)

    def enlist(self, kernel: str, pidfd: int, home: str) -> Member:
        """Take a copy of a kernel into this sandbox; ``pidfd`` is the ward's from now on."""
        pid = channel.pid_of(pidfd)
        member = Member(kernel, pidfd, pid, _inner_pid(pid), home)
        self._add(member)
        return member

    def _add(self, member: Member) -> None:
        self.members[member.kernel] = member
        self._own(self._watch(member))

    def _own(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, member: Member) -> None:
        await channel.wait_pidfd(member.pidfd)
        status: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_SECONDS):
                status = await asyncio.shield(self._status(member.inner_pid))
        self._statuses.pop(member.inner_pid, None)
        kills = self._oom_kills()
        struck, self._oom_before = kills - self._oom_before, kills
        memory = self.record.ticket.limits.memory_bytes
        member.exit = exit_of(status, oom_kills=struck, memory_bytes=memory)
        self._exited(self, member)

    def _oom_kills(self) -> int:
        group = self.record.ticket.group
        return group.sample().oom_kills if group is not None else 0

    def _failed(self, body: dict[str, Any]) -> None:
        log.error("kernel %s could not be started: %s\n%s", self.record.kernel, body["failed"], body.get("trace", ""))
        confined = body.get("step") not in (None, "start")
        error: KernelsvcError
        if confined and self.record.ticket.report.policy == "required":
            error = SandboxUnavailable(f"{body['failed']}. Run 'kernelsvc doctor'.")
        else:
            error = Internal(f"The kernel could not be started: {body['failed']}.")
        self._fail(error)

    def _fail(self, error: KernelsvcError) -> None:
        for waiting in (self._introduced, self._ready):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # looked at: nobody may be waiting

    def _init_gone(self) -> None:
        self._channel = None
        self._fail(Internal("The kernel's process ended while it was started; try again."))

    # -- orders ---------------------------------------------------------------------------

    def signal(self, kernel: str, number: int, *, everyone: bool) -> None:
        """Signal a member, or every process of the sandbox."""
        if everyone:
            if self._channel is not None:
                self._channel.send({"signal": number, "all": True})
            return
        with contextlib.suppress(ProcessLookupError, KeyError):
            signal.pidfd_send_signal(self.members[kernel].pidfd, number)

    async def leave(self, kernel: str) -> Exit:
        """End one member; with the last one the sandbox ends. Safe to cancel: it goes on."""
        member = self.members.get(kernel)
        if member is None:
            return exit_of(None)
        others = [m for m in self.members.values() if m is not member and m.exit is None]
        if not others:
            await self.end()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
            await channel.wait_pidfd(member.pidfd)
            self.members.pop(kernel, None)
            os.close(member.pidfd)
        return member.exit or exit_of(None)

    async def end(self) -> None:
        """End every process and give everything back. May be called again; safe to cancel: it goes on."""
        if not self._ending:
            self._ending = True
            self._own(self._end())
        await self.ended.wait()

    async def _end(self) -> None:
        try:
            await self._end_processes()
            await self._release()
        finally:
            for member in self.members.values():
                os.close(member.pidfd)
            if self._init_pidfd >= 0:
                os.close(self._init_pidfd)
            if self._channel is not None:
                self._channel.close()
            for path in (self.record_path, self.door_path):
                path(self._runtime, self.record.kernel).unlink(missing_ok=True)
            self.ended.set()
            for task in self._tasks - {asyncio.current_task()}:
                task.cancel()

    async def _end_processes(self) -> None:
        if self._init_pidfd < 0:
            return  # it never came to life
        if self._channel is not None:
            self._channel.send({"end": True})
        try:
            async with asyncio.timeout(END_SECONDS):
                await channel.wait_pidfd(self._init_pidfd)
        except TimeoutError:
            log.error("the init of %s did not end; it is killed", self.record.kernel)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_pidfd, signal.SIGKILL)
            await channel.wait_pidfd(self._init_pidfd)
        for member in self.members.values():  # without a pid namespace they may have survived their init
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)

    async def _release(self) -> None:
        ticket = self.record.ticket
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while not self._sandbox.release(ticket):
            if asyncio.get_running_loop().time() > deadline:
                log.error("the cgroup of %s is still not empty; it is left", self.record.kernel)
                return
            if ticket.group is not None:
                ticket.group.kill()
            await asyncio.sleep(RELEASE_PAUSE)


def _inner_pid(pid: int) -> int:
    """A process's pid in its own pid namespace (proc(5), ``NSpid``)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        return -1
    return -1
