"""JupyterLab at its current release, in a real browser: in front of our API, and with forks and no server of ours.

What a person does is the script ``clients/jupyterlab_browser.py``. The kernels need ipywidgets: the API's come from a
template with a Python of its own, the others are forks of JupyterLab's own Python.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import browser_path
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served, serving
from user_hosts import end, hosts

SCRIPT = Path(__file__).parent / "clients" / "jupyterlab_browser.py"
RUN_SECONDS = 240
LAB = ("jupyterlab==4.6.6", "ipywidgets==8.1.9", "playwright==1.65.2")
KERNEL = ("ipywidgets==8.1.9", "ipykernel", "matplotlib")
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * INSTALL_SECONDS + RUN_SECONDS + 60)]


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium of the machine."""
    return browser_path()


@pytest.fixture
def with_widgets(short_tmp: Path) -> Iterator[Served]:
    """A server with a template, ``widgets``, that is another Python environment."""
    python = python_with(*KERNEL)
    root = short_tmp / "widgets"
    root.mkdir()
    config = root / "settings.toml"
    preload = '["matplotlib.pyplot", "ipywidgets"]'
    config.write_text(f"[templates.widgets]\npython = {json.dumps(str(python))}\npreload = {preload}\n")
    with serving(root, "--config", str(config), preload=True) as instance:
        yield instance


def look(python: Path, browser: str, kernel: str, picture: Path, *options: str, **env: str) -> None:
    command = [str(python), str(SCRIPT), browser, kernel, str(picture), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env(**env))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.strip().endswith("ok")
    assert picture.stat().st_size > 10_000


def test_jupyterlab_in_front_of_the_door(with_widgets: Served, browser: str, tmp_path: Path) -> None:
    options = (f"--GatewayClient.url={with_widgets.url}", f"--GatewayClient.auth_token={with_widgets.token}")
    look(python_with(*LAB), browser, "widgets", tmp_path / "lab.png", *options)
    (session,) = with_widgets.call("GET", "/v1/sessions")["sessions"]
    ran = [cell["code"] for cell in with_widgets.call("GET", f"/v1/sessions/{session['id']}/cells")["cells"]]
    assert "print('slider is', slider.value)" in ran


def test_jupyterlab_with_forked_kernels_and_no_server(browser: str, tmp_path: Path, short_tmp: Path) -> None:
    python = python_with(*LAB, "matplotlib", "--editable", str(ROOT))
    prefix, runtime = tmp_path / "prefix", short_tmp / "xdg"
    runtime.mkdir(mode=0o700)
    install = [str(python), "-m", "kernelsvc", "install-kernelspec", "--name", "forked", "--prefix"]
    subprocess.run([*install, str(prefix)], check=True, env=clean_env(), timeout=60)
    more = {"JUPYTER_PATH": str(prefix / "share" / "jupyter"), "XDG_RUNTIME_DIR": str(runtime)}
    try:
        look(python, browser, "forked", tmp_path / "lab.png", **more)
        assert hosts(runtime), "the kernel was no fork of a kernel host"
    finally:
        end(hosts(runtime))
