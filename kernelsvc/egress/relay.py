"""Copy bytes between two connections in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kernelsvc.egress.byte_channels import ByteChannel

CHUNK_BYTES = 64 * 1024
#: Most bytes of one read that ``received`` changes. They may be 1,000 frames.
_CHANGED_BYTES = 2 * 1024

#: Called with the bytes of each chunk, sent and received. It raises to end the connection.
Count = Callable[[int, int], None]
#: Gives other sessions' connections their turn. Of one session's connections, one at a time returns from it.
Pause = Callable[[], Awaitable[None]]


async def give_way() -> None:
    """Give all other tasks their turn."""
    await asyncio.sleep(0)


async def relay(
    client: ByteChannel,
    server: ByteChannel,
    count: Count,
    received: Callable[[bytes], bytes] | None = None,
    pause: Pause | None = None,
) -> None:
    """Copy until both directions have ended. A direction waits while its receiver does not read.

    Args:
        client: the session's connection.
        server: the other one.
        count: see ``Count``.
        received: returns the bytes that the client gets for those that the server sent. None changes none.
        pause: called after each use of ``received``.

    Raises:
        OSError: a side was reset.
        Exception: from ``count`` and ``received``.
    """

    async def copy(source: ByteChannel, target: ByteChannel, *, sent: bool) -> None:
        changed = None if sent else received
        while data := await source.receive(_CHANGED_BYTES if changed else CHUNK_BYTES):
            count(len(data) if sent else 0, 0 if sent else len(data))
            await target.send(changed(data) if changed else data)
            if changed and pause:
                await pause()
        await target.finish()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(client, server, sent=True))
            both.create_task(copy(server, client, sent=False))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
