"""Count where an object reaches through another one: into its private parts, its parts' parts, or its state.

    python scripts/reach_through.py kernelsvc/session kernelsvc/service
    python scripts/reach_through.py --at-most 40 ...    exit status 1 above this number
    python scripts/reach_through.py --list ...          also print each place

Three things are counted, in the given directories:

* **private**: ``other._name``, where ``other`` is not ``self``, ``cls``, ``super()``, an imported module or a class;
* **write**: an assignment to (or ``del`` of) an attribute of another object, ``other.name = value`` or
  ``self.other.name = value``. An object that the same function has just made is its own;
* **second level**: ``other.part.name``, where ``other`` is a live object and ``part`` its container or a live object.

A live object is one whose class is defined in the given directories, or which a class there makes or is given, and
which is no value (struct, dataclass, enum, named tuple). Types are read from annotations and from constructors, so an
object of unknown type is not counted in the third list: the count is a lower bound.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Bases and decorators of classes whose objects are values.
VALUES = {"Struct", "NamedTuple", "Enum", "IntEnum", "StrEnum", "TypedDict", "dataclass", "str", "int", "Exception"}
#: Annotations of containers: reaching into one that another object holds changes or copies that object's state.
CONTAINERS = {"dict", "list", "set", "deque", "defaultdict", "WeakKeyDictionary", "WeakValueDictionary", "WeakSet"}
#: Names in an annotation that say nothing of the object's own class.
WRAPPERS = {"Optional", "Final", "ClassVar", "Annotated"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Place:
    """One place that counts.

    Attributes:
        path: The file.
        line: Counted from 1.
        kind: ``private``, ``write`` or ``second level``.
        text: The expression.
    """

    path: str
    line: int
    kind: str
    text: str


@dataclass
class Class:
    """What is known of a class.

    Attributes:
        value: Whether its objects are values.
        types: Class names (or ``CONTAINERS``) of its attributes, properties and methods' results.
    """

    value: bool
    types: dict[str, str] = field(default_factory=dict)


def classes_of(trees: Sequence[ast.Module]) -> dict[str, Class]:
    """The classes that these modules define, by name."""
    found: dict[str, Class] = {}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        marks = {_last(base) for base in [*node.bases, *node.decorator_list]}
        found[node.name] = Class(bool(marks & VALUES))
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        found[node.name].types = dict(_attributes(node))
    return found


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, _named(item.annotation)
        if not isinstance(item, Function):
            continue
        if any(_last(one) in ("property", "cached_property") for one in item.decorator_list):
            yield item.name, _named(item.returns)
        given = _parameters(item)
        for inner in ast.walk(item):
            if isinstance(inner, ast.AnnAssign) and _own(inner.target):
                yield inner.target.attr, _named(inner.annotation)  # type: ignore[union-attr]
            elif isinstance(inner, ast.Assign):
                pairs = [pair for target in inner.targets for pair in _pairs(target, inner.value)]
                for target, value in pairs:
                    if _own(target) and (name := _made(value, given)):
                        yield target.attr, name  # type: ignore[attr-defined]


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _own(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _made(value: ast.expr, given: dict[str, str]) -> str:
    """The class of a value: of a parameter, or of what a constructor makes."""
    if isinstance(value, ast.Name):
        return given.get(value.id, "")
    if isinstance(value, ast.BoolOp):
        return next((name for one in value.values if (name := _made(one, given))), "")
    if isinstance(value, ast.Call) and _last(value.func)[:1].isupper():
        return _last(value.func)
    return ""


def _parameters(function: Function) -> dict[str, str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {one.arg: _named(one.annotation) for one in every if one.annotation}


def _named(annotation: ast.expr | None) -> str:
    """The first class that an annotation names: ``Kernel`` of ``Kernel | None``, ``dict`` of ``dict[str, int]``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _named(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return _named(annotation.left) or _named(annotation.right)
    if isinstance(annotation, ast.Subscript):
        name = _last(annotation.value)
        return _named(annotation.slice) if name in WRAPPERS else name
    if isinstance(annotation, ast.Name | ast.Attribute):
        return _last(annotation)
    return ""


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


class Counting(ast.NodeVisitor):
    """Finds the places of one module.

    Args:
        path: For the report.
        known: The classes of all modules.
        outside: Names that are modules or classes here.
    """

    def __init__(self, path: str, known: dict[str, Class], outside: set[str]) -> None:
        self.places: list[Place] = []
        self._path, self._known, self._outside = path, known, outside
        self._class = ""
        self._locals: list[dict[str, str]] = [{}]
        self._made: list[set[str]] = [set()]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Remember whose methods these are."""
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: Function) -> None:
        """Find the types of the function's names, then look into it."""
        simple = [
            (one.targets[0].id, one.value)
            for one in ast.walk(node)
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
        ]
        constructed = {name: made for name, value in simple if (made := _made(value, {}))}
        self._made.append(self._made[-1] | set(constructed))
        self._locals.append(self._locals[-1] | constructed | _parameters(node))
        for name, value in simple:
            if not self._locals[-1].get(name):
                self._locals[-1][name] = self._type(value)
        self.generic_visit(node)
        self._locals.pop()
        self._made.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the attribute if it counts."""
        of = node.value
        if not isinstance(node.ctx, ast.Load) and not self._mine(of):
            self._add(node, "write")
        elif node.attr.startswith("_") and not node.attr.endswith("__") and not self._familiar(of):
            self._add(node, "private")
        elif isinstance(of, ast.Attribute) and not self._familiar(of.value) and self._live(self._type(of.value)):
            part = self._type(of)
            if part in CONTAINERS or self._live(part):
                self._add(node, "second level")
        self.generic_visit(node)

    def _add(self, node: ast.Attribute, kind: str) -> None:
        self.places.append(Place(self._path, node.lineno, kind, ast.unparse(node)))

    def _familiar(self, node: ast.expr) -> bool:
        """Whether this is the object itself, a class or a module."""
        if isinstance(node, ast.Name):
            return node.id in ("self", "cls") or node.id in self._outside
        return isinstance(node, ast.Call) and _last(node.func) == "super"

    def _mine(self, node: ast.expr) -> bool:
        return self._familiar(node) or (isinstance(node, ast.Name) and node.id in self._made[-1])

    def _live(self, name: str) -> bool:
        return name in self._known and not self._known[name].value

    def _type(self, node: ast.expr) -> str:
        """The class name of an expression, empty if it isn't known."""
        if isinstance(node, ast.Name):
            return self._class if node.id == "self" else self._locals[-1].get(node.id, "")
        if isinstance(node, ast.Attribute):
            of = self._known.get(self._type(node.value))
            return of.types.get(node.attr, "") if of else ""
        return ""


def places_of(directories: Sequence[Path], context: Sequence[Path] = ()) -> list[Place]:
    """Every place that counts.

    Args:
        directories: Searched.
        context: Directories whose classes are known besides.
    """
    files = sorted(path for directory in directories for path in directory.rglob("*.py"))
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files}
    more = [ast.parse(path.read_text("utf-8")) for directory in context for path in sorted(directory.rglob("*.py"))]
    known = classes_of([*more, *trees.values()])
    found: list[Place] = []
    for path, tree in trees.items():
        outside = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree)
                   if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip
        outside |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        counting = Counting(str(path), known, outside)
        counting.visit(tree)
        found += counting.places
    return sorted(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts; the exit status is 1 if there are more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--context", nargs="*", type=Path, default=[], help="directories whose classes are known too")
    parser.add_argument("--at-most", type=int, default=0, help="places that are allowed")
    parser.add_argument("--list", action="store_true", help="print each place")
    options = parser.parse_args(arguments)
    places = places_of(options.directories, options.context)
    over = len(places) > options.at_most
    if options.list or over:
        for place in places:
            print(f"{place.path}:{place.line}: {place.kind}: {place.text}")
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(place.kind for place in places).items()))
    print(f"{len(places)} places reach through another object, {options.at_most} are allowed ({kinds or 'none'})")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
