"""The matrix's rows with libraries that are no dependency of ours: from a registry, in an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import environments
import pytest
from served import Served, serving

from kernelsvc import AsyncClient
from matrix.check import check
from matrix.rows import ROWS, Row

pytestmark = pytest.mark.timeout(environments.INSTALL_SECONDS + 180)

KERNEL = ("ipykernel>=7,<8", "numpy", "pandas", "matplotlib", "cloudpickle")
FOREIGN = [row for row in ROWS if row.packages]
DEBIAN = [row for row in ROWS if row.debian]
#: Debian's own Python, which alone sees Debian's modules.
SYSTEM = "/usr/bin/python3"


def serving_with(root: Path, python: Path, preload: list[str]) -> Iterator[Served]:
    templates = {"matrix": {"python": str(python), "preload": preload}}
    env = {"KERNELSVC_TEMPLATES": json.dumps(templates), "KERNELSVC_DEFAULT_TEMPLATE": "matrix"}
    with serving(root, env=env) as instance:
        yield instance


@pytest.fixture(scope="module")
def libraries(short_tmp: Path) -> Iterator[Served]:
    packages = dict.fromkeys(package for row in FOREIGN for package in row.packages)
    python = environments.python_with(*packages, *KERNEL)
    yield from serving_with(short_tmp / "matrix", python, ["numpy", "pandas"])


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: row.what)
async def test_a_row(libraries: Served, row: Row) -> None:
    async with AsyncClient(libraries.url, libraries.token) as client:
        await check(client, "matrix", row)


@pytest.fixture(scope="module", params=DEBIAN, ids=lambda row: row.what)
def debian(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[tuple[Served, Row]]:
    """Debian's build where PyPI's is several gigabytes, in an environment that sees the system's modules."""
    row: Row = request.param
    module = row.debian.removeprefix("python3-")
    version = f"import sys, {module}; assert sys.version_info[:2] == ({sys.version_info[0]}, {sys.version_info[1]})"
    if not Path(SYSTEM).exists() or subprocess.run([SYSTEM, "-c", version], capture_output=True).returncode:
        pytest.skip(f"needs Debian's {row.debian} for this Python (apt-get install {row.debian})")
    python = environments.python_with("ipykernel>=7,<8", "numpy<2", "cloudpickle", system=SYSTEM)
    for served in serving_with(short_tmp / module, python, ["numpy"]):
        yield served, row


async def test_a_row_from_debian(debian: tuple[Served, Row]) -> None:
    served, row = debian
    async with AsyncClient(served.url, served.token) as client:
        await check(client, "matrix", row)
