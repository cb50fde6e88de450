"""What Linux says about a process, asked through descriptors and numbers that can't be mistaken for another's.

A pid alone may be used again; a pidfd, or a pid with its start time, may not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
from collections.abc import Callable, Iterable, Iterator

import msgspec

_PID = re.compile(rb"^Pid:\t(-?\d+)$", re.MULTILINE)

# PIDFD_GET_INFO and its first struct (linux/pidfd.h); with PIDFD_INFO_EXIT since Linux 6.15.
_INFO = struct.Struct("=QQ11Ii")
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
#: linux/sched.h: set before a process that ends closes its descriptors.
_PF_EXITING = 4


class Stat(msgspec.Struct, frozen=True):
    """The part of proc(5)'s ``stat`` that matters here.

    Attributes:
        state: one letter; ``Z`` for a zombie.
        parent: pid.
        session: pid of the session's first process, which may be gone.
        started: ticks since boot.
        status: wait status of a zombie; 0 too where this process may not see it.
        exiting: it ends, perhaps so newly that it is no zombie yet (``PF_EXITING``).
        faults: pages that it had to be given since it began, without reading from a disk.
        cpu_seconds: time on a processor, in user and in system mode.
        threads: number of threads.
        resident_bytes: resident set size, shared pages included.
    """

    state: str
    parent: int
    session: int
    started: int
    status: int
    exiting: bool = False
    faults: int = 0
    cpu_seconds: float = 0.0
    threads: int = 0
    resident_bytes: int = 0


def stat(pid: int) -> Stat | None:
    """Look at one process, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name in brackets may hold anything, brackets too: split after the last one.
    fields = text[text.rindex(b")") + 2 :].split()
    exiting = bool(int(fields[6]) & _PF_EXITING)
    parent, session, faults, started, status = (int(fields[at]) for at in (1, 3, 7, 19, 49))
    cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS
    threads, resident_bytes = int(fields[17]), int(fields[21]) * _PAGE
    return Stat(
        fields[0].decode(), parent, session, started, status, exiting, faults, cpu_seconds, threads, resident_bytes
    )


def pid_of(pidfd: int) -> int:
    """The pid that a pidfd stands for, as this process sees it, or 0 if it is reaped or out of sight."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        found = _PID.search(file.read())
        if found:
            return max(0, int(found[1]))
    return 0


def inner_pid(pid: int) -> int:
    """A process's pid in its own pid namespace (proc(5), ``NSpid``), or -1 if it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return -1


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process that ended, whosever child it was, or None where Linux does not tell us."""
    request = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _GET_INFO, request)
        found = _INFO.unpack(request)
        if found[0] & _INFO_EXIT:
            return int(found[-1])
    about = stat(pid_of(pidfd))
    # Nobody has waited for it yet. 0 may mean that we may not see it, so it is no answer.
    return about.status if about is not None and about.state == "Z" and about.status else None


def ending(pid: int) -> bool:
    """Whether a process has ended, or is just about to."""
    about = stat(pid)
    return about is None or about.exiting or about.state in "ZX"


async def wait_pidfd(pidfd: int) -> None:
    """Wait until the process has ended. Safe to cancel."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    # A descriptor of its own: several may wait for one process, and a selector knows a number once.
    own = os.dup(pidfd)
    loop.add_reader(own, wake)
    try:
        await ended
    finally:
        loop.remove_reader(own)
        os.close(own)


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process is below another one."""
    seen = 0
    while pid > 1 and seen < 1000:
        if pid == ancestor:
            return True
        about = stat(pid)
        if about is None:
            return False
        pid, seen = about.parent, seen + 1
    return False


def children(pid: int) -> list[int]:
    """The children of a process; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    return found


def below(pid: int) -> Iterator[int]:
    """Every process below this one."""
    waiting = children(pid)
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children(one)


def kill_those(pids: Iterable[int], condition: Callable[[Stat], bool]) -> int:
    """Kill every process for which the condition holds, looked at when no other can have its pid any more.

    Returns:
        How many were still alive.
    """
    struck = 0
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            about = stat(pid)
            if about is not None and about.state != "Z" and condition(about):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                struck += 1
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
    return struck
