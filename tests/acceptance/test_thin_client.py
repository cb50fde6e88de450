"""The distribution of the client alone: it builds, it holds all that it imports, and it runs a cell."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from served import Served

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1]]
import kernelsvc
assert kernelsvc.__file__.startswith(sys.argv[1]), kernelsvc.__file__
with kernelsvc.Client() as client, client.create_session() as session:
    print(session.run("6 * 7").text)
    print(len(session.notebook()) > 100)
try:
    kernelsvc.Client().session("s_0")
except kernelsvc.NotFound as error:
    print(error.code)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "IPython", "zmq", "mcp", "nbformat"}))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("client")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(build, cwd=ROOT / "clients" / "python", check=True, capture_output=True, timeout=60)
    (wheel,) = target.glob("*.whl")
    assert wheel.stat().st_size < 260_000
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "packages")
    return target / "packages"


def test_it_holds_all_that_it_imports_and_works(unpacked: Path, served: Served) -> None:
    env = served.client_env
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(unpacked)], env=env, capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert done.stdout.split() == ["42", "True", "not_found"], done.stderr
