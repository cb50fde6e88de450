"""Places for servers that die."""

import tempfile
from pathlib import Path

import pytest

from chaos.arena import Arena


@pytest.fixture
def place():
    """A directory with a short name of its own: sockets allow 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="kc", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
async def arena(place):
    """A server of the test's own; nothing of it may be left after."""
    async with Arena(place) as arena:
        yield arena
