"""How many files one trivial cell crosses in the server: the number may only be lowered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "trip_length.py"
#: The goal is 20. ``kernels/fake.py`` is one of them.
AT_MOST = 26


def measured(*args: str) -> subprocess.CompletedProcess[str]:
    # A server outside of tests does not check its invariants.
    env = {name: value for name, value in os.environ.items() if name != "KERNELSVC_VALIDATE"}
    return subprocess.run([sys.executable, SCRIPT, *args], env=env, text=True, capture_output=True, timeout=60)


def test_a_trivial_cell_crosses_few_files() -> None:
    done = measured("--list", "--at-most", str(AT_MOST))
    assert done.returncode == 0, done.stdout + done.stderr
    for crossed in ("server/native/websocket.py", "session/runtime.py", "store/journal.py"):
        assert f"{crossed}: " in done.stdout


def test_one_file_more_than_allowed_is_an_error() -> None:
    assert measured("--at-most", "5").returncode == 1
