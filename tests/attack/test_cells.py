"""Every hostile cell against its wall, as a real session's cell, and, where that is safe, without the wall.

Run as root and as an ordinary user: the cells run in a program of their own
(``driver``), under whichever user a test asks for. Without a wall each attack
must come through, or its being blocked would prove nothing.
"""

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
from attack.cells import ALL, FAMILY
from attack.unprivileged import as_ordinary_user

HERE = Path(__file__).parent
WHO: tuple[Who, ...] = ("root", "user") if os.getuid() == 0 else ("user",)
#: What Landlock, seccomp and rlimits still hold where no namespace can be had.
WITHOUT_NAMESPACES = [
    *("read the server's secret", "list the server's data directory", "read it through a symlink"),
    *("read it through init's root", "read it through .. from here", "hard-link it into the session"),
    *("read another session's file", "write another session's file", "read the host's accounts"),
    *("read the host's /tmp", "read the host's /dev/shm", "write beside Python", "write into /usr", "write into /etc"),
    *("signal the host's process", "read the server's environment", "trace the host's process"),
    *("call the host's loopback", "reach an abstract socket", "reach the server's socket", "gain by exec"),
    *("make a user namespace", "make an io_uring", "write and read in the session's directory", "a shell command"),
    *("temporary files", "matplotlib", "sqlite", "threads", "asyncio with a subprocess", "a Python subprocess"),
]

pytestmark = pytest.mark.timeout(300)


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


CONFINED = [(who, cell) for who in WHO for cell in ALL if who in cell.only]
BARE = [(who, cell) for who in WHO for cell in ALL if who in cell.bare]
DEGRADED = [(who, cell) for who in WHO for cell in ALL if cell.name in WITHOUT_NAMESPACES]


def ids(pairs: list[tuple[Who, Cell]]) -> list[str]:
    return [f"{who}: {cell.name}" for who, cell in pairs]


@pytest.mark.parametrize(("who", "cell"), CONFINED, ids=ids(CONFINED))
def test_behind_the_wall(who: Who, cell: Cell) -> None:
    answer = run(who, "required", tuple(c.name for w, c in CONFINED if w == who))
    if cell.needs == "joblib":
        skip_without(cell, answer)
    assert answer["report"]["isolation"] == "full"
    wanted = "reached" if cell.confined == "works" else cell.confined
    check(cell, answer["cells"][cell.name], wanted)


REAL = [(who, cell, kind) for kind in ("session", "branch", "woken") for who, cell in CONFINED]
REAL += [(who, cell, "branch") for who in WHO for cell in FAMILY]


@pytest.mark.parametrize(("who", "cell", "kind"), REAL, ids=[f"{who}: {kind}: {cell.name}" for who, cell, kind in REAL])
def test_as_a_real_cell_of_a_real_session(who: Who, cell: Cell, kind: str) -> None:
    """Also in a branch of one, and in a checkpoint that took the place of its dead kernel."""
    answer = run(who, kind, tuple(c.name for w, c, k in REAL if (w, k) == (who, kind)))
    if cell.needs == "joblib":
        skip_without(cell, answer)
    result = answer["cells"][cell.name]
    assert result["isolation"] == "full"
    check(cell, result, "reached" if cell.confined == "works" else cell.confined)


@pytest.mark.parametrize(("who", "cell"), BARE, ids=ids(BARE))
def test_without_the_wall_it_works(who: Who, cell: Cell) -> None:
    answer = run(who, "off", tuple(c.name for w, c in BARE if w == who))
    skip_without(cell, answer)
    assert answer["report"]["isolation"] == "none"
    check(cell, answer["cells"][cell.name], "reached")


@pytest.mark.parametrize(("who", "cell"), DEGRADED, ids=ids(DEGRADED))
def test_without_namespaces(who: Who, cell: Cell) -> None:
    answer = run(who, "best-effort", tuple(WITHOUT_NAMESPACES), ("mount namespace",))
    assert answer["report"]["isolation"] == "files"
    assert {lack["layer"] for lack in answer["report"]["not_enforced"]} >= {"filesystem", "pid namespace"}
    wanted = "reached" if cell.confined == "works" else cell.confined
    check(cell, answer["cells"][cell.name], wanted)


@pytest.mark.parametrize("who", WHO)
def test_required_refuses_without_namespaces(who: Who) -> None:
    with pytest.raises(AssertionError, match=r"sandbox|confine a session as required"):
        run(who, "required", ("gain by exec",), ("mount namespace",))


def test_the_suite_is_large_enough() -> None:
    assert sum(cell.confined in ("blocked", "died") for cell in ALL) >= 60
    assert len({cell.name for cell in ALL}) == len(ALL)
    assert set(WITHOUT_NAMESPACES) <= {cell.name for cell in ALL}
