"""Commands and terminals through E2B's SDK at its current release, unmodified, in an environment of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

SCRIPT = Path(__file__).parent / "clients" / "e2b_commands.py"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_commands(served: Served) -> None:
    python = python_with("e2b-code-interpreter==2.11.5", "e2b==2.63.0", "pytest")
    command = [str(python), str(SCRIPT), served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
