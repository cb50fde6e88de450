"""Every command and every piece of code in the pages, run as a reader would run it.

A page is one sitting: its blocks run in order, in one directory, its Python
blocks in one interpreter, beside a server that a reader would have started.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_blocks import Block, agrees, blocks, commands
from served import Served

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.md")])
#: For one block; none of them is meant to take long.
BLOCK_SECONDS = 60

pytestmark = pytest.mark.timeout(240)

#: Runs blocks one after another in one namespace: a line of JSON in, a line of JSON out.
INTERPRETER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    code, where = json.loads(line)
    out, error = io.StringIO(), ""
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(code, where, "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([out.getvalue(), error]), flush=True)
"""


@pytest.fixture(scope="session")
def served(preloaded_server: Served) -> Served:
    return preloaded_server


class Reader:
    """Somebody who follows a page."""

    def __init__(self, place: Path, env: dict[str, str]) -> None:
        self.place, self.env = place, env
        self.python: subprocess.Popen[str] | None = None

    def follow(self, block: Block) -> None:
        """Run a block; it must succeed, and print what the page says."""
        if block.language == "console":
            for command, expected in commands(block):
                output = self.shell(command, block)
                assert not expected or agrees(expected, output), told(block, expected, output)
            return
        output = self.interpret(block) if block.language == "python" else self.shell(block.text, block)
        assert block.prints is None or agrees(block.prints, output), told(block, block.prints, output)

    def shell(self, script: str, block: Block) -> str:
        if "curl" in script and shutil.which("curl") is None:
            pytest.skip("this machine has no curl")
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=self.place,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        assert done.returncode == 0, f"{block.where}: {script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def interpret(self, block: Block) -> str:
        if self.python is None:
            command = [sys.executable, "-c", INTERPRETER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.python = subprocess.Popen(command, cwd=self.place, env=self.env, text=True, **pipes)
        assert self.python.stdin is not None
        assert self.python.stdout is not None
        self.python.stdin.write(json.dumps([block.text, block.where]) + "\n")
        self.python.stdin.flush()
        output, error = json.loads(self.python.stdout.readline())
        assert not error, f"{block.where}:\n{output}\n{error}"
        return str(output)

    def leave(self) -> None:
        """End the interpreter by the end of its input."""
        if self.python is not None:
            self.python.communicate(timeout=30)


def told(block: Block, expected: str | None, output: str) -> str:
    return f"{block.where} prints\n{output}\nand the page says\n{expected}"


@pytest.fixture
def reader(served: Served, short_tmp: Path) -> Iterator[Reader]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{served.env.get('PATH', '')}"
    # A short path: pages start servers whose sockets are below the directory that they are followed in.
    place = Path(tempfile.mkdtemp(prefix="p", dir=short_tmp))
    reader = Reader(place, {**served.client_env, "PATH": path})
    yield reader
    reader.leave()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_can_be_followed(page: Path, request: pytest.FixtureRequest) -> None:
    todo = [block for block in blocks(page) if block.runs]
    if not todo:
        # Nothing to run, but its comments have been read, and a wrong one is an error.
        return
    reader: Reader = request.getfixturevalue("reader")
    for block in todo:
        reader.follow(block)
