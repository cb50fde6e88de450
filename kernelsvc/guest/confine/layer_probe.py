"""Try each layer of confinement once, each in a child process.

``kernelsvc.sandbox.probe`` runs it as a program, so that the caller's threads don't matter. It trusts no version number
and no file in /proc: a layer works if it works here, for this user.

Standard input: ``{"directory": an empty directory, "uid": for root, "filter": hex, "overlays": [directory...],
"only_overlays": [directory...]}``. Standard output: ``{"landlock_abi": n, "layers": {name: "" or the error}}``. With
"only_overlays", nothing but overlays of these directories is tried, and the names are the directories.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kernelsvc.guest.confine import egress
from kernelsvc.guest.confine import linux as lx
from kernelsvc.guest.confine.rootfs import build_view, mount_overlays

Trial = Callable[[], None]

_VIEW: dict[str, Any] = {
    "links": {},
    "readonly": [["/usr", "/usr"]],
    "writable": [],
    "binds": [],
    "overlays": {},
    "hidden": [],
    "idmap": None,
    "files": {"/etc/hostname": "trial\n"},
    "devices": ["null"],
    "proc": False,
    "proc_masks": [],
    "tmp_bytes": 1 << 20,
    "shm_bytes": 1 << 20,
}


def attempt(trial: Trial) -> str:
    """Run a trial in a child. Return "" if it succeeded, else the error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            trial()
        except BaseException as error:
            text = str(error) or type(error).__name__
        os.write(writer, text.encode()[:4096])
        os._exit(0 if not text else 1)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        text = f.read().decode(errors="replace")
    status = os.waitpid(pid, 0)[1]
    return text or ("" if status == 0 else f"the trial died (status {status})")


def _in_namespaces(names: list[str]) -> None:
    uid, gid = os.getuid(), os.getgid()
    lx.unshare(names if uid == 0 else ["user", *names])
    if uid != 0:
        lx.write_file("/proc/self/setgroups", "deny")
        lx.write_file("/proc/self/uid_map", f"1000 {uid} 1")
        lx.write_file("/proc/self/gid_map", f"1000 {gid} 1")


def _in_child(act: Trial) -> None:
    """Continue in a child: the first process of a new pid namespace."""
    text = attempt(act)
    if text:
        raise OSError(text)


def _namespace(name: str) -> Trial:
    return lambda: _in_namespaces([name])


def _filesystem(directory: str) -> Trial:
    def trial() -> None:
        _in_namespaces(["mount", "pid", "ipc"])
        _in_child(lambda: build_view({**_VIEW, "root": directory}))

    return trial


def overlays(directory: str, shown: Sequence[str]) -> Trial:
    """Return a trial of overlays: a lock on a directory itself must be none on its overlay.

    Args:
        directory: an empty directory, to mount over.
        shown: existing directories.
    """

    def trial() -> None:
        _in_namespaces(["mount"])
        lx.mount(None, "/", None, lx.MS_REC | lx.MS_SLAVE)
        lx.mount("tmpfs", directory, "tmpfs", 0, "size=1m,nr_inodes=64")
        for below, above in mount_overlays(directory, shown).items():
            # Shared, because another host may try the same. If anyone holds the only lock below, that is as good.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(os.open(below, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(os.open(above, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_EX | fcntl.LOCK_NB)

    return trial


def _proc(directory: str) -> Trial:
    def mount() -> None:
        lx.mount(None, "/", None, lx.MS_REC | lx.MS_SLAVE)
        lx.mount("proc", directory, "proc", lx.MS_NOSUID | lx.MS_NODEV | lx.MS_NOEXEC)

    def trial() -> None:
        _in_namespaces(["mount", "pid"])
        _in_child(mount)

    return trial


def _network() -> None:
    _in_namespaces(["net"])
    lx.raise_loopback()


def _egress() -> None:
    """Connect to an address for documentation (RFC 5737), and accept the connection on a listener of this process."""
    _network()
    _, _, listener = (socket.socket(fileno=fd) for fd in egress.open_listeners([80]))
    with socket.create_connection(("192.0.2.1", 80), timeout=1.0):
        listener.accept()[0].close()


def _no_new_privs() -> None:
    lx.prctl(lx.PR_SET_NO_NEW_PRIVS, 1)


def _seccomp(program: bytes) -> None:
    _no_new_privs()
    lx.install_filter(program)


def _capabilities() -> None:
    if os.getuid() == 0:
        lx.drop_bounding_set()
    lx.drop_capabilities()


def _landlock() -> None:
    lx.landlock([("/", "read")], scope=True)
    try:
        os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    except PermissionError:
        return
    raise OSError("a write that Landlock should refuse went through")


def _task_rlimit() -> None:
    """Run two tasks in a new user namespace: the first fork must succeed, the second must fail (RLIMIT_NPROC)."""
    _in_namespaces([])
    resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return
    finally:
        os.close(writer)
        os.waitpid(first, 0)
    raise OSError("a fork above RLIMIT_NPROC went through")


def trials(request: dict[str, Any]) -> dict[str, Trial]:
    """Return all layers that apply to this user, by their name in reports."""
    found: dict[str, Trial] = {}
    if os.getuid() == 0:
        found["user"] = lambda: lx.become(request["uid"], request["uid"])
    else:
        found["user namespace"] = lambda: _in_namespaces([])
        found["task rlimit"] = _task_rlimit
    for name in ("mount", "pid", "ipc", "uts", "cgroup"):
        found[f"{name} namespace"] = _namespace(name)
    found["net namespace"] = _network
    found["egress"] = _egress
    found["filesystem"] = _filesystem(request["directory"])
    found["own inodes"] = overlays(request["directory"], request["overlays"])
    found["proc"] = _proc(request["directory"])
    found["capabilities"] = _capabilities
    found["no_new_privs"] = _no_new_privs
    found["landlock"] = _landlock
    found["seccomp"] = lambda: _seccomp(bytes.fromhex(request["filter"]))
    return found


def main() -> None:
    """Try all layers and print the results."""
    request = json.load(sys.stdin)
    chosen = {shown: overlays(request["directory"], [shown]) for shown in request["only_overlays"]}
    verdicts = {name: attempt(trial) for name, trial in (chosen or trials(request)).items()}
    sys.stdout.write(json.dumps({"landlock_abi": lx.landlock_abi(), "layers": verdicts}))


if __name__ == "__main__":
    main()
