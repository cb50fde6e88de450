"""JupyterLab in a real browser: a notebook is run, a plot is seen, a slider is moved and the kernel hears it.

    jupyterlab_browser.py BROWSER KERNEL PICTURE [jupyter_server options]

BROWSER is a Chromium, KERNEL the kernelspec to use, PICTURE where to leave what was seen.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import expect, sync_playwright

browser_path, kernel, picture, *options = sys.argv[1:]
SECONDS = 60
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 2, 8], 'o-'); plt.title('a plot'); plt.show()"
SLIDER = """
import ipywidgets as widgets
slider, label = widgets.IntSlider(value=3, max=10, description='level'), widgets.Label('nothing heard')
def heard(change):
    label.value = f"kernel heard {change['new']}"
slider.observe(heard, 'value')
widgets.VBox([slider, label])
"""
CELLS = ["greeting = 'hello'\nprint(greeting, 6 * 7)", PLOT, SLIDER, "print('slider is', slider.value)", "1/0"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def lab(root: Path):
    port = free_port()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.strip()) for code in CELLS])
    notebook.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    (root / "work").mkdir()
    nbformat.write(notebook, root / "work" / "analysis.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--port={port}"]
    command += [f"--ServerApp.root_dir={root}/work", "--IdentityProvider.token=front", *options]
    env = {**os.environ, "HOME": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
    with (root / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api/status?token=front", server, root / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/tree/analysis.ipynb?token=front"
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(url, server, log):
    end = time.monotonic() + SECONDS
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


def use(page, url):
    """What a person does; each step waits for what that person would see."""
    page.goto(url)
    cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    expect(cells).to_have_count(len(CELLS), timeout=SECONDS * 1000)
    expect(page.get_by_role("button", name="| Idle")).to_be_visible()
    cells.nth(0).locator(".cm-content").click()
    for _ in range(3):
        page.keyboard.press("Shift+Enter")
    expect(cells.nth(0).locator(".jp-OutputArea-output")).to_have_text("hello 42", timeout=SECONDS * 1000)
    plot = cells.nth(1).locator(".jp-OutputArea-output img")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 200
    widget = cells.nth(2)
    expect(widget.locator(".widget-label", has_text="nothing heard")).to_be_visible()
    handle = widget.locator(".noUi-handle")
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(widget.locator(".widget-label", has_text="kernel heard 7")).to_be_visible()
    cells.nth(3).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    expect(cells.nth(3).locator(".jp-OutputArea-output")).to_have_text("slider is 7")
    page.keyboard.press("Shift+Enter")
    expect(cells.nth(4).locator(".jp-OutputArea-output")).to_contain_text("ZeroDivisionError")
    page.keyboard.press("Control+s")


root = Path(tempfile.mkdtemp())
with lab(root) as url, sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1200, "height": 1500})
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    try:
        use(page, url)
    except BaseException:
        print((root / "lab.log").read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        page.screenshot(path=picture)
        browser.close()
print("ok")
