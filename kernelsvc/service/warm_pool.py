"""Sessions that are ready before a client asks: confined kernels, each with a directory of its own.

Theory of operation
-------------------
A member is created as every session is, except for the step that records its
owner: it has a directory, a journal without an entry, and a confined and
connected kernel. The id of a member is the id of the session that it becomes.
Therefore nothing has to be moved into a closed sandbox, and no kernel ever held
data of another session: a member is handed over once or ended.

Only a session with the server's own limits can start as a member, because the
limits are part of a sandbox from its start. Other sessions are forked. A
session's own environment variables are sent to the kernel at the hand-over,
before the first cell.

Members count at admission like sessions, and end when sessions need their room.
A crash of the server leaves journals without an entry and kernels that no
session knows. The next start removes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from kernelsvc.errors import KernelsvcError
from kernelsvc.kernels.launchers import KernelLaunchers
from kernelsvc.kernels.port import Output
from kernelsvc.linux.tasks import OwnedTasks
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits
from kernelsvc.model.pool_policy import PoolDemand
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.service.session_factory import PreparedSession, SessionFactory
from kernelsvc.session import SessionSpec, new_kernel_id, new_session_id, start_request_of
from kernelsvc.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two members that are created, so that requested sessions go first.
PAUSE = 0.05
#: Seconds between checks of the demand, and after a failure.
CHECK_SECONDS, RETRY_SECONDS = 1.0, 5.0


class WarmSession:
    """A member: a session without an owner. It receives its kernel's output until the hand-over."""

    def __init__(self, prepared: PreparedSession, on_exit: Callable[[WarmSession], None]) -> None:
        self._prepared = prepared
        self._on_exit = on_exit

    @property
    def spec(self) -> SessionSpec:
        """The member's specification, without an owner."""
        return self._prepared.spec

    def become(self, spec: SessionSpec) -> PreparedSession:
        """Return the member's directory and journal as those of the session that it becomes."""
        spec.use_directory(self.spec.workdir, family=self.spec.family)
        return PreparedSession(spec, self._prepared.directory, self._prepared.journal)

    def close_journal(self) -> None:
        """Close the journal, which has no entry."""
        self._prepared.journal.close()

    def deliver(self, batch: Sequence[Output]) -> None:
        """Drop the output: the kernel has run no cell."""

    def exited(self, exit: Exit) -> None:
        """Report that the kernel has ended."""
        self._on_exit(self)


class WarmPool:
    """See the module's docstring.

    Args:
        settings: the server's settings: the size for each requested template (0 disables the pool), and the limits.
        registry: says whether there is room for a further member.
        factory: makes directories.
        launchers: start kernels.
    """

    def __init__(
        self, settings: Settings, registry: SessionRegistry, factory: SessionFactory, launchers: KernelLaunchers
    ) -> None:
        self._most, self._node = settings.warm_pool, settings.node
        self._limits = settings.limits
        self._registry = registry
        self._factory = factory
        self._launchers = launchers
        self._members: dict[str, list[WarmSession]] = {}
        self._demand: dict[str, PoolDemand] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._endings = OwnedTasks()

    def start(self, template: str) -> None:
        """Begin to keep members, of this template first."""
        if self._most:
            self._demand_of(template)
            self._task = asyncio.get_running_loop().create_task(self._run(), name="warm pool")

    def __len__(self) -> int:
        return sum(map(len, self._members.values()))

    # -- handing over ----------------------------------------------------------------

    def take(self, template: str, limits: Limits) -> WarmSession | None:
        """Return a member for a session with these limits, or None. The caller owns it from now on."""
        if not self._most or limits != self._limits:
            return None
        self._demand_of(template).asked(time.monotonic())
        self._wanted.set()
        ready = self._members.get(template)
        return ready.pop(0) if ready else None

    def put_back(self, member: WarmSession) -> None:
        """Take back an unused member."""
        self._members.setdefault(member.spec.template, []).append(member)

    def evict_all(self) -> bool:
        """End all members, because sessions need their room. Return whether there were any."""
        members = [member for ready in self._members.values() for member in ready]
        self._members.clear()
        for member in members:
            self._endings.start(self._end(member))
        return bool(members)

    def _demand_of(self, template: str) -> PoolDemand:
        if template not in self._demand:
            self._demand[template] = PoolDemand(self._most, time.monotonic())
        return self._demand[template]

    # -- keeping -----------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            pause = CHECK_SECONDS
            for template, demand in list(self._demand.items()):
                pause = min(pause, await self._step(template, demand.target(time.monotonic())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await (asyncio.sleep(pause) if pause != CHECK_SECONDS else self._wanted.wait())

    async def _step(self, template: str, target: int) -> float:
        """Create or end one member if the demand requires it. Return the seconds until the next step."""
        ready = self._members.setdefault(template, [])
        if len(ready) > target:
            self._endings.start(self._end(ready.pop()))
            return PAUSE
        if len(ready) == target or not self._launchers.forks(template) or not self._registry.has_room(len(self)):
            return CHECK_SECONDS
        try:
            member = await self._make(template)
        except (KernelsvcError, OSError) as error:
            log.info("template %s: no member of the warm pool can be created now: %s", template, error)
            return RETRY_SECONDS
        self.put_back(member)
        return PAUSE

    async def _make(self, template: str) -> WarmSession:
        spec = SessionSpec(
            id=new_session_id(self._node),
            principal="",
            template=template,
            workdir="",
            kernel=new_kernel_id(),
            created_at=timestamp(self._factory.now()),
            limits=self._limits,
        )
        member = WarmSession(self._factory.prepare(spec), self._lost)
        try:
            await self._launchers.start_for_later(start_request_of(spec), member)
        except BaseException:
            self._clear(member)
            raise
        return member

    # -- ends --------------------------------------------------------------------------------

    def _lost(self, member: WarmSession) -> None:
        """Remove a member whose kernel has ended by itself."""
        ready = self._members.get(member.spec.template, [])
        if member in ready:
            ready.remove(member)
            self._endings.start(self._end(member))

    async def _end(self, member: WarmSession) -> None:
        await self.end_kernel(member)
        self._clear(member)

    async def end_kernel(self, member: WarmSession) -> None:
        """End a member's kernel. An error is ignored: the next start of the server ends kernels without a session."""
        with contextlib.suppress(KernelsvcError):
            await self._launchers.discard(member.spec.kernel)

    def _clear(self, member: WarmSession) -> None:
        member.close_journal()
        with contextlib.suppress(OSError):
            self._factory.discard(member.spec.id)

    async def close(self) -> None:
        """End every member, because the server stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.evict_all()
        await self._endings.wait()
