"""One container of the kernel host: its init, its kernels, its cgroup and its sockets.

A container starts with one kernel. Checkpoints and branches of that kernel run in the same namespaces under the same
init and are *registered*. The container ends with its last kernel. The record ``<runtime>/<kernel>.json`` lies next to
the init's control socket, so that the next host finds the container again.

The processes that a kernel started end with it if they are still in its session (setsid(2)). Daemons that left it
belong to the container and end with that.
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
from kernelsvc.model.network.rules import MAX_PORTS
from kernelsvc.sandbox.cgroup import Cgroup
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager

log = logging.getLogger(__name__)

#: Most listeners of a session with network rules: two for name look-ups, and one for each port.
MAX_LISTENERS = 2 + MAX_PORTS
#: Seconds for an init to end its container, before the host kills the init.
END_SECONDS = 3.0
#: Seconds between two attempts to remove a cgroup, and seconds after which it is left.
RELEASE_PAUSE, RELEASE_SECONDS = 0.005, 5.0
#: Seconds for the init to report how a kernel ended, when its pidfd has become readable (pidfd_open(2)).
STATUS_SECONDS = 0.5
#: Programs in the sandbox that a report of a branch names.
MAX_LEFT = 10
#: Seconds for the processes of an interrupted cell to end. The kernel itself is killed a little later.
INTERRUPTED_SECONDS = 0.8


class KernelExitedEarly(Internal):
    """The kernel's process ended before it was ready. Try again."""


class CopyRecord(msgspec.Struct, frozen=True, rename={"cgroup_name": "quarters"}):
    """The process of a checkpoint or branch. The start time lets a later host recognize the process (proc(5)).

    Attributes:
        pid: as seen by the host.
        started: start time in clock ticks since boot.
        home: its directory as seen inside.
        cgroup_name: see ``ContainerProcess``.
    """

    pid: int
    started: int
    home: str
    cgroup_name: str = ""


class ContainerRecord(msgspec.Struct, kw_only=True, rename={"allocation": "ticket", "branch_cgroups": "quarters"}):
    """A host's record of a container, on disk. The allocation has no plan here: that contains the environment.

    Attributes:
        kernel: id of its first kernel.
        session: id of the session of that kernel.
        kind: "forked" or "cold".
        allocation: the sandbox's resources, to be released.
        home: directory of the first kernel as seen inside.
        copies: checkpoints and branches, by id.
        oom_kills: OOM kills in the container's own cgroup that were already reported.
        branch_cgroups: cgroups of branches, by id of the branch.
    """

    kernel: str
    session: str
    kind: str
    allocation: SandboxAllocation
    home: str
    copies: dict[str, CopyRecord] = {}
    oom_kills: int = 0
    branch_cgroups: dict[str, BranchCgroup] = {}


@dataclass
class ContainerProcess:
    """One kernel of a container: its first kernel, a checkpoint or a branch.

    Attributes:
        kernel: its id.
        pidfd: of its process; the container's.
        pid: as seen by the host.
        inner_pid: as seen inside. 0 stands for the first kernel.
        home: its directory as seen inside.
        cgroup_name: id of the branch in whose cgroup it runs, or "" for the container's own cgroup.
        attached: done when it runs in that cgroup, or None if it was forked there.
        exit: how it ended, or None while it runs.
        cleaned_up: set when it and the processes it started have ended.
    """

    kernel: str
    pidfd: int
    pid: int
    inner_pid: int
    home: str = ""
    cgroup_name: str = ""
    attached: asyncio.Future[None] | None = None
    exit: Exit | None = None
    cleaned_up: asyncio.Event = field(default_factory=asyncio.Event)


class Container:
    """See the module's docstring.

    Args:
        record: its record.
        sandbox: releases its resources.
        runtime: directory of control sockets and records.
        exited: called when one of its kernels has ended.

    Attributes:
        processes: its kernels, by id.
        init_pid: pid of its init, or 0 before the init has reported and after it has ended.
        ended: set when every process has ended and every resource is released.
    """

    def __init__(
        self,
        record: ContainerRecord,
        sandbox: SandboxManager,
        runtime: Path,
        exited: Callable[[Container, ContainerProcess], None],
    ) -> None:
        self.record = record
        self.processes: dict[str, ContainerProcess] = {}
        self.ended = asyncio.Event()
        self._sandbox = sandbox
        self._runtime = runtime
        self._exited = exited
        self._channel: seqpacket.SeqpacketChannel | None = None
        self.init_pid = 0
        self._init_pidfd = -1
        self._listeners: list[int] = []
        self._init_attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._tasks = OwnedTasks()
        self._gone = asyncio.Event()
        self._ending = False
        self._events = CgroupEvents()

    # -- start -------------------------------------------------------------------------

    @staticmethod
    def control_socket_path(runtime: Path, kernel: str) -> Path:
        """Return the path of the socket on which a container's init waits for a host."""
        return runtime / f"{kernel}.i"

    @staticmethod
    def record_path(runtime: Path, kernel: str) -> Path:
        """Return the path of a container's record."""
        return runtime / f"{kernel}.json"

    def bind_control_socket(self) -> socket.socket:
        """Return the init's control socket, bound and not listening yet. The caller closes it."""
        path = self.control_socket_path(self._runtime, self.record.kernel)
        control_socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            path.unlink(missing_ok=True)
            control_socket.bind(str(path))
            path.chmod(0o600)
        except BaseException:
            control_socket.close()
            raise
        return control_socket

    def write_record(self) -> None:
        """Write the record to disk, as a whole.

        Raises:
            OSError: the disk failed. The old record is unchanged.
        """
        path = self.record_path(self._runtime, self.record.kernel)
        atomic_file.replace_bytes(path, msgspec.json.encode(self.record))

    def _update_record(self) -> None:
        """Write a changed record. A failure is logged: only a later host would miss the change."""
        if self._ending:
            return
        try:
            self.write_record()
        except OSError as error:
            log.error(
                "writing the record of %s failed: %s. The next host will miss this change.", self.record.kernel, error
            )

    def listen(self, sock: socket.socket) -> None:
        """Use this socket as the channel to the init."""
        self._channel = seqpacket.SeqpacketChannel(sock, self._received, self._init_gone, fds=2 + MAX_LISTENERS)

    async def wait_ready(self, seconds: float) -> None:
        """Wait until the kernel listens. Safe to cancel.

        Args:
            seconds: for each of the two steps, the init's start and the kernel's.

        Raises:
            Timeout: it took longer.
            KernelsvcError: the kernel could not be started or confined.
        """
        await self._wait(self._init_attached, seconds)
        await self._wait(self._ready, seconds)

    async def _wait(self, news: asyncio.Future[None], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(news)
        except TimeoutError:
            raise Timeout("The kernel did not start in time. Try again.") from None

    async def wait_init(self, seconds: float) -> None:
        """Wait until the init has reported its process and the kernel's. Safe to cancel.

        Args:
            seconds: at the longest.

        Raises:
            Timeout: it took longer.
            KernelsvcError: the container could not be created.
        """
        await self._wait(self._init_attached, seconds)

    # -- reports of the init -----------------------------------------------------------

    def _received(self, body: dict[str, Any], fds: list[int]) -> None:
        if "kernel" in body and len(fds) >= 2 and self._init_pidfd < 0:
            self._attach_init(body, fds)
            return
        seqpacket.close_all(fds)
        if body.get("ready"):
            if not self._ready.done():
                self._ready.set_result(None)
        elif "failed" in body:
            self._start_failed(body)
        elif isinstance(body.get("exited"), dict):
            fields = body["exited"]
            self._set_status(0 if fields.get("kernel") else int(fields["pid"]), int(fields["status"]))

    def _set_status(self, inner_pid: int, status: int) -> None:
        """Note the wait status of a process that the init reaped. Pid 0 stands for the first kernel."""
        waiting = self._statuses.get(inner_pid)
        if waiting is not None and not waiting.done():
            waiting.set_result(status)

    def _attach_init(self, body: dict[str, Any], fds: list[int]) -> None:
        self._init_pidfd, self.init_pid, self._listeners = fds[0], procfs.pid_of(fds[0]), fds[2:]
        self._add_process(ContainerProcess(self.record.kernel, fds[1], procfs.pid_of(fds[1]), 0, self.record.home))
        if body.get("status") is not None:
            self._set_status(0, int(body["status"]))
        for kernel, known in list(self.record.copies.items()):
            self._recover_copy(kernel, known)
        if not self._init_attached.done():
            self._init_attached.set_result(None)

    def _recover_copy(self, kernel: str, known: CopyRecord) -> None:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(known.pid)
            stat = procfs.stat(known.pid)
            if stat is not None and stat.started == known.started:
                inner = procfs.inner_pid(known.pid)
                self._add_copy(ContainerProcess(kernel, pidfd, known.pid, inner, known.home, known.cgroup_name))
                return
            os.close(pidfd)
        del self.record.copies[kernel]

    def register_copy(self, request: RegisterCopyRequest, pidfd: int) -> ContainerProcess:
        """Register a checkpoint or branch that a kernel of this container forked.

        Args:
            request: see ``protocol.RegisterCopyRequest``; with ``home``.
            pidfd: of its process. The container closes it, unless this raises.

        Raises:
            KernelDead: the process has ended, or does not descend from this container's init.
        """
        pid = procfs.pid_of(pidfd)
        stat = procfs.stat(pid)
        if stat is None or not procfs.descends(pid, self.init_pid):
            raise KernelDead("The copy ended immediately after the fork.")
        kernel, home, limits = request.kernel, request.home, request.limits
        sharing = self.processes.get(request.sidecar_of)
        cgroup_name = kernel if limits is not None else (sharing or self.processes[request.original]).cgroup_name
        process = ContainerProcess(kernel, pidfd, pid, procfs.inner_pid(pid), home, cgroup_name)
        self._add_copy(process)
        self.record.copies[kernel] = CopyRecord(pid, stat.started, home, cgroup_name)
        self._update_record()
        if limits is not None:
            process.attached = asyncio.ensure_future(self._create_cgroup(process, limits))
        elif sharing is not None:
            process.attached = asyncio.ensure_future(self._join_cgroup(process, sharing))
        if process.attached is not None:
            process.attached.add_done_callback(_mark_retrieved)
        return process

    async def _join_cgroup(self, process: ContainerProcess, sharing: ContainerProcess) -> None:
        if sharing.attached is not None:
            await asyncio.shield(sharing.attached)
        branch_cgroup = self.record.branch_cgroups.get(process.cgroup_name)
        if branch_cgroup is None:
            raise KernelDead("The branch of this checkpoint has ended.")
        if branch_cgroup.group is not None:
            await attach_process(branch_cgroup.group, process.pid)

    async def _create_cgroup(self, process: ContainerProcess, limits: Limits) -> None:
        branch_cgroup = await create_and_attach(self._sandbox, process.kernel, process.pid, limits)
        if process.kernel in self.processes:
            self.record.branch_cgroups[process.kernel] = branch_cgroup
            self._update_record()
        elif branch_cgroup.group is not None:  # the branch was discarded meanwhile
            await destroy(branch_cgroup.group)

    def egress(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the rules of a container with network rules, and copies of a pidfd of its init and its listeners.

        The caller closes the descriptors. None if the container has no rules.
        """
        if not self._listeners:
            return None
        record = self.record
        rules = msgspec.to_builtins(record.allocation.limits.network)
        about = {"container": record.kernel, "session": record.session, "rules": rules}
        return about, [os.dup(fd) for fd in (self._init_pidfd, *self._listeners)]

    def left_processes(self) -> list[str]:
        """Return pid and name of programs that were left running in the sandbox: children of the init, and no kernels.

        A daemon is no child of the kernel that started it, so the kernel does not find it.
        """
        kernels = {process.pid for process in self.processes.values()}
        left = [pid for pid in procfs.children(self.init_pid) if pid not in kernels]
        return [f"{procfs.inner_pid(pid)} ({procfs.name(pid)})" for pid in left[:MAX_LEFT]]

    def _add_copy(self, process: ContainerProcess) -> None:
        self._add_process(process)
        if self._channel is not None:
            self._channel.send({"member": process.inner_pid})

    def _add_process(self, process: ContainerProcess) -> None:
        self.processes[process.kernel] = process
        self._statuses[process.inner_pid] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._watch(process))

    async def _watch(self, process: ContainerProcess) -> None:
        await procfs.wait_pidfd(process.pidfd)
        status = await self._status_of(process)
        del self._statuses[process.inner_pid]
        oom_kills, limits = self._new_oom_kills(process)
        process.exit = exit_of(status, oom_kills=oom_kills, memory_bytes=limits.memory_bytes)
        if oom_kills:
            self._update_record()
        self._exited(self, process)
        await self._kill_session(process)
        process.cleaned_up.set()

    async def _status_of(self, process: ContainerProcess) -> int | None:
        """Return a wait status, from Linux (``PIDFD_GET_INFO``) or else from the init that waited for it."""
        status = procfs.exit_status(process.pidfd)
        if status is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    status = await asyncio.shield(self._statuses[process.inner_pid])
        return procfs.exit_status(process.pidfd) if status is None else status

    async def _kill_session(self, process: ContainerProcess) -> None:
        """Kill the processes that an ended kernel started. Linux does not reuse a pid that is still a session's id."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_SECONDS
        while procfs.kill_those(procfs.below(self.init_pid), lambda stat: stat.session == process.pid):
            if loop.time() > deadline:
                log.error("processes that kernel %s started still run. They end with the container.", process.kernel)
                return
            await asyncio.sleep(RELEASE_PAUSE)

    def baseline_counters(self) -> None:
        """Take the counters of the cgroups as reported already: an earlier host did that."""
        for cgroup_name, branch_cgroup in self._cgroups().items():
            if branch_cgroup.group is not None:
                self._events.set_baseline(cgroup_name, branch_cgroup.group)

    def poll_limits(self) -> list[tuple[str, list[str]]]:
        """Return limits that Linux enforced against other processes than kernels, with the kernels in that cgroup."""
        found = []
        for cgroup_name, branch_cgroup in self._cgroups().items():
            if branch_cgroup.group is None:
                continue
            limits, known = self._events.poll(cgroup_name, branch_cgroup.group, branch_cgroup.oom_kills)
            if cgroup_name:
                branch_cgroup.oom_kills = known
            else:
                self.record.oom_kills = known
            kernels = [m.kernel for m in self.processes.values() if m.cgroup_name == cgroup_name and m.exit is None]
            found += [(limit, kernels) for limit in limits]
        return found

    def _cgroups(self) -> dict[str, BranchCgroup]:
        allocation = self.record.allocation
        own = BranchCgroup(group=allocation.group, limits=allocation.limits, oom_kills=self.record.oom_kills)
        return {"": own, **self.record.branch_cgroups}

    def cgroup_of(self, process: ContainerProcess) -> Cgroup | None:
        """Return the cgroup in which a kernel runs, or None if it has none."""
        branch_cgroup = self.record.branch_cgroups.get(process.cgroup_name)
        return self.record.allocation.group if branch_cgroup is None else branch_cgroup.group

    def _new_oom_kills(self, process: ContainerProcess) -> tuple[int, Limits]:
        """Return the number of new OOM kills in the cgroup of a kernel that has just ended, and the limits there."""
        branch_cgroup = self.record.branch_cgroups.get(process.cgroup_name)
        if branch_cgroup is not None:
            return branch_cgroup.new_oom_kills(), branch_cgroup.limits
        group = self.record.allocation.group
        kills = group.sample().oom_kills if group is not None else 0
        oom_kills, self.record.oom_kills = kills - self.record.oom_kills, kills
        return oom_kills, self.record.allocation.limits

    def _start_failed(self, body: dict[str, Any]) -> None:
        log.error("kernel %s could not be started: %s\n%s", self.record.kernel, body["failed"], body.get("trace", ""))
        confined = body.get("step") not in (None, "start")
        error: KernelsvcError
        if confined and self.record.allocation.report.policy == "required":
            error = SandboxUnavailable(f"{body['failed']}. Run 'kernelsvc doctor'.")
        else:
            error = Internal(f"The kernel could not be started: {body['failed']}.")
        self._fail(error)

    def _fail(self, error: KernelsvcError) -> None:
        for waiting in (self._init_attached, self._ready):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # marks it as retrieved, so that asyncio logs nothing if no one awaits it

    def _init_gone(self) -> None:
        self._channel = None
        self._gone.set()
        self._fail(KernelExitedEarly())
        if self._init_pidfd >= 0 and not self._ending:
            log.error("the init of %s has ended. Its container ends.", self.record.kernel)
            self._ending = True
            self._tasks.start(self._end())

    # -- signals and ends --------------------------------------------------------------

    def signal(self, kernel: str, number: int, *, everyone: bool) -> None:
        """Send a signal to a kernel, or to every process of the container.

        Args:
            kernel: id of the kernel.
            number: number of the signal.
            everyone: send it to every process.
        """
        if everyone:
            if self._channel is not None:
                self._channel.send({"signal": number, "all": True})
            return
        with contextlib.suppress(ProcessLookupError, KeyError):
            signal.pidfd_send_signal(self.processes[kernel].pidfd, number)

    def signal_others(self, number: int) -> None:
        """Send a signal to every process that is no kernel: subprocesses, daemons and clients' programs.

        Without a pid namespace, only the processes below the init are known.
        """
        spared = {self.init_pid, *(process.pid for process in self.processes.values())}
        space = procfs.pid_namespace(self.init_pid)
        shared = space in (0, procfs.pid_namespace(os.getpid()))
        found = procfs.below(self.init_pid) if shared else procfs.within(space)
        procfs.kill_those((pid for pid in found if pid not in spared), lambda _: True, number)

    def interrupt_children(self, kernel: str, seconds: float) -> None:
        """Send SIGINT to the processes that a kernel's cell has started, and SIGKILL to those that do not end.

        Its copies are no such processes, and neither are those that have made themselves daemons, nor those of earlier
        cells. Linux counts start times in ticks of 10 ms (proc_pid_stat(5)), so a process that an earlier cell started
        up to two ticks before counts as this cell's.

        Args:
            kernel: id of the kernel.
            seconds: how long ago the cell began.
        """
        process = self.processes.get(kernel)
        if process is None or process.exit is not None:
            return
        others = {one.pid for one in self.processes.values()} - {process.pid}
        found = procfs.started_since(process.pid, seconds, but_not=others)
        if found:
            procfs.send_signal(found, signal.SIGINT)
            asyncio.get_running_loop().call_later(INTERRUPTED_SECONDS, procfs.send_signal, found, signal.SIGKILL)

    async def end_process(self, kernel: str) -> Exit:
        """End one kernel and the processes it started. With its last kernel the container ends.

        Safe to cancel: the processes end all the same.

        Returns:
            How the kernel ended.
        """
        process = self.processes.get(kernel)
        if process is None:
            return exit_of(None)
        if self._running() - {kernel}:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            await process.cleaned_up.wait()
            self._remove_process(process)
        if not self._running() - {kernel}:
            await self.end()
        return process.exit or exit_of(None)

    def _running(self) -> set[str]:
        return {process.kernel for process in self.processes.values() if process.exit is None}

    def _remove_process(self, process: ContainerProcess) -> None:
        if self.processes.pop(process.kernel, None) is not None:
            os.close(process.pidfd)
        if self.record.copies.pop(process.kernel, None) is not None:
            self._update_record()
        if process.cgroup_name and all(one.cgroup_name != process.cgroup_name for one in self.processes.values()):
            self._tasks.start(self._destroy_branch_cgroup(process.cgroup_name))

    async def _destroy_branch_cgroup(self, name: str) -> None:
        """Kill the processes that a branch left behind, and remove its cgroup."""
        branch_cgroup = self.record.branch_cgroups.get(name)
        if branch_cgroup is None:
            return
        if branch_cgroup.group is not None and not await destroy(branch_cgroup.group):
            log.error("cgroup %s still has processes. It will be removed with the container's.", name)
            return
        del self.record.branch_cgroups[name]
        self._update_record()

    async def end(self) -> None:
        """End every process and release every resource. Idempotent. Safe to cancel: the end completes all the same."""
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
            for process in self.processes.values():
                os.close(process.pidfd)
                process.cleaned_up.set()  # ``end_process`` may wait for it. The descriptor is closed.
            self.processes.clear()
            if self._init_pidfd >= 0:
                seqpacket.close_all([self._init_pidfd, *self._listeners])
                self._init_pidfd, self.init_pid, self._listeners = -1, 0, []
            if self._channel is not None:
                self._channel.close()

    async def _end_processes(self) -> None:
        if self._channel is not None:
            # An init that is still starting reads this when it is ready.
            self._channel.send({"end": True})
        elif self._init_pidfd < 0:
            return
        if await self._wait_gone():
            return
        log.error("the container of %s did not end within %g s and is killed", self.record.kernel, END_SECONDS)
        for pidfd in (self._init_pidfd, *(process.pidfd for process in self.processes.values())):
            with contextlib.suppress(OSError):  # it has ended, or never started
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await self._wait_gone()

    async def _wait_gone(self) -> bool:
        """Return whether init and kernels ended in time. A closed channel stands for an init that has not reported."""
        try:
            async with asyncio.timeout(END_SECONDS):
                if self._channel is not None:
                    await self._gone.wait()
                if self._init_pidfd >= 0:
                    await procfs.wait_pidfd(self._init_pidfd)
                await self._wait_cleaned_up()
        except TimeoutError:
            return False
        return True

    async def _wait_cleaned_up(self) -> None:
        """Kill the kernels and wait for them. Without a pid namespace a kernel can outlive its init for a moment."""
        for process in list(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            await process.cleaned_up.wait()

    async def _release(self) -> None:
        groups = [one.group for one in self.record.branch_cgroups.values() if one.group is not None]
        if not all(await asyncio.gather(*(destroy(group) for group in groups))):
            log.error("a branch's cgroup of %s still has processes. It is not removed.", self.record.kernel)
        allocation = self.record.allocation
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while not self._sandbox.release(allocation):
            if asyncio.get_running_loop().time() > deadline:
                log.error("the cgroup of %s still has processes. It is not removed.", self.record.kernel)
                return
            if allocation.group is not None:
                allocation.group.kill()
            await asyncio.sleep(RELEASE_PAUSE)


def _mark_retrieved(done: asyncio.Future[None]) -> None:
    """Retrieve the exception of a future that perhaps no one awaits, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()
