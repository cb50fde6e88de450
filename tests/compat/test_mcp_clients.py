"""MCP's SDK for Python at the release line that most hosts still use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_the_sdk_before_its_second_major_version(served: Served) -> None:
    python = python_with("mcp==1.30.0")
    command = [python, CLIENTS / "mcp_1.py", served.url, served.token, sys.executable, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
