"""Every sandbox of a kernel host: made, found again, left without a server, ended.

A *ward* is one sandbox (``ward``). Here is what concerns them all: that an id is
taken once, that an end reaches a kernel which is only just being made, that a
sandbox of which no server holds a kernel ends after a time, and that no process
is left when its sandbox is gone.
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

#: Seconds for a kernel to be ready once its template is.
START_SECONDS = 20.0
#: Seconds a found init has to introduce itself.
FIND_SECONDS = 2.0

#: How many sandboxes are made at once, for each core: more would only keep one another waiting.
STARTS_PER_CORE = 3

#: Sandboxes whose cgroups are looked at in one go, in about 6 ms.
LOOK_AT_ONCE = 200

#: Starts the first process of a sandbox: the host's and the guest's end of the channel, the init's door.
Launch = Callable[[socket.socket, socket.socket, socket.socket], None]


class ContainerManager:
    """See the module's docstring.

    Attributes:
        wards: each sandbox, under the id of each of its kernels.

    Args:
        runtime: where doors and records lie.
        sandbox: confines, and takes back.
        adoption_seconds: how long a sandbox lives without a server.
        exited: called when a kernel has ended.
        own: pids of this process's children that belong to no sandbox.
    """

    def __init__(
        self,
        runtime: Path,
        sandbox: SandboxManager,
        adoption_seconds: float,
        exited: Callable[[Container, ContainerProcess], None],
        own: Callable[[], set[int]],
    ) -> None:
        self.wards: dict[str, Container] = {}
        self._runtime = runtime
        self._sandbox = sandbox
        self._adoption_seconds = adoption_seconds
        self._exited = exited
        self._own_children = own
        self._undoing = OwnedTasks()
        self._starting: dict[str, asyncio.Task[Any]] = {}
        self._turns = asyncio.Semaphore(STARTS_PER_CORE * len(os.sched_getaffinity(0)))
        self._orphans: dict[Container, asyncio.TimerHandle] = {}
        self._turn: list[Container] = []
        self._tasks = OwnedTasks()

    # -- beginnings ----------------------------------------------------------------------

    @contextlib.contextmanager
    def reserve_id(self, kernel: str) -> Iterator[None]:
        """While it is entered, this task makes the kernel of that id; ``end`` cancels it.

        Raises:
            Conflict: there is one, or one is being made.
        """
        if kernel in self.wards or kernel in self._starting:
            raise Conflict(f"There is a kernel {kernel!r} already; choose another id.")
        task = asyncio.current_task()
        assert task is not None
        self._starting[kernel] = task
        try:
            yield
        finally:
            del self._starting[kernel]
            self._end_strays()

    async def make(self, record: ContainerRecord, launch: Launch, *, listens: bool) -> Container:
        """A new sandbox, when its kernel is there. Safe to cancel: nothing is left.

        Args:
            record: what it is.
            launch: starts its first process.
            listens: wait until the kernel itself says that it is ready, not only its init.

        Raises:
            KernelsvcError: it could not be made.
        """
        ward = Container(record, self._sandbox, self._runtime, self._exited)
        ours, theirs = seqpacket.pair()
        ward.listen(ours)
        try:
            async with self._turns:
                with theirs, ward.bind_control_socket() as door:
                    ward.write()
                    launch(ours, theirs, door)
                await (ward.wait_ready(START_SECONDS) if listens else ward.wait_introduced(START_SECONDS))
            self._sandbox.ready(record.ticket)
        except BaseException:
            theirs.close()
            await asyncio.shield(self._undoing.start(ward.end()))
            raise
        self._keep(ward)
        return ward

    def _keep(self, ward: Container) -> None:
        self.wards |= dict.fromkeys(ward.members, ward)
        self._tasks.start(self._forget_ended(ward))

    async def _forget_ended(self, ward: Container) -> None:
        await ward.ended.wait()
        self._forget(ward)

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
        ward, original = self.find(request.original)
        if request.kernel in self.wards or request.kernel in self._starting:
            raise Conflict(f"There is a kernel {request.kernel!r} already; choose another id.")
        if not request.home:
            request = msgspec.structs.replace(request, home=original.home)
        member = ward.register_copy(request, pidfd)
        self.wards[request.kernel] = ward
        return member

    # -- finding ---------------------------------------------------------------------------

    def find(self, kernel: str) -> tuple[Container, ContainerProcess]:
        """A kernel and where it lives.

        Raises:
            NotFound: there is none.
        """
        ward = self.wards.get(kernel)
        if ward is None or kernel not in ward.members:
            raise NotFound(f"This kernel host has no kernel {kernel!r}.")
        return ward, ward.members[kernel]

    async def recover(self) -> None:
        """Find what an earlier host left; end what can't be taken over."""
        names = {path.stem for pattern in ("*.i", "*.json") for path in self._runtime.glob(pattern)}
        await asyncio.gather(*(self._find_old(name) for name in sorted(names)))
        wards = set(self.wards.values())
        self._sandbox.sweep({name for ward in wards for name in (ward.record.kernel, *ward.record.quarters)})

    async def _find_old(self, name: str) -> None:
        record = _read_record(Container.record_path(self._runtime, name))
        known = record is not None
        ward = Container(record or _unknown(name), self._sandbox, self._runtime, self._exited)
        if known:
            self._sandbox.restore(ward.record.ticket)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(Container.control_socket_path(self._runtime, name)))
        except OSError:
            sock.close()
        else:
            ward.listen(sock)
            with contextlib.suppress(KernelsvcError):
                await ward.wait_introduced(FIND_SECONDS)
        if known and ward.members:
            ward.baseline_counters()
            self._keep(ward)
        else:
            log.warning("what an earlier host left of %s is ended", name)
            await ward.end()

    # -- caps that have struck ------------------------------------------------------------------

    def look(self) -> list[tuple[str, list[str]]]:
        """Limits that Linux held against something other than a kernel, with the kernels whose limits they are.

        Not more than ``LOOK_AT_ONCE`` sandboxes at a time, each in its turn.
        """
        if not self._turn:
            self._turn = list(set(self.wards.values()))
        now, self._turn = self._turn[:LOOK_AT_ONCE], self._turn[LOOK_AT_ONCE:]
        return [struck for ward in now if not ward.ended.is_set() for struck in ward.poll_limits()]

    # -- what nobody needs any more ------------------------------------------------------------

    def look_for_orphans(self, held: set[str]) -> None:
        """Begin the grace time of each sandbox without a kernel in ``held``."""
        loop = asyncio.get_running_loop()
        for ward in set(self.wards.values()) - self._orphans.keys():
            if not held & ward.members.keys():
                self._orphans[ward] = loop.call_later(self._adoption_seconds, self._grace_over, ward)

    def cancel_grace(self, ward: Container) -> None:
        """A server holds one of its kernels."""
        timer = self._orphans.pop(ward, None)
        if timer is not None:
            timer.cancel()

    def _grace_over(self, ward: Container) -> None:
        log.warning("nobody adopted %s in %g s: it ends", ward.record.kernel, self._adoption_seconds)
        self._tasks.start(self._end(ward))

    # -- ends ----------------------------------------------------------------------------------

    async def end(self, kernel: str) -> Exit | None:
        """End a kernel, also one that is only just being made; None if there is none. Safe to cancel: it goes on."""
        starting = self._starting.get(kernel)
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        ward = self.wards.get(kernel)
        if ward is None:
            return None
        exit = await ward.end_process(kernel)
        self.wards.pop(kernel, None)
        if ward.ended.is_set():
            self._forget(ward)
        return exit

    async def end_all(self) -> None:
        """End every sandbox, also those that are being made."""
        starting = list(self._starting.values())
        for task in starting:
            task.cancel()
        if starting:
            await asyncio.wait(starting)
        await self._undoing.wait()  # a start that was cancelled twice no longer waits, and this host ends now
        await asyncio.gather(*(self._end(ward) for ward in set(self.wards.values())))

    async def _end(self, ward: Container) -> None:
        await ward.end()
        self._forget(ward)

    def _forget(self, ward: Container) -> None:
        self.cancel_grace(ward)
        self.wards = {kernel: one for kernel, one in self.wards.items() if one is not ward}
        self._end_strays()

    def _end_strays(self) -> None:
        """End what became this process's child when the init above it was killed, as an unconfined session can do."""
        if self._starting:
            return  # the children of one that is being made are not known yet
        known = self._own_children() | {ward.init_pid for ward in self.wards.values()}
        for pid in set(procfs.children(os.getpid())) - known:
            if procfs.kill_those([*procfs.below(pid), pid], lambda _: True):
                log.warning("process %d was left by a session and is ended", pid)


def _read_record(path: Path) -> ContainerRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ContainerRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("the record %s can't be read: %s", path.name, error)
        return None


def _unknown(kernel: str) -> ContainerRecord:
    """Stands for a record that is lost, so that its processes can be ended."""
    ticket = msgspec.convert({"kernel": kernel, "plan": {}, "report": {}, "limits": {}}, SandboxAllocation)
    return ContainerRecord(kernel=kernel, session="", kind="forked", ticket=ticket, home="")
