import contextlib

import pytest
from rpc_server import TOKEN, Server

from kernelsvc.client import AsyncClient


@pytest.fixture
async def server():
    server = Server()
    yield server
    await server.stop()


@pytest.fixture
async def connect(server):
    """A client of the test's server, closed at the end."""
    url = await server.start()
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options):
            return await stack.enter_async_context(AsyncClient(url, TOKEN, **options))

        yield make
