"""Sessions that are ready before anybody asks: confined kernels, each with a directory of its own.

Theory of operation
-------------------
A member is made as every session is, up to the moment at which its owner would be
written down: directory, journal without an entry, confined kernel, connected. Its
id is the id of the session that it becomes. So nothing has to be moved into a
sandbox that is closed already, and no kernel ever held anything of somebody else:
a member is handed over once, and what is not handed over is ended.

Only a session with the server's own limits can begin so: they are part of a
sandbox from its first moment. Others are forked. An environment of its own is
told to the kernel when it is handed over, before its first cell.

Members count at admission like sessions, and give way to them when there is no
room. What a crash leaves of them are journals without an entry and kernels that
no session knows; the next start removes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from kernelsvc.errors import KernelsvcError
from kernelsvc.kernels.launchers import Launchers
from kernelsvc.kernels.port import Output
from kernelsvc.model.admission import Reservation
from kernelsvc.model.exit_status import Exit
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits
from kernelsvc.model.pool_policy import PoolDemand
from kernelsvc.session import SessionSpec, new_id, new_kernel_id, start_request_of
from kernelsvc.store.journal import Journal
from kernelsvc.store.sessions import SessionDirectories, SessionDirectory

log = logging.getLogger(__name__)

#: Seconds between two members that are made, so that sessions which are asked for go first.
PAUSE = 0.05
#: Seconds between looks at the demand, and after a failure.
LOOK, RETRY = 1.0, 5.0


class WarmSession:
    """A session that nobody has yet. The sink of its kernel until somebody does."""

    def __init__(
        self, about: SessionSpec, directory: SessionDirectory, journal: Journal, gone: Callable[[WarmSession], None]
    ) -> None:
        self.about = about
        self.directory = directory
        self.journal = journal
        self._gone = gone

    def deliver(self, batch: Sequence[Output]) -> None:
        """It has run nothing, so there is nothing to tell."""

    def exited(self, exit: Exit) -> None:
        """It is of no use any more."""
        self._gone(self)


class WarmPool:
    """See the module's docstring.

    Args:
        most: how many members may be kept for each template that is asked for; 0 keeps none.
        limits: the server's own.
        store: where their directories lie.
        launchers: who starts their kernels.
        room: whether one more session would be admitted now.
    """

    def __init__(
        self, most: int, limits: Limits, store: SessionDirectories, launchers: Launchers, room: Callable[[], bool]
    ) -> None:
        self._most = most
        self._limits = limits
        self._store = store
        self._launchers = launchers
        self._room = room
        self._members: dict[str, list[WarmSession]] = {}
        self._demand: dict[str, PoolDemand] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()

    def start(self, template: str) -> None:
        """Begin to keep members, of this template first."""
        if self._most:
            self._demand_of(template)
            self._task = asyncio.get_running_loop().create_task(self._run(), name="warm pool")

    def __len__(self) -> int:
        return sum(map(len, self._members.values()))

    def lives(self) -> list[Reservation]:
        """The members, as admission counts them."""
        return [Reservation(principal="", memory_bytes=self._limits.memory_bytes)] * len(self)

    # -- handing over ----------------------------------------------------------------

    def take(self, template: str, limits: Limits) -> WarmSession | None:
        """A member that becomes such a session, or None if none can. It is the caller's from here on."""
        if not self._most or limits != self._limits:
            return None
        self._demand_of(template).asked(time.monotonic())
        self._wanted.set()
        ready = self._members.get(template)
        return ready.pop(0) if ready else None

    def put_back(self, member: WarmSession) -> None:
        """It was not needed after all; it is as it was."""
        self._members.setdefault(member.about.template, []).append(member)

    def evict_all(self) -> bool:
        """End all members, because sessions need their room. False: there were none."""
        members = [member for ready in self._members.values() for member in ready]
        self._members.clear()
        for member in members:
            self._end_soon(member)
        return bool(members)

    def _demand_of(self, template: str) -> PoolDemand:
        if template not in self._demand:
            self._demand[template] = PoolDemand(self._most, time.monotonic())
        return self._demand[template]

    # -- keeping -----------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            pause = LOOK
            for template, demand in list(self._demand.items()):
                pause = min(pause, await self._step(template, demand.target(time.monotonic())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await (asyncio.sleep(pause) if pause != LOOK else self._wanted.wait())

    async def _step(self, template: str, target: int) -> float:
        """Make one member or end one, if the demand says so; seconds until the next step."""
        ready = self._members.setdefault(template, [])
        if len(ready) > target:
            self._end_soon(ready.pop())
            return PAUSE
        if len(ready) == target or not self._launchers.forks(template) or not self._room():
            return LOOK
        try:
            member = await self._make(template)
        except (KernelsvcError, OSError) as error:
            log.info("no kernel can be kept ready for %s now: %s", template, error)
            return RETRY
        self.put_back(member)
        return PAUSE

    async def _make(self, template: str) -> WarmSession:
        session = new_id("s")
        directory, journal = self._store.create(session, {})
        about = SessionSpec(
            id=session,
            principal="",
            template=template,
            workdir=str(directory.working()),
            kernel=new_kernel_id(),
            created_at=timestamp(self._store.clock()),
            limits=self._limits,
            family=str(directory.home.resolve()),
        )
        member = WarmSession(about, directory, journal, self._lost)
        try:
            await self._launchers.start_for_later(start_request_of(about), member)
        except BaseException:
            self._clear(member)
            raise
        return member

    # -- ends --------------------------------------------------------------------------------

    def _lost(self, member: WarmSession) -> None:
        """Its kernel ended by itself."""
        ready = self._members.get(member.about.template, [])
        if member in ready:
            ready.remove(member)
            self._end_soon(member)

    def _end_soon(self, member: WarmSession) -> None:
        task = asyncio.get_running_loop().create_task(self._end(member))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, member: WarmSession) -> None:
        with contextlib.suppress(KernelsvcError):
            await self._launchers.discard(member.about.kernel)
        self._clear(member)

    def _clear(self, member: WarmSession) -> None:
        member.journal.close()
        with contextlib.suppress(OSError):
            self._store.discard(member.about.id)

    async def close(self) -> None:
        """End every member; the server stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.evict_all()
        if self._endings:
            await asyncio.wait(self._endings)
