"""The web console, as a person sees it: a few screens in a real Chromium. ``make test-console`` tests all of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import ConsolePage, chromium, run_cells

pytestmark = pytest.mark.timeout(120)


# Of a module, not of the run: Playwright's loop must have ended before other tests start theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_the_console_opens_with_a_ticket_and_shows_a_session(browser: Any, served: Any) -> None:
    session = run_cells(served, "print('hello from a cell')", "1/0", name="a session to see")
    command = [sys.executable, "-m", "kernelsvc", "console", "--no-browser"]
    printed = subprocess.run(command, env=served.client_env, capture_output=True, timeout=60, check=True)
    address = printed.stdout.decode().strip()
    assert served.token not in address
    view = ConsolePage(browser, served)
    page = view.page
    page.goto(address)
    page.get_by_role("link", name="a session to see").first.click()
    page.get_by_role("article", name="Cell 2, error").wait_for()
    page.get_by_text("hello from a cell").last.wait_for()
    assert session in page.url
    # Neither the ticket nor the token is in an address, and the ticket works once.
    assert "ticket" not in page.url
    assert served.token not in page.content()
    served.call("POST", f"/v1/sessions/{session}/cells", {"code": "print('it is live')"})
    page.get_by_text("it is live").last.wait_for()
    for route, text in (
        (f"s/{session}/tree", "Checkpoints"),
        (f"s/{session}/log", "cell_finished"),
        ("server", "Sandbox"),
    ):
        page.goto(f"{served.url}/console/#/{route}")
        page.locator("main").get_by_text(text).last.wait_for()
    again = ConsolePage(browser, served)
    again.page.goto(address)
    again.page.get_by_text("was used before or has expired").wait_for()
    assert served.token not in served.output()
    assert view.violations() == []
    view.close()
    again.close()
