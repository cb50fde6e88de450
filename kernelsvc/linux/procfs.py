"""Status of processes from pidfds and /proc.

A pid alone may be reused. A pidfd stands for one process (pidfd_open(2)), and so does a pid with its start time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import msgspec

from kernelsvc.linux.readable import wait_readable

_PID = re.compile(rb"^Pid:\t(-?\d+)$", re.MULTILINE)
_PAGE_TABLES = re.compile(rb"^VmPTE:\s+(\d+) kB$", re.MULTILINE)

# PIDFD_GET_INFO and its first struct (linux/pidfd.h); with PIDFD_INFO_EXIT since Linux 6.15.
_INFO = struct.Struct("=QQ11Ii")
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
#: linux/sched.h: set before a process that ends closes its descriptors.
_PF_EXITING = 4


class Stat(msgspec.Struct, frozen=True):
    """Some fields of ``/proc/PID/stat`` (proc_pid_stat(5)).

    Attributes:
        state: one letter. ``Z`` for a zombie, ``T`` for a stopped process.
        parent: pid.
        session: pid of the session's first process, which may have ended.
        started: start time in clock ticks since boot.
        status: wait status of a zombie. Also 0 if this process may not read it.
        exiting: whether it is ending, perhaps before it is a zombie (``PF_EXITING``).
        faults: minor page faults since its start: pages that it got without reading from a disk.
        cpu_seconds: time on a processor, in user and in system mode.
        threads: number of threads.
        resident_bytes: resident set size, shared pages included.
        virtual_bytes: size of the address space.
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
    virtual_bytes: int = 0


def stat(pid: int) -> Stat | None:
    """Return the status of a process, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # proc_pid_stat(5): the name in parentheses may contain parentheses, so split after the last one.
    fields = text[text.rindex(b")") + 2 :].split()
    # proc_pid_stat(5) numbers its fields from 1, and the state is the third: field N is ``fields[N - 3]``.
    return Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        status=int(fields[49]),
        exiting=bool(int(fields[6]) & _PF_EXITING),
        faults=int(fields[7]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        resident_bytes=int(fields[21]) * _PAGE,
        virtual_bytes=int(fields[20]),
    )


def page_tables(pid: int) -> int:
    """Return the bytes of a process's page tables (proc_pid_status(5), ``VmPTE``), or 0 if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        found = _PAGE_TABLES.search(file.read())
        return int(found[1]) * 1024 if found else 0
    return 0


def pid_of(pidfd: int) -> int:
    """Return the pid of a pidfd, as this process sees it, or 0 if it is reaped or not visible."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        found = _PID.search(file.read())
        if found:
            return max(0, int(found[1]))
    return 0


def inner_pid(pid: int) -> int:
    """Return a process's pid in its own pid namespace (proc(5), ``NSpid``), or -1 if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return -1


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a process that has ended, also of another process's child.

    None if Linux does not report it.
    """
    request = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _GET_INFO, request)
        found = _INFO.unpack(request)
        if found[0] & _INFO_EXIT:
            return int(found[-1])
    info = stat(pid_of(pidfd))
    # Its parent has not reaped it. 0 may also mean that this process may not read the status.
    return info.status if info is not None and info.state == "Z" and info.status else None


def ending(pid: int) -> bool:
    """Return whether a process has ended or is about to end."""
    info = stat(pid)
    return info is None or info.exiting or info.state in "ZX"


async def wait_pidfd(pidfd: int) -> None:
    """Wait until the process has ended. Safe to cancel.

    pidfd_open(2): "When the process that it refers to terminates, these interfaces indicate the file descriptor as
    readable."
    """
    await wait_readable(pidfd)


def descends(pid: int, ancestor: int) -> bool:
    """Return whether a process is ``ancestor`` or descends from it."""
    seen = 0
    while pid > 1 and seen < 1000:
        if pid == ancestor:
            return True
        info = stat(pid)
        if info is None:
            return False
        pid, seen = info.parent, seen + 1
    return False


def name(pid: int) -> str:
    """Return the name of a process (proc_pid_comm(5)), without characters that can't be printed. "?" if it ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return "".join(c if c.isprintable() else "?" for c in file.read(64).rstrip("\n")) or "?"
    return "?"


def set_oom_score(pidfd: int, value: int) -> None:
    """Set the OOM score of a process (proc_pid_oom_score_adj(5)). Do nothing if it has ended or Linux refuses."""
    pid = pid_of(pidfd)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        # The open file belongs to one process. If the pidfd's process lives now, it is that one.
        if pid and pid_of(pidfd) == pid:
            file.write(str(value))


def pid_namespace(pid: int) -> int:
    """Return the inode of a process's pid namespace, or 0 if it has ended or this process may not read it."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def within(namespace: int) -> Iterator[int]:
    """Yield every process of a pid namespace, which is given by its inode."""
    return (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid_namespace(pid) == namespace)


def children(pid: int) -> list[int]:
    """Return the children of a process, or none if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    return found


def below(pid: int) -> Iterator[int]:
    """Yield every descendant of a process."""
    waiting = children(pid)
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children(one)


def started_since(root: int, seconds: float, *, but_not: Container[int]) -> dict[int, int]:
    """Return the descendants of a process that started in the last seconds, as pids and start times.

    Args:
        root: pid of their ancestor.
        seconds: how long ago at most. Start times are exact to a clock tick.
        but_not: pids to leave out, with their descendants.
    """
    earliest = (time.clock_gettime(time.CLOCK_BOOTTIME) - seconds) * _TICKS - 1
    found: dict[int, int] = {}
    waiting = children(root)
    while waiting:
        pid = waiting.pop()
        info = None if pid in but_not else stat(pid)
        if info is not None:
            waiting += children(pid)
            if info.started >= earliest and info.state != "Z":
                found[pid] = info.started
    return found


def send_signal(found: Mapping[int, int], number: int) -> None:
    """Send a signal to processes, named by pids and start times. Those that have ended are missing."""
    for pid, started in found.items():
        kill_those([pid], lambda info, started=started: info.started == started, number)  # type: ignore[misc]


def kill_those(pids: Iterable[int], condition: Callable[[Stat], bool], number: int = signal.SIGKILL) -> int:
    """Kill every process for which the condition holds.

    The condition is checked while a pidfd is open, so the pid can't be another process's by then.

    Args:
        pids: the processes.
        condition: gets the status of each.
        number: the signal.

    Returns:
        How many were still running.
    """
    killed = 0
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            info = stat(pid)
            if info is not None and info.state != "Z" and condition(info):
                signal.pidfd_send_signal(pidfd, number)
                killed += 1
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
    return killed
