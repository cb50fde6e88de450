"""Give the Python environment of a template the same paths on every machine, so that sessions show none of the server.

Modules keep the path that they were imported from: in ``__file__``, ``sys.path``, tracebacks and ``help``. So the fork
server itself runs in a mount namespace in which its environment is also bound below ``/opt``, and starts there by the
new path. Its forks bind the same paths in their own root.

The machine's own ``/opt`` stays as it is (mount_namespaces(7)). In the namespace a small tmpfs takes its place, with a
bind of each entry of the machine's ``/opt`` and of the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from kernelsvc.guest.confine import linux as lx

#: The directory that gets other entries (hier(7): for packages that no system directory holds).
TOP = "/opt"
#: Entries of the machine's ``/opt`` that are bound again. A fork server with more keeps its own paths.
_MAX_ENTRIES = 200


def start(plan: Mapping[str, Any], arguments: list[str]) -> None:
    """Bind the paths and replace this process by a Python that runs the same code by its new path.

    For a process with one thread. If the paths can't be bound here, report it to stderr and return.

    Args:
        plan: from ``kernelsvc.sandbox.environment_paths``: ``binds``, ``python`` and ``guest``.
        arguments: of Python, after its own path. The last one is replaced by the new path of the guest package.
    """
    try:
        _enter_namespace()
        _bind_all(plan["binds"])
        environment = {**os.environ, "HOME": f"{plan['guest']}/home"}
        os.execve(plan["python"], [plan["python"], *arguments[:-1], plan["guest"]], environment)
    except OSError as error:
        sys.stderr.write(f"sessions show this machine's paths of Python: {error}\n")


def _enter_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        # An ordinary user may mount in a user namespace of its own (user_namespaces(7)). The ids stay the same.
        lx.unshare(["user", "mount"])
        lx.write_file("/proc/self/setgroups", "deny")
        lx.write_file("/proc/self/uid_map", f"{uid} {uid} 1")
        lx.write_file("/proc/self/gid_map", f"{gid} {gid} 1")
    else:
        lx.unshare(["mount"])
    # MS_SLAVE: mounts made here do not propagate to the machine, and those of the machine arrive here.
    lx.mount(None, "/", None, lx.MS_REC | lx.MS_SLAVE)


def _bind_all(binds: Mapping[str, str]) -> None:
    # Descriptors keep the way to what the tmpfs covers.
    sources = {target: os.open(source, os.O_PATH) for source, target in binds.items()}
    top = os.open(TOP, os.O_PATH | os.O_DIRECTORY)
    entries = os.listdir(TOP)
    if len(entries) > _MAX_ENTRIES:
        raise OSError(f"{TOP} has {len(entries)} entries")
    lx.mount("tmpfs", TOP, "tmpfs", lx.MS_NOSUID | lx.MS_NODEV, "size=256k,nr_inodes=512,mode=755")
    for name in entries:
        path = f"/proc/self/fd/{top}/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{TOP}/{name}")
        elif f"{TOP}/{name}" not in sources:
            _bind(path, f"{TOP}/{name}")
    for target in sorted(sources):
        _bind(f"/proc/self/fd/{sources[target]}", target)
    for fd in (top, *sources.values()):
        os.close(fd)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    lx.mount(source, target, None, lx.MS_BIND | lx.MS_REC)


def original(path: str, binds: Mapping[str, str]) -> str:
    """Return the path that a new path stands for.

    >>> original("/opt/python/lib/python3.13", {"/srv/py": "/opt/python"})
    '/srv/py/lib/python3.13'
    """
    for source, target in binds.items():
        if path == target or path.startswith(f"{target}/"):
            return source + path[len(target) :]
    return path
