"""Prometheus' own checker, if it can be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def promtool(*arguments: str, text: bytes = b"", cwd: Path | None = None) -> str:
    """Run promtool and return what it prints. The test is skipped if the machine has none.

    Raises:
        AssertionError: it finds a fault.
    """
    tool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: prometheus); 'make test-telemetry' fetches it")
    done = subprocess.run([tool, *arguments], input=text, capture_output=True, check=False, cwd=cwd)
    printed = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, printed
    return printed
