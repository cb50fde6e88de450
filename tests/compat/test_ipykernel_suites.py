"""ipykernel's own tests and jupyter_kernel_test, against kernels that ``kernelsvc-fork`` starts.

ipykernel's tests are in its source distribution only. Tests of features that forked kernels refuse are left out, each
with the reason.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import INSTALL_SECONDS, clean_env, python_with
from user_hosts import end, hosts

ROOT = Path(__file__).parents[2]
RUN_SECONDS = 400
RELEASE = "7.4.0"
SUITES = (
    "jupyter_kernel_test==0.7.0",
    f"ipykernel=={RELEASE}",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "flaky",
    "hatchling",
    "ipyparallel",
    "--editable",
    str(ROOT),
)
#: Tests that are not run, by the reason.
REFUSED = {
    "test_subshell": "there are no subshells (docs/adr/0015)",
    "test_kernel_info_request": "it wants subshells among the supported features",
    "test_sequential_control_messages": "a reply's date is the time at which it is passed on, about 1 ms late",
    "test_sys_path_profile_dir": "it needs a profile of IPython on the machine",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS + 60)]


@pytest.fixture
def environment(tmp_path: Path, short_tmp: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """An interpreter, and an environment in which ``python3`` is a kernelspec of ``kernelsvc-fork``."""
    python, runtime = python_with(*SUITES), short_tmp / "xdg"
    runtime.mkdir(mode=0o700, exist_ok=True)
    install = [python, "-m", "kernelsvc", "install-kernelspec", "--name", "python3", "--preload", "--prefix"]
    subprocess.run([*install, tmp_path], check=True, env=clean_env(), timeout=60, capture_output=True)
    more = {"JUPYTER_PATH": str(tmp_path / "share" / "jupyter"), "XDG_RUNTIME_DIR": str(runtime)}
    try:
        yield python, clean_env(**more)
    finally:
        end(hosts(runtime))


def source(python: Path, into: Path, name: str) -> Path:
    """The unpacked source distribution of the installed release; skips the test where it can't be had."""
    release = f"{name}=={RELEASE if name == 'ipykernel' else '0.7.0'}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-q", "-d", str(into)]
    done = subprocess.run([python, "-m", "pip", "download", *options, release], capture_output=True, text=True)
    found = list(into.glob("*.tar.gz"))
    if not found:
        pytest.skip(f"{release} can't be downloaded here: {done.stderr[-200:]}")
    subprocess.run([sys.executable, "-m", "tarfile", "-e", str(found[0]), str(into)], check=True)
    return next(each for each in into.iterdir() if each.is_dir())


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("ipykernel", ["tests/test_message_spec.py", "tests/test_debugger.py", "tests/test_async.py"]),
        ("ipykernel", ["tests/test_kernel.py"]),
        ("jupyter_kernel_test", ["test_ipykernel.py"]),
    ],
)
def test_a_foreign_suite(
    environment: tuple[Path, dict[str, str]], tmp_path: Path, package: str, files: list[str]
) -> None:
    python, env = environment
    (tmp_path / "source").mkdir()
    root = source(python, tmp_path / "source", package)
    command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-o", "asyncio_default_fixture_loop_scope=function"]
    command += ["-p", "no:cacheprovider", "--timeout", "60", "-k", " and ".join(f"not {name}" for name in REFUSED)]
    done = subprocess.run([*command, *files], cwd=root, env=env, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
