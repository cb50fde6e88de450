"""All scenarios: with both clients, and the TypeScript client in every runtime."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients.relay import Relay
from served import Served

from clients import suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

DRIVERS: dict[str, Callable[[], list[str]]] = {
    "python": suite.python_driver,
    "node": lambda: suite.typescript_driver(suite.node_24()),
    "deno": lambda: suite.typescript_driver(suite.deno()),
    "bun": lambda: suite.typescript_driver(suite.bun()),
}


@pytest.fixture(scope="module")
def own_server(short_tmp: Path) -> Iterator[Served]:
    """A server on a port of its own, which can be killed and started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Served(short_tmp / f"own{port}", "--port", str(port))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module", params=DRIVERS)
def relay(request: pytest.FixtureRequest, own_server: Served) -> Iterator[Relay]:
    command = DRIVERS[request.param]()
    with Relay(own_server).open() as relay, suite.driving(relay, command):
        yield relay


@pytest.mark.parametrize("scenario", suite.SCENARIOS, ids=lambda each: each["name"])
def test_a_scenario(relay: Relay, scenario: dict) -> None:
    suite.check(relay, scenario)
