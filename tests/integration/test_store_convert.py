"""Notebooks as HTML and scripts, by the real nbconvert, with outputs that an attacker made.

Most pages are made in this process. A process for each, as the server has one, would import nbconvert each time.
"""

import ast
import asyncio
import html.parser
import json
import os
import platform
import re
import subprocess
import sys

import pytest

from kernelsvc.errors import AtCapacity, Internal, TooLarge
from kernelsvc.guest.confine.linux import landlock_abi
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.notebook import fold
from kernelsvc.store.convert import ConverterQueue, convert
from kernelsvc.store.html_export import to_html

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
        event.seq, event.at = n, hash_chain.timestamp(n)
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
        self.found += [f"{tag} {k}={v}" for k, v in attrs if k == "style" and "position" in (v or "")]
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link"):
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
    assert policy.start() < page.index("<style")
    assert "default-src 'none'" in policy[1]
    assert "script-src" not in policy[1]
    parser = Scripts()
    parser.feed(page)
    assert [f for f in parser.found if "EVIL" in f or "=" not in f] == []
    assert "<script" not in page


def document(*cells, **metadata):
    return json.dumps({"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()


def code(*outputs, **fields):
    cell = {
        "cell_type": "code",
        "id": "a",
        "source": "x",
        "metadata": {},
        "execution_count": 1,
        "outputs": list(outputs),
    }
    return {**cell, **fields}


def display(data, **metadata):
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def body(*outputs):
    page = to_html(document(code(*outputs)))
    return page[page.index("<body") :]


BREAKOUT = '"><b onmouseover=x>1 onmouseover=x style=position:fixed'


def test_nothing_of_the_metadata_reaches_an_attribute():
    image = {"width": "1 onmouseover=x", "height": BREAKOUT, "unconfined": BREAKOUT, "needs_background": BREAKOUT}
    shown = display(
        {"image/png": "aGk=", "text/plain": BREAKOUT}, **{"image/png": image, "filenames": {"image/png": BREAKOUT}}
    )
    note = {
        "cell_type": "markdown",
        "id": "n",
        "source": f"![{BREAKOUT}](attachment:a.png '{BREAKOUT}') ![gone](attachment:b.png)",
        "metadata": {"tags": [BREAKOUT]},
        "attachments": {"a.png": {f"image/png{BREAKOUT}": BREAKOUT}},
    }
    cell = code(shown, id="x", metadata={"tags": [BREAKOUT], "jupyter": {"source_hidden": BREAKOUT}})
    named = {"name": BREAKOUT, "pygments_lexer": BREAKOUT, "codemirror_mode": BREAKOUT}
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    hostile = document(cell, note, language_info=named, title=BREAKOUT, widgets=widgets)
    page = to_html(hostile)
    parser = Scripts()
    parser.feed(page)
    assert parser.found == []


def test_a_pictures_size_is_a_number():
    assert ' width="12" height="3.5"' in body(
        display({"image/png": "aGk="}, **{"image/png": {"width": 12, "height": 3.5}})
    )
    assert " width=" not in body(display({"image/png": "aGk="}, **{"image/png": {"width": "12", "height": True}}))


def test_tables_and_text_are_as_nbconvert_shows_them():
    table = (
        "<style scoped>.dataframe td {color: red}</style><table class='dataframe'><thead><tr><th>amount</th></table>"
    )
    page = body(display({"text/html": table, "text/plain": "PLAIN"}), display({"text/markdown": "# T\n\n* x"}))
    assert "<th>amount</th>" in page
    assert "PLAIN" not in page
    assert "<li>x</li>" in page
    assert "&lt;t" not in page
    assert "left out" not in page


CHART = "<div id='a' style='height: 400px'></div><script>draw()</script>"


def test_a_chart_shows_its_picture():
    page = body(display({"text/html": CHART, "image/png": "aGk=", "text/plain": "a chart"}))
    assert "data:image/png;base64,aGk=" in page
    assert "A script was left out" in page
    assert "draw()" not in page


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ({"text/html": CHART}, "A script was left out"),
        ({"text/html": "<div><span>Trust it</span><iframe srcdoc='x'></iframe></div>"}, "A frame was left out"),
        ({"application/vnd.vegalite.v5+json": {"a": 1}}, "application/vnd.vegalite.v5+json was left out"),
        ({"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}, "A widget was left out"),
        ({"application/javascript": "draw()"}, "A script was left out"),
    ],
)
def test_a_chart_without_a_picture_shows_its_words(data, note):
    page = body(display({**data, "text/plain": "a chart\n" + "x\n" * 500}))
    assert "a chart" in page
    assert page.count("x\n") < 30
    assert note in page
    assert "Trust it" not in page
    assert "draw()" not in page


def test_a_table_with_a_script_stays_a_table():
    page = body(display({"text/html": "<table><tr><td>cell</table><script>sort()</script>", "text/plain": "PLAIN"}))
    assert "<td>cell</td>" in page
    assert "A script was left out" in page
    assert "PLAIN" not in page


def test_html_that_is_nested_too_deep_shows_its_words():
    page = body(display({"text/html": "<div>" * 100_000, "text/plain": "a tree"}))
    assert "levels was left out" in page


def test_a_cut_prefix_makes_no_script_of_a_link():
    note = {
        "cell_type": "markdown",
        "id": "n",
        "metadata": {},
        "source": "[x](/files/javascript:alert(1)) [y](files/a.txt)",
    }
    page = to_html(document(note))
    assert "javascript:" not in page[page.index("<body") :]
    assert 'href="a.txt"' in page


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


#: What a converter under an attacker's control would try, and prints "done" for each that works.
ACTS = """
import ctypes, os, resource, signal, socket, sys
from kernelsvc.store import convert
import encodings.idna, subprocess
secret, place, pid = sys.argv[1:]
confined = sys.stdin.readline().strip() == "confined"
if confined:
    convert._confine()
acts = {
    "read": lambda: open(secret).read(),
    "passwd": lambda: open("/etc/passwd").read(),
    "memory": lambda: open(f"/proc/{pid}/environ").read(),
    "write": lambda: open(place, "w"),
    "mkdir": lambda: os.mkdir(place + ".d"),
    "socket": lambda: socket.socket(),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "fork": lambda: os._exit(0) if (child := os.fork()) == 0 else os.waitpid(child, 0),
    "exec": lambda: subprocess.run(["/usr/bin/true"]),
    "kill": lambda: os.kill(int(pid), 0),
    "allocate": lambda: bytearray(convert.MEMORY_BYTES),
    "limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65)),
}
for name, act in acts.items():
    if name == "allocate" and not confined:
        print(name, "done")
        continue
    try:
        act()
    except (OSError, MemoryError, ValueError, subprocess.SubprocessError) as error:
        print(name, type(error).__name__)
    else:
        print(name, "done")
"""


@pytest.mark.parametrize("confined", [True, False])
def test_a_converter_reaches_nothing_but_its_pipes(tmp_path, confined):
    """Without confinement the same acts work: otherwise the test would prove nothing."""
    if not (landlock_abi() and platform.machine() in ("x86_64", "aarch64")):
        pytest.skip("this Linux has no Landlock, or the filter has no table for this machine")
    secret, place = tmp_path / "ed25519.pem", tmp_path / "written"
    secret.write_text("key")
    # Below the Python prefix, a temporary directory would be readable on purpose.
    assert not str(tmp_path).startswith(sys.prefix)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ACTS, secret, place, str(os.getpid())],
        input="confined\n" if confined else "free\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    verdicts = dict(line.split() for line in done.stdout.splitlines())
    assert len(verdicts) == 12, done.stderr
    works = {name for name, verdict in verdicts.items() if verdict == "done"}
    assert works == (set() if confined else set(verdicts) - {"limit"} | works)
    assert confined or {"read", "passwd", "write", "mkdir", "socket", "unix", "fork", "exec", "kill"} <= works


async def test_a_notebook_that_takes_too_much_memory_is_refused(monkeypatch):
    """The limit is the child's own, so the child gets a small one through its source."""
    small = "from kernelsvc.store import convert as c; import sys; c.MEMORY_BYTES = 400 << 20; sys.argv = ['', 'py']"
    code = f"{small}; c._main()"
    monkeypatch.setattr("kernelsvc.store.convert._command", lambda format: [sys.executable, "-I", "-c", code])
    large = notebook(code="x = 1\n" * (10 << 20))
    with pytest.raises(TooLarge, match="MiB"):
        await convert(large, "py")


async def test_a_converter_that_writes_without_end_is_ended(monkeypatch):
    monkeypatch.setattr("kernelsvc.store.convert.OUTPUT_BYTES", 1 << 20)
    endless = "import os\nwhile True: os.write(1, bytes(65536))"
    monkeypatch.setattr("kernelsvc.store.convert._command", lambda format: [sys.executable, "-I", "-c", endless])
    with pytest.raises(TooLarge, match="larger"):
        await convert(b"{}", "py")


async def test_one_principal_has_one_conversion_that_waits():
    queue = ConverterQueue(running=1)
    entered: list[str] = []
    leave = asyncio.Event()

    async def one(name):
        async with queue.turn(name):
            entered.append(name)
            await leave.wait()

    tasks = [asyncio.ensure_future(one(name)) for name in ("a", "a", "b")]
    while entered != ["a"] or len(queue._waiting) < 2:
        await asyncio.sleep(0)
    for name in ("a", "b"):
        with pytest.raises(AtCapacity):
            await one(name)
    tasks[1].cancel()  # Its place is free again.
    await asyncio.gather(tasks[1], return_exceptions=True)
    tasks.append(asyncio.ensure_future(one("a")))
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(entered) == ["a", "a", "b"]
    assert not queue._waiting
    await one("a")


async def test_the_queue_of_conversions_is_bounded(monkeypatch):
    monkeypatch.setattr("kernelsvc.store.convert.MAX_WAITING", 2)
    queue = ConverterQueue(running=1)
    async with queue.turn("a"):
        waiting = [asyncio.ensure_future(queue.turn(name).__aenter__()) for name in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(AtCapacity):
            await queue.turn("d").__aenter__()
        for task in waiting:
            task.cancel()
