"""A branch's own cgroup within its family's sandbox.

A branch shares init, namespaces and filters with the session it came from, and
has its caps to itself: the host makes a cgroup for it and moves the waiting copy
in before anybody may say "go". What the branch forks later, its own checkpoints
among it, is born in there.

Linux charges memory to the cgroup of whoever touched it first and never moves the
charge. So a branch reads its parent's pages for nothing and pays for what it
writes, and what was charged before it moved stays with its parent.

Moving another process waits for a grace period of RCU, 5 to 20 ms in which nothing
is computed. It is therefore done in a thread, and as much of the wait as possible
while the kernel still forks (``SandboxManager.take_turn``); the server waits for the rest
when it asks for the copy in order to wake it.
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

#: Seconds between looks at a cgroup that must become empty, and for how long.
CLEAR_PAUSE, CLEAR_SECONDS = 0.01, 5.0


class BranchCgroup(msgspec.Struct, kw_only=True):
    """Plain data, so that a host can write it down with its sandbox's record.

    Attributes:
        group: the cgroup; None where this machine has none for us.
        limits: the caps it was made for.
        oom_kills: how many of its OOM kills were put down to a kernel already.
    """

    group: Cgroup | None
    limits: Limits
    oom_kills: int = 0

    def struck(self) -> int:
        """How often the OOM killer struck in here since the last question."""
        kills = self.group.sample().oom_kills if self.group is not None else 0
        fresh, self.oom_kills = kills - self.oom_kills, kills
        return fresh


async def create_and_attach(sandbox: SandboxManager, name: str, pid: int, limits: Limits) -> BranchCgroup:
    """A cgroup of that name with these caps, and a process in it. Safe to cancel: it may have moved or not.

    Raises:
        Internal: Linux refused, or the process is gone.
    """
    made: list[Cgroup | None] = []

    def act() -> None:
        group = sandbox.branch_cgroup(name, limits)
        made.append(group)
        if group is not None:
            group.attach(pid)

    try:
        await in_thread(act)
    except OSError as error:
        for group in made:
            if group is not None:
                await destroy(group)
        raise Internal(f"The branch has no cgroup of its own: {error}; try again.") from error
    return BranchCgroup(group=made[0], limits=limits)


async def attach_process(group: Cgroup, pid: int) -> None:
    """A process in a cgroup that is there. Safe to cancel: it may have moved or not.

    Raises:
        KernelDead: it is gone.
    """
    try:
        await in_thread(lambda: group.attach(pid))
    except OSError as error:
        raise KernelDead("The copy ended before it was in its place.") from error


async def destroy(group: Cgroup) -> bool:
    """End whatever still lives in a cgroup nobody needs, and remove it. Returns whether it is gone."""
    deadline = asyncio.get_running_loop().time() + CLEAR_SECONDS
    while not group.remove():
        if asyncio.get_running_loop().time() > deadline:
            return False
        group.kill()
        await asyncio.sleep(CLEAR_PAUSE)
    return True


async def in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that ends with it: the host forks, and keeps no pool.

    Raises:
        OSError, Internal: what ``work`` raised.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: OSError | Internal | None) -> None:
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
        loop.call_soon_threadsafe(tell, failed)

    threading.Thread(target=run, name="move-in", daemon=True).start()
    await done
