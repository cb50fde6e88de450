"""Supervision of limits: read the usage of sessions, and report the limits that they exceed.

Where a cgroup has the limit, Linux enforces it and this module only reports. Everywhere else a poll can supervise and
can't enforce, because memory fills at gigabytes a second. So a poll must be cheap enough to run often, and must never
end a session that is within its limits.

The cheap pass: one walk over /proc (11 ms for 200 kernels, where asking psutil for each kernel's children takes 2,000)
groups every process under its session's kernel and adds up resident memory. Forked kernels share most of that, so the
sum overcounts several times and only selects candidates. For these alone the proportional set size is read, which
divides shared pages fairly, and that figure decides. Directories are walked only now and then (``disk_use``).

``check_limits`` is pure. Reading is here, too, and uses psutil on systems without /proc.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from kernelsvc.linux import procfs
from kernelsvc.model.limits import Limits, MiB, shown_bytes
from kernelsvc.sandbox.branch_dirs import branches_root
from kernelsvc.sandbox.cgroup import charged_memory
from kernelsvc.sandbox.disk_use import DiskUse, measure_deleted, measure_directory
from kernelsvc.sandbox.plan import SPARE_TASKS

#: Sockets that are not charged: a web server or a kernelspec kernel has a few dozen.
_FREE_SOCKETS = 64
#: Epoll watches that are not charged, and what each further one is charged. Linux counts them for each user, at most
#: ``fs.epoll.max_user_watches``, and an ordinary user's sessions and server are one user (epoll(7)).
_FREE_WATCHES, WATCH_BYTES = 4096, 32 * 1024
#: Memory of the machine below which a session is ended, and the least that its end must return.
_LEAST_AVAILABLE, _LEAST_RELIEF = 512 * MiB, 64 * MiB
_RELIEF_SECONDS = 3.0


class ProcessStat(msgspec.Struct, frozen=True):
    """One process of the walk over /proc."""

    pid: int
    parent: int
    resident_bytes: int
    cpu_seconds: float
    threads: int


class SessionUse(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of one session.

    Attributes:
        pids: its processes, the kernel first.
        resident_bytes: sum of resident memory, with shared pages counted repeatedly, and of possible page tables.
        charged_bytes: for its sockets and epoll watches, see ``socket_charge`` and ``watch_charge``.
        memory_bytes: proportional set size, page tables and ``charged_bytes``, where they were read.
        shown_bytes: memory as the limit counts it, at the last time that it was read, which may be some polls ago.
        cpu_seconds: of the running processes.
        tasks: threads of all processes.
        disk: size of its directories and of its deleted files, where they were measured.
        busy: whether it used the processor since the last poll. Otherwise it can't have written.
    """

    pids: tuple[int, ...] = ()
    resident_bytes: int = 0
    charged_bytes: int = 0
    memory_bytes: int | None = None
    shown_bytes: int | None = None
    cpu_seconds: float = 0.0
    tasks: int = 0
    disk: DiskUse | None = None
    busy: bool = False


class LimitExceeded(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that was exceeded.

    Attributes:
        limit: its name in ``Limits``.
        value: the measured value.
        maximum: the allowed value.
        message: the cause in words, with the figures.
        unseen: part of the value could not be measured.
    """

    limit: str
    value: float
    maximum: float
    message: str
    unseen: bool = False


def check_limits(limits: Limits, use: SessionUse, *, hard: Iterable[str] = ()) -> list[LimitExceeded]:
    """Return the limits that a session has exceeded.

    Args:
        limits: its limits.
        use: its usage.
        hard: names of limits that Linux enforces. They are not checked here.
    """
    tasks = None if limits.processes is None else limits.processes + SPARE_TASKS
    checks: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("memory_bytes", use.memory_bytes, limits.memory_bytes, shown_bytes),
        ("processes", use.tasks, tasks, lambda count: f"{count:.0f}"),
        ("disk_bytes", use.disk.bytes if use.disk else None, limits.disk_bytes, shown_bytes),
        ("files", use.disk.files if use.disk else None, limits.files, lambda count: f"{count:.0f}"),
        ("cpu_seconds", use.cpu_seconds, limits.cpu_seconds, lambda seconds: f"{seconds:.0f} s"),
    ]
    exceeded = [
        LimitExceeded(
            limit=name,
            value=value,
            maximum=maximum,
            message=f"{_NAMES[name]}: {show(maximum)} reached, {show(value)} used",
        )
        for name, value, maximum, show in checks
        if value is not None and maximum is not None and value > maximum and name not in hard
    ]
    return exceeded or _unseen(limits, use, frozenset(hard))


def check_workspace(maximum: int, use: DiskUse) -> list[LimitExceeded]:
    """Return the breach of a workspace's quota, as one of the disk limit of a session that may have written to it."""
    if use.bytes <= maximum:
        return []
    message = f"workspace: {shown_bytes(maximum)} reached, {shown_bytes(use.bytes)} used"
    return [LimitExceeded(limit="disk_bytes", value=use.bytes, maximum=maximum, message=message)]


def _unseen(limits: Limits, use: SessionUse, hard: frozenset[str]) -> list[LimitExceeded]:
    """Return the breach of a session that may be writing where nothing can be measured."""
    if use.disk is None or not use.disk.unseen or not use.busy or limits.disk_bytes is None or "disk_bytes" in hard:
        return []
    message = f"disk: the use can't be compared with {shown_bytes(limits.disk_bytes)}: {use.disk.unseen}"
    return [
        LimitExceeded(limit="disk_bytes", value=use.disk.bytes, maximum=limits.disk_bytes, message=message, unseen=True)
    ]


def may_exceed_memory(limits: Limits, use: SessionUse) -> bool:
    """Return whether a session's resident sum is high enough to read its proportional set size."""
    return limits.memory_bytes is not None and use.resident_bytes + use.charged_bytes > limits.memory_bytes


def socket_charge(sockets: int, buffer_bytes: int) -> int:
    """Return the memory that a session's sockets are charged with.

    Linux does not say how full they are, only how many there are. Memory cgroups count them. Without one, a session
    could keep gigabytes in the buffers of Unix sockets.

    Args:
        sockets: in its network namespace.
        buffer_bytes: the largest buffer that setsockopt(2) allows. Linux doubles it (socket(7), SO_SNDBUF).
    """
    return max(0, sockets - _FREE_SOCKETS) * min(2 * buffer_bytes, MiB)


def watch_charge(watches: int) -> int:
    """Return the memory that a session's epoll watches are charged with: more than they take, so that none gets all."""
    return max(0, watches - _FREE_WATCHES) * WATCH_BYTES


def largest(uses: Mapping[str, SessionUse]) -> str | None:
    """Return the session that uses the most memory, or None if none uses enough to make a difference."""
    name = max(uses, key=lambda name: uses[name].memory_bytes or 0, default=None)
    return name if name is not None and (uses[name].memory_bytes or 0) >= _LEAST_RELIEF else None


_NAMES = {
    "memory_bytes": "memory",
    "processes": "processes and threads",
    "disk_bytes": "disk",
    "files": "files",
    "cpu_seconds": "CPU",
}


def group(
    processes: Iterable[ProcessStat],
    roots: Iterable[int],
    *,
    own: int = 0,
    namespace: Callable[[int], int] = lambda pid: 0,
) -> dict[int, SessionUse]:
    """Return every kernel with the sum of its descendants.

    A branch descends from its parent's kernel and is a session of its own, so the walk stops at other roots. A daemon
    has left its parents and is a child of the session's init, which is the parent of the kernel. It is charged to
    that kernel, or to the oldest kernel if branches share the init. A client's program is a child of its shim, which is
    outside of the session. It is charged likewise, by its pid namespace.

    Args:
        processes: all processes.
        roots: pids of kernels.
        own: this process's pid. A kernel that is this process's own child has no init, and the other children of this
            process don't belong to it.
        namespace: returns the pid namespace of a process, 0 if it is unknown.

    Returns:
        Usage by root. A root that has ended has an empty ``SessionUse``.
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
    _add_programs(members, table, own, namespace)
    return {root: _sum([table[pid] for pid in pids if pid in table]) for root, pids in members.items()}


def _add_programs(
    members: dict[int, list[int]], table: Mapping[int, ProcessStat], own: int, namespace: Callable[[int], int]
) -> None:
    """Add the processes in a kernel's pid namespace that are no descendants of a kernel or an init."""
    spaces = {namespace(root): root for root in sorted(members, reverse=True)}
    for shared in (0, namespace(own)):
        spaces.pop(shared, None)
    inits = {table[root].parent for root in members if root in table}
    known = inits.union(*members.values())
    for pid in sorted(table.keys() - known) if spaces else ():
        if (root := spaces.get(namespace(pid))) is not None:
            members[root].append(pid)


def _within(pid: int, kernels: set[int], table: Mapping[int, ProcessStat]) -> bool:
    """Return whether a process is a kernel or descends from one. Then it is no init."""
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
    """Return every process of the machine, in one walk over /proc."""
    if not os.path.exists("/proc/self/stat"):
        return _walk_psutil()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = procfs.stat(int(name))
            if stat is not None:
                # A page table of 4 KiB maps 2 MiB. Here it only selects candidates.
                memory = stat.resident_bytes + stat.virtual_bytes // 512
                found.append(ProcessStat(int(name), stat.parent, memory, stat.cpu_seconds, stat.threads))
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


def proportional_memory(pids: Iterable[int]) -> int:
    """Return the proportional set size of these processes and their page tables, in bytes.

    A process that does not let itself be read counts with its resident set size, which every user may read
    (proc_pid_stat(5)). One that ended counts 0.
    """
    total = 0
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_full_info()
        except (psutil.AccessDenied, PermissionError):
            found = procfs.stat(pid)
            total += found.resident_bytes if found is not None else 0
            continue
        except (psutil.Error, OSError):
            continue
        total += getattr(memory, "pss", memory.uss) + procfs.page_tables(pid)
    return total


def open_sockets(pid: int) -> int:
    """Return the number of sockets in a process's network namespace, 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/net/sockstat", "rb") as file:
        return int(file.readline().split()[2])
    return 0


def epoll_watches(pids: Iterable[int], most: int) -> int:
    """Return the number of files that these processes watch by epoll(7), more than ``most`` at once.

    Several processes may have the same epoll instance, which counts for each.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[eventpoll]":
                        with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
                            total += file.read().count(b"\ntfd:")
                if total > most:
                    return total
    return total


def largest_socket_buffer() -> int:
    """Return the largest socket buffer that a process may ask for, in bytes (socket(7))."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/net/core/wmem_max", "rb") as file:
        return int(file.read())
    return MiB


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A session to supervise.

    Attributes:
        root: pid of its kernel, as this process sees it. The kernel's parent is an init that only branches of this
            session share.
        limits: its limits.
        workdir: its directory.
        home: the same directory as the session sees it.
        own_network: whether it has a network namespace of its own.
        hard: limits that Linux enforces.
        workspace: a directory that it shares with other sessions for writing, or "".
        workspace_bytes: the quota of that directory.
    """

    root: int
    limits: Limits
    workdir: str
    home: str = ""
    own_network: bool = False
    hard: frozenset[str] = frozenset()
    workspace: str = ""
    workspace_bytes: int | None = None


class Watchdog:
    """The state between two polls.

    Directories are walked in turn. Those of sessions that have used the processor since the last poll come first: the
    others can't have written.

    Args:
        disks_per_pass: how many directories of idle sessions one poll walks.
        disk_seconds: for the directories of the others. The rest comes first in the next poll.
        memory_seconds: for reading the memory of sessions for ``SessionUse.shown_bytes``, likewise.
        is_workdir: whether a path is the directory of some session. Such directories are not counted for another one.
        available_bytes: returns the memory that the machine has left.
        least_available: if the machine has less, the session that uses the most is ended before Linux ends a process
            of its own choice. By default 5 % of the memory, at most 512 MiB.
    """

    def __init__(
        self,
        *,
        disks_per_pass: int = 4,
        disk_seconds: float = 0.05,
        memory_seconds: float = 0.02,
        is_workdir: Callable[[str], bool] = lambda path: False,
        available_bytes: Callable[[], int] = lambda: psutil.virtual_memory().available,
        least_available: int | None = None,
    ) -> None:
        self._disks_per_pass = disks_per_pass
        self._disk_seconds = disk_seconds
        self._memory_seconds = memory_seconds
        self._shown: dict[str, int] = {}
        self._read_at: dict[str, float] = {}
        self._due: set[str] = set()
        self._is_workdir = is_workdir
        self._disks: dict[str, DiskUse] = {}
        self._walked: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._charged: dict[str, int] = {}
        self._workspaces: dict[str, DiskUse] = {}
        self._buffer_bytes = largest_socket_buffer()
        self._available_bytes = available_bytes
        self._least_available = (
            min(_LEAST_AVAILABLE, psutil.virtual_memory().total // 20) if least_available is None else least_available
        )
        self._relieved_at = -math.inf

    def poll(self, sessions: Mapping[str, Watched]) -> tuple[dict[str, SessionUse], dict[str, list[LimitExceeded]]]:
        """Poll all sessions once. Blocks for about 10 ms for 200 sessions.

        Returns:
            The usage of each, and the exceeded limits of those that have any.
        """
        roots = [watched.root for watched in sessions.values()]
        found = group(walk(), roots, own=os.getpid(), namespace=procfs.pid_namespace)
        uses = {name: found[watched.root] for name, watched in sessions.items()}
        busy = {name for name, use in uses.items() if self._spent.get(name, use.cpu_seconds) != use.cpu_seconds}
        self._spent = {name: use.cpu_seconds for name, use in uses.items()}
        self._charge(sessions, uses, busy)
        self._walk_disks(sessions, uses, busy)
        self._walk_workspaces(sessions, busy)
        seen: dict[str, SessionUse] = {}
        breaches: dict[str, list[LimitExceeded]] = {}
        for name, watched in sessions.items():
            charged = self._charged.get(name, 0)
            use = msgspec.structs.replace(
                uses[name], charged_bytes=charged, disk=self._disks.get(name), busy=name in busy
            )
            if "memory_bytes" not in watched.hard and may_exceed_memory(watched.limits, use):
                use = _with_memory(use)
            seen[name] = use
            exceeded = check_limits(watched.limits, use, hard=watched.hard)
            if not exceeded and name in busy and watched.workspace_bytes is not None:
                exceeded = check_workspace(watched.workspace_bytes, self._workspaces[watched.workspace])
            if exceeded:
                breaches[name] = exceeded
        self._read_memory(sessions, seen, busy)
        shown = {name: msgspec.structs.replace(use, shown_bytes=self._shown.get(name)) for name, use in seen.items()}
        return shown, breaches | self._relieve(sessions, seen, breaches)

    def _read_memory(self, sessions: Mapping[str, Watched], uses: Mapping[str, SessionUse], busy: set[str]) -> None:
        """Read the memory of new sessions and of those that have computed, the longest unread first.

        A proportional set size takes Linux about a millisecond a process, so there is a limit of time. A session that
        has computed is read once more after it: what it shares changes when its checkpoints end.
        """
        self._shown = {name: value for name, value in self._shown.items() if name in sessions}
        self._read_at = {name: at for name, at in self._read_at.items() if name in sessions}
        self._due = {name for name in self._due if name in sessions} | busy | (sessions.keys() - self._shown.keys())
        until = time.monotonic() + self._memory_seconds
        for name in sorted(self._due, key=lambda name: (self._read_at.get(name, 0.0), name)):
            self._shown[name] = _shown_memory(sessions[name], uses[name])
            self._read_at[name] = time.monotonic()
            if name not in busy:
                self._due.discard(name)
            if self._read_at[name] > until:
                break

    def _relieve(
        self, sessions: Mapping[str, Watched], seen: Mapping[str, SessionUse], breaches: Mapping[str, object]
    ) -> dict[str, list[LimitExceeded]]:
        """Choose a session to end if the machine is about to run out of memory. The others get time to benefit."""
        available = self._available_bytes()
        if available >= self._least_available or time.monotonic() < self._relieved_at + _RELIEF_SECONDS or breaches:
            return {}
        supervised = {
            name: _with_memory(use) for name, use in seen.items() if "memory_bytes" not in sessions[name].hard
        }
        name = largest(supervised)
        if name is None:
            return {}
        self._relieved_at = time.monotonic()
        used = supervised[name].memory_bytes or 0
        message = (
            f"memory: the machine has {shown_bytes(available)} left; the session used the most, {shown_bytes(used)}"
        )
        return {name: [LimitExceeded(limit="memory_bytes", value=used, maximum=used, message=message)]}

    def _charge(self, sessions: Mapping[str, Watched], uses: Mapping[str, SessionUse], busy: set[str]) -> None:
        known = self._charged
        self._charged = {
            name: known[name] if name in known and name not in busy else self._charge_of(watched, uses[name])
            for name, watched in sessions.items()
            if "memory_bytes" not in watched.hard
        }

    def _charge_of(self, watched: Watched, use: SessionUse) -> int:
        sockets = open_sockets(watched.root) if watched.own_network else 0
        most = _FREE_WATCHES + (watched.limits.memory_bytes or 0) // WATCH_BYTES
        return socket_charge(sockets, self._buffer_bytes) + watch_charge(epoll_watches(use.pids, most))

    def _walk_disks(self, sessions: Mapping[str, Watched], uses: Mapping[str, SessionUse], active: set[str]) -> None:
        self._disks = {name: size for name, size in self._disks.items() if name in sessions}
        self._walked = {name: when for name, when in self._walked.items() if name in sessions}
        wanted = [name for name, watched in sessions.items() if _supervised(watched)]
        wanted.sort(key=lambda name: self._walked.get(name, 0.0))
        busy = [name for name in wanted if name in active]
        until = time.monotonic() + self._disk_seconds
        for name in busy:
            self._walk(name, sessions[name], uses[name])
            if time.monotonic() > until:
                break
        for name in [name for name in wanted if name not in busy][: self._disks_per_pass]:
            self._walk(name, sessions[name], uses[name])

    def _walk_workspaces(self, sessions: Mapping[str, Watched], busy: set[str]) -> None:
        """Measure the workspaces whose sessions have computed: the others have not changed."""
        shared = {sessions[name].workspace for name in busy if sessions[name].workspace_bytes is not None}
        self._workspaces = {path: measure_directory(path) for path in shared}

    def _walk(self, name: str, watched: Watched, use: SessionUse) -> None:
        # One more than the limit is enough to see that it is exceeded.
        entries = None if watched.limits.files is None else watched.limits.files + 1
        # A session may write beside its directory: where its branches will have theirs.
        beside = str(branches_root(Path(watched.workdir)))
        self._disks[name] = (
            measure_directory(watched.workdir, entries=entries)
            .plus(measure_directory(beside, entries=entries, skip=lambda path: self._is_workdir(f"{beside}/{path}")))
            .plus(measure_deleted(use.pids, workdir=watched.workdir, home=watched.home))
        )
        self._walked[name] = time.monotonic()


def _with_memory(use: SessionUse) -> SessionUse:
    return msgspec.structs.replace(use, memory_bytes=proportional_memory(use.pids) + use.charged_bytes)


def _shown_memory(watched: Watched, use: SessionUse) -> int:
    """Return a session's memory as its limit counts it: the charge of its cgroup, or its proportional set size."""
    if "memory_bytes" in watched.hard:
        charged = charged_memory(watched.root)
        if charged is not None:
            return charged
    read = use if use.memory_bytes is not None else _with_memory(use)
    return read.memory_bytes or 0


def _supervised(watched: Watched) -> bool:
    limits = {"disk_bytes": watched.limits.disk_bytes, "files": watched.limits.files}
    return any(limit is not None and name not in watched.hard for name, limit in limits.items())


def hard_limits(words: Mapping[str, str]) -> frozenset[str]:
    """Return the limits that a sandbox report calls hard."""
    return frozenset(name for name, word in words.items() if word == "hard")


def free_bytes(directory: str) -> int:
    """Return the free space for ordinary users on the filesystem of ``directory``, in bytes."""
    status = os.statvfs(Path(directory))
    return status.f_bavail * status.f_frsize
