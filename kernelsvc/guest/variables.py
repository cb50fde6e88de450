"""Describe the variables of the namespace without running user code.

No ``__repr__``, no ``__len__`` and no property of an unknown class is called. Known classes are the builtin types and,
if they are imported, those of numpy and pandas. Only exact types count, since a subclass may redefine any method. They
are compared by identity: ``==`` and ``in`` call methods of a class's metaclass.
"""

from __future__ import annotations

import reprlib
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

MAX_SUMMARY = 200
MAX_VARIABLES = 1000
MAX_NAME = 200

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


class Types:
    """A set of classes, which are compared by identity.

    Args:
        kinds: The classes.
    """

    def __init__(self, *kinds: type) -> None:
        self.kinds = kinds
        self._ids = frozenset(map(id, kinds))

    def __contains__(self, kind: type) -> bool:
        return id(kind) in self._ids


_SCALARS = Types(int, float, complex, bool, type(None), range, str, bytes)
_SIZED = Types(list, tuple, dict, set, frozenset, deque, OrderedDict)


def describe(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, type, summary and size in bytes of each variable that the user created.

    Args:
        namespace: The user's globals.
        hidden: Names that exist before user code runs (``In``, ``exit``, ...), and their values.
    """
    found: list[dict[str, Any]] = []
    for name, value in list(namespace.items()):
        if type(name) is not str or name.startswith("_") or hidden.get(name, found) is value:
            continue
        if type(value) is types.ModuleType:
            continue
        found.append(
            {
                "name": name[:MAX_NAME],
                "type": type_name(value),
                "summary": summary(value)[:MAX_SUMMARY],
                "size_bytes": size(value),
            }
        )
        if len(found) == MAX_VARIABLES:
            break
    return found


def type_name(value: object) -> str:
    """Return the name of the type, with its module unless that is ``builtins`` or ``__main__``."""
    return _name_of(type(value))


def _name_of(kind: type) -> str:
    module, name = module_of(kind), type.__dict__["__qualname__"].__get__(kind)
    plain = module in ("builtins", "__main__", "")
    return str(name)[:MAX_SUMMARY] if plain else f"{module.split('.')[0]}.{name}"[:MAX_SUMMARY]


def module_of(kind: type) -> str:
    """Return the module of a class without calling its metaclass."""
    try:
        found = type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        found = ""
    return found if type(found) is str else ""


def summary(value: Any) -> str:
    """Return one line about a value."""
    kind = type(value)
    if kind in _SCALARS:
        return _scalar(value)
    if kind in _SIZED:
        return f"{len(value)} items"
    known = _numpy(value, kind) or _pandas(value, kind)
    if known:
        return known
    if kind is types.FunctionType:
        return f"def {value.__code__.co_name}(...)"
    if issubclass(kind, type):
        return "class"
    return ""


def _scalar(value: Any) -> str:
    if type(value) is int and value.bit_length() > 4096:
        return f"int of {value.bit_length()} bits"
    if type(value) is str and len(value) > 80:
        return f"{value[:70]!r}... {len(value)} characters"
    return _short.repr(value)


def member(module: str, name: str) -> Any:
    """Return what an imported library has under a name, or None. An object of the user in its place is not asked."""
    found = sys.modules.get(module)
    # A module may have a ``__getattr__`` (PEP 562), which its dictionary does not call.
    return vars(found).get(name) if type(found) is types.ModuleType else None


def of_library(kind: type, *libraries: str) -> bool:
    """Return whether a class is one of these libraries, under its own name. Not for classes inside of others."""
    module = module_of(kind)
    return module.partition(".")[0] in libraries and member(module, type.__dict__["__name__"].__get__(kind)) is kind


def foreign_array(table: Any) -> str | None:
    """Return the type of an array in a data frame or series of pandas that is not pandas' or numpy's own, or None.

    An extension array has the methods of its class, which pandas calls for everything.
    """
    kinds = map(type, _arrays(table))
    return next((_name_of(kind) for kind in kinds if not of_library(kind, "numpy", "pandas")), None)


def _arrays(table: Any) -> list[Any]:
    """Return the arrays of a data frame or series. pandas' methods would copy its attributes, which are the user's."""
    arrays = [block.values for block in table._mgr.blocks]
    for axis in table.axes:
        levels = axis.levels if type(axis) is member("pandas", "MultiIndex") else [axis]
        arrays += [data for level in levels if (data := vars(level).get("_data")) is not None]
    return arrays


def _numpy(value: Any, kind: type) -> str | None:
    if kind is member("numpy", "ndarray"):
        return f"shape {value.shape}, {value.dtype.name}"
    if is_numpy_scalar(kind) and kind is not member("numpy", "void"):
        return str(_short.repr(value.item()))
    return None


def is_numpy_scalar(kind: type) -> bool:
    """Return whether a class is one of numpy's own for single values."""
    return of_library(kind, "numpy") and issubclass(kind, member("numpy", "generic"))


def _pandas(value: Any, kind: type) -> str | None:
    frame, series = member("pandas", "DataFrame"), member("pandas", "Series")
    if frame is None or (kind is not frame and kind is not series):
        return None
    if (foreign := foreign_array(value)) is not None:
        return f"values of the type {foreign}"
    if kind is series:
        return f"{value.shape[0]} values, {value.dtype}"
    text = f"{value.shape[0]} rows x {value.shape[1]} columns"
    if type(value.columns) not in Types(member("pandas", "Index"), member("pandas", "RangeIndex")):
        return text  # Labels that are points in time would be made with a time zone that may be the user's.
    names = ", ".join(_short.repr(c) if type(c) is str else type_name(c) for c in list(value.columns[:8]))
    return f"{text}: {names}{', ...' if value.shape[1] > 8 else ''}"


def size(value: Any) -> int | None:
    """Return the bytes of the object itself without those it refers to, or None if that would run user code."""
    kind = type(value)
    if kind is member("numpy", "ndarray"):
        return int(value.nbytes)
    frame, series = member("pandas", "DataFrame"), member("pandas", "Series")
    if frame is not None and (kind is frame or kind is series):
        if foreign_array(value) is not None:
            return None
        return sum(int(each.nbytes) for each in _arrays(value))
    if module_of(kind) == "builtins":
        return sys.getsizeof(value)
    return None if "__sizeof__" in type.__dict__["__dict__"].__get__(kind) else object.__sizeof__(value)
