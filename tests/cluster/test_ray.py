"""A real Ray of three machines, which are addresses of loopback: its parts are killed, and sessions stay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from cluster.test_kubernetes import text_of
from cluster.test_nodes import KEY, RunningFront
from environments import clean_env, python_with
from served import QUICK, Served
from waiting import wait_for

ROOT = Path(__file__).parents[2]
HEAD, FIRST, SECOND = "127.0.0.10", "127.0.0.11", "127.0.0.12"
#: Seconds that Ray gets for a step, on a machine that does much else.
RAY_SECONDS = 240.0
#: Attempts to start Ray, and seconds for each.
ATTEMPTS, START_SECONDS = 2, 120.0

pytestmark = pytest.mark.timeout(1200)


class Ray:
    """A Ray cluster, and ``kernelsvc ray`` with Ray's own Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = python_with("ray==2.60.0")
        self.env = clean_env(RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=str(root / "tmp"), **QUICK)
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self, *machines: str) -> None:
        """Start Ray, with a head that has no processors. On a busy machine Ray's own deadlines of 30 s may pass."""
        for _ in range(ATTEMPTS):
            if self._start(*machines):
                return
            self.kill()
        raise AssertionError(f"Ray does not start: {(self.root / 'ray.log').read_text()[-2000:]}")

    def _start(self, *machines: str) -> bool:
        with (self.root / "ray.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, ROOT / "tests" / "cluster" / "ray_machines.py", HEAD, *machines],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=self.env,
            )  # fmt: skip
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        said = self.process.stdout.readline() if ready else ""
        self.address = said.removeprefix("address ").strip()
        return bool(self.address)

    def add(self, machine: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"add {machine}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "added\n"

    def kill(self) -> None:
        """Kill every process of Ray's."""
        assert self.process is not None
        mine = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for each in mine:
            each.kill()
        psutil.wait_procs(mine[1:], timeout=30)
        self.process.communicate()
        self.process = None

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``kernelsvc ray``."""
        path = f"{ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"
        env = {**self.env, **KEY, "PYTHONPATH": path, "RAY_ADDRESS": self.address}
        command = [self.python, "-m", "kernelsvc", "ray", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=RAY_SECONDS)

    def up(self, front: RunningFront) -> None:
        config = self.root / "kernelsvc.toml"
        digest = hashlib.sha256(b"test-token").hexdigest()
        config.write_text(f'[[tokens]]\nname = "local"\nsha256 = "{digest}"\nscopes = ["run", "read", "operate"]\n')
        done = self.command(
            "up", "--config", str(config), "--join", front.url, "--cpus", "2", "--memory", "8GiB",
            "--data", f"{self.root}/{{ip}}", "--command", f"env PYTHONPATH={ROOT} {sys.executable} -m kernelsvc",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.command("status", "--json")
        assert done.stdout, done.stderr
        return {each["host"]: each for each in msgspec.json.decode(done.stdout)}

    def actors(self, name: str) -> list[psutil.Process]:
        """The processes of the actors of a class: Ray sets their titles."""
        assert self.process is not None
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [each] if f"ray::{name}" in " ".join(each.cmdline()) else []
        return found

    def servers(self) -> dict[str, int]:
        """The processes of the servers, by the machine's address."""
        files = sorted(self.root.glob("*/run/server.json"))
        return {each.parts[-3]: msgspec.json.decode(each.read_bytes())["pid"] for each in files}


@pytest.fixture(scope="module")
def front(short_tmp: Path) -> Iterator[RunningFront]:
    front = RunningFront(short_tmp / "ray-front")
    yield front
    front.stop()


@pytest.fixture(scope="module")
def ray(short_tmp: Path) -> Iterator[Ray]:
    root = short_tmp / "ray"
    root.mkdir()
    ray = Ray(root)
    try:
        yield ray
    finally:
        if ray.process is not None:
            ray.kill()
        left = [psutil.Process(pid) for pid in ray.servers().values() if psutil.pid_exists(pid)]
        for each in left:
            each.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(left, timeout=60)
        for each in alive:
            each.kill()


def test_nodes_on_ray(ray: Ray, front: RunningFront, short_tmp: Path) -> None:
    caller = Served(short_tmp / "ray-caller")
    caller.url = front.url

    def ready(count: int) -> bool:
        return [each["state"] for each in caller.call("GET", "/v1/nodes")["nodes"]] == ["ready"] * count

    def run(session: str, code: str) -> str:
        return text_of(caller, f"/v1/sessions/{session}/cells", code)

    began = time.monotonic()

    def step(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}")

    ray.start(FIRST)
    step("Ray has one machine")
    ray.up(front)
    step("'up' has returned")
    wait_for(lambda: ready(1), deadline=RAY_SECONDS, what="the first node")
    step("it serves")
    ray.add(SECOND)
    step("Ray has another machine")
    wait_for(lambda: ready(2), deadline=RAY_SECONDS, what="the second node, with no driver alive")
    step("it serves, too")
    seen = ray.status()
    assert [seen[each]["state"] for each in (HEAD, FIRST, SECOND)] == ["no node", "serves", "serves"]

    made: dict[str, str] = {}
    while len(made) < 2:
        session = caller.call("POST", "/v1/sessions")["id"]
        if made.setdefault(session[2:8], session) != session:
            caller.call("DELETE", f"/v1/sessions/{session}")
    assert {*made} == {seen[each]["node"] for each in (FIRST, SECOND)}
    sessions = [*made.values()]
    for session in sessions:
        assert run(session, "x = 41; import os; [k for k in os.environ if k.startswith(('RAY', 'OMP'))]") == "[]\n"

    asking = threading.Thread(target=run, args=(sessions[0], "while True: pass"))
    asking.start()
    state = f"/v1/sessions/{sessions[0]}"
    wait_for(lambda: caller.call("GET", state)["state"] == "busy", what="a cell that does not end")
    caller.call("POST", f"{state}/interrupt")
    asking.join(30)
    assert not asking.is_alive(), "Ray's workers block SIGINT, and sessions must not"

    servers = ray.servers()
    supervisors = {each.pid for each in ray.actors("Supervisor")}
    assert len(supervisors) == 2
    for each in ray.actors("Supervisor"):
        each.kill()
    wait_for(
        lambda: len({each.pid for each in ray.actors("Supervisor")} - supervisors) == 2,
        deadline=RAY_SECONDS, what="other supervisors",
    )  # fmt: skip
    step("killed supervisors are replaced")
    assert ray.servers() == servers
    assert [run(session, "print(x + 1)") for session in sessions] == ["42\n", "42\n"]

    os.kill(servers[FIRST], signal.SIGKILL)
    wait_for(lambda: ray.servers().get(FIRST, servers[FIRST]) != servers[FIRST], deadline=RAY_SECONDS, what="a server")
    wait_for(lambda: ready(2), deadline=RAY_SECONDS, what="it is back")
    step("a killed server is replaced")
    assert [run(session, "print(x + 2)") for session in sessions] == ["43\n", "43\n"]

    (reconciler,) = ray.actors("Reconciler")
    reconciler.kill()
    wait_for(
        lambda: any(each.pid != reconciler.pid for each in ray.actors("Reconciler")),
        deadline=RAY_SECONDS, what="another reconciler",
    )  # fmt: skip
    step("the killed reconciler is replaced")

    servers = ray.servers()
    ray.kill()
    step("all of Ray is killed")
    assert [run(session, "print(x + 3)") for session in sessions] == ["44\n", "44\n"]
    assert run(caller.call("POST", "/v1/sessions")["id"], "print(1)") == "1\n"

    ray.start(FIRST, SECOND)
    ray.up(front)
    wait_for(lambda: len(ray.actors("Supervisor")) == 2, deadline=RAY_SECONDS, what="supervisors of another Ray")
    seen = ray.status()
    step("another Ray has adopted the servers")
    assert [(seen[each]["adopted"], seen[each]["started"]) for each in (FIRST, SECOND)] == [(1, 0), (1, 0)]
    assert ray.servers() == servers

    other = ray.command("up", "--join", front.url, "--cpus", "1")
    assert (other.returncode, "kernelsvc ray down" in other.stderr) == (2, True), other.stderr
    down = ray.command("down")
    assert (down.returncode, down.stdout.count("stopped")) == (0, 2), down.stdout + down.stderr
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in servers.values())
    step("'down' has stopped them")
    ray.up(front)
    wait_for(lambda: ready(2), deadline=RAY_SECONDS, what="nodes after 'down' and 'up'")
    assert [run(session, "print(x + 4)") for session in sessions] == ["45\n", "45\n"]
    step("their sessions were saved")
    down = ray.command("down", "--end")
    assert down.returncode == 0, down.stdout + down.stderr
