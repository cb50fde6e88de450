"""Outputs of a hostile kernel in the console: no script reaches the page, and no request or packet leaves it."""

from __future__ import annotations

import contextlib
import html
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from browsing import run_cells
from hostile_html import HOSTILE
from hostile_outputs import SCRIPTS, STILL, armed, report
from waiting import wait_for

from kernelsvc.cli.terminal.filter import safe

pytestmark = pytest.mark.timeout(180)
#: Outputs in one cell. Each gets a frame of its own.
AT_ONCE = 16


#: Public lists of hostile strings, which "scripts/bootstrap console" fetches.
NAUGHTY = Path(sys.prefix) / "lists" / "package" / "resources" / "blns.json"
WFUZZ = [
    Path(root) / "share" / "wfuzz" / "wordlist" / "Injections" / "XSS.txt"
    for root in (Path(sys.prefix) / "unpacked" / "usr", "/usr")
]


def shown(documents: list[str]) -> str:
    return f"from IPython.display import HTML, display\nfor each in {documents!r}: display(HTML(each))"


def settle(page: Any, count: int) -> None:
    """Wait until every frame has shown its document, then for what it may start."""
    wait_for(lambda: page.locator("iframe[data-shown]").count() == count, what="the outputs in their frames")
    page.wait_for_timeout(1000)  # proves that nothing happens


def from_scripts(scripts: list[str]) -> list[str]:
    return [f"<!doctype html><body><script>{each}</script>" for each in scripts]


@pytest.mark.parametrize("start", range(0, len(STILL), AT_ONCE))
def test_no_script_runs_and_nothing_is_asked_from_a_still_frame(console: Any, collector: Any, start: int) -> None:
    view = console()
    documents = armed(collector.host, collector.udp, STILL[start : start + AT_ONCE], start)
    page = view.open(f"/s/{run_cells(view.served, shown(documents))}")
    settle(page, len(documents))
    assert page.evaluate("hits") == []
    assert collector.asked == []
    assert page.url.startswith(view.served.url)
    assert len(view.context.pages) == 1


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 28))
def test_the_outputs_that_exports_are_tested_with(console: Any, collector: Any, start: int) -> None:
    view = console()
    part = HOSTILE[start : start + 28]
    documents = [each.replace("evil", collector.host).replace("alert(1)", report(n)) for n, each in enumerate(part)]
    page = view.open(f"/s/{run_cells(view.served, shown(documents))}")
    settle(page, len(documents))
    assert page.evaluate("hits") == []
    assert collector.asked == []


def listed(name: str) -> list[str]:
    """The documents of a public list. The test is skipped where it could not be had."""
    found = [NAUGHTY] if name == "naughty strings" else WFUZZ
    path = next((each for each in found if each.exists()), None)
    if path is None:
        pytest.skip(f"needs the list of {name} (scripts/bootstrap console)")
    text = path.read_text("utf-8", errors="replace")
    return [each for each in (json.loads(text) if path.suffix == ".json" else text.splitlines()) if "<" in each]


def reporting(documents: list[str], host: str) -> list[str]:
    """Documents that report in place of alert(), and that load from this host what they load from elsewhere."""
    return [
        re.sub(r"(?i)https?://[^/'\"\s>)]+|(?<=['\"=])//[^/'\"\s>)]+", f"http://{host}", each).replace(
            "alert(", f"{report(n)},("
        )
        for n, each in enumerate(documents)
    ]


@pytest.mark.parametrize("name", ["naughty strings", "injections of wfuzz"])
def test_public_lists_of_hostile_strings(console: Any, browser: Any, collector: Any, name: str) -> None:
    documents = reporting(listed(name), collector.host)
    view = console()
    for start in range(0, len(documents), 40):
        part = documents[start : start + 40]
        page = view.open(f"/s/{run_cells(view.served, shown(part))}")
        settle(page, len(part))
        assert page.evaluate("hits") == []
        assert collector.asked == []
        assert len(view.context.pages) == 1
    # The control: in plain frames some of them run. Most are for browsers of long ago.
    frames = "".join(f'<iframe srcdoc="{html.escape(each)}"></iframe>' for each in documents)
    listen = "<!doctype html><script>hits=[];onmessage=e=>hits.push(e.data.hit)</script>"
    collector.pages["/page"] = (listen + frames).encode()
    plain = browser.new_page()
    plain.goto(f"http://{collector.host}/page", wait_until="commit")
    wait_for(lambda: len(set(plain.evaluate("hits"))) >= 8, what="scripts in plain frames", deadline=20)
    plain.close()


def test_scripts_that_a_person_allowed_reach_neither_the_page_nor_a_network(console: Any, collector: Any) -> None:
    view = console()
    documents = from_scripts(armed(collector.host, collector.udp, SCRIPTS))
    page = view.open(f"/s/{run_cells(view.served, shown(documents))}")
    asks = page.locator("button:text-is('Run scripts')")
    wait_for(lambda: asks.count() == len(documents), what="the buttons")
    while asks.count():  # each leaves the page when it is pressed
        asks.first.click()
    settle(page, len(documents))
    assert page.locator("iframe[data-kind=run]").count() == len(documents)
    # Chromium may connect for a frame of the output before its policy refuses the frame. Nothing is sent.
    assert [line for line in collector.asked if line] == []
    assert collector.packets == 0
    assert [fault for fault in view.faults if fault.startswith("asked")] == []
    view.faults.clear()  # errors of the outputs' own scripts
    assert page.evaluate("document.documentElement.dataset.reached === undefined")
    assert page.url.startswith(view.served.url)
    assert len(view.context.pages) == 1


def test_a_script_that_a_person_allowed_does_run(console: Any) -> None:
    view = console()
    document = (
        "<script>top.postMessage({hit: typeof RTCPeerConnection}, '*'); document.body.textContent = 'drawn'</script>"
    )
    page = view.open(f"/s/{run_cells(view.served, shown([document]))}")
    page.click("button:text-is('Run scripts')")
    wait_for(lambda: page.evaluate("hits"), what="the script")
    assert page.evaluate("hits") == ["undefined"]


def test_a_frame_that_navigates_itself_to_the_frame_for_scripts_gets_nothing(console: Any) -> None:
    view = console()
    address = f"{view.served.url}/console/frame/run"
    document = f"<meta http-equiv=refresh content='0;url={address}'><script>{report(1)}</script>"
    page = view.open(f"/s/{run_cells(view.served, shown([document]))}")
    settle(page, 1)
    assert page.evaluate("hits") == []
    # The same, for a frame that a script navigates.
    page.evaluate("document.querySelector('iframe').src = 'frame/run'")
    page.frame_locator("iframe").locator("body").wait_for(state="attached")
    settle(page, 1)
    assert page.evaluate("hits") == []


def did_harm(page: Any, collector: Any, n: int, packets: int) -> bool:
    """Whether document ``n`` has asked the collector, sent a packet, or run a script in its page."""
    page.wait_for_timeout(20)  # events of the page arrive only while Playwright waits
    asked = any(f"/{n} " in line or f"/{n}/" in line or not line for line in collector.asked)
    return bool(asked or collector.packets > packets or (page.url.endswith("/page") and page.evaluate("hits")))


def test_the_same_outputs_do_harm_in_a_plain_frame(browser: Any, collector: Any) -> None:
    """The control: the documents are dangerous, and the collector sees it."""
    documents = [
        *armed(collector.host, collector.udp, STILL),
        *from_scripts(armed(collector.host, collector.udp, SCRIPTS, len(STILL))),
    ]
    fired = set()
    packets = 0
    context = browser.new_context()
    for n, each in enumerate(documents):
        collector.asked.clear()
        packets = collector.packets
        frame = f'<iframe srcdoc="{html.escape(each)}"></iframe>'
        listen = "<!doctype html><script>hits=[];onmessage=e=>hits.push(e.data.hit)</script>"
        collector.pages["/page"] = (listen + frame).encode()
        page = context.new_page()
        page.goto(f"http://{collector.host}/page")
        with contextlib.suppress(AssertionError):  # a few need another browser
            wait_for(lambda n=n, page=page, packets=packets: did_harm(page, collector, n, packets), deadline=2)
            fired.add(n)
        for each_page in context.pages:
            each_page.close()
    context.close()
    missing = [documents[n] for n in range(len(documents)) if n not in fired]
    assert len(fired) >= 0.8 * len(documents), missing
    assert collector.packets > 0


def test_control_characters_become_visible_as_on_the_command_line(console: Any) -> None:
    pieces = [
        "a",
        "é",
        "\U0001f600",
        "\n",
        "\t",
        "\x1b[31m",
        "\x1b[0;1m",
        "\x1b[2K",
        "\x1b[3A",
        "\x1b]0;x",
        "\x1b[",
        "\x1b",
    ]
    pieces += [
        chr(code) for code in (*range(8), 11, 12, *range(14, 32), *range(127, 160), *range(0x202A, 0x202F), 0x2066)
    ]
    rng = random.Random(7)
    # A sequence without an end waits for the next piece, so each text ends with a line.
    texts = ["".join(rng.choices(pieces, k=30)) + " end\n" for _ in range(200)]
    script = """async (texts) => {
      const { Lines } = await import("/console/text.js");
      return texts.map((text) => {
        const lines = new Lines();
        const done = [...lines.feed(text.slice(0, 17)), ...lines.feed(text.slice(17))];
        return done.map((spans) => spans.map((span) => span.text).join("") + "\\n").join("");
      });
    }"""
    assert console().open().evaluate(script, texts) == [safe(text) for text in texts]


def test_no_text_of_a_kernel_hides_the_direction_of_its_characters(console: Any) -> None:
    """U+202E reverses the text after it (CVE-2021-42574)."""
    view = console()
    code = "from IPython.display import display\ndisplay({'application/json': {'k': 'tree\\u202e'}}, raw=True)"
    session = run_cells(view.served, code, labels={"l": "label\u202e"})
    page = view.open(f"/s/{session}")
    page.get_by_text('"tree\\u202e"').wait_for()
    asks = {"code": "input('prompt\\u202e')", "allow_stdin": True}
    page.get_by_text("● live").wait_for()
    view.served.call("POST", f"/v1/sessions/{session}/cells?wait=queued", asks)
    page.get_by_label("prompt\\u202e").wait_for()
    wait_for(lambda: "asks: prompt\\u202e" in page.locator("#announce").inner_text(), what="the announcement")
    page.goto(f"{view.served.url}/console/#/s/{session}/about")
    page.get_by_text('"label\\u202e"').wait_for()
    assert "\u202e" not in page.content()
