"""A kernel without a server, for the tests of what runs in a kernel's process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from kernel_processes import Client, Template, kernel


@pytest.fixture(scope="session")
def plain_template() -> Iterator[Template]:
    """A fork server that imports nothing in advance."""
    made = Template(preload=())
    yield made
    made.close()


@pytest.fixture(scope="session")
def preloaded_template() -> Iterator[Template]:
    """A fork server that has imported numpy, pandas and pyplot."""
    made = Template()
    yield made
    made.close()


@pytest.fixture(scope="session")
def template(plain_template: Template) -> Template:
    """The fork server of a file's kernels. A file may choose the other."""
    return plain_template


@pytest.fixture
async def k(template: Template) -> AsyncIterator[Client]:
    """A fork of it, and a client of its wire."""
    async with kernel(template) as client:
        yield client
