"""The scenarios that every client passes: a few of them with each client. ``make test-typescript`` runs all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients.relay import Relay
from served import Served

from clients import suite

pytestmark = pytest.mark.timeout(120)


def command(client: str) -> list[str]:
    if client == "python":
        return suite.python_driver()
    node = suite.node_here()
    if node is None:
        pytest.skip("needs a node of 22.18 or newer, on the path or from make test-typescript")
    return suite.typescript_driver([node])


@pytest.fixture(scope="module", params=["python", "typescript"])
def relay(request: pytest.FixtureRequest, served: Served) -> Iterator[Relay]:
    with Relay(served).open() as relay, suite.driving(relay, command(request.param)):
        yield relay


@pytest.mark.parametrize("scenario", [each for each in suite.SCENARIOS if each.get("smoke")], ids=suite.name_of)
def test_a_scenario(relay: Relay, scenario: dict) -> None:
    suite.check(relay, scenario)
