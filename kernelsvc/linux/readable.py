"""Waiting for a file descriptor on the event loop."""

from __future__ import annotations

import asyncio
import os


async def wait_readable(fd: int) -> None:
    """Wait until a descriptor is readable. Several may wait for one descriptor. Safe to cancel.

    Args:
        fd: Of a socket, a pipe or a process (pidfd_open(2)).

    Raises:
        OSError: It is not open.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    # A duplicate, because a selector takes each number once, and the original may be closed meanwhile.
    own = os.dup(fd)
    loop.add_reader(own, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(own)
        os.close(own)
