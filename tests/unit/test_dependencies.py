"""What the package imports is declared, what is declared is used, and what is installed any Python of ours can have."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Declared for the sake of the code that runs in sessions.
FOR_CELLS = {"numpy", "pandas", "matplotlib"}
#: Imported from a declared package that is made of them, and released with it.
COMES_WITH = {
    "ipython": "ipykernel",
    "traitlets": "ipykernel",
    "comm": "ipykernel",
    "jupyter-core": "jupyter-client",
    "mcp-types": "mcp",
    "httpx2": "mcp",
    "protobuf": "opentelemetry-proto",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    return {canonical(re.match(r"[\w.-]+", text)[0]) for text in PROJECT["dependencies"]}


def extras() -> set[str]:
    """Packages that only those who ask for an extra install."""
    groups = PROJECT["optional-dependencies"]
    return {canonical(re.match(r"[\w.-]+", text)[0]) for name in groups if name != "dev" for text in groups[name]}


@functools.cache
def imported() -> dict[str, set[str]]:
    """Distribution to the modules of ours that import it."""
    owners = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in (ROOT / "kernelsvc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"kernelsvc"}:
                for owner in owners.get(top, [top])[:1]:
                    found.setdefault(canonical(owner), set()).add(str(path.relative_to(ROOT)))
    return found


def test_what_is_imported_is_declared() -> None:
    known = declared() | extras()
    undeclared = {name: sorted(users) for name, users in imported().items() if COMES_WITH.get(name, name) not in known}
    assert not undeclared


def test_what_is_declared_is_imported() -> None:
    assert declared() - FOR_CELLS <= set(imported())


def test_every_declared_package_is_held_to_a_version_in_a_fresh_clone() -> None:
    lines = (ROOT / "requirements" / "constraints.txt").read_text("utf-8").splitlines()
    constrained = {canonical(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert declared() | {canonical(re.match(r"[\w.-]+", text)[0]) for text in dev()} <= constrained


def dev() -> list[str]:
    return list(PROJECT["optional-dependencies"]["dev"])


def test_the_first_release_of_the_oldest_python_can_have_every_pinned_package() -> None:
    """Debian 12 has 3.11.2; a package that wants 3.11.5 can't be installed there, and so can't we."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/constraints.txt").read_text("utf-8"), re.MULTILINE)
    wanted = {name: _wants(name, version) for name, version in pinned}
    assert len([wants for wants in wanted.values() if wants]) > 50
    assert not {name: wants for name, wants in wanted.items() if not SpecifierSet(wants).contains(oldest)}


def _wants(name: str, version: str) -> str:
    """Which Pythons an installed release wants; nothing if another release is installed."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return ""
    return ",".join(about.get_all("Requires-Python") or ()) if about["Version"] == version else ""
