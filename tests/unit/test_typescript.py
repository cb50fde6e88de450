"""The TypeScript client beside the Python client: the same methods, and generated types that are up to date."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from kernelsvc import __version__
from kernelsvc.client import AsyncClient, AsyncProgram, AsyncSession, AsyncStream

SOURCES = Path(__file__).parents[2] / "clients" / "typescript" / "src"
#: Methods that one language does not have, and why.
ONLY_PYTHON = {
    "tool": "a decorator",
    "save": "a browser has no files. Node writes what download returns",
    "next_batch": "an iterator of JavaScript has one method, next",
    "aclose": "in JavaScript it is return",
}
ONLY_TYPESCRIPT = {"next", "return", "nextBatch", "details"}


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def methods_of(kind: type) -> set[str]:
    return {
        name
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }


def methods_in(file: str, kind: str) -> set[str]:
    """The public methods and getters of a class in TypeScript. The formatter indents them by two spaces."""
    text = (SOURCES / file).read_text("utf-8")
    body = re.search(rf"export class {kind}\b.*?\n}}\n", text, re.DOTALL)
    assert body is not None
    found = re.findall(r"^  (?:async |get |override )*(\w+)(?:<[^>]*>)?\(", body[0], re.MULTILINE)
    return {name for name in found if name != "constructor"}


@pytest.mark.parametrize(
    ("kind", "file", "name"),
    [
        (AsyncClient, "client.ts", "Client"),
        (AsyncSession, "session.ts", "Session"),
        (AsyncProgram, "programs.ts", "Program"),
        (AsyncStream, "streams.ts", "Stream"),
    ],
)
def test_both_clients_have_the_same_methods(kind: type, file: str, name: str) -> None:
    python = {camel(method) for method in methods_of(kind) - set(ONLY_PYTHON)}
    # ``id`` is a property in Python and a field in JavaScript.
    assert methods_in(file, name) - ONLY_TYPESCRIPT == python - {"id"}


def test_the_package_has_no_dependency_and_exports_what_is_there() -> None:
    package = json.loads((SOURCES.parent / "package.json").read_text("utf-8"))
    assert "dependencies" not in package
    assert package["version"] == __version__
    for entry in package["exports"].values():
        for path in entry.values():
            source = re.sub(r"\.(d\.ts|js)$", ".ts", path.removeprefix("./dist/"))
            assert (SOURCES / source).is_file()
