"""What the console shows when there is nothing, when something is lost, and when a token may not."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import random
import threading
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import run_cells
from faulty_proxy import FaultyProxy
from served import Served, serving
from waiting import wait_for

pytestmark = pytest.mark.timeout(180)


def test_an_empty_server_shows_the_command_to_run(console: Any, short_tmp: Any) -> None:
    with serving(short_tmp / "empty") as served:
        view = console(served)
        page = view.open()
        page.get_by_text("No sessions yet").wait_for()
        page.get_by_text("kernelsvc run").wait_for()
        assert view.accessibility() == []


def test_a_session_without_cells(console: Any) -> None:
    view = console()
    page = view.open(f"/s/{run_cells(view.served)}")
    page.get_by_text("No cell has run yet").wait_for()
    assert view.accessibility() == []


def test_a_session_that_does_not_exist(console: Any) -> None:
    view = console()
    page = view.open("/s/s_0000000000000000")
    page.get_by_role("heading", name="There is no such session").wait_for()
    assert view.accessibility() == []


def test_another_principals_session_does_not_exist(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "secret = 1")
    page = view.open(f"/s/{session}", token="other-token")
    page.get_by_role("heading", name="There is no such session").wait_for()


def test_a_wrong_token_is_refused_and_asked_for_again(console: Any) -> None:
    view = console()
    page = view.open("/", token="a-wrong-token")
    page.get_by_role("dialog").wait_for()
    page.get_by_label("Token", exact=True).fill("also-wrong-token")
    page.keyboard.press("Enter")
    page.get_by_text("This token is unknown").wait_for()
    assert view.accessibility() == []
    page.get_by_label("Token", exact=True).fill(view.served.token)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Sessions").wait_for()
    assert page.evaluate("sessionStorage['kernelsvc.token']") == view.served.token
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("sessionStorage['kernelsvc.token'] === undefined")


def test_an_expired_token_asks_again_and_loses_nothing_that_was_typed(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "x = 1")
    page = view.open(f"/s/{session}")
    box = page.get_by_label("Run a cell by hand")
    box.fill("print('typed before')")
    # The page's token becomes one that the server does not know, as after its last day.
    page.route(
        "**/v1/sessions/*/cells*",
        lambda route: route.fulfill(
            status=401, json={"code": "unauthenticated", "message": "expired", "retryable": False, "details": {}}
        ),
        times=1,
    )
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("dialog").wait_for()
    assert view.accessibility() == []
    page.get_by_label("Token", exact=True).fill(view.served.token)
    page.keyboard.press("Enter")
    page.get_by_text("typed before").last.wait_for()


def test_a_read_only_token_is_offered_nothing_that_changes_a_session(console: Any, short_tmp: Any) -> None:
    reader = {"name": "local", "sha256": hashlib.sha256(b"reader-token").hexdigest(), "scopes": ["read"]}
    with serving(short_tmp / "reader", env={"KERNELSVC_TOKENS": json.dumps([reader])}) as served:
        session = run_cells(served, "x = 1")
        view = console(served)
        page = view.open(f"/s/{session}", token="reader-token")
        page.get_by_role("article").first.wait_for()
        for name in ("Run", "Interrupt", "Branch", "Close session"):
            assert page.get_by_role("button", name=name, exact=True).count() == 0


def test_a_console_that_is_off_or_read_only(console: Any, short_tmp: Any) -> None:
    with serving(short_tmp / "off", "--console", "off") as served:
        with pytest.raises(urllib.error.HTTPError) as refused:
            served.call("GET", "/console/")
        assert refused.value.code == 404
    with serving(short_tmp / "only", "--console", "read-only") as served:
        view = console(served)
        page = view.open(f"/s/{run_cells(served, 'x = 1')}")
        page.get_by_role("article").first.wait_for()
        assert page.get_by_role("button", name="Run", exact=True).count() == 0


def test_output_that_was_cut_can_be_read_to_its_end(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "for n in range(200_000): print('line', n)")
    page = view.open(f"/s/{session}")
    page.get_by_role("button", name="All of the text").click()
    page.get_by_role("button", name="Last", exact=True).click()
    page.get_by_text("line 199999").last.wait_for()
    assert view.accessibility() == []
    page.keyboard.press("Escape")
    wait_for(lambda: page.get_by_role("dialog").count() == 0, what="the dialog's end")
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('pre.text')].map(e => e.childElementCount))") <= 2001
    )


@contextlib.contextmanager
def cut_by(served: Served) -> Iterator[tuple[Served, Callable[[], None]]]:
    """The same server behind a proxy, and a function that cuts all of its connections now."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy = FaultyProxy(int(served.url.rpartition(":")[2]))
    asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
    there = copy.copy(served)
    there.url = proxy.url
    yield there, lambda: loop.call_soon_threadsafe(proxy.cut)
    asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_connection_that_is_cut_100_times_shows_each_event_once(console: Any, console_server: Served) -> None:
    """The network ends at random moments while a cell prints: each line is there once, draft and place are kept."""
    session = run_cells(console_server, *[f"print('earlier {n}')" for n in range(30)])
    with cut_by(console_server) as (served, cut):
        view = console(served)
        page = view.open(f"/s/{session}")
        page.get_by_text("● live").wait_for()
        page.get_by_label("Run a cell by hand").fill("a draft")
        go = view.page.evaluate("document.querySelector('.cells').scrollTop")
        code = "import time\nfor n in range(1500):\n print('tick', n, flush=True)\n time.sleep(0.01)"
        console_server.call("POST", f"/v1/sessions/{session}/cells?wait=queued", {"code": code})
        for _ in range(100):
            cut()
            page.wait_for_timeout(random.uniform(5, 150))
            again = page.get_by_role("button", name="Try now")
            if again.count():
                with contextlib.suppress(Exception):  # it may have left the page meanwhile
                    again.first.click(timeout=200)
        wait_for(lambda: page.get_by_text("tick 1499", exact=True).count() == 1, deadline=60, what="the last line")
        last = page.locator("article").last.locator("pre.text div")
        assert last.all_inner_texts() == [f"tick {n}" for n in range(1500)]
        assert page.get_by_label("Run a cell by hand").input_value() == "a draft"
        assert page.evaluate("document.querySelector('.cells').scrollTop") >= go


def test_a_lost_connection_is_named_and_the_page_stays_usable(console: Any, short_tmp: Any) -> None:
    with serving(short_tmp / "lost") as served:
        session = run_cells(served, "print('still here')", "1/0")
        view = console(served)
        page = view.open(f"/s/{session}")
        page.get_by_text("● live").wait_for()
        served.stop()
        page.get_by_text("The connection is lost").wait_for()
        assert view.accessibility() == []
        page.keyboard.press("k")
        assert page.get_by_text("still here").count()
