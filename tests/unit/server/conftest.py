"""A server over the fake service, on real sockets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from doors import Doors, Rpc
from fake_service import FakeService

from kernelsvc.settings import Settings


@pytest.fixture
async def open_doors(tmp_path):
    """Make servers with settings of the test's choice."""
    made = []

    def make(**changes: Any) -> Doors:
        settings = msgspec.structs.replace(Settings(port=0, shutdown_seconds=2.0), **changes)
        doors = Doors(FakeService(tmp_path / str(len(made))), settings)
        made.append(doors)
        return doors

    yield make
    for doors in made:
        await doors.stop()


@pytest.fixture
async def doors(open_doors):
    return open_doors()


@pytest.fixture
async def rpc(doors):
    async with doors.socket() as socket:
        yield Rpc(socket)
