"""The host's part in running a program beside a kernel: find where, fork a keeper (``guest.keeper``), and forget it.

The keeper answers to the server that asked, over a socket of their own, so the
host holds nothing: a program ends with its sandbox, or when its server lets go.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from kernelsvc.errors import KernelDead, NotSupported
from kernelsvc.guest.confine import exec_shim, linux
from kernelsvc.host.container import Container, ContainerProcess
from kernelsvc.host.protocol import ExecRequest
from kernelsvc.sandbox.plan import SCRATCH


def order_of(request: ExecRequest, ward: Container, member: ContainerProcess) -> exec_shim.ExecSpec:
    """What the keeper of a program is to do.

    Raises:
        NotSupported: the sandbox was made by a host that could not run programs.
        KernelDead: the kernel has ended.
    """
    plan = ward.record.ticket.plan
    if not plan:
        raise NotSupported("This session began under an older kernel host; restart the session to run programs in it.")
    if member.exit is not None:
        raise KernelDead("The session's kernel has ended; run a cell first.")
    group = ward.group_of(member)
    home = member.home or plan["home"]
    return exec_shim.ExecSpec(
        plan=plan,
        cgroup=[] if group is None else group.join_files,
        kernel=member.pidfd,
        argv=request.argv,
        env={"HOME": home, **request.env},
        cwd=request.cwd or home,
        write=[home, f"{home}.d", *SCRATCH] if "mount" in plan["namespaces"] else None,
        terminal=request.terminal,
    )


def launch(order: exec_shim.ExecSpec, fds: Sequence[int], descriptors: int) -> int:
    """Fork the keeper; its pid. ``fds`` (see ``FDS``) stay the caller's; ``descriptors`` is a program's soft limit."""
    pid = os.fork()
    if pid == 0:
        _become_keeper(order, fds, descriptors)
    return pid


def _become_keeper(order: exec_shim.ExecSpec, fds: Sequence[int], descriptors: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        server = socket.socket(fileno=os.dup(fds[3]))
        order.kernel = os.dup(order.kernel)
        for target, fd in enumerate([os.dup(fd) for fd in fds[:3]]):
            os.dup2(fd, target)
        linux.close_others({0, 1, 2, server.fileno(), order.kernel})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        exec_shim.run_shim(order, server)
    finally:
        os._exit(70)
