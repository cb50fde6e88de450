"""A relay that simulates a distant client: it delays each byte by half of the round trip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

#: Round trip, in milliseconds.
ROUND_TRIP = 50.0
_CHUNK = 64 * 1024


@contextlib.asynccontextmanager
async def far(port: int, milliseconds: float = ROUND_TRIP) -> AsyncIterator[int]:
    """Yield a local port that forwards to another one with a delay. Connections end with the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(_carry(source, target, milliseconds / 2000))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    """Forward bytes in order, each ``seconds`` later. Several batches can be in flight, like in a real network."""
    loop = asyncio.get_running_loop()
    try:
        while data := await source.read(_CHUNK):
            loop.call_later(seconds, target.write, data)
        await asyncio.sleep(seconds)
    except OSError:
        pass
    finally:
        target.close()
