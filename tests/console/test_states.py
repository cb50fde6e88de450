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


def test_an_empty_server_shows_the_command_to_run(console: Any, accessibility: Any, short_tmp: Any) -> None:
    with serving(short_tmp / "empty") as served:
        view = console(served)
        page = view.open()
        page.get_by_text("No sessions yet").wait_for()
        page.get_by_text("kernelsvc run").wait_for()
        assert accessibility(view) == []


def test_a_session_without_cells(console: Any, accessibility: Any) -> None:
    view = console()
    page = view.open(f"/s/{run_cells(view.served)}")
    page.get_by_text("No cell has run yet").wait_for()
    assert accessibility(view) == []


def test_a_session_that_does_not_exist(console: Any, accessibility: Any) -> None:
    view = console()
    page = view.open("/s/s_0000000000000000")
    page.get_by_role("heading", name="There is no such session").wait_for()
    assert accessibility(view) == []


def test_another_principals_session_does_not_exist(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "secret = 1")
    page = view.open(f"/s/{session}", token="other-token")
    page.get_by_role("heading", name="There is no such session").wait_for()


def test_a_wrong_token_is_refused_and_asked_for_again(console: Any, accessibility: Any) -> None:
    view = console()
    page = view.open("/", token="a-wrong-token")
    page.get_by_role("dialog").wait_for()
    page.get_by_label("Token", exact=True).fill("also-wrong-token")
    page.keyboard.press("Enter")
    page.get_by_text("This token is unknown").wait_for()
    assert accessibility(view) == []
    view.picture("wrong-token")
    page.get_by_label("Token", exact=True).fill(view.served.token)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Sessions").wait_for()
    assert page.evaluate("sessionStorage['kernelsvc.token']") == view.served.token
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("sessionStorage['kernelsvc.token'] === undefined")


def test_an_expired_token_asks_again_and_loses_nothing_that_was_typed(console: Any, accessibility: Any) -> None:
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
    assert accessibility(view) == []
    view.picture("expired-token")
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


def test_output_that_was_cut_can_be_read_to_its_end(console: Any, accessibility: Any) -> None:
    view = console()
    session = run_cells(view.served, "for n in range(200_000): print('line', n)")
    page = view.open(f"/s/{session}")
    page.get_by_role("button", name="All of the text").click(trial=True)
    view.picture("truncated")
    page.get_by_role("button", name="All of the text").click()
    page.get_by_role("button", name="Last", exact=True).click()
    page.get_by_text("line 199999").last.wait_for()
    assert accessibility(view) == []
    view.picture("all-of-the-text")
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
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
        there = copy.copy(served)
        there.url = proxy.url
        try:
            yield there, lambda: loop.call_soon_threadsafe(proxy.cut)
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
    finally:
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
        rng = random.Random(7)
        for _ in range(100):
            cut()
            page.wait_for_timeout(rng.uniform(5, 150))
            again = page.get_by_role("button", name="Try now")
            if again.count():
                with contextlib.suppress(Exception):  # it may have left the page meanwhile
                    again.first.click(timeout=200)
        wait_for(lambda: page.get_by_text("tick 1499", exact=True).count() == 1, deadline=60, what="the last line")
        last = page.locator("article").last.locator("pre.text div")
        assert last.all_inner_texts() == [f"tick {n}" for n in range(1500)]
        assert page.get_by_label("Run a cell by hand").input_value() == "a draft"
        assert page.evaluate("document.querySelector('.cells').scrollTop") >= go


def test_a_lost_connection_is_named_and_the_page_stays_usable(console: Any, accessibility: Any, short_tmp: Any) -> None:
    with serving(short_tmp / "lost") as served:
        session = run_cells(served, "print('still here')", "1/0")
        view = console(served)
        page = view.open(f"/s/{session}")
        page.get_by_text("● live").wait_for()
        page.get_by_text("still here").last.wait_for()
        served.stop()
        page.get_by_text("The connection is lost").wait_for()
        view.picture("lost")
        assert accessibility(view) == []
        page.keyboard.press("k")
        assert page.get_by_text("still here").count()


def test_a_notebook_that_could_not_be_loaded_is_loaded_again_and_a_draft_stays(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "print('found')")
    view.page.route("**/outline?*", lambda route: route.fulfill(status=500, json=REFUSED), times=1)
    page = view.open(f"/s/{session}")
    page.get_by_text("The disk of this server is full.").wait_for()
    page.get_by_label("Run a cell by hand").fill("a draft")
    view.served.call("POST", f"/v1/sessions/{session}/cells", {"code": "print('while it failed')"})
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("found").last.wait_for()
    page.get_by_text("while it failed").last.wait_for()
    assert page.get_by_role("article").count() == 2
    assert page.get_by_label("Run a cell by hand").input_value() == "a draft"


REFUSED = {"code": "at_capacity", "message": "The disk of this server is full.", "retryable": False, "details": {}}


def test_a_refused_action_is_shown(console: Any) -> None:
    view = console()
    session = run_cells(view.served, "x = 1", name="refused")
    page = view.open("/?q=refused")
    page.get_by_role("heading", name="Cells with").wait_for()

    def refuse(path: str, act: Callable[[], None]) -> None:
        page.route(path, lambda route: route.fulfill(status=503, json=REFUSED))
        act()
        banner = page.locator("#banner")
        banner.get_by_text("The disk of this server is full.").wait_for()
        banner.get_by_role("button", name="Close").click()
        page.unroute(path)

    refuse("**/v1/search?*", lambda: page.get_by_label("Search").fill("refuse"))
    assert not page.get_by_text("No cell has these words").is_visible()
    page.get_by_label("Choose refused").check()
    refuse("**/interrupt", lambda: page.get_by_role("button", name="Interrupt 1").click())
    page.goto(f"{view.served.url}/console/#/s/{session}")
    page.get_by_role("article").first.wait_for()
    refuse(f"**/{session}/cells**", lambda: (page.reload(), page.get_by_role("button", name="Copy code").click()))
    view.faults.clear()  # the browser reports each as a rejection without a handler


@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_refuses_the_first_request_is_named(console: Any, status: int) -> None:
    view = console()
    view.page.route("**/console/me", lambda route: route.fulfill(status=status, json=REFUSED))
    view.open().get_by_text("The disk of this server is full.").wait_for()


def test_a_ticket_leaves_the_address_whatever_stands_behind_it(console: Any) -> None:
    view = console()
    page = view.open("ticket=aaaaaaaa&to=/%")
    page.get_by_role("dialog").get_by_text("was used before or has expired").wait_for()
    assert "ticket" not in page.evaluate("location.href")


def test_no_connection_stays_open_that_the_page_no_longer_reads(console: Any) -> None:
    script = """async () => {
      const { EventStream } = await import("/console/api.js");
      const made = [];
      window.WebSocket = class {
        constructor() { made.push(this); this.closed = false; }
        send() {}
        close() { this.closed = true; }
      };
      const get = (message) => made.at(-1).onmessage({ data: JSON.stringify(message) });
      const stream = new EventStream("s_0", 0, () => {}, () => {});
      get({ method: "detached", params: {} });
      await stream.again();
      get({ id: 1, error: { data: { code: "recovering", message: "" } } });
      await stream.again();
      await stream.again();  // a person who presses "Try now" early
      stream.close();
      return made.map((socket) => socket.closed);
    }"""
    page = console().open()
    page.get_by_role("heading", name="Sessions").wait_for()
    assert page.evaluate(script) == [True, True, True, True]
