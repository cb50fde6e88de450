"""Copy bytes between two sockets in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

#: Seconds without a byte in either direction, after which a connection ends.
IDLE_SECONDS = 300.0
CHUNK_BYTES = 64 * 1024

#: Called with the bytes of each chunk, sent and received. It raises to end the connection.
Count = Callable[[int, int], None]


class Idle(Exception):
    """No byte came for ``IDLE_SECONDS``."""


async def relay(client: socket.socket, server: socket.socket, count: Count) -> None:
    """Copy until both directions have ended. A direction waits while its receiver does not read.

    Raises:
        Idle: nothing was sent for a while.
        OSError: a side was reset.
        Exception: from ``count``.
    """
    loop = asyncio.get_running_loop()

    async def copy(source: socket.socket, target: socket.socket, *, sent: bool) -> None:
        while data := await loop.sock_recv(source, CHUNK_BYTES):
            count(len(data) if sent else 0, 0 if sent else len(data))
            deadline.reschedule(loop.time() + IDLE_SECONDS)
            await loop.sock_sendall(target, data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    try:
        async with asyncio.timeout(IDLE_SECONDS) as deadline, asyncio.TaskGroup() as both:
            both.create_task(copy(client, server, sent=True))
            both.create_task(copy(server, client, sent=False))
    except TimeoutError:
        raise Idle from None
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
