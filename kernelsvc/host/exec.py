"""Fork the exec shim of a program (``guest.confine.exec_shim``) that runs in a kernel's sandbox.

The shim answers to the server over a socket of its own, so the host keeps no state: a program ends with its container,
or when its server closes the socket.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import NoReturn

from kernelsvc.errors import KernelDead, NotSupported
from kernelsvc.guest.confine import exec_shim, linux
from kernelsvc.host.container import Container, ContainerProcess
from kernelsvc.host.protocol import ExecRequest
from kernelsvc.sandbox.plan import PACKAGES_DIR, WRITABLE


def exec_spec(request: ExecRequest, container: Container, process: ContainerProcess) -> exec_shim.ExecSpec:
    """Return the exec shim's instructions for a program.

    Raises:
        NotSupported: an older host that could not run programs created the container.
        KernelDead: the kernel has ended.
    """
    plan = container.record.allocation.plan
    if not plan:
        raise NotSupported("This session began under an older kernel host. Restart the session to run programs in it.")
    if process.exit is not None:
        raise KernelDead("The session's kernel has ended. Run a cell first.")
    cgroup = container.cgroup_of(process)
    home = process.home or plan["home"]
    return exec_shim.ExecSpec(
        plan=plan,
        cgroup=[] if cgroup is None else cgroup.join_files,
        kernel=process.pidfd,
        argv=request.argv,
        env={"HOME": home, **_moved_variables(plan["env"], plan["home"], home), **request.env},
        cwd=request.cwd or home,
        write=[home, f"{home}.d", *WRITABLE] if "mount" in plan["namespaces"] else None,
        terminal=request.terminal,
    )


def _moved_variables(env: Mapping[str, str], before: str, home: str) -> dict[str, str]:
    """Return the variables for installed packages with the directory of a branch, where it is another one."""
    if before == home:
        return {}
    old, new = f"{before}/{PACKAGES_DIR}", f"{home}/{PACKAGES_DIR}"
    return {
        name: env[name].replace(old, new) for name in ("PIP_PREFIX", "PYTHONPATH", "PATH") if old in env.get(name, "")
    }


def fork_shim(spec: exec_shim.ExecSpec, fds: Sequence[int], descriptors: int) -> int:
    """Fork the exec shim.

    Args:
        spec: its instructions.
        fds: see ``protocol.EXEC_FDS``; the caller keeps them.
        descriptors: soft limit of open files for the program.

    Returns:
        The shim's pid.
    """
    pid = os.fork()
    if pid == 0:
        _run_shim(spec, fds, descriptors)
    return pid


def _run_shim(spec: exec_shim.ExecSpec, fds: Sequence[int], descriptors: int) -> NoReturn:
    try:
        # The host's event loop reads the other end of this descriptor: a signal here would wake the host.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        server = socket.socket(fileno=os.dup(fds[3]))
        spec.kernel = os.dup(spec.kernel)
        # All are duplicated before the first dup2(2), which closes its target: that may be one of the others.
        for target, fd in enumerate([os.dup(fd) for fd in fds[:3]]):
            os.dup2(fd, target)
        linux.close_others({0, 1, 2, server.fileno(), spec.kernel})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        exec_shim.run_shim(spec, server)
    finally:
        # Without the exit handlers and buffers, which are copies of the host's. sysexits.h: 70 is EX_SOFTWARE.
        os._exit(70)
