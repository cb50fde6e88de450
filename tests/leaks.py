"""What a run of tests leaves behind: processes, sockets, cgroups.

A process belongs to the run when it descends from it, or when its environment
carries the run's mark, which survives being detached and orphaned. Another
run on the same machine is never taken for this one.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

#: Names the run in the environment of everything that it starts.
MARK = "KERNELSVC_TEST_RUN"


def mark(env: dict[str, str] | os._Environ[str]) -> str:
    """Mark an environment, and return the mark. A run inside a run keeps the outer's."""
    return env.setdefault(MARK, f"{os.getpid()}-{os.urandom(4).hex()}")


def processes(run: str) -> list[psutil.Process]:
    """The live processes of a run, but for this one and its ancestors."""
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    children = {child.pid for child in me.children(recursive=True)}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in spared and (process.pid in children or run in _marks(process.pid)) and _alive(process)
    ]


def _marks(pid: int) -> str:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next((part.decode() for part in environ.split(b"\0") if part.startswith(prefix)), "")


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def sockets(below: Path) -> list[str]:
    """Unix sockets that somebody holds open below a directory (proc(5), ``/proc/net/unix``)."""
    lines = Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]
    return sorted({line.split(maxsplit=7)[7] for line in lines if f" {below}/" in line})


def empty_cgroups() -> set[str]:
    """Every cgroup of ours, of whatever hierarchy, that no process is in: nobody will remove it any more."""
    found = (path for path in _directories(Path("/sys/fs/cgroup"), 4) if "kernelsvc" in path.name)
    return {str(path) for path in found if not _inhabited(path)}


def _inhabited(cgroup: Path) -> bool:
    try:
        return any(path.read_text() for path in cgroup.rglob("cgroup.procs"))
    except OSError:
        return True


def _directories(top: Path, depth: int) -> list[Path]:
    if depth == 0 or not top.is_dir():
        return []
    try:
        found = [path for path in top.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
    return found + [inner for path in found for inner in _directories(path, depth - 1)]


def others(run: str) -> bool:
    """Whether somebody else works with kernelsvc on this machine, so that a cgroup can't be told to be this run's."""
    mine = {process.pid for process in processes(run)} | {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return any(process.pid not in mine and _works_with_us(process) for process in psutil.process_iter())


def _works_with_us(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(word in ("kernelsvc", "pytest") or word.endswith(("/pytest", "/kernelsvc")) for word in words)


def describe(process: psutil.Process) -> str:
    """One line on a process, for a report."""
    try:
        return f"pid {process.pid} (parent {process.ppid()}, {process.status()}): {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return f"pid {process.pid}: gone meanwhile"


def end(processes: list[psutil.Process]) -> None:
    """Kill each, by its id."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    psutil.wait_procs(processes, timeout=5)
