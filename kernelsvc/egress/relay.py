"""Copy bytes between two connections in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.egress.byte_channels import ByteChannel

CHUNK_BYTES = 64 * 1024

#: Called with the bytes of each chunk, sent and received. It raises to end the connection.
Count = Callable[[int, int], None]


async def relay(
    client: ByteChannel, server: ByteChannel, count: Count, received: Callable[[bytes], bytes] = bytes
) -> None:
    """Copy until both directions have ended. A direction waits while its receiver does not read.

    Args:
        client: the session's connection.
        server: the other one.
        count: see ``Count``.
        received: returns the bytes that the client gets for those that the server sent.

    Raises:
        OSError: a side was reset.
        Exception: from ``count`` and ``received``.
    """

    async def copy(source: ByteChannel, target: ByteChannel, *, sent: bool) -> None:
        while data := await source.receive(CHUNK_BYTES):
            count(len(data) if sent else 0, 0 if sent else len(data))
            await target.send(data if sent else received(data))
        await target.finish()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(client, server, sent=True))
            both.create_task(copy(server, client, sent=False))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
