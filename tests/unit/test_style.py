"""The habits that a linter doesn't know: sizes, names, a test for each module, closed unions."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernelsvc"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
MAX_LINES = 800
#: Names that say nothing, and so gather everything.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_not_too_long(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines; what in it is a thing of its own?"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_a_name_that_says_something_and_a_docstring(path: Path) -> None:
    assert path.stem not in EMPTY_NAMES
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


def test_functions_are_short() -> None:
    bodies = sorted(
        node.end_lineno - node.body[0].lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert statistics.median(bodies) <= 8
    assert bodies[int(len(bodies) * 0.95)] <= 45


def importers() -> dict[str, set[Path]]:
    """Which test files import which module of ours."""
    found: dict[str, set[Path]] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                found.setdefault(name, set()).add(path)
    return found


#: Modules that only make sense inside a process of their own, and the test that runs that process.
TESTED_FROM_OUTSIDE: dict[str, str] = {}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=name_of)
def test_a_module_has_a_test(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    module = ".".join(["kernelsvc", *relative.parts])
    mirrored = [
        ROOT / "tests" / "unit" / relative.parent / f"test_{path.stem}.py",
        ROOT / "tests" / "integration" / f"test_{path.stem}.py",
        ROOT / "tests" / "integration" / f"test_{'_'.join(relative.parts)}.py",
    ]
    if module in TESTED_FROM_OUTSIDE:
        mirrored.append(ROOT / TESTED_FROM_OUTSIDE[module])
    if not any(test.exists() for test in mirrored) and not importers().get(module):
        pytest.xfail(f"{module} has no test of its own yet")
