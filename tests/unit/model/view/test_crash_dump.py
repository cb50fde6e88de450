"""The dump of faulthandler, shortened for readers of a cell's text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernelsvc.model import events as ev
from kernelsvc.model.outputs import Outputs, text_of
from kernelsvc.model.view.crash_dump import shortened
from kernelsvc.model.view.full_text import full_text


def crash() -> str:
    """Return what a crashing process writes."""
    code = (
        "import faulthandler, sys; faulthandler.enable()\nprint('before', file=sys.stderr, flush=True)\n"
        "cell = compile('import ctypes\\n\\nctypes.string_at(0)', '/tmp/ipykernel_9/1.py', 'exec')\n"
        "def run(n):\n    exec(cell) if not n else run(n - 1)\nrun(30)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode < 0
    return done.stderr


def test_a_dump_keeps_its_first_line_the_innermost_frame_and_those_of_the_cell() -> None:
    lines = shortened(crash()).splitlines()
    assert lines[:2] == ["before", "Fatal Python error: Segmentation fault"]
    assert lines[2].startswith("  ctypes/__init__.py, line ")
    assert lines[3:] == ["  Cell, line 3 in <module>", "  [32 frames are left out]"]


def test_the_text_of_a_cell_has_the_short_form() -> None:
    outputs = Outputs(None)
    outputs.feed(ev.Stream(name="stderr", text=crash()))
    text = text_of(outputs.render())
    assert "Cell, line 3" in text
    assert "Extension modules" not in text
    assert sys.prefix not in text
    lines = list(full_text(outputs.render()).lines())
    assert "  Cell, line 3 in <module>" in lines
    assert len(lines) < 8


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", ["a", "/", "/lib/python3.1", "a/site-packages"])
def test_the_long_name_of_a_file_is_read_once(file: str) -> None:
    """Its package could be searched from each position: 40 kB took 3 s, and 4 MB would take hours."""
    name = file * (4_000_000 // len(file))
    dump = f'Fatal Python error: x\n\nThread 0x1 (most recent call first):\n  File "{name}", line 1 in b\nafter\n'
    assert shortened(dump).endswith(", line 1 in b\nafter\n")


def test_other_text_stays_as_it_is() -> None:
    for text in ("", "x\n", "Fatal error", '  File "a", line 1 in b\n'):
        assert shortened(text) == text
    dump = 'Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File "a.py", line 1 in b\nafter\n'
    assert shortened(dump) == "Fatal Python error: Aborted\n  a.py, line 1 in b\nafter\n"
