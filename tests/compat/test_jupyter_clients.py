"""Jupyter's clients at their current releases, unmodified, each in an environment of its own.

What a client does is a script in ``clients/`` that runs in that environment and
says "ok". Environments are made once and kept between runs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]

GATEWAY = ("nbclient==0.11.0", "jupyter-server==2.21.1", "ipykernel", "websocket-client")
AUTOGEN = ("autogen-ext[docker-jupyter-executor]==0.7.5", "autogen-agentchat==0.7.5")


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("kernel_client", ("jupyter-kernel-client==1.0.2",)),
        ("kernel_test_gateway", ("jupyter-kernel-client==1.0.2", "jupyter_kernel_test==0.7.0")),
        ("nbclient_gateway", GATEWAY),
        ("jupyter_server_gateway", GATEWAY),
        ("papermill_gateway", ("papermill==2.7.0", "jupyter-server==2.21.1")),
        ("autogen_executor", AUTOGEN),
        ("smolagents_jupyter", ("smolagents[docker]==1.26.0", "websocket-client")),
    ],
)
def test_a_client_of_jupyter(served: Served, script: str, packages: tuple[str, ...]) -> None:
    command = [python_with(*packages), CLIENTS / f"{script}.py", served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
