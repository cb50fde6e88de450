"""Waiting for a file descriptor."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kernelsvc.linux.readable import wait_readable


async def test_all_waiters_of_one_descriptor_are_woken() -> None:
    read, write = os.pipe()
    before = len([*Path("/proc/self/fd").iterdir()])
    waiting = [asyncio.ensure_future(wait_readable(read)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting.pop().cancel()
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    os.write(write, b"x")
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    os.close(read)
    os.close(write)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await wait_readable(read)
