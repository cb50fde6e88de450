"""The tuning of a server process, in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import gc, resource
from kernelsvc.cli import memory_tuning
memory_tuning.tune()

def copy():
    data = bytes(10_000_000)
    return bytearray(data), data + b"x"

copy(), copy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    copy()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *gc.get_threshold(), gc.get_freeze_count() > 1000)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
def test_copies_of_a_large_result_fault_no_fresh_pages_again_and_again() -> None:
    said = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout.split()
    assert int(said[0]) < 500  # of 36,000
    assert said[1:] == ["20000", "10", "10", "True"]
