"""Exported pages in a real Chromium: how they look, what they run and what they load."""

import base64
import contextlib
import html.parser
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browsing import chromium
from hostile_html import HOSTILE
from matplotlib import get_data_path
from PIL import Image, ImageChops, ImageFilter, ImageStat
from waiting import wait_for

from kernelsvc.store.html_export import to_html

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parent
#: Set to write the reference pictures, after an intended change of the page.
WRITE = "KERNELSVC_WRITE_REFERENCE" in os.environ
SIZE = (1000, 2600)
#: Mean difference of grey, of 255, that another release of Chromium or of its fonts' rendering may cause.
TOLERANCE = 4.0

pytestmark = pytest.mark.timeout(120)


# Of a module, not of the run: Playwright's loop must have ended before other tests start theirs.
@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextlib.contextmanager
def opened(browser, page, tmp_path, size=SIZE):
    """A page in a browser's context of its own, from a file as a person opens it."""
    path = tmp_path / "page.html"
    path.write_text(page)
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    shown = context.new_page()
    yield shown, path.as_uri()
    context.close()


def dom_of(browser, page, tmp_path, virtual_seconds=0):
    """The elements of a page after its timers had this time."""
    with opened(browser, page, tmp_path) as (shown, address):
        shown.goto(address)
        if virtual_seconds:
            over = []
            session = shown.context.new_cdp_session(shown)
            session.on("Emulation.virtualTimeBudgetExpired", lambda event: over.append(event))
            session.send("Emulation.setVirtualTimePolicy", {"policy": "advance", "budget": virtual_seconds * 1000})
            wait_for(lambda: shown.evaluate("1") and over, what="the end of the virtual time")
        return shown.content()


def with_fonts(page):
    # matplotlib's fonts, in the page: what a machine has installed does not count.
    faces = []
    for family, file, weight in (
        ("T", "DejaVuSans.ttf", 400),
        ("T", "DejaVuSans-Bold.ttf", 700),
        ("M", "DejaVuSansMono.ttf", 400),
    ):
        font = base64.b64encode((Path(get_data_path()) / "fonts" / "ttf" / file).read_bytes()).decode()
        faces.append(f"@font-face{{font-family:{family};font-weight:{weight};src:url(data:font/ttf;base64,{font})}}")
    used = ":root{--jp-content-font-family:T;--jp-ui-font-family:T;--jp-code-font-family:M}"
    return page.replace("</head>", f"<style>{''.join(faces)}{used}</style></head>")


def picture(browser, page, tmp_path, size=SIZE):
    target = tmp_path / "shot.png"
    with opened(browser, with_fonts(page), tmp_path, size) as (shown, address):
        shown.goto(address)
        shown.screenshot(path=target)
    with Image.open(target) as shot:
        assert shot.size == size
        # Coarse: where there is ink, not which pixels a font's edge has.
        grey = shot.convert("L").filter(ImageFilter.GaussianBlur(6))
        return grey.resize((size[0] // 8, size[1] // 8), Image.Resampling.BOX)


def difference(one, other):
    return ImageStat.Stat(ImageChops.difference(one, other)).mean[0]


class Elements(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def exported(*outputs):
    cells = [
        {"cell_type": "code", "id": f"c{n}", "source": "x", "metadata": {}, "execution_count": n, "outputs": [output]}
        for n, output in enumerate(outputs)
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return to_html(json.dumps(notebook).encode())


def shown(source):
    return {"output_type": "display_data", "data": {"text/html": source}, "metadata": {}}


def assert_looks_as(reference, page, browser, tmp_path):
    """Compare a page with its reference picture, and check that the comparison sees a fault."""
    found = picture(browser, page, tmp_path)
    path = REFERENCES / reference
    if WRITE:
        found.save(path, optimize=True)
    with Image.open(path) as wanted:
        assert difference(found, wanted) < TOLERANCE
        # The same page with one fault: table heads as text.
        broken = picture(browser, re.sub(r"<(/?(?:thead|tr|th)\b[^>]*)>", r"&lt;\1&gt;", page), tmp_path)
        assert difference(broken, wanted) > 2 * TOLERANCE


def test_the_worked_example_looks_as_it_should(browser, tmp_path):
    page = to_html((ROOT / "notebooks" / "analysis.ipynb").read_bytes())
    assert_looks_as("analysis.png", page, browser, tmp_path)


@pytest.mark.thorough
def test_the_page_of_the_demo_looks_as_it_should(browser, tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ("KERNELSVC_URL", "KERNELSVC_TOKEN")}
    command = [sys.executable, "-m", "kernelsvc", "demo", "--out", str(tmp_path / "out")]
    subprocess.run(command, env=env, capture_output=True, timeout=100, check=True)
    page = (tmp_path / "out" / "penguins.html").read_text()
    # A traceback names files of this environment. Long paths wrap, and would move the rest of the page.
    page = re.sub(r"python3\.\d+", "python3", page.replace(sys.prefix, "/env"))
    assert_looks_as("demo.png", page, browser, tmp_path)


def test_the_worked_example_as_the_browser_reads_it(browser, tmp_path):
    notebook = (ROOT / "notebooks" / "analysis.ipynb").read_bytes()
    page = dom_of(browser, to_html(notebook), tmp_path)
    tags = Elements(page).tags
    in_notebook = "".join(
        "".join(output.get("data", {}).get("text/html", ""))
        for cell in json.loads(notebook)["cells"]
        for output in cell.get("outputs", [])
    )
    assert in_notebook.count("<th>") > 10
    assert tags.count("th") == in_notebook.count("<th>") + in_notebook.count("<th ")
    assert tags.count("table") == in_notebook.count("<table")
    assert "script" not in tags
    assert "&lt;th" not in page


@pytest.fixture
def server():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def armed(address):
    for n, source in enumerate(HOSTILE):
        there = re.sub(r"(?:https?:)?//evil", f"http://{address}/{n}", source)
        yield there.replace("alert(1)", f"document.documentElement.dataset.hit={n}")


def test_hostile_outputs_run_and_load_nothing_even_without_the_policy(browser, tmp_path, server):
    address, asked = server
    page = exported(*map(shown, armed(address)))
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    dom = dom_of(browser, bare, tmp_path, virtual_seconds=3)
    assert "data-hit" not in dom[:2000]
    assert asked == []
    assert dom.count("jp-CodeCell") == page.count("jp-CodeCell")


def test_the_same_outputs_do_harm_where_they_are_not_cleaned(browser, tmp_path, server):
    address, asked = server
    page = "<!DOCTYPE html><body>" + "".join(f"<div>{source}</div>" for source in list(armed(address))[:6])
    dom = dom_of(browser, page + f"<img src=http://{address}/x>", tmp_path, virtual_seconds=3)
    assert "data-hit" in dom[:2000]
    assert asked


def test_an_output_paints_in_its_box_alone(browser, tmp_path):
    def page(style):
        hostile = shown(f"<style>{style}</style><p class='x' style='{style[2:-1]}'>hostile</p>")
        return exported(shown("<h1>one</h1>"), hostile, shown("<h1>two</h1>"))

    size = (SIZE[0], 400)
    wanted = picture(browser, page(".y{color:black}"), tmp_path, size)
    for style in (
        ".x{position:fixed;top:0;left:0;width:100%;height:100%;background:black}",
        "*{background:black}.jp-Cell{display:none}",
        "body{filter:invert(1);background:black}",
        ".x{box-shadow:0 0 0 2000px black}",
        ".x{transform:scale(50);background:black}",
    ):
        found = picture(browser, page(style), tmp_path, size)
        # The first cell lies above the hostile one, in the top 7 of the picture's rows.
        top = (0, 0, SIZE[0] // 8, 7)
        assert difference(found.crop(top), wanted.crop(top)) < 1, style
