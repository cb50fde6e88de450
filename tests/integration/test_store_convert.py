"""Notebooks as HTML and scripts, by the real nbconvert, with outputs that an attacker made."""

import ast
import asyncio
import html.parser
import json
import re

import pytest

from kernelsvc.errors import Internal
from kernelsvc.model import events as ev
from kernelsvc.model import log
from kernelsvc.model.notebook import fold
from kernelsvc.store.convert import convert, convert_now

EVIL = "<script>alert('EVIL')</script><img src=x onerror=\"alert('EVIL')\"><a href=\"javascript:alert('EVIL')\">x</a>"
FRAMES = "<iframe srcdoc=\"<script>alert('EVIL')</script>\"></iframe><meta http-equiv=refresh content='0;url=//evil'>"
SVG = f"<svg xmlns='http://www.w3.org/2000/svg' onload=\"alert('EVIL')\">{EVIL}</svg>"


def notebook(*outputs, code="%matplotlib inline\nx = 1\n!ls\n"):
    events = [
        ev.SessionStarted(),
        ev.CellQueued(cell="a", code=code),
        ev.CellStarted(cell="a"),
        *outputs,
        ev.CellFinished(cell="a"),
        ev.KernelDied(message=EVIL),
    ]
    for n, event in enumerate(events, 1):
        event.seq, event.at = n, log.timestamp(n)
        if n > 1 and n < len(events):
            event.cell = "a"
    return json.dumps(fold(events)).encode()


class Scripts(html.parser.HTMLParser):
    """Everything in a page that could run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [f"{tag} {k}={v}" for k, v in attrs if k.startswith("on") or "javascript:" in (v or "")]
        if tag in ("iframe", "object", "embed", "form", "base"):
            self.found.append(tag)
        if tag == "meta" and dict(attrs).get("http-equiv", "").lower() == "refresh":
            self.found.append("refresh")


async def test_html_runs_nothing_that_a_cell_made():
    data = {
        "text/html": EVIL + FRAMES,
        "image/svg+xml": SVG,
        "application/javascript": "alert('EVIL')",
        "text/markdown": EVIL,
        "text/latex": f"$${EVIL}$$",
        "text/plain": EVIL,
        "application/json": {"a": EVIL},
    }
    shows = [ev.Display(data={mime: value}) for mime, value in data.items()]
    error = ev.Error(ename=EVIL, evalue=EVIL, traceback=[EVIL, "\x1b]8;;javascript:alert('EVIL')\x07x\x1b]8;;\x07"])
    page = (await convert(notebook(*shows, ev.Stream(text=EVIL), error, code=EVIL), "html")).decode()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy.start() < page.index("<script")
    assert "default-src 'none'" in policy[1]
    assert "script-src" not in policy[1]
    parser = Scripts()
    parser.feed(page)
    assert [f for f in parser.found if "EVIL" in f or "=" not in f] == []
    assert "<script>alert('EVIL')" not in page


async def test_html_shows_what_ran():
    page = (
        await convert(notebook(ev.Stream(text="hello there"), ev.Display(data={"image/png": "aGk="})), "html")
    ).decode()
    assert "hello there" in page
    assert "data:image/png;base64,aGk=" in page


async def test_a_script_is_python():
    script = (await convert(notebook(), "py")).decode()
    ast.parse(script)
    assert "get_ipython().run_line_magic('matplotlib', 'inline')" in script
    assert convert_now(notebook(), "py").decode() == script


async def test_the_event_loop_goes_on_and_a_cancelled_child_is_ended():
    task = asyncio.ensure_future(convert(notebook(), "html"))
    turns = 0
    while not task.done() and turns < 20:
        await asyncio.sleep(0.001)
        turns += 1
    assert turns == 20
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_no_notebook_is_a_clear_error():
    with pytest.raises(Internal, match="could not be converted to html"):
        await convert(b"{}", "html")


async def test_another_language_as_a_script():
    events = [
        ev.SessionStarted(template="bash", kernel=ev.KernelInfo(kind="cold", language="bash")),
        ev.CellQueued(cell="a", code="echo hello"),
        ev.CellFinished(cell="a"),
    ]
    script = (await convert(json.dumps(fold(events)).encode(), "py")).decode()
    assert "echo hello" in script
