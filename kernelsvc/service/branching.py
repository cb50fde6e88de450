"""How one live session becomes several.

Order: room for them is promised, the directory's size is looked at, the live
kernel (or a checkpoint) is forked once for each, all from one moment; then each
copy gets its directory, its log and its "go" at the same time as its siblings. If
one can't be made, none is.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import AtCapacity, Conflict, KernelDead, TooLarge
from kernelsvc.kernels.port import ForkResult
from kernelsvc.model import events as ev
from kernelsvc.model.admission import Reservation
from kernelsvc.model.hash_chain import timestamp
from kernelsvc.model.limits import Limits, LimitsRequest
from kernelsvc.model.objects import Checkpoint
from kernelsvc.sandbox import branch_dirs
from kernelsvc.sandbox.watchdog import disk_usage, free_bytes
from kernelsvc.session import Session, SessionSpec, new_id, new_kernel_id, start_request_of
from kernelsvc.store.sessions import SessionDirectories

MiB = 1024 * 1024

#: How often is said how far the copies of a large directory are.
TELL_SECONDS = 1.0

#: Makes a session of a copy that waits: what it is, its parent's directory, where its own is made, when it is forked.
Begin = Callable[[SessionSpec, Path, Path, asyncio.Future[Any]], Awaitable[Session]]
#: What the model should know of the copies, and the first checkpoint of each, in the making.
Forks = tuple[list[str], list[asyncio.Task[ForkResult]]]


class BranchCreator:
    """See the module's docstring.

    Args:
        store: where sessions lie.
        promised: sessions that are being made, by id; they count as there.
        begin: makes a session of a copy.
    """

    def __init__(self, store: SessionDirectories, promised: dict[str, Reservation], begin: Begin) -> None:
        self._store = store
        self._promised = promised
        self._begin = begin

    async def branch(
        self, parent: Session, abouts: list[SessionSpec], *, at: str | None, force: bool
    ) -> tuple[list[Session], list[str]]:
        """Make the branches that ``abouts`` describe; returns them and what the model should know of them.

        Raises:
            KernelsvcError: nothing was made.
        """
        files = self._store.directory(parent.id).working()
        self._promised |= {a.id: Reservation(principal=a.principal, memory_bytes=a.limits.memory_bytes) for a in abouts}
        try:
            size = await asyncio.to_thread(_must_fit, files, abouts)
            place = self._place(parent, files, abouts)
            telling = asyncio.ensure_future(_tell(parent, abouts, place, size * len(abouts)))
            forking = asyncio.ensure_future(self._fork(parent, abouts, at=at, force=force))
            try:
                parent.spawn(self._fence(parent, abouts, forking))
                made = await self._wake(parent, abouts, files, place, forking)
            except BaseException:
                parent.spawn(self._discard(parent, abouts, forking))
                raise
            finally:
                telling.cancel()
            warnings, spares = forking.result()
            for one, spare in zip(made, spares, strict=False):
                one.spawn(one.copies.adopt_first(one.about.spare, spare))
            return made, warnings
        finally:
            for about in abouts:
                del self._promised[about.id]

    async def _fork(self, parent: Session, abouts: list[SessionSpec], *, at: str | None, force: bool) -> Forks:
        copies = [start_request_of(about) for about in abouts]
        spares = [
            msgspec.structs.replace(copy, kernel=about.spare, beside=copy.kernel, copy_from="")
            for about, copy in zip(abouts, copies, strict=True)
        ]
        wanted = spares if parent.copies.wanted else []
        warnings, making = await parent.copies.fork_branches(copies, wanted, at=at, force=force)
        for about in abouts:
            about.parent = {**(about.parent or {}), **({"warnings": warnings} if warnings else {})}
        return warnings, making

    async def _discard(self, parent: Session, abouts: list[SessionSpec], forking: asyncio.Future[Forks]) -> None:
        await asyncio.wait([forking])
        if forking.exception() is None:
            await asyncio.gather(*forking.result()[1], return_exceptions=True)
            kernels = [kernel for about in abouts for kernel in (about.kernel, about.spare)]
            await asyncio.gather(*(parent.launcher.discard(kernel) for kernel in kernels))

    async def _fence(self, parent: Session, abouts: list[SessionSpec], forking: asyncio.Future[Forks]) -> None:
        """Nobody waits for it: it is with the parent before any cell that comes later. Its failure is told."""
        await asyncio.wait([forking])
        if forking.exception() is None and (warnings := await parent.copies.restrict_writes()):
            parent.try_record(ev.Branched(sessions=[about.id for about in abouts], warnings=warnings))

    def _place(self, parent: Session, files: Path, abouts: list[SessionSpec]) -> Path:
        """Where their directories will lie, as this machine sees it; ``abouts`` are told how they see it."""
        if parent.kernel is None:
            raise KernelDead()
        try:
            place = branch_dirs.make_place(files)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                said = "A link or a file lies where branches have their directories (/home/user.d); move it in a cell."
                raise Conflict(said) from error
            raise AtCapacity(f"No branch can be recorded ({error.strerror}); free disk space.") from error
        home = Path(parent.kernel.home)
        inside = branch_dirs.branches_root(home) / place.relative_to(branch_dirs.branches_root(files))
        for about in abouts:
            about.home, about.copy_from = str(inside / about.id), parent.kernel.home
            about.workdir = str(place / about.id)
        return place

    async def _wake(
        self, parent: Session, abouts: list[SessionSpec], files: Path, place: Path, forking: asyncio.Future[Forks]
    ) -> list[Session]:
        beginning = (self._begin(about, files, place, forking) for about in abouts)
        results = await asyncio.gather(*beginning, return_exceptions=True)
        made = [one for one in results if isinstance(one, Session)]
        failed = [one for one in results if isinstance(one, BaseException)]
        if failed:
            await asyncio.gather(*(one.close("a sibling could not be made") for one in made))
            raise failed[0]
        return made


def branch_about(
    parent: Session, now: float, *, at: str | None, labels: dict[str, str] | None, limits: LimitsRequest | None
) -> SessionSpec:
    """What a branch is to be; its directory comes later.

    Raises:
        NotFound: no such checkpoint.
        BadRequest, LimitTooHigh: the limits are none that its parent could give.
    """
    about = parent.about
    return msgspec.structs.replace(
        about,
        id=new_id("s"),
        kernel=new_kernel_id(),
        spare=new_kernel_id(),
        created_at=timestamp(now),
        labels={**about.labels, **(labels or {})},
        limits=about.limits if limits is None else _lowered(about.limits, limits),
        parent={"session": parent.id, "seq": position(parent, parent.copies.find(at) if at else None)},
        idempotency_key=None,
        beside=None,
    )


def _lowered(limits: Limits, wanted: LimitsRequest) -> Limits:
    # The network is the family's namespace; it can't be left by one of them.
    return limits.lowered(msgspec.structs.replace(wanted, network=None))


def position(parent: Session, checkpoint: Checkpoint | None) -> int:
    """How much of its parent's log a branch has behind it: all of it, or up to the checkpoint's last cell."""
    if checkpoint is None:
        return parent.log.last_seq
    last = parent.machine.cells.get(checkpoint.after_cell or "")
    return last.last if last is not None else 1


async def _tell(parent: Session, abouts: list[SessionSpec], place: Path, total: int) -> None:
    """Say how far the copies of the directory are, until cancelled."""
    while True:
        await asyncio.sleep(TELL_SECONDS)
        parts = await asyncio.gather(*(asyncio.to_thread(disk_usage, str(place / about.id)) for about in abouts))
        told = ev.Branching(sessions=[about.id for about in abouts], copied_bytes=sum(parts), total_bytes=total)
        parent.try_record(told)


def _must_fit(files: Path, abouts: list[SessionSpec]) -> int:
    """Refuse before anything is forked what could not be copied; returns how much there is, in bytes.

    Raises:
        TooLarge: more than a branch may have.
        AtCapacity: more than the disk holds.
    """
    size = disk_usage(str(files))
    most = abouts[0].limits.disk_bytes
    if most is not None and size > most:
        raise TooLarge(
            f"The session's directory holds {size} bytes and a branch may have {most}; delete some files first.",
            size=size,
            allowed=most,
        )
    if size > MiB and size * len(abouts) > free_bytes(str(files)) and not _shares_blocks(files):
        raise AtCapacity(
            f"{len(abouts)} copies of the session's directory, {size} bytes each, do not fit on the disk; "
            "branch fewer, or delete some files.",
        )
    return size


def _shares_blocks(files: Path) -> bool:
    """Whether copies on this filesystem take no room at first (FICLONE)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in mounts}
    at = next((str(path) for path in (files, *files.parents) if str(path) in kinds), "")
    return kinds.get(at) in ("btrfs", "xfs", "bcachefs")
