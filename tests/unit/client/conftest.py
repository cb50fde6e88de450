import contextlib

import pytest
from faulty_server import TOKEN, FaultyServer

from kernelsvc.client import AsyncClient


@pytest.fixture
async def server():
    server = FaultyServer()
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
