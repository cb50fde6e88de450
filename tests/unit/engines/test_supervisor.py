"""The supervisor of one machine, over a small program that locks its data directory as a server does."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from kernelsvc.engines import supervisor
from kernelsvc.engines.supervisor import Plan, Supervisor, server_command, server_env

_PROGRAM = """
import fcntl, json, os, pathlib, signal, sys
blocked = bool(signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15]))
place = {name: pathlib.Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--data-dir", "--runtime-dir")}
place["--data-dir"].mkdir(exist_ok=True)
(place["--data-dir"] / "node").write_text("a1b2c3")
state = [blocked, open("/proc/self/oom_score_adj").read().strip()]
(place["--data-dir"] / "state").write_text(json.dumps(state))
lock = open(place["--data-dir"] / "server.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
info = {"pid": os.getpid(), "url": "http://here:1"}
(place["--runtime-dir"] / "server.json").write_text(json.dumps(info))
(place["--data-dir"] / "ended").write_text(signal.sigwait([signal.SIGTERM, signal.SIGINT]).name)
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    return Plan(
        join=("http://front:8888",), cluster_key="k" * 16, config="# settings", data=f"{tmp_path}/{{ip}}", cpus=1,
        memory=2**30, command=(sys.executable, str(program)),
    )  # fmt: skip


@pytest.fixture
def made(plan: Plan) -> Iterator[list[Supervisor]]:
    made: list[Supervisor] = [Supervisor(plan, "10.0.0.1")]
    yield made
    made[-1].stop(end_sessions=False, seconds=10)


def pid(one: Supervisor) -> int:
    return wait_for(lambda: one.look()["pid"], deadline=30, what="the server")


def test_a_server_that_ends_is_started_again(made: list[Supervisor], tmp_path: Path) -> None:
    first = pid(made[0])
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: made[0].look()["pid"] not in (0, first), deadline=30, what="another server")
    seen = wait_for(lambda: not (look := made[0].look())["problem"] and look, what="no problem")
    assert (seen["started"], seen["adopted"], seen["node"]) == (2, 0, "a1b2c3")
    assert (tmp_path / "10.0.0.1" / "cluster-key").stat().st_mode & 0o777 == 0o600


def test_the_next_supervisor_adopts_the_server(made: list[Supervisor], plan: Plan) -> None:
    first = pid(made[0])
    made[0]._stopping.set()  # as if its process had been killed
    made.append(Supervisor(plan, "10.0.0.1"))
    wait_for(lambda: made[1].look()["adopted"], what="its adoption")
    assert (made[1].look()["started"], made[1].look()["pid"]) == (0, first)


@pytest.mark.parametrize(("end", "name"), [(False, "SIGTERM"), (True, "SIGINT")])
def test_a_stop_saves_sessions_or_ends_them(made: list[Supervisor], tmp_path: Path, end: bool, name: str) -> None:
    pid(made[0])
    assert made[0].stop(end, seconds=30)
    assert (tmp_path / "10.0.0.1" / "data" / "ended").read_text() == name
    assert made[0].look()["pid"] == 0


def test_a_server_that_can_not_start_is_a_problem(tmp_path: Path) -> None:
    plan = Plan(("http://f:1",), "k" * 16, "", str(tmp_path), 1, 1, command=())
    blocked = tmp_path / "run"
    blocked.write_text("a file in place of the directory")
    one = Supervisor(plan, "10.0.0.1")
    try:
        assert "run" in wait_for(lambda: one.look()["problem"], what="the problem")
    finally:
        one.stop(end_sessions=True, seconds=1)


def test_a_stop_waits_for_a_start_that_has_begun(plan: Plan, tmp_path: Path) -> None:
    one = Supervisor(plan, "10.0.0.1")
    wait_for(lambda: one.look()["started"], deadline=30, what="the start")
    assert one.stop(end_sessions=True, seconds=30)
    assert (tmp_path / "10.0.0.1" / "data" / "ended").read_text() == "SIGINT"


def test_a_server_that_ends_at_its_start_is_named_at_once(tmp_path: Path) -> None:
    words = (sys.executable, "-c", "raise SystemExit('no such setting')")
    one = Supervisor(Plan(("http://f:1",), "k" * 16, "", str(tmp_path), 1, 1, command=words), "10.0.0.1")
    try:
        assert "no such setting" in wait_for(lambda: one.look()["problem"], deadline=20, what="the problem")
    finally:
        one.stop(end_sessions=True, seconds=1)


def test_the_file_of_a_killed_server_names_no_process(made: list[Supervisor], tmp_path: Path) -> None:
    pid(made[0])
    (tmp_path / "10.0.0.1" / "run" / "server.json").write_text(f'{{"pid": {os.getpid()}, "url": "http://here:1"}}')
    assert made[0].look()["pid"] == 0, "its process id is another's by now"
    made[0]._stopping.set()
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path / "10.0.0.1" / "run") in (process.info["cmdline"] or []):
            process.kill()


def test_a_server_is_no_victim_and_gets_every_signal(plan: Plan, tmp_path: Path) -> None:
    """Ray's workers are the first victims of the OOM killer, and block SIGINT."""
    adjusted = Path("/proc/self/oom_score_adj")
    before, mask = adjusted.read_text(), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        adjusted.write_text("1000")
        one = Supervisor(plan, "10.0.0.1")
        pid(one)
        one.stop(end_sessions=True, seconds=10)
    finally:
        adjusted.write_text(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert json.loads((tmp_path / "10.0.0.1" / "data" / "state").read_text()) == [False, "0"]


def test_the_environment_of_ray_stays_out() -> None:
    env = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "RAY_JOB_ID": "01", "CUDA_VISIBLE_DEVICES": ""}
    assert server_env(env) == {"PATH": "/bin"}


def test_the_command_has_the_share_and_the_fronts(plan: Plan) -> None:
    command = server_command(plan, Path("/root"), "10.0.0.9")
    assert command[2] == "serve"
    assert command[command.index("--max-total-memory-bytes") + 1] == str(2**30)
    assert command[command.index("--join") + 1] == "http://front:8888"
    assert command[command.index("--on-stop") + 1] == "hibernate"
    assert "k" * 16 not in " ".join(command), "every user can read a process list"


def test_the_module_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(supervisor.__file__).read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names}
