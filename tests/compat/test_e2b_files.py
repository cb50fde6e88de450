"""E2B's clients at their current releases, unmodified: files of a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, node_with, python_with
from served import Served
from test_e2b_clients import CLIENTS, JAVASCRIPT, PYTHON, RUN_SECONDS, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_files_in_python(served: Served) -> None:
    run(python_with(*PYTHON), CLIENTS / "e2b_files.py", served.url, served.token)


def test_files_in_javascript(served: Served, tmp_path: Path) -> None:
    # Node looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(node_with(*JAVASCRIPT) / "node_modules")
    script = tmp_path / "e2b_files.mjs"
    script.write_text((CLIENTS / script.name).read_text())
    run("node", script, served.url, served.token)
