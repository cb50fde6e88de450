"""Confine the proxy before it reads the first byte of a session: no programs, no files, no other processes."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - getaddrinfo imports it late, when files can't be read any more
import logging
import os
import platform
import sys
from pathlib import Path

import kernelsvc
from kernelsvc.guest.confine import linux
from kernelsvc.sandbox import seccomp
from kernelsvc.sandbox.syscall_arguments import ALLOW, EPERM, ArgumentCheck, Verdict

log = logging.getLogger(__name__)

#: Directories that name look-ups and late imports read: resolv.conf(5) is often a link into /run.
_READABLE = ("/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/dev/urandom")
_CLONE_THREAD = 0x10000
#: Calls of a session's kernel that the proxy has no use for.
_REFUSED = """
execve execveat fork vfork kill tkill tgkill setuid setgid setreuid setregid setresuid setresgid setgroups unlink
unlinkat rename renameat renameat2 link linkat symlink symlinkat mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat
fchmodat2 chown fchown lchown fchownat truncate ftruncate creat pidfd_send_signal rt_sigqueueinfo
"""


def confine_proxy() -> list[str]:
    """Confine this process for good. It must have one thread. Return a warning for each layer that is missing."""
    missing = []
    steps = {
        "capabilities": _drop_capabilities,
        "landlock": _restrict_files,
        "seccomp": _install_filter,
    }
    for name, step in steps.items():
        try:
            step()
        except (OSError, KeyError) as error:
            missing.append(f"{name}: {error}")
    return missing


def _drop_capabilities() -> None:
    # A process that is not dumpable has memory that other processes of its user can't read (prctl(2)).
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    if os.geteuid() == 0:
        linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _restrict_files() -> None:
    package = str(Path(kernelsvc.__file__).parent)
    paths = dict.fromkeys((*_READABLE, sys.prefix, sys.base_prefix, package))
    linux.landlock([(path, "read") for path in paths if os.path.exists(path)], scope=True)


def proxy_policy() -> dict[str, Verdict]:
    """Return the policy of system calls: those of a session's kernel without programs, changes of files, signals."""
    # A file in memory holds each certificate with its key (egress.authority).
    policy = seccomp.kernel_policy(inet=True, memfd=True)
    policy |= dict.fromkeys(_REFUSED.split(), EPERM)
    # Threads for look-ups, and no process.
    return policy | {"clone": ArgumentCheck(0, (0,), EPERM, ALLOW, mask=_CLONE_THREAD)}


def _install_filter() -> None:
    linux.install_filter(seccomp.assemble(proxy_policy(), platform.machine()))
