"""A real server over fake kernels, on real sockets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from http_server import HttpServer, Rpc

from kernelsvc.settings import Settings


@pytest.fixture
async def open_http_server():
    """Make servers with settings of the test's choice."""
    made = []

    async def make(keys: dict[str, str] | None = None, **changes: Any) -> HttpServer:
        settings = msgspec.structs.replace(Settings(port=0, shutdown_seconds=2.0, checkpoints=0), **changes)
        http_server = HttpServer(settings, keys=keys)
        made.append(http_server)
        return await http_server.start()

    yield make
    for http_server in made:
        await http_server.stop()


@pytest.fixture
async def http_server(open_http_server):
    return await open_http_server()


@pytest.fixture
async def rpc(http_server):
    async with http_server.socket() as socket:
        yield Rpc(socket)
