"""A real server over fake kernels, on real sockets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from doors import Doors, Rpc

from kernelsvc.settings import Settings


@pytest.fixture
async def open_doors():
    """Make servers with settings of the test's choice."""
    made = []

    async def make(**changes: Any) -> Doors:
        settings = msgspec.structs.replace(Settings(port=0, shutdown_seconds=2.0, checkpoints=0), **changes)
        doors = Doors(settings)
        made.append(doors)
        return await doors.start()

    yield make
    for doors in made:
        await doors.stop()


@pytest.fixture
async def doors(open_doors):
    return await open_doors()


@pytest.fixture
async def rpc(doors):
    async with doors.socket() as socket:
        yield Rpc(socket)
