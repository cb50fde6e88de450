"""The kernels of a session: start, adopt, replace, restore, roll back, hibernate, resume.

Each operation that brings a kernel ends in ``SessionPort.attach_kernel`` with the event that records it. Until then the
machine sends no cells, so no cell goes to a kernel that is about to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import UNSET

from kernelsvc.errors import (
    AtCapacity,
    Conflict,
    KernelDead,
    KernelsvcError,
    NotFound,
    NotSupported,
    SessionClosed,
    Timeout,
)
from kernelsvc.kernels.port import Kernel, Launcher, SaveResult
from kernelsvc.model import events as ev
from kernelsvc.model.exit_status import Cause, Exit
from kernelsvc.model.objects import Checkpoint, SessionState
from kernelsvc.model.state import MachineState
from kernelsvc.model.stimuli import AbortSwitch, AnswerLost, BeginSwitch, DeliveryKnown, Resume, StartFailed, StateSaved
from kernelsvc.model.storage.mounts import names_of
from kernelsvc.session.checkpoints import Checkpoints, RollbackPlan
from kernelsvc.session.kernel_requests import OperationQueue
from kernelsvc.session.ports import SessionPort
from kernelsvc.session.replay import ReplaySink
from kernelsvc.session.spec import SessionSpec, lost_warnings, start_request_of

log = logging.getLogger(__name__)


class KernelLifecycle:
    """The operations that start, replace and end the kernel of one session.

    Args:
        session: attaches and releases kernels.
        machine: is only read here.
        spec: the session's specification.
        launcher: starts, finds and ends kernels.
        checkpoints: the session's checkpoints.
        operations: keeps requests to the kernel in order.
        saved: path of the file for the variables of a hibernated session. None if the session can't hibernate.
        versions: versions of software, for the ``session_started`` event.
    """

    def __init__(
        self,
        session: SessionPort,
        machine: MachineState,
        spec: SessionSpec,
        launcher: Launcher,
        checkpoints: Checkpoints,
        operations: OperationQueue,
        saved: Path | None,
        versions: Mapping[str, str],
    ) -> None:
        self._session = session
        self._machine = machine
        self._spec = spec
        self._launcher = launcher
        self._checkpoints = checkpoints
        self._operations = operations
        self._saved = saved
        self._versions = versions
        # A checkpoint that was resumed after a crash, until ``restore`` attaches its kernel.
        self._resumed: tuple[Checkpoint, Kernel] | None = None
        # Ends the kernel whose variables were saved. The next kernel starts after it.
        self._ending: asyncio.Task[None] | None = None

    # -- the first kernel of a session, and of a server ---------------------------------

    async def start(self, *, copy: bool, load: bool = False) -> None:
        """Start the first kernel and write the first event. See ``Session.start``."""
        begin = self._launcher.resume_copy if copy else self._launcher.start
        spec = self._spec
        kernel = await begin(start_request_of(spec), self._session)
        if load:
            await self._load_first(kernel)
        first = ev.SessionStarted(
            principal=spec.principal,
            template=spec.template,
            name=spec.name,
            labels=spec.labels,
            limits=spec.limits,
            env_names=sorted(spec.env),
            kernel=kernel.info,
            sandbox=kernel.sandbox,
            versions={**self._versions},
            parent=spec.parent,
            mounts=names_of(spec.binds) or UNSET,
            workspace=spec.workspace or UNSET,
        )
        try:
            self._session.attach_kernel(kernel, first)
        except OSError as error:
            await kernel.end()
            raise AtCapacity("The session's log is not writable. Free disk space and try again.") from error

    async def _load_first(self, kernel: Kernel) -> None:
        """Load the variables of an isolated branch's parent into its new kernel, before any cell."""
        try:
            loaded = await self._load(kernel)
        except BaseException:
            await asyncio.shield(kernel.end())
            raise
        finally:
            self._remove_saved()
        known = (self._spec.parent or {}).get("warnings", [])
        # A variable that was not saved is missing here, too.
        missing = {
            name: why for name, why in loaded.lost.items() if not any(f" {name} was not" in one for one in known)
        }
        self._spec.add_warnings([*known, *lost_warnings(missing)])

    async def adopt(self) -> None:
        """Connect to the kernel of an earlier server, or replace it if it has ended. See ``Session.adopt``."""
        if self._machine.hibernated:
            if self._machine.queue:  # the earlier server ended before it resumed the session for these cells
                self._session.handle(Resume())
            return
        request = start_request_of(self._spec)
        kernel = await self._launcher.adopt(request, self._session, last_frame=self._machine.frame)
        if kernel is None:
            self._kernel_gone(await self._launcher.how_ended(request.kernel))
        elif self._machine.state is SessionState.CLOSED:  # closed while the server connected
            await kernel.end()
        else:
            self._attach_adopted(kernel)

    def _attach_adopted(self, kernel: Kernel) -> None:
        received = frozenset(cell for cell in self._machine.queue if kernel.has_received(cell))
        try:
            self._session.handle(DeliveryKnown(received, ordered=kernel.ordered))
            self._session.attach_kernel(kernel, ev.SessionAdopted(kernel=kernel.info))
            answered = self._machine.answered
            # Only an ordered kernel reports which answers it has received.
            if answered is not None and kernel.ordered and not kernel.has_received(answered.question.answer_id):
                self._session.handle(AnswerLost())
        except OSError:
            self._session.release_kernel(KernelDead())
            kernel.detach()
            raise

    def _kernel_gone(self, exit: Exit | None) -> None:
        """Handle a kernel that ended while no server was running, or before it was ready."""
        if self._machine.state in (SessionState.STARTING, SessionState.RESTORING):
            again = self.restore() if self._machine.checkpoint_kernels else self.replace("not found after a restart")
            self._session.spawn(again)
            return
        # The earlier server may have sent the queued cells, and they may have run. They must not run twice.
        self._session.handle(DeliveryKnown(frozenset(self._machine.queue)))
        self._session.exited(exit or Exit(cause=Cause.LOST, message="The kernel ended while no server was running"))

    # -- replacements -------------------------------------------------------------------

    async def replace(self, why: str) -> None:
        """Replace the current kernel by a new one with empty variables.

        Args:
            why: the reason, for the ``kernel_restarted`` event.
        """
        await self._end_current(KernelDead("The kernel was replaced before it answered. Send the request again."))
        await self.end_resumed()
        await self._checkpoints.discard_all()
        kernel = await self._start_fresh()
        if kernel is not None:
            self._session.attach_kernel(kernel, ev.KernelRestarted(why=why, kernel=kernel.info))

    async def _end_current(self, why: KernelsvcError) -> None:
        kernel = self._session.release_kernel(why)
        if kernel is not None:
            await kernel.end()

    async def end_resumed(self) -> None:
        """End the kernel of ``resume_newest`` if the session does not need it, because it was closed or restarted."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            await resumed[1].end()

    async def _start_fresh(self) -> Kernel | None:
        """Return a fresh kernel. Return None if it could not be started, or if the session was closed meanwhile."""
        if self._ending is not None:
            await asyncio.wait({self._ending})
        try:
            kernel = await self._launcher.start(self._session.next_start_request(), self._session)
        except KernelsvcError as error:
            if self._machine.state is not SessionState.CLOSED:
                self._session.handle(StartFailed(error.message))
            return None
        if self._machine.state is SessionState.CLOSED:
            await kernel.end()
            return None
        await self._checkpoints.restrict_writes(kernel)
        return kernel

    async def resume_newest(self) -> bool:
        """Resume the newest checkpoint that answers, in place of a kernel that died. ``restore`` then attaches it.

        A checkpoint may have died together with its kernel. Only one that answers proves that the variables are kept.

        Returns:
            Whether a checkpoint answered.
        """
        await self._end_current(KernelDead("The kernel died before it answered. Send the request again."))
        failed: set[str] = set()
        while (newest := self._checkpoints.newest(failed)) is not None:
            try:
                self._resumed = newest, await self._checkpoints.resume(newest)
            except KernelsvcError as error:
                self._session.try_record(ev.CheckpointDropped(checkpoint=newest.id, why=error.message))
                failed.add(newest.id)  # if the write failed, the machine still lists this checkpoint
                continue
            return True
        return False

    async def restore(self) -> None:
        """Resume the newest checkpoint in place of a kernel that died. If none can be resumed, start a fresh kernel."""
        if self._resumed is None:
            await self.resume_newest()
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            await self.replace("died, and no checkpoint could be woken")
            return
        newest, kernel = resumed
        await self._checkpoints.restrict_writes(kernel)
        event = ev.KernelRestored(checkpoint=newest.id, after_cell=newest.after_cell, kernel=kernel.info)
        recreated = self._checkpoints.put_recreate(newest)
        self._session.attach_kernel(kernel, event)
        await recreated

    async def rollback(self, to: str | None = None, *, replay: bool = True, by: str = "") -> None:
        """Return to an earlier state of the variables.

        Args:
            to: a checkpoint's id or name, or a cell's id for the state before that cell. None for the state before
                the last cell. The state before the first cell is a fresh kernel.
            replay: if the state has no checkpoint, resume the newest one before it and run the cells in between again.
            by: the name of the principal who requests it.

        Raises:
            NotFound: no such checkpoint or cell, or no checkpoint leads to the state, or only a replay would.
            Conflict: a cell runs or waits, or a cell failed when it ran again. The session is unchanged.
            KernelsvcError: the checkpoint could not be resumed, or no fresh kernel started. Nothing has changed.
        """
        self._session.require_writable()
        await self.ensure_running()
        checkpoints, kernel = self._checkpoints, self._session.kernel
        if kernel is not None and not kernel.forkable:
            raise NotSupported()
        plan = checkpoints.plan_rollback(to)
        if plan.replay and checkpoints.busy:  # perhaps the checkpoint that makes the replay unnecessary
            await checkpoints.wait_idle()
            plan = checkpoints.plan_rollback(to)
        if plan.replay and not replay:
            raise NotFound(
                f"The state has no checkpoint. With replay=true, {len(plan.replay)} cells run again to reach it."
            )
        self._session.handle(BeginSwitch())
        sink = ReplaySink(self._session)
        try:
            if plan.replay:
                kernel = await self._replayed(plan, sink)
            else:
                kernel = await (checkpoints.resume(plan.target) if plan.target else checkpoints.start_fresh())
        except BaseException:
            self._session.handle(AbortSwitch())
            raise
        await checkpoints.restrict_writes(kernel)
        old = self._session.release_kernel(
            KernelDead("The session was rolled back before its kernel answered. Send the request again.")
        )
        event = ev.RolledBack(
            to=plan.target.id if plan.target else "",
            after_cell=plan.after,
            undone=plan.undone,
            redone=plan.redone,
            replayed=plan.replay,
            kernel=kernel.info,
            by=by,
        )
        recreated = checkpoints.put_recreate(None if plan.replay else plan.target, plan.after)
        self._session.attach_kernel(kernel, event)
        sink.attach()
        await recreated
        if old is not None:
            await old.end()

    async def _replayed(self, plan: RollbackPlan, sink: ReplaySink) -> Kernel:
        """Return a kernel in which the cells of the plan ran again."""
        checkpoints = self._checkpoints
        kernel = await (checkpoints.resume_again(plan.target, sink) if plan.target else checkpoints.start_empty(sink))
        try:
            await checkpoints.restrict_writes(kernel)
            await sink.run(kernel, checkpoints.past_cells(plan.replay))
            await checkpoints.continue_history(kernel, plan.after)
            if self._machine.state is SessionState.CLOSED:
                raise SessionClosed()
        except BaseException:
            await kernel.end()
            raise
        return kernel

    # -- hibernate and resume -----------------------------------------------------------

    async def hibernate_if_possible(self) -> None:
        """Hibernate an idle session, or log why that failed. The machine tries again only after the next cell."""
        try:
            await self.hibernate(unless_programs=True)
        except KernelsvcError as error:
            log.info("session %s does not hibernate: %s", self._spec.id, error.message)
            if isinstance(error, NotSupported | Timeout | AtCapacity):
                self._checkpoints.record_skipped(error)

    async def hibernate(self, *, unless_programs: bool = False) -> None:
        """Save the variables to disk and end the kernel. The next cell resumes the session.

        If this raises, the session keeps its kernel.

        Args:
            unless_programs: refuse if a program runs in the sandbox, because it would end with the kernel.

        Raises:
            Conflict: a cell runs or waits, or a program runs.
            NotSupported: this kernel can't hibernate, or its environment has no cloudpickle.
            AtCapacity: the variables, or the event, could not be written to disk.
        """
        self._session.require_writable()
        if self._machine.hibernated:
            return
        self._session.handle(BeginSwitch())
        try:
            saved, size = await self._save()
        except BaseException:
            self._session.handle(AbortSwitch())
            raise
        if unless_programs and self._machine.programs:
            self._session.handle(AbortSwitch())
            self._remove_saved()
            raise Conflict("A program has started in the session's sandbox.")
        copies = self._machine.kernels_of_checkpoints()
        try:
            # Before the kernel ends: if the server is killed in between, the next one knows that the file is complete.
            self._session.handle(StateSaved(ev.Hibernated(saved=saved.count, bytes=size, lost=saved.lost)))
        except OSError as error:
            self._session.handle(AbortSwitch())
            self._remove_saved()
            raise AtCapacity("The session's log is not writable. Free disk space and try again.") from error
        kernel = self._session.release_kernel(
            KernelDead("The session hibernated before its kernel answered. Run a cell to resume it.")
        )
        self._ending = self._session.spawn(self._end_saved(kernel, copies))
        await asyncio.wait({self._ending})

    async def _end_saved(self, kernel: Kernel | None, copies: list[str]) -> None:
        await self._checkpoints.discard_all(copies)
        if kernel is not None:
            await kernel.end()

    async def _save(self) -> tuple[SaveResult, int]:
        kernel, path = self._session.kernel, self._saved
        if kernel is None or path is None:
            raise KernelDead()
        if not kernel.forkable:
            raise NotSupported("Only forked kernels can hibernate.")
        fresh = path.with_suffix(".new")
        try:
            saved, size = await self._write(kernel, fresh)
            fresh.rename(path)
        except OSError as error:
            raise AtCapacity(
                f"The variables can't be saved ({error.strerror}). Free disk space and try again."
            ) from error
        finally:
            # A kernel may keep the descriptor. Without a name, the file counts as one that it has open.
            fresh.unlink(missing_ok=True)
        return saved, size

    async def _write(self, kernel: Kernel, fresh: Path) -> tuple[SaveResult, int]:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            saved = await self._operations.request(lambda: kernel.save(fd))
            return saved, os.fstat(fd).st_size
        finally:
            os.close(fd)

    async def save_variables(self, fd: int) -> SaveResult:
        """Have the kernel write its variables to ``fd`` between two cells, for another session.

        Raises:
            KernelDead: there is no kernel now.
            NotSupported: this kernel can't, or its environment has no cloudpickle.
            Timeout: the kernel did not answer.
        """
        kernel = self._session.kernel
        if kernel is None:
            raise KernelDead()
        if not kernel.forkable:
            raise NotSupported("Only forked kernels can be branched.")
        return await self._operations.request(lambda: kernel.save(fd))

    def _remove_saved(self) -> None:
        if self._saved is not None:
            self._saved.unlink(missing_ok=True)

    async def ensure_running(self) -> None:
        """Resume a hibernated session, or wait until a kernel is attached. For operations other than cells.

        Safe to cancel.
        """
        if self._session.kernel is None:
            await self._session.settled()
        if self._machine.hibernated:
            self._session.handle(Resume())
            await self._session.settled()

    async def resume(self) -> None:
        """Start a kernel and have it load the saved variables. The server does not read that file."""
        kernel = await self._start_fresh()
        if kernel is None:
            return
        try:
            loaded = await self._load(kernel)
        except (KernelsvcError, OSError) as error:
            why = f"the saved variables could not be loaded: {error}"
            self._session.attach_kernel(kernel, ev.KernelRestarted(why=why, kernel=kernel.info))
            return
        self._session.attach_kernel(kernel, ev.Woken(kernel=kernel.info, lost=loaded.lost))
        self._remove_saved()

    async def _load(self, kernel: Kernel) -> SaveResult:
        if self._saved is None:
            raise KernelDead("There is no file for saved variables.")
        fd = os.open(self._saved, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return await kernel.load(fd, execution_count=self._machine.execution_count + 1)
        finally:
            os.close(fd)
