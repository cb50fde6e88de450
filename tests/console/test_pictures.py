"""Each state of each screen: what it says, its accessibility in both themes, and a picture for a person to look at.

``KERNELSVC_PICTURES=DIRECTORY`` saves the pictures. A state that a server reaches only by a fault is made by changing
the server's answer on its way to the page. ``test_states.py`` causes the most important ones for real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browsing import run_cells

pytestmark = pytest.mark.timeout(600)
#: Stands for the session's id in an address.
S = "/s/{session}"
Change = Callable[[dict[str, Any]], dict[str, Any]]


def answers(status: int, code: str, message: str) -> Callable[[Any], None]:
    """An answer with an error in the form of the API."""
    body = {"code": code, "message": message, "retryable": status == 503, "details": {}}
    return lambda route: route.fulfill(status=status, json=body)


def changed(change: Change) -> Callable[[Any], None]:
    """The server's answer with a change."""
    return lambda route: route.fulfill(json=change(route.fetch().json()))


def session_in(state: str, **fields: Any) -> Callable[[Any], None]:
    return changed(lambda info: {**info, "state": state, **fields})


FORBIDDEN = answers(403, "forbidden", "This token lacks the scope read. Use a token that has it.")
RECOVERING = answers(503, "recovering", "The server reads the logs of its sessions. Try again in a moment.")
NEVER = None  # no answer. The request ends with its document
ONE = "**/v1/sessions/{session}"
HELD = {"by": "ada", "since": "2026-01-01T00:00:00Z", "seconds": 600, "then": "refuse", "cells": []}

#: Screen and state, its address, the request whose answer is changed, the answer, and a text of the state.
STATES: list[tuple[str, str, str, Any, str]] = [
    ("sessions-loading", "/", "**/v1/sessions?*", NEVER, "Loading"),
    ("sessions-empty", "/", "**/v1/sessions?*", changed(lambda page: {**page, "sessions": []}), "No sessions yet"),
    ("sessions-forbidden", "/", "**/v1/sessions?*", FORBIDDEN, "lacks the scope"),
    ("sessions-recovering", "/", "**/v1/sessions?*", RECOVERING, "Try again in a moment"),
    ("sessions-no-match", "/?q=nothing-like-it", "", None, "No cell has these words"),
    ("session-loading", S, ONE, NEVER, "Loading"),
    ("session-forbidden", S, ONE, FORBIDDEN, "This token may not read it"),
    ("session-recovering", S, ONE, RECOVERING, "can't be read"),
    ("session-removed", S, ONE, answers(404, "not_found", "There is no such session."), "There is no such session"),
    ("session-closed", S, ONE, session_in("closed", kernel=None), "closed"),
    ("session-dead", S, ONE, session_in("dead", kernel=None), "dead"),
    ("session-hibernated", S, ONE, session_in("hibernated", kernel=None), "hibernated"),
    ("session-paused", S, ONE, session_in("paused", kernel=None, paused=True), "paused"),
    ("session-held", S, ONE, session_in("idle", hold=HELD), "held by ada"),
    ("notebook-live", S, "", None, "live"),
    ("notebook-forbidden", S, f"{ONE}/outline?*", FORBIDDEN, "lacks the scope"),
    ("notebook-cell-fails", S, f"{ONE}/cells?*", RECOVERING, "Try again in a moment"),
    ("tree-loading", f"{S}/tree", f"{ONE}/outline*", NEVER, "Loading"),
    ("tree-without-checkpoints", f"{S}/tree", ONE, changed(lambda info: {**info, "checkpoints": []}), "None now"),
    ("tree-forbidden", f"{S}/tree", f"{ONE}/outline*", FORBIDDEN, "lacks the scope"),
    ("log-forbidden", f"{S}/log", f"{ONE}/events*", FORBIDDEN, "lacks the scope"),
    ("resources-loading", f"{S}/resources", f"{ONE}/usage", NEVER, "Loading"),
    ("resources-forbidden", f"{S}/resources", f"{ONE}/usage", FORBIDDEN, "lacks the scope"),
    ("resources-empty", f"{S}/resources", f"{ONE}/usage", lambda route: route.fulfill(json=[]), "No sample yet"),
    ("files-empty", f"{S}/files", "", None, "The directory is empty"),
    ("files-forbidden", f"{S}/files", f"{ONE}/files/*", FORBIDDEN, "lacks the scope"),
    ("about", f"{S}/about", "", None, "Exports"),
    ("waiting-loading", "/waiting", "**/v1/sessions?*", NEVER, "Loading"),
    ("waiting-empty", "/waiting", "", None, "Nothing waits"),
    ("waiting-forbidden", "/waiting", "**/v1/sessions?*", FORBIDDEN, "lacks the scope"),
    ("server-loading", "/server", "**/v1/info", NEVER, "Loading"),
    ("server-forbidden", "/server", "**/v1/info", FORBIDDEN, "lacks the scope"),
    ("server", "/server", "", None, "Templates"),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_named_accessible_and_has_a_picture(console: Any, accessibility: Any, scheme: str) -> None:
    view = console(color_scheme=scheme)
    session = run_cells(view.served, "x = {'a': 1}  # a comment", "print('\\x1b[31mred')\n1/0", name="states")
    page = view.open()
    page.get_by_role("heading", name="Sessions").wait_for()
    faults: dict[str, Any] = {}
    for name, path, request, answer, text in STATES:
        pattern = request.format(session=session)
        if pattern:
            page.route(pattern, answer or (lambda _: None))
        # Another document: the screen begins anew, also if its address differs only behind "#".
        page.goto(f"{view.served.url}/healthz")
        page.goto(f"{view.served.url}/console/#{path.format(session=session)}")
        try:
            page.locator("body").get_by_text(text).first.wait_for()
            if found := accessibility(view):
                faults[name] = found
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                faults[name] = "the page is wider than the window"
        except Exception as error:
            faults[name] = str(error)[:200]
        view.picture(f"{name}-{scheme}")
        if pattern:
            page.unroute(pattern)
    assert faults == {}
    assert [each for each in view.faults if each.startswith("asked")] == []
    view.faults.clear()  # a browser reports an action that failed as a rejection without a handler
    assert view.violations() == []
