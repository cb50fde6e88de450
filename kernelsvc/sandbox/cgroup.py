"""Caps that this machine's kernel itself holds: one cgroup for each session.

Version 2 needs a delegated subtree (``Delegate=`` under systemd, or a cgroup
that nobody else lives in). Processes may only live in leaves there, so the host
moves itself into ``supervisor`` and sessions become its siblings. Version 1 has a
hierarchy per controller; a session gets a directory in each, below whatever
cgroup the host is in. Both are one ``Cgroup`` to callers: files by controller.

Every host keeps its groups below one directory of its own, named by ``tag``, so
that cleaning up after a crash never touches another host's.

A group is limited before a process joins it (the child writes itself into
``join_files``), and never raised from inside: no session can see these files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from kernelsvc.linux import procfs
from kernelsvc.sandbox.probe_result import Layer

Controller = Literal["memory", "pids", "cpu", "cpuacct"]
_WANTED: tuple[Controller, ...] = ("memory", "pids", "cpu", "cpuacct")
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000  # the kernel's own minimum
_KILL_ROUNDS = 100
#: Age from which an empty group of another host is taken for abandoned.
ABANDONED_SECONDS = 600.0
#: A bare name could be that of a control file ("tasks").
_PREFIX = "k-"
#: The fixes that doctor shows.
_FIX_V2 = (
    "run the kernel host as kernelsvc-kernels.service (Delegate=memory pids cpu), or try: "
    "systemd-run --user --scope -p Delegate=yes kernelsvc kernel-host"
)
_FIX_V1 = "run the kernel host as root, or boot with systemd.unified_cgroup_hierarchy=1 and delegate a cgroup to it"


class CgroupUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a group uses, or None where its controller is missing.

    Attributes:
        memory_bytes: what can't be dropped: without the page cache of files.
        peak_bytes: the most so far, page cache included.
        cpu_seconds: since the group was made.
        tasks: processes and threads.
        oom_kills: how often Linux killed in it for want of memory.
        refused_forks: how often ``pids.max`` said no.
    """

    memory_bytes: int | None = None
    peak_bytes: int | None = None
    cpu_seconds: float | None = None
    tasks: int | None = None
    oom_kills: int = 0
    refused_forks: int = 0


class Cgroup(msgspec.Struct, frozen=True, kw_only=True):
    """One session's cgroup. Plain data, so that a host can write it down and find it again.

    Attributes:
        version: 1 or 2.
        directories: by controller; with version 2 all the same.
    """

    version: Literal[1, 2]
    directories: dict[str, str]

    @property
    def name(self) -> str:
        """As given to ``make``."""
        return os.path.basename(next(iter(self.directories.values()))).removeprefix(_PREFIX)

    @property
    def controllers(self) -> frozenset[str]:
        """What it limits: of memory, pids, cpu."""
        return frozenset(self.directories) - {"cpuacct"}

    @property
    def join_files(self) -> list[str]:
        """The files a process with a single thread writes "0" into, to become a member.

        Moving a whole process takes a lock that waits for a grace period of RCU: 12 ms
        here, as much as the rest of a session's start. A thread that moves itself
        doesn't take it (cgroup_procs_write_start() in Linux), and with version 1 there
        is a file for that. With version 2 a domain's threads can't be moved alone;
        mounting with ``favordynmods`` makes it cheap there.
        """
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return [f"{directory}/{name}" for directory in dict.fromkeys(self.directories.values())]

    def attach(self, pid: int) -> None:
        """Make another process a member, with all its threads; its memory so far stays charged where it was.

        Blocks for a grace period of RCU, see ``join_files``.

        Raises:
            OSError: Linux refused, or the process is gone.
        """
        for directory in dict.fromkeys(self.directories.values()):
            _write(f"{directory}/cgroup.procs", str(pid))

    def limit(self, *, memory_bytes: int | None, tasks: int | None) -> None:
        """Set the hard caps. Swap is taken away with the memory.

        Raises:
            OSError: Linux refused a value.
        """
        if memory_bytes is not None and "memory" in self.directories:
            self._limit_memory(str(memory_bytes))
        if tasks is not None:
            self._write("pids", "pids.max", str(tasks))

    def _limit_memory(self, most: str) -> None:
        if self.version == 2:
            self._write("memory", "memory.max", most)
            self._write_if_there("memory", "memory.swap.max", "0")
            # Only the process that overdraws dies; the init lives to tell.
            self._write_if_there("memory", "memory.oom.group", "0")
        else:
            self._write("memory", "memory.limit_in_bytes", most)
            self._write_if_there("memory", "memory.memsw.limit_in_bytes", most)

    def limit_cpu(self, cores: float | None) -> None:
        """Set the CPU share; after the session is ready, or a tight one slows its start.

        Raises:
            OSError: Linux refused the value.
        """
        if cores is None:
            return
        quota = max(_LEAST_QUOTA_US, round(cores * _PERIOD_US))
        if self.version == 2:
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD_US}")
        else:
            self._write("cpu", "cpu.cfs_period_us", str(_PERIOD_US))
            self._write("cpu", "cpu.cfs_quota_us", str(quota))

    def sample(self) -> CgroupUsage:
        """Read what it uses. A group that is gone reads as nothing."""
        read = _read_v2 if self.version == 2 else _read_v1
        return read(self.directories)

    def event_counts(self) -> tuple[int, int]:
        """How often Linux killed in it for want of memory, and how often it refused a fork: the two cheap counters."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        kills = parse_pairs(_text(f"{self.directories.get('memory', '')}/{name}")).get("oom_kill", 0)
        refused = parse_pairs(_text(f"{self.directories.get('pids', '')}/pids.events")).get("max", 0)
        return kills, refused

    def members(self) -> list[int]:
        """Pids in it, as this process sees them."""
        pids: set[int] = set()
        for directory in self.directories.values():
            pids.update(_pids(f"{directory}/cgroup.procs"))
        return sorted(pids - {0})

    def kill(self) -> None:
        """SIGKILL to every member; new ones can't come up meanwhile."""
        if self.version == 2 and self._write_if_there("memory", "cgroup.kill", "1", any_directory=True):
            return
        self._write_if_there("pids", "pids.max", "0")
        for _ in range(_KILL_ROUNDS):
            members = self.members()
            if not members:
                return
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove it if it is empty. Call again a little later when not: the last exits take their time.

        Returns:
            Whether nothing of it is left.
        """
        gone = True
        for directory in set(self.directories.values()):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def _write(self, controller: str, name: str, value: str) -> None:
        if controller in self.directories:
            _write(f"{self.directories[controller]}/{name}", value)

    def _write_if_there(self, controller: str, name: str, value: str, *, any_directory: bool = False) -> bool:
        directory = self.directories.get(controller)
        if directory is None and any_directory:
            directory = next(iter(self.directories.values()), None)
        if directory is None or not os.path.exists(f"{directory}/{name}"):
            return False
        _write(f"{directory}/{name}", value)
        return True


class CgroupManager:
    """Where a host makes its sessions' groups.

    Attributes:
        version: 1 or 2, or 0 where there is none.
        layers: one verdict each for memory, pids, cpu, with reason and fix.
    """

    def __init__(self, version: Literal[0, 1, 2], parents: dict[str, str], layers: list[Layer]) -> None:
        self.version = version
        self.layers = layers
        self._parents = parents

    def make(self, name: str, *, cpu: bool = True) -> Cgroup | None:
        """A new, empty, unlimited group, or None where this machine has none for us.

        Args:
            name: unique among this host's.
            cpu: whether the processor share will be limited; joining that hierarchy
                has its price.

        Raises:
            OSError: Linux refused.
        """
        if self.version == 0:
            return None
        directories = {
            controller: f"{parent}/{_PREFIX}{name}"
            for controller, parent in self._parents.items()
            if cpu or controller != "cpu"
        }
        for directory in dict.fromkeys(directories.values()):
            os.makedirs(directory, exist_ok=True)
        return Cgroup(version=1 if self.version == 1 else 2, directories=directories)

    def prewait_rcu(self) -> None:
        """Wait for a grace period of RCU now, so that ``Cgroup.admit`` soon after this need not.

        Linux takes one lock for every move of another process, and keeps it cheap to take
        for as long as a further grace period. So move ourselves to where we are. Best effort.
        """
        for parent in [*self._parents.values()][:1]:
            own = f"{os.path.dirname(parent)}{'/supervisor' if self.version == 2 else ''}/cgroup.procs"
            with contextlib.suppress(OSError):
                _write(own, str(os.getpid()))

    def leftovers(self) -> Iterator[Cgroup]:
        """Every group below ours, as a crash left them."""
        names = {entry.name for parent in set(self._parents.values()) for entry in _subdirectories(parent)}
        for name in sorted(name for name in names if name.startswith(_PREFIX)):
            directories = {controller: f"{parent}/{name}" for controller, parent in self._parents.items()}
            yield Cgroup(version=1 if self.version == 1 else 2, directories=directories)

    def clear_abandoned(self, *, older_than: float = ABANDONED_SECONDS) -> int:
        """Remove the empty groups of hosts that were killed and have no successor in their runtime directory.

        Nobody lives in them, or Linux would refuse; their age keeps us from one that a
        living host has just made and not yet filled.

        Returns:
            How many directories are gone.
        """
        oldest, gone = time.time() - older_than, 0
        for base in {os.path.dirname(parent) for parent in self._parents.values()}:
            hosts = [entry for entry in _subdirectories(base) if entry.name.startswith("kernelsvc.")]
            found = [[entry.path for entry in _subdirectories(host.path)] + [host.path] for host in hosts]
            # Ages first: removing a group makes its parent look young.
            for directory in [path for paths in found for path in paths if _made(path) < oldest]:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
                    gone += 1
        return gone

    def trim(self) -> None:
        """A group was removed: leave nothing behind when it was the last, should this host be killed.

        With version 2 the parents go with the unit that they are in, and would have to
        be given their controllers again.
        """
        if self.version == 1:
            self.close()

    def close(self) -> None:
        """Remove the parents, where they are empty."""
        for parent in set(self._parents.values()):
            with contextlib.suppress(OSError):
                os.rmdir(parent)


def open_cgroups(tag: str, *, dry: bool = False) -> CgroupManager:
    """Find what this process may use, and prepare it.

    Moves this process (and its children) into a leaf, with version 2.

    Args:
        tag: names this host's own directory; the same after a restart.
        dry: look only, change nothing; the maker then only has verdicts.
    """
    mounts, own = _mounts(), _own_paths()
    if dry:
        return CgroupManager(0, {}, _look(mounts, own))
    v2 = _try_v2(mounts, own, tag)
    if v2 is not None:
        return v2
    return _v1(mounts, own, tag)


def _look(mounts: dict[str, tuple[str, str]], own: dict[str, str]) -> list[Layer]:
    base = _place("", mounts, own)
    # Beside version 1 there may be a tree of version 2 that has none of the controllers, or some other ones.
    delegated = set(_WANTED) & set(_text(f"{base}/cgroup.controllers").split()) if base else set()
    if delegated and base:
        why = _refusal_v2(base.removesuffix("/supervisor"))
        there = set() if why else {str(controller) for controller in delegated}
        return _verdicts(there, why or "the controller is not delegated to this cgroup", _FIX_V2)
    places = {controller: _place(controller, mounts, own) for controller in _WANTED}
    writable = {controller for controller, place in places.items() if place and os.access(place, os.W_OK)}
    return _verdicts(set(writable), "no cgroup with this controller is writable for this user", _FIX_V1)


def _try_v2(mounts: dict[str, tuple[str, str]], own: dict[str, str], tag: str) -> CgroupManager | None:
    base = _place("", mounts, own)
    if base is None:
        return None
    base = base.removesuffix("/supervisor")
    there: list[str] = [c for c in ("memory", "pids", "cpu") if c in _text(f"{base}/cgroup.controllers").split()]
    if not there:
        return None
    why = _refusal_v2(base)
    if why:
        layers = [Layer(name=f"{c} cgroup", ok=False, why=why, fix=_FIX_V2) for c in ("memory", "pids", "cpu")]
        return CgroupManager(0, {}, layers)
    try:
        parent = _prepare_v2(base, there, tag)
    except OSError as error:
        layers = [Layer(name=f"{c} cgroup", ok=False, why=str(error), fix=_FIX_V2) for c in ("memory", "pids", "cpu")]
        return CgroupManager(0, {}, layers)
    parents = dict.fromkeys(there, parent)
    return CgroupManager(2, parents, _verdicts(set(there), "the controller is not delegated to this cgroup", _FIX_V2))


def _refusal_v2(base: str) -> str:
    if not os.access(f"{base}/cgroup.procs", os.W_OK) or not os.access(f"{base}/cgroup.subtree_control", os.W_OK):
        return f"{base} is not delegated to this user"
    ours = {os.getpid(), *procfs.below(os.getpid())}
    foreign = [pid for pid in _pids(f"{base}/cgroup.procs") if pid not in ours]
    if foreign:
        return f"{base} is shared with other processes ({len(foreign)})"
    return ""


def _prepare_v2(base: str, controllers: list[str], tag: str) -> str:
    leaf = f"{base}/supervisor"
    os.makedirs(leaf, exist_ok=True)
    for pid in _pids(f"{base}/cgroup.procs"):
        _write(f"{leaf}/cgroup.procs", str(pid))
    enable = " ".join(f"+{controller}" for controller in controllers)
    _write(f"{base}/cgroup.subtree_control", enable)
    parent = f"{base}/kernelsvc.{tag}"
    os.makedirs(parent, exist_ok=True)
    _write(f"{parent}/cgroup.subtree_control", enable)
    return parent


def _v1(mounts: dict[str, tuple[str, str]], own: dict[str, str], tag: str) -> CgroupManager:
    parents: dict[str, str] = {}
    why = dict.fromkeys(_WANTED, "no cgroup hierarchy with this controller is mounted")
    for controller in _WANTED:
        base = _place(controller, mounts, own)
        if base is None:
            continue
        try:
            os.makedirs(f"{base}/kernelsvc.{tag}", exist_ok=True)
        except OSError as error:
            why[controller] = f"{base}: {error.strerror}"
            continue
        parents[controller] = f"{base}/kernelsvc.{tag}"
        with contextlib.suppress(OSError):
            os.rmdir(parents[controller])  # it was to see whether we may; ``make`` makes it again
    version: Literal[0, 1] = 1 if set(parents) - {"cpuacct"} else 0
    return CgroupManager(version, parents if version else {}, _verdicts(set(parents), why, _FIX_V1))


def _verdicts(there: set[str], why: str | dict[Controller, str], fix: str) -> list[Layer]:
    names: tuple[Controller, ...] = ("memory", "pids", "cpu")
    reasons = why if isinstance(why, dict) else dict.fromkeys(names, why)
    return [
        Layer(name=f"{c} cgroup", ok=c in there, why="" if c in there else reasons[c], fix="" if c in there else fix)
        for c in names
    ]


# --- reading -----------------------------------------------------------------------


def parse_own(text: str) -> dict[str, str]:
    """``/proc/self/cgroup`` as controller → path; version 2 under ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """``/proc/self/mountinfo`` as controller → (mount point, root within the hierarchy)."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        if kind == "cgroup2":
            mounts.setdefault("", (fields[4], fields[3]))
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _WANTED:
                    mounts.setdefault(option, (fields[4], fields[3]))
    return mounts


def _mounts() -> dict[str, tuple[str, str]]:
    return parse_mounts(_text("/proc/self/mountinfo"))


def _own_paths() -> dict[str, str]:
    return parse_own(_text("/proc/self/cgroup"))


def _place(controller: str, mounts: dict[str, tuple[str, str]], own: dict[str, str]) -> str | None:
    if controller not in mounts or controller not in own:
        return None
    point, root = mounts[controller]
    inside = os.path.relpath(own[controller], root)
    # In a container the path may lie above what is mounted; then the mount's own root is where we are.
    place = point if inside.startswith("..") else os.path.normpath(f"{point}/{inside}")
    return place if os.path.isdir(place) else None


def parse_pairs(text: str) -> dict[str, int]:
    """A file of "name number" lines."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def _read_v2(directories: dict[str, str]) -> CgroupUsage:
    directory = next(iter(directories.values()))
    stat = parse_pairs(_text(f"{directory}/memory.stat"))
    current = _number(f"{directory}/memory.current")
    cpu = parse_pairs(_text(f"{directory}/cpu.stat")).get("usage_usec")
    return CgroupUsage(
        memory_bytes=None if current is None else max(0, current - stat.get("file", 0) + stat.get("shmem", 0)),
        peak_bytes=_number(f"{directory}/memory.peak"),
        cpu_seconds=None if cpu is None else cpu / 1e6,
        tasks=_number(f"{directory}/pids.current"),
        oom_kills=parse_pairs(_text(f"{directory}/memory.events")).get("oom_kill", 0),
        refused_forks=parse_pairs(_text(f"{directory}/pids.events")).get("max", 0),
    )


def _read_v1(directories: dict[str, str]) -> CgroupUsage:
    memory, pids = directories.get("memory", ""), directories.get("pids", "")
    stat = parse_pairs(_text(f"{memory}/memory.stat"))
    current = _number(f"{memory}/memory.usage_in_bytes")
    cpu = _number(f"{directories.get('cpuacct', '')}/cpuacct.usage")
    cache = stat.get("total_cache", 0) - stat.get("total_shmem", 0)
    return CgroupUsage(
        memory_bytes=None if current is None else max(0, current - cache),
        peak_bytes=_number(f"{memory}/memory.max_usage_in_bytes"),
        cpu_seconds=None if cpu is None else cpu / 1e9,
        tasks=_number(f"{pids}/pids.current"),
        oom_kills=parse_pairs(_text(f"{memory}/memory.oom_control")).get("oom_kill", 0),
        refused_forks=parse_pairs(_text(f"{pids}/pids.events")).get("max", 0),
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _pids(path: str) -> list[int]:
    return [int(line) for line in _text(path).split()]


def _subdirectories(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _made(directory: str) -> float:
    try:
        return os.stat(directory).st_mtime
    except OSError:
        return time.time()


def _write(path: str, value: str) -> None:
    """One write to a control file; the error names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path} = {value}: {error.strerror}") from error
    finally:
        os.close(fd)
