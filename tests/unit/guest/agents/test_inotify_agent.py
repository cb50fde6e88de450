"""The program that watches from inside a sandbox, run as it is run there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelsvc.guest.agents import inotify_agent

SOURCE = Path(inotify_agent.__file__).read_text()


def start(top: Path, recursive: bool = True) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", "-c", SOURCE, str(top), str(int(recursive)), "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Iterator[dict[str, Any]]]:
    with start(tmp_path) as program:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline()) == {"ready": True}
        yield map(json.loads, program.stdout)
        program.kill()


def test_what_happens_is_told(tmp_path: Path, events: Iterator[dict[str, Any]]) -> None:
    (tmp_path / "new.txt").write_text("text")
    first, second = next(events), next(events)
    assert (first["type"], first["name"]) == ("EVENT_TYPE_CREATE", "new.txt")
    assert (second["type"], second["entry"]["size"]) == ("EVENT_TYPE_WRITE", 4)
    (tmp_path / "new.txt").unlink()
    gone = next(events)
    assert (gone["type"], gone["entry"]) == ("EVENT_TYPE_REMOVE", None)


def test_a_directory_that_is_made_is_watched_too(tmp_path: Path, events: Iterator[dict[str, Any]]) -> None:
    (tmp_path / "sub").mkdir()
    assert next(events)["name"] == "sub"
    (tmp_path / "sub" / "x").touch()
    assert next(events)["name"] == "sub/x"


def test_why_it_could_not_begin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, status in (("nothing", inotify_agent.MISSING), ("file", inotify_agent.NO_DIRECTORY)):
        with start(tmp_path / name) as program:
            assert program.wait(20) == status
