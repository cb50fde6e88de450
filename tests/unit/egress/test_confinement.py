"""The proxy's process after it has confined itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, signal, socket, sys, threading
from kernelsvc.egress.confinement import confine_proxy

missing = confine_proxy()

def outcome(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def thread():
    one = threading.Thread(target=int)
    one.start()
    one.join()

def connect():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(listener.getsockname()).close()

attempts = {
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: os.fork() or os._exit(0),
    "signal": lambda: os.kill(os.getppid(), 0),
    "write": lambda: open("/tmp/kernelsvc-egress-test", "w"),
    "read a secret": lambda: open(sys.argv[1]),
    "change the user": lambda: os.setuid(1),
    "ptrace": lambda: open("/proc/self/mem", "rb"),
    "thread": thread,
    "connect": connect,
    "look up": lambda: socket.getaddrinfo("localhost", 80),
}
print(json.dumps({"missing": missing, **{name: outcome(act) for name, act in attempts.items()}}))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    secret = tmp_path_factory.mktemp("keys") / "key"
    secret.write_text("secret")
    command = [sys.executable, "-c", PROGRAM, str(secret)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["missing"]:
        pytest.skip(f"this machine lacks a layer: {found['missing']}")
    return found


@pytest.mark.parametrize("attempt", ["exec", "fork", "signal", "write", "read a secret", "change the user", "ptrace"])
def test_programs_files_and_processes_are_out_of_reach(outcomes, attempt):
    assert outcomes[attempt] == "PermissionError"


@pytest.mark.parametrize("attempt", ["thread", "connect", "look up"])
def test_the_work_of_a_proxy_is_allowed(outcomes, attempt):
    assert outcomes[attempt] == "done"
