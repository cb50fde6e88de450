"""Which cap it was that struck a cell, in words with the figure: pure decisions.

A cap strikes in one of four ways. Linux refuses something and the code meets an
exception (``of_reply``); Linux ends the kernel's process (``of_exit``); Linux ends
or refuses something that the cell itself does not notice, a child for instance
(the kernel host sees the cgroup's counters: ``of_counters``); or the watchdog sees
too much (``sandbox.watchdog``). All of them come out as one ``limit_reached``.

What an exception meant is the kernel's own word, which tells its own session
something and nobody else.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from kernelsvc.model.events import LimitReached, Reason
from kernelsvc.model.limits import Limits, MiB
from kernelsvc.model.stimuli import KernelExited, KernelReplied

#: What a guest may say that struck: a limit's name, or the scratch space that is sized by the memory.
Strike = Literal["memory_bytes", "processes", "open_files", "disk_bytes", "scratch"]
STRIKES: tuple[str, ...] = get_args(Strike)

#: What a cell ends of when a cap that is no exception ended it; otherwise ``interrupted``.
REASONS: dict[str, Reason] = {"memory_bytes": Reason.MEMORY, "cpu_seconds": Reason.TIMEOUT}

#: A breach of these leaves no hope that an interrupt would help: the watchdog has the kernel ended at once.
ENDED_AT_ONCE = frozenset({"memory_bytes", "cpu_seconds", "processes"})

_SIGXCPU = 24
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_ERRNOS: dict[int, Strike] = {12: "memory_bytes", 24: "open_files", 27: "disk_bytes", 122: "disk_bytes"}


def of_reply(reply: KernelReplied, limits: Limits) -> LimitReached | None:
    """The cap that an exception tells of.

    Args:
        reply: with the guest's own word on it, or that of a kernel that has none to say.
        limits: the session's.

    Returns:
        None when it was no cap of ours.
    """
    strike = reply.struck or _guess(reply.ename, reply.evalue)
    if not strike or reply.status != "error":
        return None
    bound = reply.room if strike == "scratch" else getattr(limits, strike)
    if bound is None:
        return None
    limit = "disk_bytes" if strike == "scratch" else strike
    return LimitReached(limit=limit, bound=bound, enforced_by="linux", message=_refused(strike, bound, reply))


def _guess(ename: str, evalue: str) -> str:
    """For kernels that are not ours: by the exception's name."""
    if ename in ("MemoryError", "_ArrayMemoryError"):
        return "memory_bytes"
    if ename == "RuntimeError" and evalue == "can't start new thread":
        return "processes"
    found = _ERRNO.match(evalue) if ename == "OSError" else None
    return _ERRNOS.get(int(found[1]), "") if found else ""


def _refused(strike: str, bound: float, reply: KernelReplied) -> str:
    if strike == "memory_bytes":
        return f"memory: {_mebibytes(bound)} reached; an allocation was refused"
    if strike == "processes":
        return f"processes: {bound:.0f} reached; another process or thread was refused"
    if strike == "open_files":
        return f"open files: {bound:.0f} reached; another was refused"
    if strike == "scratch":
        return f"disk: {_mebibytes(bound)} of scratch space reached (/tmp or /dev/shm); a write was refused"
    alone = " in one file" if "[Errno 27]" in reply.evalue else ""
    return f"disk: {_mebibytes(bound)}{alone} reached; a write was refused"


def of_exit(exited: KernelExited, limits: Limits) -> LimitReached | None:
    """The cap for which Linux ended the kernel's process; None when it was none."""
    if exited.cause == "memory":
        return LimitReached(
            limit="memory_bytes", bound=limits.memory_bytes, enforced_by="linux", message=exited.message
        )
    if exited.signal == _SIGXCPU and limits.cpu_seconds is not None:
        said = f"CPU: {limits.cpu_seconds:g} s reached; the kernel was ended by Linux"
        return LimitReached(limit="cpu_seconds", bound=limits.cpu_seconds, enforced_by="linux", message=said)
    return None


def of_counters(limit: str, limits: Limits) -> LimitReached | None:
    """What a cgroup's counters tell of: a process other than the kernel was ended, or one was refused.

    Args:
        limit: ``memory_bytes`` or ``processes``.
        limits: the session's.
    """
    bound = getattr(limits, limit, None)
    if limit == "memory_bytes" and bound is not None:
        said = f"memory: {_mebibytes(bound)} reached; a process of the session was killed by the OOM killer"
    elif limit == "processes" and bound is not None:
        said = f"processes: {bound} reached; another process or thread was refused"
    else:
        return None
    return LimitReached(limit=limit, bound=bound, enforced_by="linux", message=said)


def _mebibytes(size: float) -> str:
    return f"{size / MiB:.0f} MiB"
