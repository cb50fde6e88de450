"""Find the private names of a library that a package of kernelsvc uses, by reading the sources of both.

A name is private if it begins with one underscore. Two kinds of use are found:

* A class that inherits from the library reads, sets or overrides a name of its base (``self._x``, ``def _x``).
* Other code names it (``stream._x``, ``getattr(stream, "_x")``, ``from library import _x``), and kernelsvc's package
  defines no such name itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

PRIVATE = re.compile(r"_[a-zA-Z0-9]\w*")
DEFINITION = re.compile(
    r"\b(?:def|class) (?P<name>_[a-zA-Z0-9]\w*)|(?:self\.|cls\.|^ *)(?P<set>_[a-zA-Z0-9]\w*)(?:: [^=\n]*)? ?=(?!=)",
    re.M,
)
Use = tuple[str, str]  # owner, name


def modules_of(package: str) -> Iterator[ModuleType]:
    """Import a package and all modules in it."""
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)


def library_names(library: str) -> frozenset[str]:
    """The private names that an installed library defines, by the text of its modules. Its tests are left out."""
    paths = Path(*importlib.import_module(library).__path__).rglob("*.py")
    return frozenset(
        match["name"] or match["set"]
        for path in paths
        if not {"test", "tests", "testing"} & set(path.parts)
        for match in DEFINITION.finditer(path.read_text("utf-8"))
    )


def defined_in(tree: ast.AST) -> frozenset[str]:
    """The private names that this code defines: functions, classes, variables, attributes of ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
    return frozenset(filter(PRIVATE.fullmatch, found))


@cache
def names_of(owner: Any) -> frozenset[str]:
    """The private names of a module, or of a class without its bases."""
    names = set(vars(owner))
    if inspect.isclass(owner):
        names |= defined_in(ast.parse(textwrap.dedent(inspect.getsource(owner))))
    return frozenset(filter(PRIVATE.fullmatch, names))


def path_of(owner: type) -> str:
    return f"{owner.__module__}.{owner.__qualname__}"


def resolve(path: str) -> Any:
    """A module or a class by its dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def missing(table: set[Use]) -> set[Use]:
    """The entries of a table whose owner does not have the name."""
    return {(owner, name) for owner, name in table if name not in names_of(resolve(owner))}


def _is_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_by_name(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in ("getattr", "setattr", "hasattr")


def _named(tree: ast.AST, of_self: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_self(node.value) == of_self:
            yield node.attr
        elif not of_self and isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and _is_by_name(node.func) and len(node.args) > 1:
            named = node.args[1]
            if isinstance(named, ast.Constant) and _is_self(node.args[0]) == of_self:
                yield str(named.value)


def inherited(package: str, library: str) -> set[Use]:
    """The private names of its bases in ``library`` that each class of ``package`` uses."""
    found = set()
    for module in modules_of(package):
        source = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        classes = {node.name: node for node in ast.walk(source) if isinstance(node, ast.ClassDef)}
        for name, own in vars(module).items():
            if not inspect.isclass(own) or own.__module__ != module.__name__:
                continue
            bases = [base for base in own.__mro__ if base.__module__.partition(".")[0] == library]
            if not bases or name not in classes:
                continue
            tree = classes[name]
            for used in {*_named(tree, of_self=True), *defined_in(tree)}:
                owner = next((base for base in bases if PRIVATE.fullmatch(used) and used in names_of(base)), None)
                if owner is not None:
                    found.add((path_of(owner), used))
    return found


def elsewhere(package: str, library: str) -> set[str]:
    """The private names of ``library`` that ``package`` uses on other objects than ``self``."""
    trees = [ast.parse(Path(str(module.__file__)).read_text("utf-8")) for module in modules_of(package)]
    own = frozenset().union(*map(defined_in, trees))
    named = {name for tree in trees for name in _named(tree, of_self=False)}
    return {name for name in named if PRIVATE.fullmatch(name)} & library_names(library) - own
