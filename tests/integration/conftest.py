"""A kernel without a server, for the tests of what runs in a kernel's process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from kernel_processes import Client, Template, kernel


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """A fork server that imports nothing in advance. A file may have its own."""
    made = Template(preload=())
    yield made
    made.close()


@pytest.fixture
async def k(template: Template) -> AsyncIterator[Client]:
    """A fork of it, and a client of its wire."""
    async with kernel(template) as client:
        yield client
