"""The values of the variables in the part of a line that failed, without running user code."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Mapping
from typing import Any

from kernelsvc.guest import variables

#: Most variables, and most characters of each value.
MAX_NAMES, MAX_VALUE = 4, 80
#: Most items of a collection that are written out.
_MAX_ITEMS = 8
_SECRET = re.compile("key|token|secret|passw|credential", re.IGNORECASE)
_ATOMS = variables.Types(int, float, complex, bool, type(None), str, bytes)
_COLLECTIONS = variables.Types(list, tuple, dict, set)
#: Values whose kind the code shows already.
_CODE = variables.Types(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def names_in(part: str) -> list[str]:
    """Return the variables that a piece of code reads, in their order."""
    tree: ast.AST | None = None
    for text in (part, f"{part} pass" if part.endswith(":") else "", part.removeprefix("return ")):
        try:
            tree = ast.parse(text.strip()) if text else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
        if tree is not None:
            break
    nodes = ast.walk(tree) if tree is not None else ()
    found = [each for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)]
    found.sort(key=lambda each: (each.lineno, each.col_offset))
    return list(dict.fromkeys(each.id for each in found))


def values(part: str, frame: types.FrameType) -> str:
    """Return ``name = value`` for the variables in a piece of code, or "".

    Args:
        part: source code.
        frame: where it ran.
    """
    found: list[str] = []
    spaces = (frame.f_locals, frame.f_globals)
    for name in names_in(part):
        for space in spaces:
            if name in space:
                shown = shown_value(name, space[name])
                found += [f"{name} = {shown}"] if shown else []
                break
        if len(found) == MAX_NAMES:
            break
    return ", ".join(found)


def shown_value(name: str, value: Any) -> str:
    """Return a short text of a value, ``***`` if its name is one of a secret, or "" if it says nothing."""
    kind = type(value)
    if kind in _CODE or issubclass(kind, type):
        return ""
    if _SECRET.search(name):
        return "***"
    text = _collection(value) if kind in _COLLECTIONS else None
    if text is None:
        text = variables.summary(value)
        if kind not in _ATOMS:
            text = f"{variables.type_name(value)} {text}".rstrip()
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def _collection(value: Any) -> str | None:
    """Return a small collection of plain values, or None."""
    if not value or len(value) > _MAX_ITEMS:
        return "[]" if type(value) is list and not value else None
    if type(value) is dict:
        if not all(type(key) in _ATOMS for key in value):
            return None
        pairs: Mapping[Any, Any] = value
        shown = [f"{key!r}: {_item(each, str(key))}" for key, each in pairs.items()]
        return "{" + ", ".join(shown) + "}"
    kind = type(value)
    opening, closing = ("[", "]") if kind is list else ("(", ")") if kind is tuple else ("{", "}")
    return opening + ", ".join(_item(each) for each in value) + closing


def _item(value: Any, name: str = "") -> str:
    if _SECRET.search(name):
        return "***"
    if type(value) in _ATOMS:
        return variables.summary(value)
    return f"{variables.type_name(value)} {variables.summary(value)}".rstrip()
