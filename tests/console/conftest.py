"""What the browser tests of the console share: a browser, a server and pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Collector, ConsolePage, chromium
from served import OTHER_PRINCIPAL, Served, serving

#: axe-core, which "scripts/bootstrap console" installs into the environment.
AXE = Path(sys.prefix) / "axe" / "package" / "axe.min.js"
AXE_OPTIONS = {
    "iframes": False,  # a frame of an output belongs to the kernel, and its origin is opaque
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}


# Of a module, not of the run: Playwright's loop must have ended before tests of another folder start theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def console_server(run_tmp: Any) -> Iterator[Served]:
    with serving(run_tmp / "console", env=OTHER_PRINCIPAL) as served:
        yield served


@pytest.fixture
def console(browser: Any, console_server: Served) -> Iterator[Callable[..., ConsolePage]]:
    """Opens pages, and fails a test in which one recorded a fault. Afterwards no session waits for an answer."""
    opened: list[ConsolePage] = []

    def make(served: Served | None = None, **options: Any) -> ConsolePage:
        opened.append(ConsolePage(browser, served or console_server, **options))
        return opened[-1]

    yield make
    for session in console_server.call("GET", "/v1/sessions?state=busy")["sessions"]:
        console_server.call("DELETE", f"/v1/sessions/{session['id']}")
    for each in opened:
        each.close()


@pytest.fixture(scope="session")
def accessibility() -> Callable[[ConsolePage], list[str]]:
    """A function that returns the faults that axe-core finds in what a page shows now."""
    if not AXE.exists():
        pytest.skip("needs axe-core (scripts/bootstrap console)")
    script = AXE.read_text("utf-8")

    def faults(view: ConsolePage) -> list[str]:
        view.page.evaluate(script)
        found = view.page.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS)
        return [
            f"{each['id']}: {node['html'][:150]} ({'; '.join(check['message'] for check in node['any'][:2])})"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    return faults


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()
