"""A program's output is bounded in size and in time, and the program does not stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernelsvc.linux.command_output import output_of


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_all_output_is_returned() -> None:
    words = python("import os; os.write(1, b'a'); os.write(2, b'not this'); os.write(1, b'b')")
    assert output_of(words, seconds=30, most_bytes=2) == b"ab"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["yes"], ValueError),
        (python("print('x' * 100)"), ValueError),
        (python("import sys; print('x'); sys.exit(3)"), subprocess.CalledProcessError),
        (["/nonexistent"], FileNotFoundError),
    ],
)
def test_another_end_is_an_error(words: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        output_of(words, seconds=30, most_bytes=64)


@pytest.mark.parametrize("closes", [False, True])
def test_a_program_that_stays_is_killed(closes: bool) -> None:
    """Also one that closes its output and goes on."""
    code = f"import os, time\nif {closes}: os.close(1)\ntime.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        output_of(python(code), seconds=0.3, most_bytes=64)
