"""Jupyter's clients at their current releases, unmodified, each in an environment of its own.

What a client does is a script in ``clients/`` that runs in that environment and
says "ok". Environments are made once and kept between runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from served import Served

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS, RUN_SECONDS = 300, 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def environment(name: str, packages: list[str]) -> Path:
    """The interpreter of an environment with these packages; skips the test where they can't be installed."""
    place = Path(tempfile.gettempdir()) / f"kernelsvc-tests-{os.getuid()}-{name}-{sys.version_info[1]}"
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=INSTALL_SECONDS)
            install = [place / "bin" / "pip", "install", "-q", "--no-input", *packages]
            done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            if done.returncode:
                pytest.skip(f"{packages[0]} can't be installed here: {done.stderr.strip()[-200:]}")
            (place / "ready").touch()
    return place / "bin" / "python"


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("kernel_client", ["jupyter-kernel-client==1.0.2"]),
        ("nbclient_gateway", ["nbclient==0.11.0", "jupyter-server==2.21.1", "ipykernel", "websocket-client"]),
        ("jupyter_server_gateway", ["nbclient==0.11.0", "jupyter-server==2.21.1", "ipykernel", "websocket-client"]),
        ("papermill_gateway", ["papermill==2.7.0", "jupyter-server==2.21.1"]),
        ("autogen_executor", ["autogen-ext[docker-jupyter-executor]==0.7.5", "autogen-agentchat==0.7.5"]),
    ],
)
def test_a_client_of_jupyter(served: Served, script: str, packages: list[str]) -> None:
    python = environment(packages[0].replace("[", "-").partition("=")[0].rstrip("]"), packages)
    command = [python, CLIENTS / f"{script}.py", served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=quiet())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")


def quiet() -> dict[str, str]:
    """An environment without what points a Jupyter client somewhere else."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "PYTHON"))}
