"""Run cells of the attack suite in a driver of their own, under the user that a test asks for."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attack.cell import Cell, Who
from attack.cells import ALL
from attack.unprivileged import as_ordinary_user

HERE = Path(__file__).parent
WHO: tuple[Who, ...] = ("root", "user") if os.getuid() == 0 else ("user",)
CONFINED = [(who, cell) for who in WHO for cell in ALL if who in cell.only]


@functools.cache
def run(who: Who, policy: str, names: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [sys.executable, "-m", "attack.driver", policy, "--names", json.dumps(names)]
    command += [f"--without={layer}" for layer in without]
    if who == "user" and os.getuid() == 0:
        command = as_ordinary_user(command)
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(cell: Cell, result: dict[str, Any], wanted: str) -> None:
    assert result["verdict"] == wanted, f"{cell.layer}: {result['text'][-1500:]}"
    assert result["victim"], "a process outside was ended"
    assert result["clean"], "the cgroup could not be removed"


def skip_without(cell: Cell, answer: dict[str, Any]) -> None:
    if cell.needs and not answer["facts"][cell.needs]:
        pytest.skip(f"this machine has no {cell.needs}")


def check_confined(cell: Cell, answer: dict[str, Any]) -> None:
    """Check a cell of a session of the real kernel host."""
    if cell.needs in ("joblib", "overlayfs"):
        skip_without(cell, answer)
    result = answer["cells"][cell.name]
    assert result["isolation"] == "full"
    check(cell, result, "reached" if cell.confined == "works" else cell.confined)


def ids(pairs: list[tuple[Who, Cell]]) -> list[str]:
    return [f"{who}: {cell.name}" for who, cell in pairs]
