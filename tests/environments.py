"""Virtual environments for foreign packages: made once for each set of packages, kept between runs, outside the tree.

``KERNELSVC_TEST_CACHE`` says where they lie; ``KERNELSVC_NEWEST=1`` takes the newest release of
each package in place of the pinned one (a run that asks whether a client has moved away from us).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from platformdirs import user_cache_path

#: For one set of packages, downloads included. The largest have 150 packages.
INSTALL_SECONDS = 600
#: How long the newest releases are taken to be the newest.
NEW_SECONDS = 3600


def python_with(*packages: str, system: str | None = None, alone: Sequence[str] = ()) -> Path:
    """The interpreter of an environment with these packages; skips the test where they can't be had.

    Args:
        packages: as pip takes them, pinned to the release that the docs name. The first gives the place its name.
        system: the machine's own interpreter, whose modules the environment is to see too; None for ours, and none.
        alone: more packages, without those that they depend on.
    """
    wanted = [_unpinned(each) if newest() else each for each in packages]
    single = [_unpinned(each) if newest() else each for each in alone]
    place = _place(packages[0], [*wanted, *single, *([system] if system else [])])
    with _made_once(place) as there:
        if not there:
            seeing = ["--system-site-packages"] if system else []
            command = [system or sys.executable, "-m", "venv", *seeing, str(place)]
            _install(packages[0], command, place)
            _install_packages(place, *wanted)
            if single:
                _install_packages(place, "--no-deps", *single)
    return place / "bin" / "python"


def node_with(*packages: str) -> Path:
    """A directory whose ``node_modules`` has these packages of npm; skips the test where they can't be had."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs node and npm (Debian: apt-get install nodejs npm)")
    wanted = [_unpinned(each) if newest() else each for each in packages]
    place = _place(f"node-{packages[0]}", wanted)
    with _made_once(place) as there:
        if not there:
            place.mkdir(parents=True)
            (place / "package.json").write_text('{"private": true}')
            _install(packages[0], ["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted], place)
    return place


def node_present(*packages: str) -> Path | None:
    """The directory of ``node_with`` if an earlier run has made it."""
    place = _place(f"node-{packages[0]}", packages)
    return place if (place / ".ready").exists() else None


def newest() -> bool:
    """Whether this run takes the newest releases and not those that the docs name."""
    return os.environ.get("KERNELSVC_NEWEST") == "1"


def clean_env(**more: str) -> dict[str, str]:
    """An environment for a foreign program: nothing that points it or its Python somewhere else."""
    mine = ("JUPYTER_", "PYTHON", "KERNELSVC_", "E2B_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)} | more


def _install_packages(place: Path, *wanted: str) -> None:
    """Install with uv, which ``scripts/bootstrap`` has fetched and which downloads side by side, or else with pip."""
    uv = Path(sys.prefix) / ".uv" / "bin" / "uv"
    if uv.exists():
        # Without a cache: it would share files with the environment. It does not know an index that pip is set up for.
        command = [str(uv), "pip", "install", "--quiet", "--no-cache", "--python", str(place / "bin" / "python")]
        with suppress(subprocess.SubprocessError):
            subprocess.run([*command, *wanted], check=True, capture_output=True, timeout=INSTALL_SECONDS)
            return
    quietly = ("-q", "--no-input", "--disable-pip-version-check")
    _install(wanted[-1], [str(place / "bin" / "pip"), "install", *quietly, *wanted], place)


def _unpinned(package: str) -> str:
    """``name[extra]==1.2`` and ``@scope/name@1.2`` without the release."""
    name = package.partition("==")[0]
    return name if "@" not in name[1:] else name[0] + name[1:].partition("@")[0]


def _place(first: str, wanted: Sequence[str]) -> Path:
    cache = os.environ.get("KERNELSVC_TEST_CACHE")
    name = "".join(letter if letter.isalnum() else "-" for letter in _unpinned(first)).strip("-")
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:8]
    return (Path(cache) if cache else user_cache_path("kernelsvc-tests")) / f"{name}-{digest}"


@contextmanager
def _made_once(place: Path) -> Iterator[bool]:
    """Whether it is there already; one at a time makes it, and what was left half-made is made anew."""
    place.parent.mkdir(parents=True, exist_ok=True)
    ready = place / ".ready"
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = ready.exists() and (not newest() or time.time() - ready.stat().st_mtime < NEW_SECONDS)
        if not there:
            shutil.rmtree(place, ignore_errors=True)
        yield there
        ready.touch()


def _install(what: str, command: Sequence[str], place: Path) -> None:
    """Run this; skips the test if it fails, as it does with no network."""
    where = place if place.is_dir() else None
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{what} can't be installed here: not within {INSTALL_SECONDS} s")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-200:]
        pytest.skip(f"{what} can't be installed here: {said}")
