"""All containers of a kernel host: created, recovered, adopted, ended.

It guarantees for all of them that an id is used once, that an end reaches a kernel that is still being started, that a
container of which no server holds a kernel ends after a time, and that no process remains when its container has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import Conflict, KernelsvcError, NotFound
from kernelsvc.host.container import Container, ContainerProcess, ContainerRecord
from kernelsvc.host.protocol import RegisterCopyRequest
from kernelsvc.linux import procfs, seqpacket
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Exit
from kernelsvc.sandbox.manager import SandboxAllocation, SandboxManager

log = logging.getLogger(__name__)

#: Seconds for a new kernel to be ready, when its fork server is.
START_SECONDS = 20.0
#: Seconds for a recovered container's init to report.
RECOVER_SECONDS = 2.0

#: Containers that are created at the same time, for each core. More would only delay one another.
STARTS_PER_CORE = 3

#: Containers whose cgroups are read in one poll, in about 6 ms.
POLL_BATCH = 200

#: Starts the first process of a container. Arguments: both ends of the channel to the init, the control socket.
Launch = Callable[[socket.socket, socket.socket, socket.socket], None]


class ContainerManager:
    """See the module's docstring.

    Args:
        runtime: directory of control sockets and records.
        sandbox: allocates and releases the sandboxes.
        adoption_seconds: how long a container runs without a server.
        exited: called when a kernel has ended.
        other_children: returns the pids of this process's children that belong to no container.

    Attributes:
        containers: the container of each kernel, by the kernel's id.
    """

    def __init__(
        self,
        runtime: Path,
        sandbox: SandboxManager,
        adoption_seconds: float,
        exited: Callable[[Container, ContainerProcess], None],
        other_children: Callable[[], set[int]],
    ) -> None:
        self.containers: dict[str, Container] = {}
        self._runtime = runtime
        self._sandbox = sandbox
        self._adoption_seconds = adoption_seconds
        self._exited = exited
        self._other_children = other_children
        self._cleanups = OwnedTasks()
        self._starting: dict[str, asyncio.Task[Any]] = {}
        self._start_slots = asyncio.Semaphore(STARTS_PER_CORE * len(os.sched_getaffinity(0)))
        self._orphans: dict[Container, asyncio.TimerHandle] = {}
        self._poll_queue: list[Container] = []
        self._tasks = OwnedTasks()

    # -- creation ----------------------------------------------------------------------

    @contextlib.contextmanager
    def reserve_id(self, kernel: str) -> Iterator[None]:
        """Reserve an id while the current task starts the kernel. ``end`` of that id cancels the task.

        Raises:
            Conflict: the id is in use.
        """
        if kernel in self.containers or kernel in self._starting:
            raise Conflict(f"There is a kernel {kernel!r} already. Choose another id.")
        task = asyncio.current_task()
        assert task is not None
        self._starting[kernel] = task
        try:
            yield
        finally:
            del self._starting[kernel]
            self._kill_strays()

    async def create(self, record: ContainerRecord, launch: Launch, *, listens: bool) -> Container:
        """Create a container, and wait until its kernel is there. Safe to cancel: nothing remains.

        Args:
            record: its record.
            launch: starts its first process.
            listens: wait until the kernel reports that it listens, not only until its init has reported.

        Raises:
            KernelsvcError: it could not be created.
        """
        container = Container(record, self._sandbox, self._runtime, self._exited)
        host_end, guest_end = seqpacket.pair()
        container.listen(host_end)
        try:
            async with self._start_slots:
                with guest_end, container.bind_control_socket() as control_socket:
                    container.write_record()
                    launch(host_end, guest_end, control_socket)
                await (container.wait_ready(START_SECONDS) if listens else container.wait_init(START_SECONDS))
            self._sandbox.ready(record.allocation)
        except BaseException:
            guest_end.close()
            await asyncio.shield(self._cleanups.start(container.end()))
            raise
        self._add_container(container)
        return container

    def _add_container(self, container: Container) -> None:
        self.containers |= dict.fromkeys(container.processes, container)
        self._tasks.start(self._forget_when_ended(container))

    async def _forget_when_ended(self, container: Container) -> None:
        await container.ended.wait()
        self._forget(container)

    def register_copy(self, request: RegisterCopyRequest, pidfd: int) -> ContainerProcess:
        """Register a checkpoint or branch in the container of the kernel that forked it.

        A branch gets a cgroup of its own, and its first checkpoint joins that: wait for ``ContainerProcess.placed``.

        Args:
            request: see ``protocol.RegisterCopyRequest``.
            pidfd: of the copy's process. The container closes it, unless this raises.

        Raises:
            NotFound: there is no such kernel.
            Conflict: there is one of the copy's id.
            KernelDead: the copy is gone already.
        """
        container, original = self.find(request.original)
        if request.kernel in self.containers or request.kernel in self._starting:
            raise Conflict(f"There is a kernel {request.kernel!r} already. Choose another id.")
        if not request.home:
            request = msgspec.structs.replace(request, home=original.home)
        process = container.register_copy(request, pidfd)
        self.containers[request.kernel] = container
        return process

    # -- finding -----------------------------------------------------------------------

    def find(self, kernel: str) -> tuple[Container, ContainerProcess]:
        """Return a kernel and its container.

        Raises:
            NotFound: there is no such kernel.
        """
        container = self.containers.get(kernel)
        if container is None or kernel not in container.processes:
            raise NotFound(f"This kernel host has no kernel {kernel!r}.")
        return container, container.processes[kernel]

    async def recover(self) -> None:
        """Adopt the containers of an earlier host, and end those that can't be adopted."""
        names = {path.stem for pattern in ("*.i", "*.json") for path in self._runtime.glob(pattern)}
        await asyncio.gather(*(self._recover_container(name) for name in sorted(names)))
        containers = set(self.containers.values())
        self._sandbox.sweep(
            {name for container in containers for name in (container.record.kernel, *container.record.branch_cgroups)}
        )

    async def _recover_container(self, name: str) -> None:
        record = _read_record(Container.record_path(self._runtime, name))
        known = record is not None
        container = Container(record or _placeholder_record(name), self._sandbox, self._runtime, self._exited)
        if known:
            self._sandbox.restore(container.record.allocation)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(Container.control_socket_path(self._runtime, name)))
        except OSError:
            sock.close()
        else:
            container.listen(sock)
            with contextlib.suppress(KernelsvcError):
                await container.wait_init(RECOVER_SECONDS)
        if known and container.processes:
            container.baseline_counters()
            self._add_container(container)
        else:
            log.warning("container %s of an earlier host can't be adopted. It ends.", name)
            await container.end()

    # -- limits ------------------------------------------------------------------------

    def poll_limits(self) -> list[tuple[str, list[str]]]:
        """Return limits that Linux enforced against processes other than kernels, with the kernels in that cgroup.

        Polls at most ``POLL_BATCH`` containers. The next call continues with the others.
        """
        if not self._poll_queue:
            self._poll_queue = list(set(self.containers.values()))
        now, self._poll_queue = self._poll_queue[:POLL_BATCH], self._poll_queue[POLL_BATCH:]
        return [exceeded for container in now if not container.ended.is_set() for exceeded in container.poll_limits()]

    # -- orphans -----------------------------------------------------------------------

    def check_orphans(self, in_use: set[str]) -> None:
        """Start the grace time of each container without a kernel in ``in_use``."""
        loop = asyncio.get_running_loop()
        for container in set(self.containers.values()) - self._orphans.keys():
            if not in_use & container.processes.keys():
                self._orphans[container] = loop.call_later(self._adoption_seconds, self._grace_ended, container)

    def cancel_grace(self, container: Container) -> None:
        """Cancel the grace time of a container: a server holds one of its kernels."""
        timer = self._orphans.pop(container, None)
        if timer is not None:
            timer.cancel()

    def _grace_ended(self, container: Container) -> None:
        log.warning(
            "no server adopted %s within %g s. Its container ends.", container.record.kernel, self._adoption_seconds
        )
        self._tasks.start(self._end(container))

    # -- ends --------------------------------------------------------------------------

    async def end(self, kernel: str) -> Exit | None:
        """End a kernel, also one that is still being started. Safe to cancel: the end completes all the same.

        Returns:
            How it ended, or None if there is no such kernel.
        """
        starting = self._starting.get(kernel)
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        container = self.containers.get(kernel)
        if container is None:
            return None
        exit = await container.end_process(kernel)
        self.containers.pop(kernel, None)
        if container.ended.is_set():
            self._forget(container)
        return exit

    async def end_all(self) -> None:
        """End every container, also those that are still being created."""
        starting = list(self._starting.values())
        for task in starting:
            task.cancel()
        if starting:
            await asyncio.wait(starting)
        await self._cleanups.wait()  # a start that was cancelled twice no longer waits, and this host ends now
        await asyncio.gather(*(self._end(container) for container in set(self.containers.values())))

    async def _end(self, container: Container) -> None:
        await container.end()
        self._forget(container)

    def _forget(self, container: Container) -> None:
        self.cancel_grace(container)
        self.containers = {kernel: one for kernel, one in self.containers.items() if one is not container}
        self._kill_strays()

    def _kill_strays(self) -> None:
        """Kill processes that became children of the host because an unconfined session killed its init."""
        if self._starting:
            return  # the processes of a container that is being created are not known yet
        known = self._other_children() | {container.init_pid for container in self.containers.values()}
        for pid in set(procfs.children(os.getpid())) - known:
            if procfs.kill_those([*procfs.below(pid), pid], lambda _: True):
                log.warning("killed process %d, which a session left behind", pid)


def _read_record(path: Path) -> ContainerRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ContainerRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("the record %s can't be read: %s. Its container ends.", path.name, error)
        return None


def _placeholder_record(kernel: str) -> ContainerRecord:
    """Return a record for a container whose record is lost, so that the host can end its processes."""
    allocation = msgspec.convert({"kernel": kernel, "plan": {}, "report": {}, "limits": {}}, SandboxAllocation)
    return ContainerRecord(kernel=kernel, session="", kind="forked", allocation=allocation, home="")
