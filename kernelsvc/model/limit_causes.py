"""Which limit ended or disturbed a cell, in words with the figure. Pure decisions.

A limit shows in one of four ways. Linux returns an error and the code gets an exception (``of_reply``). Linux ends the
kernel's process (``of_exit``). Linux ends or refuses something that the cell does not notice, such as a child process:
the kernel host reads the cgroup's counters (``of_counters``). Or the watchdog measures too much (``sandbox.watchdog``).
Each becomes one ``limit_reached``.

The meaning of an exception is the kernel's own claim. It affects only its own session.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from kernelsvc.model.events import LimitReached, Reason
from kernelsvc.model.limits import Limits, shown_bytes
from kernelsvc.model.stimuli import KernelExited, KernelReplied

#: Limits that a guest may report: a limit's name, or the scratch space, whose size follows from the memory limit.
GuestLimit = Literal["memory_bytes", "processes", "open_files", "disk_bytes", "scratch"]
GUEST_LIMITS: tuple[str, ...] = get_args(GuestLimit)

#: Reason of a cell that such a limit ended without an exception. For others it is ``interrupted``.
REASONS: dict[str, Reason] = {"memory_bytes": Reason.MEMORY, "cpu_seconds": Reason.TIMEOUT}

#: Limits for which an interrupt would not help. The watchdog has the kernel ended immediately.
ENDED_AT_ONCE = frozenset({"memory_bytes", "cpu_seconds", "processes"})

_SIGXCPU = 24
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_ERRNOS: dict[int, GuestLimit] = {12: "memory_bytes", 24: "open_files", 27: "disk_bytes", 122: "disk_bytes"}


def of_reply(reply: KernelReplied, limits: Limits) -> LimitReached | None:
    """Return the limit that a cell's exception shows, or None.

    Args:
        reply: Has the guest's report. Kernelspec kernels have none.
        limits: The session's limits.
    """
    limit_name = reply.struck or _guess(reply.ename, reply.evalue)
    if not limit_name or reply.status != "error":
        return None
    bound = reply.room if limit_name == "scratch" else getattr(limits, limit_name)
    if bound is None:
        return None
    limit = "disk_bytes" if limit_name == "scratch" else limit_name
    return LimitReached(limit=limit, bound=bound, enforced_by="linux", message=_message(limit_name, bound, reply))


def _guess(ename: str, evalue: str) -> str:
    """Guess the limit from the exception's name, for kernels without the guest."""
    if ename in ("MemoryError", "_ArrayMemoryError"):
        return "memory_bytes"
    if ename == "RuntimeError" and evalue == "can't start new thread":
        return "processes"
    found = _ERRNO.match(evalue) if ename == "OSError" else None
    return _ERRNOS.get(int(found[1]), "") if found else ""


def _message(limit_name: str, bound: float, reply: KernelReplied) -> str:
    if limit_name == "memory_bytes":
        return f"memory: {shown_bytes(bound)} reached; an allocation was refused"
    if limit_name == "processes":
        return f"processes: {bound:.0f} reached; another process or thread was refused"
    if limit_name == "open_files":
        return f"open files: {bound:.0f} reached; another was refused"
    if limit_name == "scratch":
        return f"disk: {shown_bytes(bound)} of scratch space reached (/tmp or /dev/shm); a write was refused"
    alone = " in one file" if "[Errno 27]" in reply.evalue else ""
    return f"disk: {shown_bytes(bound)}{alone} reached; a write was refused"


def of_exit(exited: KernelExited, limits: Limits) -> LimitReached | None:
    """Return the limit for which Linux ended the kernel's process, or None."""
    if exited.cause == "memory":
        return LimitReached(
            limit="memory_bytes", bound=limits.memory_bytes, enforced_by="linux", message=exited.message
        )
    if exited.signal == _SIGXCPU and limits.cpu_seconds is not None:
        message = f"CPU: {limits.cpu_seconds:g} s reached; the kernel was ended by Linux"
        return LimitReached(limit="cpu_seconds", bound=limits.cpu_seconds, enforced_by="linux", message=message)
    return None


def of_counters(limit: str, limits: Limits) -> LimitReached | None:
    """Return the limit for which Linux ended or refused a process other than the kernel, or None.

    Args:
        limit: ``memory_bytes`` or ``processes``.
        limits: The session's limits.
    """
    bound = getattr(limits, limit, None)
    if limit == "memory_bytes" and bound is not None:
        message = f"memory: {shown_bytes(bound)} reached; a process of the session was killed by the OOM killer"
    elif limit == "processes" and bound is not None:
        message = f"processes: {bound} reached; another process or thread was refused"
    else:
        return None
    return LimitReached(limit=limit, bound=bound, enforced_by="linux", message=message)


def kept(lost: Sequence[str]) -> str:
    """Say which variables a session has after its kernel was replaced by a checkpoint.

    Args:
        lost: Ids of finished cells before the one that was running, whose effects the checkpoint does not have. Cells
            that are sent without a pause may have no checkpoint between them.
    """
    if not lost:
        return "variables are those from before the cell"
    named = ", ".join(lost[:8]) + (", …" if len(lost) > 8 else "")
    return f"variables are those of an earlier checkpoint, without the effects of these cells: {named}"
