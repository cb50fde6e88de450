"""A branch against its parent, and a program of its parent's against a branch, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served
from waiting import wait_for

from attack.unprivileged import UID, as_ordinary_user

pytestmark = pytest.mark.timeout(180)

WHO = ("root", "user") if os.getuid() == 0 else ("user",)
#: A daemon: two forks and a session of its own. It waits for a pid and an address, reads there, and writes there.
DAEMON = """
import os, subprocess, sys
source = '''
import json, os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open("/tmp/began", "w").close()
while not os.path.exists("/tmp/target"): time.sleep(.01)
pid, address = json.load(open("/tmp/target"))
found = {}
for act, flags in (("read", os.O_RDONLY), ("write", os.O_RDWR)):
    try:
        fd = os.open(f"/proc/{pid}/mem", flags)
        found[act] = os.pread(fd, 3, address).decode() if act == "read" else os.pwrite(fd, b"bad", address)
    except OSError as error:
        found[act] = error.strerror
with open("/tmp/found.new", "w") as file: json.dump(found, file)
os.rename("/tmp/found.new", "/tmp/found")
time.sleep(1000)
'''
started = subprocess.run([sys.executable, "-c", source]).returncode
while not os.path.exists("/tmp/began"): pass
"""
AIM = """
import ctypes, json, os
victim = ctypes.create_string_buffer(b"own")
with open("/tmp/target.new", "w") as file: json.dump([os.getpid(), ctypes.addressof(victim)], file)
os.rename("/tmp/target.new", "/tmp/target")
"""
#: Puts an environment of the branch's own in place of its parent's, and says how far it came.
REPLACE = """
import os
env = {env!r}
parts = env.strip("/").split("/")
moved = []
for depth in range(2, len(parts) + 1):
    path = "/" + "/".join(parts[:depth])
    try:
        os.rename(path, path + ".moved")
        moved.append(path)
        break
    except OSError:
        pass
os.makedirs("/tmp/mine/below"); os.rename("/tmp/mine", "/tmp/other")
try:
    os.makedirs(env + "/lib", exist_ok=True)
    with open(env + "/lib/extra.py", "w") as file: file.write("whose = 'of the branch'")
except OSError:
    pass
print(moved)
"""


class ServedAs(Served):
    """A server of root's or of an ordinary user's."""

    def __init__(self, who: str, root: Path, env: dict[str, str]) -> None:
        super().__init__(root, env={**env, "HOME": str(root)})
        self._who = who

    def command(self) -> list[str]:
        command = super().command()
        return as_ordinary_user(command) if self._who == "user" and os.getuid() == 0 else command


def make_environment(root: Path) -> Path:
    """Make an interpreter two directories below ``root``, with a module that the template does not import."""
    env = root / "above" / "env"
    (env / "bin").mkdir(parents=True)
    (env / "lib").mkdir()
    (env / "lib" / "extra.py").write_text("whose = 'of the parent'")
    python = env / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={env}/lib\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return env


@pytest.fixture(params=WHO, scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[ServedAs]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o711)
        env = make_environment(root)
        if request.param == "user" and os.getuid() == 0:
            os.chown(root, UID, UID)
        template = {"python3": {"python": str(env / "bin" / "python"), "preload": []}}
        made = ServedAs(request.param, root, {"KERNELSVC_TEMPLATES": json.dumps(template)}).start()
        yield made
        made.stop()


@pytest.fixture
def parent(served: ServedAs) -> Iterator[str]:
    made = served.call("POST", "/v1/sessions", {})
    if "landlock" not in made["sandbox"]["enforced"]:
        pytest.skip("no Landlock here")
    yield made["id"]
    served.call("DELETE", f"/v1/sessions/{made['id']}")


def run(served: Served, session: str, code: str) -> str:
    cell: dict[str, Any] = served.call("POST", f"/v1/sessions/{session}/cells", {"code": code})
    assert cell["reason"] == "ok", cell["text"]
    return str(cell["text"]).strip()


def branch_of(served: Served, parent: str) -> dict[str, Any]:
    (made,) = served.call("POST", f"/v1/sessions/{parent}/branches", {})
    branch: dict[str, Any] = made
    return branch


def test_a_branch_can_not_replace_the_environment_below_tmp(served: ServedAs, parent: str) -> None:
    branch = branch_of(served, parent)
    env = served.root / "above" / "env"
    assert run(served, branch["id"], REPLACE.format(env=str(env))) == "[]"
    assert run(served, parent, "import extra; print(extra.whose)") == "of the parent"
    served.call("DELETE", f"/v1/sessions/{branch['id']}")


def test_a_daemon_of_the_parent_is_named_and_can_not_write_a_branchs_memory(served: ServedAs, parent: str) -> None:
    run(served, parent, DAEMON)
    branch = branch_of(served, parent)
    assert any("python" in text and "left running" in text for text in branch["parent"]["warnings"])
    run(served, branch["id"], AIM)

    def found() -> Any:
        return json.loads(run(served, branch["id"], "import os\nprint(open('/tmp/found').read()) if "
                              "os.path.exists('/tmp/found') else print('null')"))  # fmt: skip

    said = wait_for(found, what="the daemon's report")
    assert said["read"] == "own", "the daemon looked in the right place"
    assert "denied" in str(said["write"])
    assert run(served, branch["id"], "print(victim.value)") == "b'own'"
    served.call("DELETE", f"/v1/sessions/{branch['id']}")


def test_a_session_without_daemons_branches_without_a_warning(served: ServedAs, parent: str) -> None:
    run(served, parent, "import subprocess; subprocess.run(['true'])")
    branch = branch_of(served, parent)
    below = branch_of(served, branch["id"])
    assert not branch["parent"].get("warnings")
    assert not below["parent"].get("warnings")
    for made in (below, branch):
        served.call("DELETE", f"/v1/sessions/{made['id']}")


def test_copies_have_the_usual_oom_score_and_peak_memory(served: ServedAs, parent: str) -> None:
    score = "print(open('/proc/self/oom_score_adj').read())"
    branch = branch_of(served, parent)
    assert run(served, branch["id"], score) == run(served, parent, score)
    run(served, branch["id"], "x = bytearray(200 << 20); del x")
    cell = served.call("POST", f"/v1/sessions/{branch['id']}/cells", {"code": "1"})
    assert 0 < cell["usage"]["peak_rss_bytes"] < 200 << 20
    served.call("DELETE", f"/v1/sessions/{branch['id']}")
