"""The ground truth of BFCL v4's multi-turn categories: an outsider's 4,625 calls, from code in a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import Served

CLIENT = Path(__file__).parent / "clients" / "bfcl.py"
CALLS, ENTRIES = 4625, 800
RUN_SECONDS = 1200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(RUN_SECONDS + 300)]


def test_bfcl_multi_turn(served: Served, tmp_path: Path) -> None:
    # Without its dependencies, which are those of models. Its functions need mpmath alone.
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    subprocess.run([*install, "bfcl-eval==2026.3.23", "mpmath"], check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, CLIENT, served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    for form in ("blocking", "awaited", "threaded"):
        assert counts[f"{form} calls"] == CALLS, done.stderr[-4000:]
        assert counts[f"{form} states"] == ENTRIES, counts
