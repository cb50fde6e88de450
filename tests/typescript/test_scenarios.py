"""All scenarios: with both clients, and the TypeScript client in every runtime."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import browser_path
from clients.relay import Relay
from served import Served, serving, serving_on_one_port

from clients import suite
from typescript.conftest import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

DRIVERS: dict[str, Callable[[], list[str]]] = {
    "python": suite.python_driver,
    "node": lambda: suite.typescript_driver(suite.node_24()),
    "deno": lambda: suite.typescript_driver(suite.deno()),
    "bun": lambda: suite.typescript_driver(suite.bun()),
}


@pytest.fixture(scope="module")
def own_server(short_tmp: Path) -> Iterator[Served]:
    with serving_on_one_port(short_tmp) as server:
        yield server


@pytest.fixture(scope="module", params=DRIVERS)
def relay(request: pytest.FixtureRequest, own_server: Served) -> Iterator[Relay]:
    command = DRIVERS[request.param]()
    with Relay(own_server).open() as relay, suite.driving(relay, command):
        yield relay


@pytest.fixture(scope="module")
def browser_relay(checkout: Path, run: Run, short_tmp: Path) -> Iterator[Relay]:
    """A page in a browser, with the client compiled for it. The page's origin is not the server's."""
    pages = checkout / "pages"
    options = ["--noEmit", "false", "--allowImportingTsExtensions", "false", "--rewriteRelativeImportExtensions"]
    run("tsc", *options, "--rootDir", ".", "--outDir", pages)
    shutil.copy2(checkout / "test" / "page.html", pages / "test")
    with (
        serving(short_tmp / "for-pages", "--origins", "*") as served,
        Relay(served, files=pages).open() as relay,
    ):
        profile = f"--user-data-dir={checkout / 'profile'}"
        command = [
            browser_path(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            profile,
            f"{relay.control}/test/page.html",
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield relay
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    "scenario", [each for each in suite.SCENARIOS if not each.get("own_server")], ids=suite.name_of
)
def test_a_scenario_in_a_browser(browser_relay: Relay, scenario: dict) -> None:
    suite.check(browser_relay, scenario)


@pytest.mark.parametrize("scenario", suite.SCENARIOS, ids=suite.name_of)
def test_a_scenario(relay: Relay, scenario: dict) -> None:
    suite.check(relay, scenario)
