"""The benchmarks run from end to end; what they time is nobody's business here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.timeout(480)
def test_the_harness_measures_us_and_a_plain_kernel_and_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "smoke"], cwd=ROOT, capture_output=True, text=True, timeout=460
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "`1+1` there and back" in line]
    assert len(rows) == 1, done.stdout
    assert "| **-** |" not in done.stdout, done.stdout
