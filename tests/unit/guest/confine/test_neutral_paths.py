"""A process with other paths of its Python: in a mount namespace, or with a reason why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelsvc.guest.confine.neutral_paths import original

_START = "import json, sys; from kernelsvc.guest.confine.neutral_paths import start; "
_START += "start(json.loads(sys.argv[1]), sys.argv[2:]); print('went on')"


def started(binds: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    plan = json.dumps({"binds": binds, "python": "/bin/sh", "guest": "/opt/guest"})
    command = [sys.executable, "-c", _START, plan, *arguments, "replaced"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)


def test_the_new_paths_come_beside_the_machines(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "module.py").touch()
    (tmp_path / "new.cfg").write_text("home = new\n")
    (tmp_path / "lib" / "pyvenv.cfg").write_text("home = old\n")
    binds = {f"{tmp_path}/lib": "/opt/python", f"{tmp_path}/new.cfg": "/opt/python/pyvenv.cfg"}
    found = started(binds, "-c", "ls /opt /opt/python; cat /opt/python/pyvenv.cfg; echo $0 $HOME")
    if "went on" in found.stdout:
        pytest.skip(f"no mount namespaces here: {found.stderr}")
    shown = found.stdout.split("\n")
    assert {"python", "module.py", "pyvenv.cfg", *os.listdir("/opt")} <= set(shown)
    assert shown[-3:] == ["home = new", "/opt/guest /opt/guest/home", ""]
    assert (tmp_path / "lib" / "pyvenv.cfg").read_text() == "home = old\n"


def test_without_the_namespace_the_process_continues_and_says_why(tmp_path: Path) -> None:
    found = started({f"{tmp_path}/absent": "/opt/python"}, "-c", "echo not reached")
    assert found.stdout == "went on\n"
    assert "sessions show this machine's paths of Python: " in found.stderr


def test_a_new_path_stands_for_one_of_the_machine() -> None:
    binds = {"/srv/py": "/opt/python"}
    assert original("/opt/python/lib", binds) == "/srv/py/lib"
    assert original("/opt/python3/lib", binds) == "/opt/python3/lib"
