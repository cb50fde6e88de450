"""A copy of the TypeScript client with everything that builds and runs it, from npm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import clean_env

from clients import suite

Run = Callable[..., str]
RUN_SECONDS = 180


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, with ``node_modules`` beside them. Nothing is written into the clone."""
    modules = suite.modules()
    place = tmp_path_factory.mktemp("typescript") / "client"
    shutil.copytree(suite.TYPESCRIPT, place, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (place / "node_modules").symlink_to(modules)
    return place


@pytest.fixture(scope="session")
def run(checkout: Path) -> Run:
    """Run a program in the checkout, and return its output. ``tsc`` and ``node`` are those of npm."""
    names = {"node": suite.node_24()[0], "tsc": str(checkout / "node_modules" / ".bin" / "tsc")}

    def run(program: str, *arguments: object, **env: str) -> str:
        command = [names.get(program, program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=checkout, env=clean_env(**env), capture_output=True, text=True, timeout=RUN_SECONDS
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def built(checkout: Path, run: Run) -> Path:
    """The checkout, with ``dist``."""
    run("tsc", "--project", "tsconfig.build.json")
    return checkout
