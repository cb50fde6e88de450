"""Exported pages in a real Chromium: how they look, what they run and what they load."""

import asyncio
import base64
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
from browsing import browser_path
from hostile_html import HOSTILE
from matplotlib import get_data_path
from PIL import Image, ImageChops, ImageFilter, ImageStat

from kernelsvc.store.convert import convert

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parent
#: Set to write the reference pictures, after an intended change of the page.
WRITE = "KERNELSVC_WRITE_REFERENCE" in os.environ
SIZE = (1000, 2600)
#: Mean difference of grey, of 255, that another release of Chromium or of its fonts' rendering may cause.
TOLERANCE = 4.0

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="session")
def browser():
    return browser_path()


def run(browser, page, tmp_path, *options):
    path = tmp_path / "page.html"
    path.write_text(page)
    quiet = "background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage"
    switches = [*(f"--disable-{name}" for name in quiet), "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, "--headless", "--force-device-scale-factor=1", *switches, profile, *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


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


def picture(browser, page, tmp_path):
    target = tmp_path / "shot.png"
    run(browser, with_fonts(page), tmp_path, f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={target}")
    with Image.open(target) as shot:
        assert shot.size == SIZE
        # Coarse: where there is ink, not which pixels a font's edge has.
        grey = shot.convert("L").filter(ImageFilter.GaussianBlur(6))
        return grey.resize((SIZE[0] // 8, SIZE[1] // 8), Image.Resampling.BOX)


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
    return asyncio.run(convert(json.dumps(notebook).encode(), "html")).decode()


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
    page = asyncio.run(convert((ROOT / "notebooks" / "analysis.ipynb").read_bytes(), "html")).decode()
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
    page = run(browser, asyncio.run(convert(notebook, "html")).decode(), tmp_path, "--dump-dom")
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
    dom = run(browser, bare, tmp_path, "--dump-dom", "--virtual-time-budget=3000")
    assert "data-hit" not in dom[:2000]
    assert asked == []
    assert dom.count("jp-CodeCell") == page.count("jp-CodeCell")


def test_the_same_outputs_do_harm_where_they_are_not_cleaned(browser, tmp_path, server):
    address, asked = server
    page = "<!DOCTYPE html><body>" + "".join(f"<div>{source}</div>" for source in list(armed(address))[:6])
    dom = run(browser, page + f"<img src=http://{address}/x>", tmp_path, "--dump-dom", "--virtual-time-budget=3000")
    assert "data-hit" in dom[:2000]
    assert asked


def test_an_output_paints_in_its_box_alone(browser, tmp_path):
    def page(style):
        hostile = shown(f"<style>{style}</style><p class='x' style='{style[2:-1]}'>hostile</p>")
        return exported(shown("<h1>one</h1>"), hostile, shown("<h1>two</h1>"))

    wanted = picture(browser, page(".y{color:black}"), tmp_path)
    for style in (
        ".x{position:fixed;top:0;left:0;width:100%;height:100%;background:black}",
        "*{background:black}.jp-Cell{display:none}",
        "body{filter:invert(1);background:black}",
        ".x{box-shadow:0 0 0 2000px black}",
        ".x{transform:scale(50);background:black}",
    ):
        found = picture(browser, page(style), tmp_path)
        # The first cell lies above the hostile one, in the top 7 of the picture's rows.
        top = (0, 0, SIZE[0] // 8, 7)
        assert difference(found.crop(top), wanted.crop(top)) < 1, style
