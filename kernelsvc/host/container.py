"""One sandbox in the care of the kernel host: its init, its kernels, its cgroup, its sockets.

A sandbox begins with one kernel. Copies of that kernel (checkpoints, branches)
live in the same namespaces under the same init and are *enlisted*; the sandbox
ends with its last member. What the host must know to find it again after a crash
of its own is written beside the init's door: ``<runtime>/<kernel>.json``.

What a kernel started ends with it: those of its processes that stayed in its
session (setsid(2)). Daemons that left it belong to the sandbox and end with that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import Internal, KernelDead, KernelsvcError, SandboxUnavailable, Timeout
from kernelsvc.host.branch_cgroup import BranchCgroup, attach_process, create_and_attach, destroy
from kernelsvc.host.cgroup_events import CgroupEvents
from kernelsvc.host.protocol import RegisterCopyRequest
from kernelsvc.linux import atomic_file, procfs, seqpacket
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Exit, exit_of
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox.cgroup import Cgroup
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager

log = logging.getLogger(__name__)

#: Seconds an init gets to end its sandbox before it is killed itself.
END_SECONDS = 3.0
#: Seconds between looks at a cgroup that must become empty, and for how long.
RELEASE_PAUSE, RELEASE_SECONDS = 0.005, 5.0
#: Seconds to wait for the init's word on how a kernel ended, once its pidfd says that it has.
STATUS_SECONDS = 0.5


class KernelExitedEarly(Internal):
    """The kernel's process ended while it was started; try again."""


class CopyRecord(msgspec.Struct, frozen=True):
    """A copy of a kernel, so that a later host can be sure of its process."""

    pid: int
    started: int
    home: str
    quarters: str = ""


class ContainerRecord(msgspec.Struct, kw_only=True):
    """What a host writes down of a sandbox. Its ticket holds no plan: that has the session's environment in it."""

    kernel: str
    session: str
    kind: str
    ticket: SandboxAllocation
    home: str
    copies: dict[str, CopyRecord] = {}
    oom_kills: int = 0
    quarters: dict[str, BranchCgroup] = {}


@dataclass
class ContainerProcess:
    """One kernel of a sandbox.

    Attributes:
        quarters: the name of the branch's cgroup in which it lives; "" for the sandbox's own.
        placed: done when it lives there.
        exit: how it ended.
        over: set when that is known and what it started is gone too.
    """

    kernel: str
    pidfd: int
    pid: int
    inner_pid: int
    home: str = ""
    quarters: str = ""
    placed: asyncio.Future[None] | None = None
    exit: Exit | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Container:
    """See the module's docstring.

    Attributes:
        members: kernels that live here, by id.
        init_pid: of the sandbox's init; 0 if it is gone or not there yet.
        ended: set when every process is gone and everything given back.
    """

    def __init__(
        self,
        record: ContainerRecord,
        sandbox: SandboxManager,
        runtime: Path,
        exited: Callable[[Container, ContainerProcess], None],
    ) -> None:
        self.record = record
        self.members: dict[str, ContainerProcess] = {}
        self.ended = asyncio.Event()
        self._sandbox = sandbox
        self._runtime = runtime
        self._exited = exited
        self._channel: seqpacket.SeqpacketChannel | None = None
        self.init_pid = 0
        self._init_pidfd = -1
        self._introduced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._tasks = OwnedTasks()
        self._gone = asyncio.Event()
        self._ending = False
        self._tally = CgroupEvents()

    # -- beginnings -----------------------------------------------------------------

    @staticmethod
    def control_socket_path(runtime: Path, kernel: str) -> Path:
        """Where the init of a sandbox listens for a host."""
        return runtime / f"{kernel}.i"

    @staticmethod
    def record_path(runtime: Path, kernel: str) -> Path:
        """Where the host's record of a sandbox lies."""
        return runtime / f"{kernel}.json"

    def bind_control_socket(self) -> socket.socket:
        """The init's socket, bound and not yet listening."""
        path = self.control_socket_path(self._runtime, self.record.kernel)
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
        atomic_file.replace_bytes(path, msgspec.json.encode(self.record))

    def _write_again(self) -> None:
        """Write what has changed. A later host knows less if that fails, and nobody else is harmed."""
        if self._ending:
            return
        try:
            self.write()
        except OSError as error:
            log.error("the record of %s can't be written: %s", self.record.kernel, error)

    def listen(self, sock: socket.socket) -> None:
        """Take the host's end of the channel to the init."""
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._init_gone, fds=2)

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the kernel listens. Safe to cancel.

        Raises:
            KernelsvcError: it could not be started or confined.
        """
        await self._wait(self._introduced, seconds)
        await self._wait(self._ready, seconds)

    async def _wait(self, news: asyncio.Future[None], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(news)
        except TimeoutError:
            raise Timeout("The kernel did not start in time; try again.") from None

    async def wait_introduced(self, seconds: float) -> None:
        """Wait until the init has said who it is. Safe to cancel.

        Raises:
            KernelsvcError: it could not be made, or not in time.
        """
        await self._wait(self._introduced, seconds)

    # -- what the init says ------------------------------------------------------------

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        if "kernel" in body and len(fds) == 2 and self._init_pidfd < 0:
            self._introduce(body, fds)
            return
        seqpacket.close_all(fds)
        if body.get("ready"):
            if not self._ready.done():
                self._ready.set_result(None)
        elif "failed" in body:
            self._failed(body)
        elif isinstance(body.get("exited"), dict):
            said = body["exited"]
            self._tell_status(0 if said.get("kernel") else int(said["pid"]), int(said["status"]))

    def _tell_status(self, inner_pid: int, status: int) -> None:
        """The init waited for a process; 0 stands for the first kernel."""
        waiting = self._statuses.get(inner_pid)
        if waiting is not None and not waiting.done():
            waiting.set_result(status)

    def _introduce(self, body: dict[str, Any], fds: list[int]) -> None:
        self._init_pidfd, self.init_pid = fds[0], procfs.pid_of(fds[0])
        self._add(ContainerProcess(self.record.kernel, fds[1], procfs.pid_of(fds[1]), 0, self.record.home))
        if body.get("status") is not None:
            self._tell_status(0, int(body["status"]))
        for kernel, known in list(self.record.copies.items()):
            self._find_copy(kernel, known)
        if not self._introduced.done():
            self._introduced.set_result(None)

    def _find_copy(self, kernel: str, known: CopyRecord) -> None:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(known.pid)
            about = procfs.stat(known.pid)
            if about is not None and about.started == known.started:
                inner = procfs.inner_pid(known.pid)
                self._add_copy(ContainerProcess(kernel, pidfd, known.pid, inner, known.home, known.quarters))
                return
            os.close(pidfd)
        del self.record.copies[kernel]

    def register_copy(self, request: RegisterCopyRequest, pidfd: int) -> ContainerProcess:
        """Register a checkpoint or branch that a kernel of this container forked.

        Args:
            request: see ``protocol.RegisterCopyRequest``; with ``home``.
            pidfd: of its process. The container closes it, unless this raises.

        Raises:
            KernelDead: it has ended already, or is none of this sandbox's processes.
        """
        pid = procfs.pid_of(pidfd)
        about = procfs.stat(pid)
        if about is None or not procfs.descends(pid, self.init_pid):
            raise KernelDead("The copy ended as soon as it was made.")
        kernel, home, limits = request.kernel, request.home, request.limits
        sharing = self.members.get(request.sidecar_of)
        quarters = kernel if limits is not None else (sharing or self.members[request.original]).quarters
        member = ContainerProcess(kernel, pidfd, pid, procfs.inner_pid(pid), home, quarters)
        self._add_copy(member)
        self.record.copies[kernel] = CopyRecord(pid, about.started, home, quarters)
        self._write_again()
        if limits is not None:
            member.placed = asyncio.ensure_future(self._place(member, limits))
        elif sharing is not None:
            member.placed = asyncio.ensure_future(self._join(member, sharing))
        if member.placed is not None:
            member.placed.add_done_callback(_look_at)
        return member

    async def _join(self, member: ContainerProcess, sharing: ContainerProcess) -> None:
        if sharing.placed is not None:
            await asyncio.shield(sharing.placed)
        quarters = self.record.quarters.get(member.quarters)
        if quarters is None:
            raise KernelDead("The branch that this copy belongs to is gone.")
        if quarters.group is not None:
            await attach_process(quarters.group, member.pid)

    async def _place(self, member: ContainerProcess, limits: Limits) -> None:
        quarters = await create_and_attach(self._sandbox, member.kernel, member.pid, limits)
        if member.kernel in self.members:
            self.record.quarters[member.kernel] = quarters
            self._write_again()
        elif quarters.group is not None:  # discarded meanwhile
            await destroy(quarters.group)

    def _add_copy(self, member: ContainerProcess) -> None:
        self._add(member)
        if self._channel is not None:
            self._channel.send({"member": member.inner_pid})

    def _add(self, member: ContainerProcess) -> None:
        self.members[member.kernel] = member
        self._statuses[member.inner_pid] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._watch(member))

    async def _watch(self, member: ContainerProcess) -> None:
        await procfs.wait_pidfd(member.pidfd)
        status = await self._status_of(member)
        del self._statuses[member.inner_pid]
        struck, limits = self._oom_kills(member)
        member.exit = exit_of(status, oom_kills=struck, memory_bytes=limits.memory_bytes)
        if struck:
            self._write_again()
        self._exited(self, member)
        await self._end_session_of(member)
        member.over.set()

    async def _status_of(self, member: ContainerProcess) -> int | None:
        """From Linux where it tells, else from the init that waited for it."""
        status = procfs.exit_status(member.pidfd)
        if status is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    status = await asyncio.shield(self._statuses[member.inner_pid])
        return procfs.exit_status(member.pidfd) if status is None else status

    async def _end_session_of(self, member: ContainerProcess) -> None:
        """End what a kernel that is gone had started. A pid is not used again while it names a session."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_SECONDS
        while procfs.kill_those(procfs.below(self.init_pid), lambda about: about.session == member.pid):
            if loop.time() > deadline:
                log.error("processes of %s are still there; they end with the sandbox", member.kernel)
                return
            await asyncio.sleep(RELEASE_PAUSE)

    def baseline_counters(self) -> None:
        """What the cgroups have counted until now was told by an earlier host."""
        for place, quarters in self._places().items():
            if quarters.group is not None:
                self._tally.settle(place, quarters.group)

    def poll_limits(self) -> list[tuple[str, list[str]]]:
        """Caps of Linux's that have struck something other than a kernel, and the kernels that live there."""
        found = []
        for place, quarters in self._places().items():
            if quarters.group is None:
                continue
            limits, known = self._tally.look(place, quarters.group, quarters.oom_kills)
            if place:
                quarters.oom_kills = known
            else:
                self.record.oom_kills = known
            kernels = [m.kernel for m in self.members.values() if m.quarters == place and m.exit is None]
            found += [(limit, kernels) for limit in limits]
        return found

    def _places(self) -> dict[str, BranchCgroup]:
        ticket = self.record.ticket
        own = BranchCgroup(group=ticket.group, limits=ticket.limits, oom_kills=self.record.oom_kills)
        return {"": own, **self.record.quarters}

    def group_of(self, member: ContainerProcess) -> Cgroup | None:
        """The cgroup in which a kernel lives."""
        quarters = self.record.quarters.get(member.quarters)
        return self.record.ticket.group if quarters is None else quarters.group

    def _oom_kills(self, member: ContainerProcess) -> tuple[int, Limits]:
        """How often the OOM killer struck where a kernel lived that has just ended, and the caps there."""
        quarters = self.record.quarters.get(member.quarters)
        if quarters is not None:
            return quarters.struck(), quarters.limits
        group = self.record.ticket.group
        kills = group.sample().oom_kills if group is not None else 0
        struck, self.record.oom_kills = kills - self.record.oom_kills, kills
        return struck, self.record.ticket.limits

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
        self._gone.set()
        self._fail(KernelExitedEarly())
        if self._init_pidfd >= 0 and not self._ending:
            log.error("the init of %s is gone; its sandbox ends", self.record.kernel)
            self._ending = True
            self._tasks.start(self._end())

    # -- orders ---------------------------------------------------------------------------

    def signal(self, kernel: str, number: int, *, everyone: bool) -> None:
        """Signal a member, or every process of the sandbox."""
        if everyone:
            if self._channel is not None:
                self._channel.send({"signal": number, "all": True})
            return
        with contextlib.suppress(ProcessLookupError, KeyError):
            signal.pidfd_send_signal(self.members[kernel].pidfd, number)

    async def end_process(self, kernel: str) -> Exit:
        """End one member and what it started; with the last one the sandbox ends. Safe to cancel: it goes on."""
        member = self.members.get(kernel)
        if member is None:
            return exit_of(None)
        if self._live() - {kernel}:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
            await member.over.wait()
            self._drop(member)
        if not self._live() - {kernel}:
            await self.end()
        return member.exit or exit_of(None)

    def _live(self) -> set[str]:
        return {member.kernel for member in self.members.values() if member.exit is None}

    def _drop(self, member: ContainerProcess) -> None:
        if self.members.pop(member.kernel, None) is not None:
            os.close(member.pidfd)
        if self.record.copies.pop(member.kernel, None) is not None:
            self._write_again()
        if member.quarters and all(one.quarters != member.quarters for one in self.members.values()):
            self._tasks.start(self._vacate(member.quarters))

    async def _vacate(self, name: str) -> None:
        """The last of a branch's kernels has gone: end what it left behind, and give its cgroup back."""
        quarters = self.record.quarters.get(name)
        if quarters is None:
            return
        if quarters.group is not None and not await destroy(quarters.group):
            log.error("the cgroup of %s is still not empty; it goes with its family's", name)
            return
        del self.record.quarters[name]
        self._write_again()

    async def end(self) -> None:
        """End every process and give everything back. May be called again; safe to cancel: it goes on."""
        if not self._ending:
            self._ending = True
            self._tasks.start(self._end())
        await self.ended.wait()

    async def _end(self) -> None:
        try:
            await self._end_processes()
            await self._release()
        finally:
            for path in (self.record_path, self.control_socket_path):
                path(self._runtime, self.record.kernel).unlink(missing_ok=True)
            self.ended.set()
            self._tasks.cancel()
            for member in self.members.values():
                os.close(member.pidfd)
                member.over.set()  # one that leaves meanwhile waits for it, and must not close the descriptor again
            self.members.clear()
            if self._init_pidfd >= 0:
                os.close(self._init_pidfd)
                self._init_pidfd, self.init_pid = -1, 0
            if self._channel is not None:
                self._channel.close()

    async def _end_processes(self) -> None:
        if self._channel is not None:
            # One that is only just being made reads this when it has become an init.
            self._channel.send({"end": True})
        elif self._init_pidfd < 0:
            return
        if await self._wait_gone():
            return
        log.error("the sandbox of %s did not end in time; it is killed", self.record.kernel)
        for pidfd in (self._init_pidfd, *(member.pidfd for member in self.members.values())):
            with contextlib.suppress(OSError):  # gone, or there never was one
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await self._wait_gone()

    async def _wait_gone(self) -> bool:
        """Whether init and kernels ended in time. Until there is an init, its end of the channel stands for it."""
        try:
            async with asyncio.timeout(END_SECONDS):
                if self._channel is not None:
                    await self._gone.wait()
                if self._init_pidfd >= 0:
                    await procfs.wait_pidfd(self._init_pidfd)
                await self._wait_over()
        except TimeoutError:
            return False
        return True

    async def _wait_over(self) -> None:
        """Without a pid namespace a kernel can outlive its init for a moment."""
        for member in list(self.members.values()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
            await member.over.wait()

    async def _release(self) -> None:
        groups = [one.group for one in self.record.quarters.values() if one.group is not None]
        if not all(await asyncio.gather(*(destroy(group) for group in groups))):
            log.error("the cgroup of a branch of %s is still not empty; it is left", self.record.kernel)
        ticket = self.record.ticket
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while not self._sandbox.release(ticket):
            if asyncio.get_running_loop().time() > deadline:
                log.error("the cgroup of %s is still not empty; it is left", self.record.kernel)
                return
            if ticket.group is not None:
                ticket.group.kill()
            await asyncio.sleep(RELEASE_PAUSE)


def _look_at(done: asyncio.Future[None]) -> None:
    """A failure that nobody asks for is no error of the loop's."""
    if not done.cancelled():
        done.exception()
