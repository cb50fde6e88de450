"""The second line: look at what sessions use, and say which ones went too far.

Where a cgroup holds a cap, Linux enforces it and this only reports. Where none
does, a poll is all there is: it supervises, it can't enforce, since memory fills
at gigabytes a second. So it must be cheap enough to run often, and never strike an
innocent.

The cheap pass: one walk over /proc (11 ms for 200 kernels; asking psutil for each
kernel's children takes 2,000) groups every process under its session's kernel and
adds up resident memory. Forked kernels share most of that, so the sum overcounts
several times: it only makes a *suspect*. For suspects alone the proportional set
size is read, which shares fairly, and that decides. The same for disk: a
directory is walked only now and then, with a bound on how far.

``judge`` is pure. Reading is here too, and on systems without /proc it falls back
to psutil.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from kernelsvc.linux import procfs
from kernelsvc.linux.nofollow import is_plain
from kernelsvc.model.limits import Limits
from kernelsvc.sandbox.plan import SPARE_TASKS

_MOST_ENTRIES = 200_000


class ProcessStat(msgspec.Struct, frozen=True):
    """One line of the walk over /proc."""

    pid: int
    parent: int
    resident_bytes: int
    cpu_seconds: float
    threads: int


class SessionUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one session uses.

    Attributes:
        pids: its processes, the kernel first.
        resident_bytes: sum of resident memory; shared pages counted again and again.
        memory_bytes: the fair figure, where it was worth reading.
        cpu_seconds: of the processes that live now.
        tasks: threads of all processes.
        disk_bytes: of its directory, where it was walked.
    """

    pids: tuple[int, ...] = ()
    resident_bytes: int = 0
    memory_bytes: int | None = None
    cpu_seconds: float = 0.0
    tasks: int = 0
    disk_bytes: int | None = None


class LimitExceeded(msgspec.Struct, frozen=True, kw_only=True):
    """A cap that was passed.

    Attributes:
        limit: its name in ``Limits``.
        value: what was seen.
        bound: what was allowed.
        message: the cause in words, with the figures.
    """

    limit: str
    value: float
    bound: float
    message: str


def judge(limits: Limits, use: SessionUse, *, hard: Iterable[str] = ()) -> list[LimitExceeded]:
    """Which caps a session has passed.

    Args:
        limits: its caps.
        use: what was seen.
        hard: names of limits that Linux itself holds; they are not judged here.
    """
    tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
    checks: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("memory_bytes", use.memory_bytes, limits.memory_bytes, _mebibytes),
        ("processes", use.tasks, tasks, lambda count: f"{count:.0f}"),
        ("disk_bytes", use.disk_bytes, limits.disk_bytes, _mebibytes),
        ("cpu_seconds", use.cpu_seconds, limits.cpu_seconds, lambda seconds: f"{seconds:.0f} s"),
    ]
    return [
        LimitExceeded(
            limit=name, value=value, bound=bound, message=f"{_WORDS[name]}: {say(bound)} reached, {say(value)} used"
        )
        for name, value, bound, say in checks
        if value is not None and bound is not None and value > bound and name not in hard
    ]


def suspect(limits: Limits, use: SessionUse) -> bool:
    """Whether a session's resident sum is high enough to read its fair share."""
    return limits.memory_bytes is not None and use.resident_bytes > limits.memory_bytes


_WORDS = {"memory_bytes": "memory", "processes": "processes and threads", "disk_bytes": "disk", "cpu_seconds": "CPU"}


def _mebibytes(value: float) -> str:
    return f"{value / (1 << 20):.0f} MiB"


def group(processes: Iterable[ProcessStat], roots: Iterable[int], *, own: int = 0) -> dict[int, SessionUse]:
    """Every kernel with all that descends from it, summed. Pure.

    A branch descends from its parent's kernel and yet is a session of its own, so
    the walk stops at other roots. A daemon has left its parents and hangs on the
    session's init, which is the parent of the kernel: it is charged to that
    kernel, or to the eldest where branches share the init.

    Args:
        processes: all there are.
        roots: pids of kernels.
        own: our pid; where a kernel is our own child there is no init, and our other
            children are none of its.

    Returns:
        By root; one that is gone has an empty ``SessionUse``.
    """
    table = {process.pid: process for process in processes}
    kernels = set(roots)
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    members = {root: _tree([root], children, kernels - {root}) for root in sorted(kernels)}
    charged: set[int] = set()
    for root in members:
        init = table[root].parent if root in table else 0
        if init <= 1 or init == own or init in charged or _within(init, kernels, table):
            continue
        charged.add(init)
        orphans = [pid for pid in children.get(init, ()) if pid not in kernels]
        members[root] += _tree(orphans, children, kernels)
    return {root: _sum([table[pid] for pid in pids if pid in table]) for root, pids in members.items()}


def _within(pid: int, kernels: set[int], table: Mapping[int, ProcessStat]) -> bool:
    """Whether a process is a kernel or descends from one: then it is no init."""
    seen: set[int] = set()
    while pid in table and pid not in seen:
        if pid in kernels:
            return True
        seen.add(pid)
        pid = table[pid].parent
    return False


def _tree(start: Sequence[int], children: Mapping[int, list[int]], other: set[int]) -> list[int]:
    found, at = list(start), 0
    while at < len(found):
        found += [pid for pid in children.get(found[at], ()) if pid not in other]
        at += 1
    return found


def _sum(members: list[ProcessStat]) -> SessionUse:
    return SessionUse(
        pids=tuple(member.pid for member in members),
        resident_bytes=sum(member.resident_bytes for member in members),
        cpu_seconds=sum(member.cpu_seconds for member in members),
        tasks=sum(member.threads for member in members),
    )


def walk() -> list[ProcessStat]:
    """Every process of the machine, once over /proc."""
    if not os.path.exists("/proc/self/stat"):
        return _walk_psutil()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = procfs.stat(int(name))
            if stat is not None:
                found.append(ProcessStat(int(name), stat.parent, stat.resident_bytes, stat.cpu_seconds, stat.threads))
    return found


def _walk_psutil() -> list[ProcessStat]:
    found = []
    for process in psutil.process_iter(["pid", "ppid", "memory_info", "cpu_times", "num_threads"]):
        info = process.info
        if info["memory_info"] is None or info["cpu_times"] is None:
            continue
        found.append(
            ProcessStat(
                pid=info["pid"],
                parent=info["ppid"] or 0,
                resident_bytes=info["memory_info"].rss,
                cpu_seconds=info["cpu_times"].user + info["cpu_times"].system,
                threads=info["num_threads"] or 1,
            )
        )
    return found


def fair_memory(pids: Iterable[int]) -> int:
    """The proportional set size of these processes together, in bytes; those that ended or refuse count 0."""
    total = 0
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_full_info()
        except (psutil.Error, OSError):
            continue
        total += getattr(memory, "pss", memory.uss)
    return total


def disk_usage(directory: str, *, entries: int = _MOST_ENTRIES) -> int:
    """Bytes that a directory's files take up on disk, links not followed.

    Hard links are counted once, sparse files by what they hold. Stops at
    ``entries`` names: who makes more has used the disk well enough to be judged
    on those.
    """
    # A session may have put a link in place of its directory: what lies behind that isn't its own.
    total, left, seen, todo = 0, entries, set[tuple[int, int]](), [directory] if is_plain(directory) else []
    while todo and left > 0:
        try:
            with os.scandir(todo.pop()) as found:
                for entry in found:
                    left -= 1
                    if left < 0:
                        break
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
        except OSError:
            continue  # removed meanwhile
    return total


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A session to look after.

    Attributes:
        root: pid of its kernel, as this process sees it; the kernel's parent is an init
            that no other session but branches of this one share.
        limits: its caps.
        workdir: its directory.
        hard: limits that Linux itself holds.
    """

    root: int
    limits: Limits
    workdir: str
    hard: frozenset[str] = frozenset()


class Watchdog:
    """Keeps what is remembered between passes.

    Directories are walked in turn, those of sessions that have computed something since
    the last pass before all others: nobody else can have written.

    Args:
        disks_per_pass: how many directories of sessions at rest one pass walks.
        disk_seconds: for the directories of the others; who is left over is first the next time.
    """

    def __init__(self, *, disks_per_pass: int = 4, disk_seconds: float = 0.05) -> None:
        self._disks_per_pass = disks_per_pass
        self._disk_seconds = disk_seconds
        self._disks: dict[str, int] = {}
        self._walked: dict[str, float] = {}
        self._spent: dict[str, float] = {}

    def look(self, sessions: Mapping[str, Watched]) -> tuple[dict[str, SessionUse], dict[str, list[LimitExceeded]]]:
        """One pass over all sessions; blocks for about 10 ms at 200 of them.

        Returns:
            What each uses, and the breaches of those that have any.
        """
        uses = group(walk(), [watched.root for watched in sessions.values()], own=os.getpid())
        self._walk_disks(sessions, {name: uses[watched.root].cpu_seconds for name, watched in sessions.items()})
        seen: dict[str, SessionUse] = {}
        breaches: dict[str, list[LimitExceeded]] = {}
        for name, watched in sessions.items():
            use = uses[watched.root]
            if "memory_bytes" not in watched.hard and suspect(watched.limits, use):
                use = msgspec.structs.replace(use, memory_bytes=fair_memory(use.pids))
            seen[name] = msgspec.structs.replace(use, disk_bytes=self._disks.get(name))
            found = judge(watched.limits, seen[name], hard=watched.hard)
            if found:
                breaches[name] = found
        return seen, breaches

    def _walk_disks(self, sessions: Mapping[str, Watched], spent: dict[str, float]) -> None:
        self._disks = {name: size for name, size in self._disks.items() if name in sessions}
        self._walked = {name: when for name, when in self._walked.items() if name in sessions}
        wanted = [
            name
            for name, watched in sessions.items()
            if watched.limits.disk_bytes is not None and "disk_bytes" not in watched.hard
        ]
        wanted.sort(key=lambda name: self._walked.get(name, 0.0))
        busy = [name for name in wanted if name in self._spent and spent[name] != self._spent[name]]
        self._spent = spent
        until = time.monotonic() + self._disk_seconds
        for name in busy:
            self._walk(name, sessions[name])
            if time.monotonic() > until:
                break
        for name in [name for name in wanted if name not in busy][: self._disks_per_pass]:
            self._walk(name, sessions[name])

    def _walk(self, name: str, watched: Watched) -> None:
        self._disks[name] = disk_usage(watched.workdir)
        self._walked[name] = time.monotonic()


def hard_limits(words: Mapping[str, str]) -> frozenset[str]:
    """The limits that a sandbox report calls hard."""
    return frozenset(name for name, word in words.items() if word == "hard")


def free_bytes(directory: str) -> int:
    """Free space for ordinary users on the filesystem of ``directory``."""
    status = os.statvfs(Path(directory))
    return status.f_bavail * status.f_frsize
