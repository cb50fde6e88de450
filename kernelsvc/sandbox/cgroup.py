"""Limits that Linux enforces: one cgroup for each session.

Version 2 needs a delegated subtree (``Delegate=`` under systemd, or a cgroup without other processes). cgroups(7),
"no internal processes" rule: processes may only live in leaves, so the host moves itself into ``supervisor`` and
sessions become its siblings. Version 1 has a hierarchy for each controller, and a session gets a directory in each of
them, below the host's cgroup. Callers see both versions as one ``Cgroup``: directories by controller.

Each host keeps its groups below one directory named by ``tag``. Cleaning up after a crash never touches another host's.

A group is limited before a process joins it (the child writes itself into ``join_files``). A limit is never raised from
inside: no session can see these files.
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
_LEAST_QUOTA_US = 1_000  # Linux's minimum (min_cfs_quota_period)
_KILL_ROUNDS = 100
#: Age in seconds from which an empty group of another host counts as abandoned.
ABANDONED_SECONDS = 600.0
#: Without a prefix a name could be that of a control file ("tasks").
_PREFIX = "k-"
#: Fixes that ``kernelsvc doctor`` shows.
_FIX_V2 = (
    "run the kernel host as kernelsvc-kernels.service (Delegate=memory pids cpu), or try: "
    "systemd-run --user --scope -p Delegate=yes kernelsvc kernel-host"
)
_FIX_V1 = "run the kernel host as root, or boot with systemd.unified_cgroup_hierarchy=1 and delegate a cgroup to it"


class CgroupUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that a group uses. None where its controller is missing.

    Attributes:
        memory_bytes: memory without the page cache of files.
        peak_bytes: the maximum so far, page cache included.
        cpu_seconds: since its creation.
        tasks: processes and threads.
        oom_kills: how many times Linux killed a process in it for lack of memory.
        refused_forks: how many times ``pids.max`` refused a fork.
    """

    memory_bytes: int | None = None
    peak_bytes: int | None = None
    cpu_seconds: float | None = None
    tasks: int | None = None
    oom_kills: int = 0
    refused_forks: int = 0


class Cgroup(msgspec.Struct, frozen=True, kw_only=True):
    """One session's cgroup. Plain data: a host writes it to disk and finds the cgroup again.

    Attributes:
        version: 1 or 2.
        directories: by controller. With version 2 all are the same.
    """

    version: Literal[1, 2]
    directories: dict[str, str]

    @property
    def name(self) -> str:
        """The name that ``make`` got."""
        return os.path.basename(next(iter(self.directories.values()))).removeprefix(_PREFIX)

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that limit it, of memory, pids and cpu."""
        return frozenset(self.directories) - {"cpuacct"}

    @property
    def join_files(self) -> list[str]:
        """The files into which a process with a single thread writes "0" to become a member.

        Moving a whole process takes a lock that waits for a grace period of RCU: 12 ms here, as long as the rest of a
        session's start. A thread that moves itself does not take the lock (``cgroup_procs_write_start`` in Linux),
        and version 1 has the file ``tasks`` for that. With version 2 the threads of a domain can't be moved alone.
        Mounting with ``favordynmods`` makes the move cheap there.
        """
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return [f"{directory}/{name}" for directory in dict.fromkeys(self.directories.values())]

    def attach(self, pid: int) -> None:
        """Move another process into it, with all its threads. Memory that it has used stays charged to its old cgroup.

        Blocks for a grace period of RCU, see ``join_files``.

        Raises:
            OSError: Linux refused, or the process has ended.
        """
        for directory in dict.fromkeys(self.directories.values()):
            _write(f"{directory}/cgroup.procs", str(pid))

    def limit(self, *, memory_bytes: int | None, tasks: int | None) -> None:
        """Set the hard limits. Swap is limited with the memory.

        Args:
            memory_bytes: maximum, or None for no limit.
            tasks: maximum of processes and threads, or None for no limit.

        Raises:
            OSError: Linux refused a value.
        """
        if memory_bytes is not None and "memory" in self.directories:
            self._limit_memory(str(memory_bytes))
        if tasks is not None:
            self._write("pids", "pids.max", str(tasks))

    def _limit_memory(self, value: str) -> None:
        if self.version == 2:
            self._write("memory", "memory.max", value)
            # cgroup v2: memory.max does not count swap, so without this a session would grow there.
            self._write_if_there("memory", "memory.swap.max", "0")
            # cgroup v2, memory.oom.group: with 0 the OOM killer ends one process, and the init survives to report it.
            self._write_if_there("memory", "memory.oom.group", "0")
        else:
            # cgroup v1: memsw counts memory and swap together, so the same value leaves no swap. It may not be smaller
            # than the limit of the memory alone, and is written second.
            self._write("memory", "memory.limit_in_bytes", value)
            self._write_if_there("memory", "memory.memsw.limit_in_bytes", value)

    def limit_cpu(self, cores: float | None) -> None:
        """Set the CPU share. Call it when the session is ready: a small share would slow its start.

        Args:
            cores: number of cores, or None for no limit.

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
        """Return its usage. A group that was removed has no usage."""
        read = _read_v2 if self.version == 2 else _read_v1
        return read(self.directories)

    def event_counts(self) -> tuple[int, int]:
        """Return the two counters that are cheap to read: OOM kills and refused forks."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        kills = parse_pairs(_text(f"{self.directories.get('memory', '')}/{name}")).get("oom_kill", 0)
        refused = parse_pairs(_text(f"{self.directories.get('pids', '')}/pids.events")).get("max", 0)
        return kills, refused

    def members(self) -> list[int]:
        """Return the pids in it, as this process sees them."""
        pids: set[int] = set()
        for directory in self.directories.values():
            pids.update(_pids(f"{directory}/cgroup.procs"))
        # Linux lists a process as 0 that this process's PID namespace does not contain. kill(2) of 0 would signal the
        # caller's own process group.
        return sorted(pids - {0})

    def kill(self) -> None:
        """Send SIGKILL to every member. No new member can be forked meanwhile."""
        # cgroup v2: "Killing a cgroup tree will deal with concurrent forks appropriately". Linux has it since 5.14.
        if self.version == 2 and self._write_if_there("memory", "cgroup.kill", "1", any_directory=True):
            return
        # fork(2) then fails with EAGAIN, so that the rounds reach an end. Members above the limit are not ended by it.
        self._write_if_there("pids", "pids.max", "0")
        for _ in range(_KILL_ROUNDS):
            members = self.members()
            if not members:
                return
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove it if it has no processes. Otherwise call this again a little later: exits take time.

        Returns:
            Whether it is removed.
        """
        removed = True
        for directory in set(self.directories.values()):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                removed = False
        return removed

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
    """The cgroups of a host's sessions.

    Args:
        version: 1 or 2, or 0 if this machine offers none.
        parents: directory of the sessions' groups, by controller.
        layers: a verdict for each of memory, pids and cpu.
    """

    def __init__(self, version: Literal[0, 1, 2], parents: dict[str, str], layers: list[Layer]) -> None:
        self.version = version
        self.layers = layers
        self._parents = parents

    def make(self, name: str, *, cpu: bool = True) -> Cgroup | None:
        """Make a new, unlimited group. Return None if this machine offers none.

        Args:
            name: unique for this host.
            cpu: whether the CPU share will be limited. Membership in that hierarchy has a cost.

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
        """Wait for a grace period of RCU, so that ``Cgroup.attach`` soon after this does not wait.

        Linux takes one lock for each move of another process, and the lock stays cheap for one more grace period. So
        this moves the host into its own cgroup. Errors are ignored.
        """
        for parent in [*self._parents.values()][:1]:
            own = f"{os.path.dirname(parent)}{'/supervisor' if self.version == 2 else ''}/cgroup.procs"
            with contextlib.suppress(OSError):
                _write(own, str(os.getpid()))

    def leftovers(self) -> Iterator[Cgroup]:
        """Return every group below this host's directory. After a crash these are the old host's."""
        names = {entry.name for parent in set(self._parents.values()) for entry in _subdirectories(parent)}
        for name in sorted(name for name in names if name.startswith(_PREFIX)):
            directories = {controller: f"{parent}/{name}" for controller, parent in self._parents.items()}
            yield Cgroup(version=1 if self.version == 1 else 2, directories=directories)

    def clear_abandoned(self, *, older_than: float = ABANDONED_SECONDS) -> int:
        """Remove the empty groups of hosts that were killed and have no successor in their runtime directory.

        Linux refuses to remove a group with processes. The age keeps a group that another host has just made and not
        filled yet.

        Args:
            older_than: age in seconds.

        Returns:
            The number of directories that were removed.
        """
        oldest, removed = time.time() - older_than, 0
        for base in {os.path.dirname(parent) for parent in self._parents.values()}:
            hosts = [entry for entry in _subdirectories(base) if entry.name.startswith("kernelsvc.")]
            found = [[entry.path for entry in _subdirectories(host.path)] + [host.path] for host in hosts]
            # Ages first: to remove a group changes the modification time of its parent.
            for directory in [path for paths in found for path in paths if _made(path) < oldest]:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
                    removed += 1
        return removed

    def trim(self) -> None:
        """Remove this host's directory when its last group was removed, in case the host is killed later.

        With version 2 the directory is removed with the unit that it belongs to, and a new one would need its
        controllers enabled again.
        """
        if self.version == 1:
            self.close()

    def close(self) -> None:
        """Remove this host's directories, where they are empty."""
        for parent in set(self._parents.values()):
            with contextlib.suppress(OSError):
                os.rmdir(parent)


def open_cgroups(tag: str, *, dry: bool = False) -> CgroupManager:
    """Find the cgroups that this process may use, and prepare them.

    With version 2 this moves the process and its children into a leaf.

    Args:
        tag: names this host's directory, and is the same after a restart.
        dry: change nothing. The result has verdicts and makes no groups.
    """
    mounts, own = _mounts(), _own_paths()
    if dry:
        return CgroupManager(0, {}, _verdicts_only(mounts, own))
    v2 = _try_v2(mounts, own, tag)
    if v2 is not None:
        return v2
    return _v1(mounts, own, tag)


def _verdicts_only(mounts: dict[str, tuple[str, str]], own: dict[str, str]) -> list[Layer]:
    base = _cgroup_dir("", mounts, own)
    # A hybrid machine has version 1 hierarchies and a version 2 tree with other controllers, or with none.
    delegated = set(_WANTED) & set(_text(f"{base}/cgroup.controllers").split()) if base else set()
    if delegated and base:
        why = _obstacle_v2(base.removesuffix("/supervisor"))
        there = set() if why else {str(controller) for controller in delegated}
        return _verdicts(there, why or "the controller is not delegated to this cgroup", _FIX_V2)
    directories = {controller: _cgroup_dir(controller, mounts, own) for controller in _WANTED}
    writable = {
        controller for controller, directory in directories.items() if directory and os.access(directory, os.W_OK)
    }
    return _verdicts(set(writable), "no cgroup with this controller is writable for this user", _FIX_V1)


def _try_v2(mounts: dict[str, tuple[str, str]], own: dict[str, str], tag: str) -> CgroupManager | None:
    base = _cgroup_dir("", mounts, own)
    if base is None:
        return None
    base = base.removesuffix("/supervisor")
    there: list[str] = [c for c in ("memory", "pids", "cpu") if c in _text(f"{base}/cgroup.controllers").split()]
    if not there:
        return None
    why = _obstacle_v2(base)
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


def _obstacle_v2(base: str) -> str:
    if not os.access(f"{base}/cgroup.procs", os.W_OK) or not os.access(f"{base}/cgroup.subtree_control", os.W_OK):
        return f"{base} is not delegated to this user"
    own_pids = {os.getpid(), *procfs.below(os.getpid())}
    foreign = [pid for pid in _pids(f"{base}/cgroup.procs") if pid not in own_pids]
    if foreign:
        return f"{base} is shared with other processes ({len(foreign)})"
    return ""


def _prepare_v2(base: str, controllers: list[str], tag: str) -> str:
    # cgroup v2, "No Internal Process Constraint": only a cgroup without processes of its own can enable controllers for
    # its children. So those of this cgroup move into a leaf.
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
        base = _cgroup_dir(controller, mounts, own)
        if base is None:
            continue
        try:
            os.makedirs(f"{base}/kernelsvc.{tag}", exist_ok=True)
        except OSError as error:
            why[controller] = f"{base}: {error.strerror}"
            continue
        parents[controller] = f"{base}/kernelsvc.{tag}"
        with contextlib.suppress(OSError):
            os.rmdir(parents[controller])  # only to find out whether it is allowed: ``make`` makes it again
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
    """Parse ``/proc/self/cgroup``: paths by controller, version 2 under "" (cgroups(7))."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)  # the path may contain colons
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Parse ``/proc/self/mountinfo``: (mount point, root within the hierarchy) by controller (proc(5))."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        # proc_pid_mountinfo(5): the number of fields before the separator varies.
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


def _cgroup_dir(controller: str, mounts: dict[str, tuple[str, str]], own: dict[str, str]) -> str | None:
    if controller not in mounts or controller not in own:
        return None
    point, root = mounts[controller]
    inside = os.path.relpath(own[controller], root)
    # In a container the path may lie above the mounted part. Then the mount's root is this process's cgroup.
    directory = point if inside.startswith("..") else os.path.normpath(f"{point}/{inside}")
    return directory if os.path.isdir(directory) else None


def charged_memory(pid: int) -> int | None:
    """Return the memory that is charged to the cgroup of a process, without the page cache of files, in bytes.

    Args:
        pid: a process in a cgroup of its own session.

    Returns:
        None if the process has ended or its cgroup can't be read.
    """
    own = parse_own(_text(f"/proc/{pid}/cgroup"))
    found = next(((name, path) for name in ("memory", "") if (path := _cgroup_dir(name, _mounts(), own))), None)
    if found is None:
        return None
    return (_read_v1({"memory": found[1]}) if found[0] else _read_v2({"": found[1]})).memory_bytes


def parse_pairs(text: str) -> dict[str, int]:
    """Parse a file of "name number" lines."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def _read_v2(directories: dict[str, str]) -> CgroupUsage:
    directory = next(iter(directories.values()))
    stat = parse_pairs(_text(f"{directory}/memory.stat"))
    current = _number(f"{directory}/memory.current")
    cpu = parse_pairs(_text(f"{directory}/cpu.stat")).get("usage_usec")
    return CgroupUsage(
        # Without the page cache, which Linux frees before it refuses memory. Files of a tmpfs (shmem) are part of the
        # cache and can't be freed without swap.
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
    """Write to a control file in one call. An error names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path} = {value}: {error.strerror}") from error
    finally:
        os.close(fd)
