"""How one open session becomes several.

The order is: reserve room for the branches, measure the directory, fork the live
kernel (or a checkpoint) once for each branch at one moment, then create the
directory and the journal of all branches and start them at the same time. If one
branch can't be created, none is.
"""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import msgspec

from kernelsvc.errors import AtCapacity, BadRequest, Conflict, TooLarge
from kernelsvc.kernels.port import ForkResult
from kernelsvc.model import events as ev
from kernelsvc.model.cluster.ids import node_of
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits, LimitsRequest
from kernelsvc.model.objects import MAX_LABELS, Checkpoint, Principal
from kernelsvc.model.tool_calls.offers import ToolFilter, narrowed
from kernelsvc.sandbox import branch_dirs
from kernelsvc.sandbox.disk_use import measure_directory
from kernelsvc.sandbox.watchdog import free_bytes
from kernelsvc.service.creation import SessionCreator
from kernelsvc.service.isolated_branch import begin_isolated
from kernelsvc.service.projections import Projections
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session, SessionSpec, new_kernel_id, new_session_id, start_request_of
from kernelsvc.store.sessions import SessionDirectories

MiB = 1024 * 1024

#: Seconds between reports of how far the copies of a large directory are.
REPORT_SECONDS = 1.0

#: Warnings for the client, and the first checkpoint of each branch, in creation.
Forks = tuple[list[str], list[asyncio.Task[ForkResult]]]


class BranchCreator:
    """Create branches. See the module's docstring.

    Args:
        store: all session directories.
        registry: all sessions.
        creator: begins a session on a forked kernel.
        projections: give a branch the notebook of its parent.
    """

    def __init__(
        self,
        store: SessionDirectories,
        registry: SessionRegistry,
        creator: SessionCreator,
        projections: Projections,
    ) -> None:
        self._store = store
        self._registry = registry
        self._creator = creator
        self._projections = projections

    async def branch(
        self,
        who: Principal,
        parent: Session,
        *,
        at: str | None,
        count: int,
        labels: dict[str, str] | None,
        limits: LimitsRequest | None,
        force: bool,
        isolate: bool,
        tools: ToolFilter | None = None,
    ) -> list[Session]:
        """Create branches of a session. For the arguments see ``Service.branch``.

        Raises:
            KernelsvcError: nothing was created.
        """
        if isolate and at is not None:
            raise BadRequest("An isolated branch starts from the present state. Leave out 'at', or roll back first.")
        now = self._store.clock()
        # One microsecond apart, so that lists show the branches in the order of the answer.
        specs = [
            branch_spec(parent, now + n / 1e6, at=at, labels=labels, limits=limits, tools=tools) for n in range(count)
        ]
        self._creator.admit(who, specs[0].limits, count)
        await parent.ensure_running()
        if isolate:
            made, warnings = await self._isolated(parent, specs)
        else:
            made, warnings = await self._branch(parent, specs, at=at, force=force)
        parent.record(ev.Branched(sessions=[one.id for one in made], checkpoint=at, warnings=warnings, by=who.name))
        for one in made:
            self._projections.inherit(self._store.directory(one.id), one.spec.parent)
        return made

    async def _isolated(self, parent: Session, specs: list[SessionSpec]) -> tuple[list[Session], list[str]]:
        files = self._store.directory(parent.id).working()
        for spec in specs:
            spec.leave_family()
        with self._registry.reserved(specs):
            await asyncio.to_thread(_must_fit, files, specs)
            made = await begin_isolated(self._store, self._creator, parent, specs)
        return made, list((made[0].spec.parent or {}).get("warnings", []))

    async def _branch(
        self, parent: Session, specs: list[SessionSpec], *, at: str | None, force: bool
    ) -> tuple[list[Session], list[str]]:
        files = self._store.directory(parent.id).working()
        with self._registry.reserved(specs):
            size = await asyncio.to_thread(_must_fit, files, specs)
            place = self._make_place(parent, files, specs)
            reporting = asyncio.ensure_future(_report_copying(parent, specs, place, size * len(specs)))
            forking = asyncio.ensure_future(self._fork(parent, specs, at=at, force=force))
            try:
                parent.spawn(self._restrict_writes(parent, specs, forking))
                made = await self._begin_all(specs, files, place, forking)
            except BaseException:
                parent.spawn(self._discard(parent, specs, forking))
                raise
            finally:
                reporting.cancel()
            warnings, spares = forking.result()
            for one, spare in zip(made, spares, strict=False):
                one.adopt_first_checkpoint(spare)
            return made, warnings

    async def _fork(self, parent: Session, specs: list[SessionSpec], *, at: str | None, force: bool) -> Forks:
        copies = [start_request_of(spec) for spec in specs]
        spares = [
            msgspec.structs.replace(copy, kernel=spec.spare, beside=copy.kernel, copy_from="")
            for spec, copy in zip(specs, copies, strict=True)
        ]
        wanted = spares if parent.keeps_checkpoints else []
        warnings, making = await parent.fork_branches(copies, wanted, at=at, force=force)
        for spec in specs:
            spec.add_warnings(warnings)
        return warnings, making

    async def _discard(self, parent: Session, specs: list[SessionSpec], forking: asyncio.Future[Forks]) -> None:
        await asyncio.wait([forking])
        if forking.exception() is None:
            await asyncio.gather(*forking.result()[1], return_exceptions=True)
            kernels = [kernel for spec in specs for kernel in (spec.kernel, spec.spare)]
            await asyncio.gather(*(parent.discard_kernel(kernel) for kernel in kernels))

    async def _restrict_writes(self, parent: Session, specs: list[SessionSpec], forking: asyncio.Future[Forks]) -> None:
        """Stop the parent from writing to the branches' directories. Warnings go into the journal.

        The request does not wait for it: the kernel gets it before any later cell.
        """
        await asyncio.wait([forking])
        if forking.exception() is None and (warnings := await parent.restrict_writes()):
            parent.try_record(ev.Branched(sessions=[spec.id for spec in specs], warnings=warnings))

    def _make_place(self, parent: Session, files: Path, specs: list[SessionSpec]) -> Path:
        """Create the directory for the branches' directories, and fill in its paths in ``specs``."""
        home = parent.home
        try:
            place = branch_dirs.make_branches_dir(files)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                text = "A link or a file lies where branches have their directories (/home/user.d). Move it in a cell."
                raise Conflict(text) from error
            raise AtCapacity(f"No branch can be recorded ({error.strerror}). Free disk space.") from error
        inside = branch_dirs.branches_root(home) / place.relative_to(branch_dirs.branches_root(files))
        for spec in specs:
            spec.use_directory(str(place / spec.id), home=str(inside / spec.id), copy_from=str(home))
        return place

    async def _begin_all(
        self, specs: list[SessionSpec], files: Path, place: Path, forking: asyncio.Future[Forks]
    ) -> list[Session]:
        beginning = (self._creator.begin_branch(spec, files, place, forking) for spec in specs)
        results = await asyncio.gather(*beginning, return_exceptions=True)
        made = [one for one in results if isinstance(one, Session)]
        failed = [one for one in results if isinstance(one, BaseException)]
        if failed:
            await asyncio.gather(*(one.close("a sibling could not be made") for one in made))
            raise failed[0]
        return made


def branch_spec(
    parent: Session,
    now: float,
    *,
    at: str | None,
    labels: dict[str, str] | None,
    limits: LimitsRequest | None,
    tools: ToolFilter | None = None,
) -> SessionSpec:
    """Return the specification of a branch, without its directory. It may call no function that its parent may not.

    Raises:
        NotFound: no such checkpoint.
        BadRequest, LimitTooHigh: the limits are wrong, or above its parent's.
    """
    about = parent.spec
    all_labels = {**about.labels, **(labels or {})}
    if len(all_labels) > MAX_LABELS:
        raise BadRequest(f"With its parent's, the branch has {len(all_labels)} labels, and {MAX_LABELS} is the limit.")
    return msgspec.structs.replace(
        about,
        id=new_session_id(node_of(about.id) or ""),
        kernel=new_kernel_id(),
        spare=new_kernel_id(),
        created_at=timestamp(now),
        labels=all_labels,
        limits=about.limits if limits is None else _lowered(about.limits, limits),
        parent={"session": parent.id, "seq": position(parent, parent.find_checkpoint(at) if at else None)},
        idempotency_key=None,
        beside=None,
        tools=narrowed(about.tools, tools),
    )


def _lowered(limits: Limits, wanted: LimitsRequest) -> Limits:
    # A session and its branches share one network namespace, and a branch of its own keeps its parent's rules.
    if wanted.network not in (None, limits.network):
        raise BadRequest("A branch has the network of its session. Leave out 'network'.", limit="network")
    return limits.lowered(msgspec.structs.replace(wanted, network=None))


def position(parent: Session, checkpoint: Checkpoint | None) -> int:
    """Return the last entry of the parent's journal that a branch continues: its end, or the checkpoint's last cell."""
    if checkpoint is None:
        return parent.last_seq
    return parent.position_after(checkpoint.after_cell)


async def _report_copying(parent: Session, specs: list[SessionSpec], place: Path, total: int) -> None:
    """Record how many bytes of the directories are copied, until cancelled."""
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        parts = await asyncio.gather(*(asyncio.to_thread(measure_directory, str(place / spec.id)) for spec in specs))
        progress = ev.Branching(
            sessions=[spec.id for spec in specs], copied_bytes=sum(part.bytes for part in parts), total_bytes=total
        )
        parent.try_record(progress)


def _must_fit(files: Path, specs: list[SessionSpec]) -> int:
    """Check that the directory can be copied for each branch. Return its size in bytes.

    Raises:
        TooLarge: it holds more than a branch may have.
        AtCapacity: the copies would not fit on the disk.
    """
    size = measure_directory(str(files)).bytes
    most = specs[0].limits.disk_bytes
    if most is not None and size > most:
        raise TooLarge(
            f"The session's directory holds {size} bytes and a branch may have {most}. Delete some files first.",
            size=size,
            allowed=most,
        )
    if size > MiB and size * len(specs) > free_bytes(str(files)) and not _shares_blocks(files):
        raise AtCapacity(
            f"{len(specs)} copies of the session's directory, {size} bytes each, do not fit on the disk. "
            "Branch fewer, or delete some files.",
        )
    return size


def _shares_blocks(files: Path) -> bool:
    """Whether copies on this filesystem share blocks with the original (FICLONE, ioctl_ficlone(2))."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in mounts}
    at = next((str(path) for path in (files, *files.parents) if str(path) in kinds), "")
    return kinds.get(at) in ("btrfs", "xfs", "bcachefs")
