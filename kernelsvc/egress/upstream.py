"""Connections to destinations: look up, check each address, connect to the address that was checked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kernelsvc.model.network.policy import NetworkPolicy, Refused

#: Seconds for look-up and connection together.
CONNECT_SECONDS = 10.0
#: Look-ups at the same time for one session. Each takes a thread. getaddrinfo(3) can't be cancelled, and waits for tens
#: of seconds if the name's servers do not answer, so that a pool of all sessions could be used up by a few of them.
LOOKUPS = 4
#: Bytes of a socket's buffers (socket(7)), so that a peer that does not read costs no more.
SOCKET_BYTES = 512 * 1024


def bound_buffers(sock: socket.socket) -> None:
    """Limit the buffers of a socket. An accepted socket inherits them from its listener (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)


class Upstream:
    """Makes the connections of one session.

    Args:
        policy: checks addresses.
        hosts: addresses of names that are not looked up.
    """

    def __init__(self, policy: NetworkPolicy, hosts: Mapping[str, str]) -> None:
        self._policy = policy
        self._hosts = hosts
        # Made at the first look-up: most sessions are idle, and one takes 2 KiB.
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Let the threads end when their look-ups do."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a name or an address. The caller closes the socket. Safe to cancel.

        Raises:
            Refused: no address is allowed.
            OSError: the name does not exist, or no address answers.
        """
        loop = asyncio.get_running_loop()
        host = self._hosts.get(host, host)
        failure: Exception = OSError(f"{host} has no address")
        async with asyncio.timeout(CONNECT_SECONDS):
            for family, where in await self._look_up(host, port):
                try:
                    # The very address that was checked is connected to. A second look-up could give another.
                    self._policy.check_address(where[0])
                    sock = socket.socket(family, socket.SOCK_STREAM)
                    try:
                        sock.setblocking(False)
                        bound_buffers(sock)
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        await loop.sock_connect(sock, where)
                    except BaseException:
                        sock.close()
                        raise
                    return sock
                except (Refused, OSError) as error:
                    failure = error
        raise failure

    async def _look_up(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        with contextlib.suppress(ValueError):
            version = ipaddress.ip_address(host).version
            return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(LOOKUPS)
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [(family, where) for family, _, _, _, where in found]
