"""SandboxAI's and SandboxFusion's own clients, unmodified."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("sandboxai_client", ("sandboxai-client==0.0.2",)),
        ("sandbox_fusion_client", ("sandbox-fusion==0.3.7", "pydantic", "requests", "tenacity", "aiohttp")),
    ],
)
def test_a_client(served: Served, script: str, packages: tuple[str, ...]) -> None:
    command = [python_with(*packages), CLIENTS / f"{script}.py", served.url, served.token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
