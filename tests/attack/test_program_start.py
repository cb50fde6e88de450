"""A program that begins beside a kernel is a copy of the kernel host until it execs: nobody may look into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attack.cell import Who
from attack.program_probe import SECRET
from attack.unprivileged import as_ordinary_user

HERE = Path(__file__).parent
WHO: tuple[Who, ...] = ("root", "user") if os.getuid() == 0 else ("user",)
EXIT_7 = '{"ended": 1792}'

pytestmark = pytest.mark.timeout(180)


def begin(who: Who, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "attack.program_probe", *options, SECRET]
    if who == "user" and os.getuid() == 0:
        command = as_ordinary_user(command)
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "KERNELSVC_CANARY": SECRET}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "SETUP" not in done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("without", [(), ("--without=landlock",)], ids=["with Landlock", "without"])
@pytest.mark.parametrize("who", WHO)
def test_nothing_of_the_host_is_seen_and_the_program_runs_as_ever(who: Who, without: tuple[str, ...]) -> None:
    answer = begin(who, *without)
    assert answer["ended"] == [EXIT_7]
    assert answer["seen"] > 0
    assert answer["found"] == {}


@pytest.mark.parametrize("who", WHO)
def test_without_the_wall_it_is_seen(who: Who) -> None:
    answer = begin(who, "--without=landlock", "--bare")
    assert answer["ended"] == [EXIT_7]
    assert {"environ", "cmdline"} <= set(answer["found"])
