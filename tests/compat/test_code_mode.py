"""Agents that write code, with our adapters: FastMCP's own tests of its code mode, and an agent of smolagents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from served import Served

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
RUN_SECONDS = 420
RELEASE = "4.2.3"
OURS = ("msgspec", "tornado", "platformdirs")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


def test_fastmcps_own_tests_of_code_mode(served: Served, tmp_path: Path) -> None:
    python = python_with(f"fastmcp=={RELEASE}", "pytest==9.0.2", "pytest-asyncio==1.3.0", *OURS)
    options = ["--no-deps", "--no-binary", ":all:", "-q", "-d", str(tmp_path)]
    subprocess.run([python, "-m", "pip", "download", *options, f"fastmcp=={RELEASE}"], capture_output=True)
    found = list(tmp_path.glob("*.tar.gz"))
    if not found:
        pytest.skip("FastMCP's source can't be downloaded here")
    subprocess.run([sys.executable, "-m", "tarfile", "-e", str(found[0]), str(tmp_path)], check=True)
    root = next(each for each in tmp_path.iterdir() if each.is_dir())
    env = clean_env(
        PYTHONPATH=f"{ROOT}:{CLIENTS}", PROVIDER_URL=served.url, PROVIDER_TOKEN=served.token, FASTMCP_TEST_MODE="1"
    )
    command = [python, "-m", "pytest", "-q", "-p", "fastmcp_code_mode", "-c", "/dev/null", "--rootdir", "."]
    command += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "--noconftest"]
    tests = [str(each) for each in root.glob("tests/experimental/transforms/test_code_mode*.py")]
    done = subprocess.run([*command, *tests], cwd=root, env=env, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_smolagents_with_our_executor(served: Served) -> None:
    python = python_with("smolagents==1.26.0", "pytest", *OURS)
    script = [str(CLIENTS / "smolagents_executor.py"), served.url, served.token]
    done = subprocess.run(
        [python, *script], capture_output=True, text=True, timeout=RUN_SECONDS, env=clean_env(PYTHONPATH=str(ROOT))
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("ok")
