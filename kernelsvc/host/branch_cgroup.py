"""A branch's own cgroup within the sandbox of its group.

A branch shares init, namespaces and filters with the session it came from, and has its own limits: the host creates a
cgroup for it and moves the waiting process in before the branch runs anything. Processes that the branch forks later,
its checkpoints among them, start in that cgroup.

cgroups(7) and the documentation of the memory controller: memory is charged to the cgroup of the process that touched
it first, and a charge does not move with a process. So a branch reads its parent's pages without a charge, pays for the
pages it writes, and pages charged before the move stay with the parent.

Linux moves another process only after a grace period of RCU, 5 to 20 ms without any computation. A thread waits for it,
as far as possible while the kernel still forks (``CgroupManager.prewait_rcu``). The server waits for the rest when it
requests the branch in order to resume it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import msgspec

from kernelsvc.errors import Internal, KernelDead
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox.cgroup import Cgroup
from kernelsvc.sandbox.manager import SandboxManager

#: Seconds between two attempts to remove a cgroup, and seconds after which it is left. rmdir(2) fails with EBUSY until
#: every killed process has exited.
CLEAR_PAUSE, CLEAR_SECONDS = 0.01, 5.0


class BranchCgroup(msgspec.Struct, kw_only=True):
    """A branch's cgroup and its limits. Plain data: a host writes it to disk with the container's record.

    Attributes:
        group: the cgroup, or None if this machine offers none.
        limits: the limits it was created for.
        oom_kills: OOM kills that were already reported.
    """

    group: Cgroup | None
    limits: Limits
    oom_kills: int = 0

    def new_oom_kills(self) -> int:
        """Return the number of OOM kills since the last call."""
        kills = self.group.sample().oom_kills if self.group is not None else 0
        fresh, self.oom_kills = kills - self.oom_kills, kills
        return fresh


async def create_and_attach(sandbox: SandboxManager, name: str, pid: int, limits: Limits) -> BranchCgroup:
    """Create a cgroup with these limits, and move a process into it. Safe to cancel: it may have moved or not.

    Args:
        sandbox: creates the cgroup.
        name: its name, unique for this host.
        pid: the process.
        limits: the limits.

    Raises:
        Internal: Linux refused, or the process has ended.
    """
    created: list[Cgroup | None] = []

    def create() -> None:
        group = sandbox.branch_cgroup(name, limits)
        created.append(group)
        if group is not None:
            group.attach(pid)

    try:
        await in_thread(create)
    except OSError as error:
        for group in created:
            if group is not None:
                await destroy(group)
        raise Internal(f"The branch has no cgroup of its own: {error}. Try again.") from error
    return BranchCgroup(group=created[0], limits=limits)


async def attach_process(group: Cgroup, pid: int) -> None:
    """Move a process into a cgroup. Safe to cancel: it may have moved or not.

    Raises:
        KernelDead: the process has ended.
    """
    try:
        await in_thread(lambda: group.attach(pid))
    except OSError as error:
        raise KernelDead("The copy ended before it was moved into its branch's cgroup.") from error


async def destroy(group: Cgroup) -> bool:
    """Kill the processes of a cgroup and remove it. Return whether it is gone."""
    deadline = asyncio.get_running_loop().time() + CLEAR_SECONDS
    while not group.remove():
        if asyncio.get_running_loop().time() > deadline:
            return False
        group.kill()
        await asyncio.sleep(CLEAR_PAUSE)
    return True


async def in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own. The host forks, so it keeps no pool of threads.

    Raises:
        OSError, Internal: raised by ``work``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def resolve(error: OSError | Internal | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failed: OSError | Internal | None = None
        try:
            work()
        except (OSError, Internal) as error:
            failed = error
        loop.call_soon_threadsafe(resolve, failed)

    threading.Thread(target=run, name="attach-cgroup", daemon=True).start()
    await done
