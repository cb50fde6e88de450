"""Sockets in a session's network namespace, through which the server connects to the session's own servers.

network_namespaces(7) applies to a socket from its creation on, wherever it is used. So a fork of the host joins the
namespace, makes unconnected sockets and sends them to the server, which calls connect(2) itself. Nothing of the session
runs for it, and a session without a network has its loopback interface.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from kernelsvc.errors import KernelDead, NotSupported
from kernelsvc.guest.confine import linux
from kernelsvc.host.container import Container, ContainerProcess
from kernelsvc.linux import seqpacket


def namespaces_of(container: Container, process: ContainerProcess) -> list[str]:
    """Return the namespaces to join for a socket.

    Raises:
        NotSupported: the session has no network namespace of its own.
        KernelDead: the kernel has ended.
    """
    if process.exit is not None:
        raise KernelDead("The session's kernel has ended. Run a cell first.")
    own = (container.record.allocation.plan or {}).get("namespaces", [])
    if "net" not in own:
        raise NotSupported(
            "This session has no network of its own, so its ports are those of the machine. Ports need the namespace "
            "layer ('kernelsvc doctor') and a session whose network is not 'host'."
        )
    # setns(2): the caller needs CAP_SYS_ADMIN in the user namespace that owns the network namespace.
    return [name for name in ("user", "net") if name in own]


def fork_maker(pidfd: int, namespaces: Sequence[str], count: int, server: int) -> int:
    """Fork a process that makes sockets in a session's network namespace and sends them to the server.

    Args:
        pidfd: of the session's kernel.
        namespaces: see ``namespaces_of``.
        count: sockets to make.
        server: the descriptor of a connected SOCK_SEQPACKET socket. The caller keeps it.

    Returns:
        The process id.
    """
    pid = os.fork()
    if pid == 0:
        _run(pidfd, list(namespaces), count, server)
    return pid


def _run(pidfd: int, namespaces: list[str], count: int, server: int) -> NoReturn:
    try:
        # The host's event loop reads the other end of this descriptor: a signal here would wake the host.
        signal.set_wakeup_fd(-1)
        # In the session's user namespace this copy of the host's memory must be unreadable (ptrace(2)).
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        channel = socket.socket(fileno=os.dup(server))
        try:
            linux.join(pidfd, namespaces)
            made = [_socket() for _ in range(count)]
            socket.send_fds(channel, [seqpacket.encode({})], [one.fileno() for one in made])
        except OSError as error:
            with contextlib.suppress(OSError):
                channel.send(seqpacket.encode({"failed": f"{error}"[:2000]}))
    finally:
        os._exit(0)


def _socket() -> socket.socket:
    """Return a socket that connects to IPv4 and IPv6 addresses, or to IPv4 alone where Linux has no IPv6."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    try:
        made = socket.socket(socket.AF_INET6, kind)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # ipv6(7): ::ffff:127.0.0.1 is IPv4
    except OSError:
        made = socket.socket(socket.AF_INET, kind)
    return made
