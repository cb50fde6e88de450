"""What the browser tests of the console share: a browser, a server and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import Collector, ConsolePage, chromium
from served import OTHER_PRINCIPAL, Served, serving


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def console_server(short_tmp: Any) -> Iterator[Served]:
    with serving(short_tmp / "console", env=OTHER_PRINCIPAL) as served:
        yield served


@pytest.fixture
def console(browser: Any, console_server: Served) -> Iterator[Callable[..., ConsolePage]]:
    """Opens pages, and fails a test in which one recorded a fault."""
    opened: list[ConsolePage] = []

    def make(served: Served | None = None, **options: Any) -> ConsolePage:
        opened.append(ConsolePage(browser, served or console_server, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()
