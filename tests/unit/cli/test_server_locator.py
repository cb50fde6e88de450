"""A private server of a command."""

import io
import os

import pytest
from served import QUICK

from kernelsvc import AsyncClient
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import Unreachable


@pytest.fixture
def terminal():
    return Terminal(io.StringIO(), io.StringIO(), {})


async def test_it_works_and_nothing_remains(terminal, monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    async with private_server(terminal, "--sandbox", "off") as address:
        assert address.uds
        home = os.path.dirname(address.uds)
        async with AsyncClient(f"unix:{address.uds}", address.token) as client:
            assert (await client.execute_once("6 * 7")).text.strip() == "42"
            twice = await client.execute_once(function="lambda x: x * 2", args=[21])
            assert twice.value == 42
    assert not os.path.exists(home)


async def test_one_that_does_not_start_says_why(terminal):
    with pytest.raises(Unreachable, match="--no-such-option"):
        async with private_server(terminal, "--no-such-option"):
            pass
