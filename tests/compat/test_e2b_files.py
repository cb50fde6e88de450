"""Files through E2B's SDKs at their current releases, unmodified, each in an environment of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, node_with, python_with
from served import Served

CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def run(program: str | Path, script: Path, served: Served) -> None:
    command = [str(program), str(script), served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


def test_files_in_python(served: Served) -> None:
    run(python_with("e2b-code-interpreter==2.11.5", "e2b==2.63.0", "pytest"), CLIENTS / "e2b_files.py", served)


def test_files_in_javascript(served: Served, tmp_path: Path) -> None:
    modules = node_with("@e2b/code-interpreter@2.8.0", "e2b@2.51.0") / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)  # Node looks for packages beside the script
    script = tmp_path / "e2b_files.mjs"
    script.write_text((CLIENTS / script.name).read_text())
    run("node", script, served)
