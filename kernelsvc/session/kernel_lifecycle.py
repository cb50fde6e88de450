"""How one kernel follows another in a session: replaced, restored, rolled back, put to sleep and woken.

Each way ends in ``Session.adopt_kernel`` with the event that tells of it. The
machine holds cells back meanwhile, so none is sent to a kernel that is going.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kernelsvc.errors import AtCapacity, Conflict, KernelDead, KernelsvcError, NotSupported
from kernelsvc.kernels.port import Kernel, SaveResult
from kernelsvc.model import events as ev
from kernelsvc.model.objects import SessionState
from kernelsvc.model.stimuli import AbortSwitch, BeginSwitch, Resume, StartFailed, StateSaved
from kernelsvc.session.ids import new_kernel_id

if TYPE_CHECKING:
    from kernelsvc.session.session import Session

log = logging.getLogger(__name__)


class KernelLifecycle:
    """The successions of one session.

    Args:
        session: whose.
        saved: where its variables lie while it sleeps; None if it can't.
    """

    def __init__(self, session: Session, saved: Path | None) -> None:
        self._session = session
        self._saved = saved

    async def replace(self, why: str) -> None:
        """A new kernel with empty variables in place of the old one."""
        await self._let_go(KernelDead("The kernel was replaced before it answered; ask again."))
        await self._session.copies.discard_all()
        kernel = await self._start()
        if kernel is not None:
            self._session.adopt_kernel(kernel, ev.KernelRestarted(why=why, kernel=kernel.info))

    async def _let_go(self, error: KernelsvcError) -> None:
        session = self._session
        old, session.kernel = session.kernel, None
        session.fail_requests(error)
        if old is not None:
            await old.end()

    async def _start(self) -> Kernel | None:
        """A fresh kernel, or None if there can't be one or nobody wants it any more."""
        session = self._session
        try:
            session.about.kernel = new_kernel_id()
            kernel = await session.launcher.start(session.start_request(), session)
        except KernelsvcError as error:
            if session.state is not SessionState.CLOSED:
                session.handle(StartFailed(error.message))
            return None
        if session.state is SessionState.CLOSED:
            await kernel.end()
            return None
        await session.copies.restrict_writes(kernel)
        return kernel

    async def restore(self) -> None:
        """Wake the newest checkpoint in place of a kernel that died; a new kernel if none wakes."""
        session = self._session
        await self._let_go(KernelDead("The kernel died before it answered; ask again."))
        failed: set[str] = set()
        while (newest := session.copies.newest(failed)) is not None:
            try:
                kernel, request = await session.copies.resume(newest)
            except KernelsvcError as error:
                session.try_record(ev.CheckpointDropped(checkpoint=newest.id, why=error.message))
                failed.add(newest.id)  # when the disk refuses, the log does not say so
                continue
            await session.copies.restrict_writes(kernel)
            session.about.kernel = request.kernel
            event = ev.KernelRestored(checkpoint=newest.id, after_cell=newest.after_cell, kernel=kernel.info)
            session.copies.pause_queue()
            session.adopt_kernel(kernel, event)
            await session.copies.recreate(newest)
            return
        await self.replace("died, and no checkpoint could be woken")

    async def rollback(self, to: str | None = None) -> None:
        """Make the variables those of an earlier moment.

        Args:
            to: a checkpoint's id or name, or a cell's id: the state before it. Default: before the last cell.
                Before the first cell is a fresh kernel.

        Raises:
            NotFound: no such checkpoint, or that moment is not kept.
            Conflict: a cell runs or waits.
            KernelsvcError: the copy could not be woken, or no fresh kernel started; nothing has changed.
        """
        session = self._session
        session.require_writable_log()
        await self.ensure_running()
        copies = session.copies
        if session.kernel is not None and not session.kernel.forkable:
            raise NotSupported()
        known = to is not None and (to in session.machine.checkpoints or copies.named(to))
        target = copies.find(to) if known and to else copies.before(to)
        session.handle(BeginSwitch())
        try:
            kernel, request = await (copies.resume(target) if target else copies.start_fresh())
        except BaseException:
            session.handle(AbortSwitch())
            raise
        await session.copies.restrict_writes(kernel)
        old, session.kernel = session.kernel, None
        session.about.kernel = request.kernel
        after = target.after_cell if target else None
        undone, redone = session.machine.rollback_effect(target.id if target else None, after)
        event = ev.RolledBack(
            to=target.id if target else "",
            after_cell=after,
            undone=undone,
            redone=redone,
            kernel=kernel.info,
        )
        copies.pause_queue()
        session.adopt_kernel(kernel, event)
        await copies.recreate(target)
        if old is not None:
            await old.end()

    # -- sleep -----------------------------------------------------------------------------

    async def sleep_if_possible(self) -> None:
        """``sleep``, for a session that nobody asked: what can't be, is not tried again before its next cell."""
        try:
            await self.hibernate(kindly=True)
        except KernelsvcError as error:
            log.info("session %s stays awake: %s", self._session.id, error.message)

    async def hibernate(self, *, kindly: bool = False) -> None:
        """Save the variables to disk and give the memory back; the next cell wakes the session.

        Args:
            kindly: not if a program has begun meanwhile, which would end; but a pause does not wait for any.

        Raises:
            Conflict: a cell runs or waits.
            NotSupported: this kernel can't, or its environment has no cloudpickle.
            AtCapacity: the disk refuses. In every case the session goes on awake.
        """
        session = self._session
        session.require_writable_log()
        if session.machine.hibernated:
            return
        session.handle(BeginSwitch())
        try:
            saved, size = await self._save()
        except BaseException:
            session.handle(AbortSwitch())
            raise
        if kindly and session.machine.programs and not session.machine.paused:
            session.handle(AbortSwitch())
            raise Conflict("A program has begun beside the kernel.")
        await session.copies.discard_all()
        await self._let_go(KernelDead("The session was put to sleep before it answered; run a cell to wake it."))
        session.handle(StateSaved(ev.Hibernated(saved=saved.count, bytes=size, lost=saved.lost)))

    async def _save(self) -> tuple[SaveResult, int]:
        kernel, path = self._session.kernel, self._saved
        if kernel is None or path is None:
            raise KernelDead()
        if not kernel.forkable:
            raise NotSupported("Only forked kernels can be put to sleep.")
        fresh = path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                saved = await kernel.save(fd)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
            fresh.rename(path)
        except OSError as error:
            raise AtCapacity(f"The variables can't be saved ({error.strerror}); free disk space.") from error
        return saved, size

    async def ensure_running(self) -> None:
        """Wake a session that sleeps, or wait for one that is being restored: for what needs a kernel and is no cell.

        Safe to cancel.

        Raises:
            Conflict: it is on its way to sleep, or back; try again in a moment.
        """
        session = self._session
        if session.kernel is None:
            await session.settled()
        if session.machine.hibernated:
            session.handle(Resume())
            await session.settled()

    async def resume(self) -> None:
        """A fresh kernel with the saved variables; they are read by it and by nobody else."""
        session = self._session
        kernel = await self._start()
        if kernel is None:
            return
        try:
            loaded = await self._load(kernel)
        except (KernelsvcError, OSError) as error:
            why = f"the saved variables could not be loaded: {error}"
            session.adopt_kernel(kernel, ev.KernelRestarted(why=why, kernel=kernel.info))
            return
        session.adopt_kernel(kernel, ev.Woken(kernel=kernel.info, lost=loaded.lost))
        if self._saved is not None:
            self._saved.unlink(missing_ok=True)

    async def _load(self, kernel: Kernel) -> SaveResult:
        if self._saved is None:
            raise KernelDead("There is no place for saved variables.")
        fd = os.open(self._saved, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return await kernel.load(fd, execution_count=self._session.machine.execution_count + 1)
        finally:
            os.close(fd)
