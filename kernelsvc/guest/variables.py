"""Describe the variables of the namespace without running user code.

No ``__repr__``, no ``__len__`` and no property of an unknown class is called. Known classes are the builtin types and,
if they are imported, those of numpy and pandas. Only exact types count, since a subclass may redefine any method.
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
_SCALARS = (int, float, complex, bool, type(None), range)
_SIZED = (list, tuple, dict, set, frozenset, deque, OrderedDict)


def describe(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, type, summary and size in bytes of each variable that the user created.

    Args:
        namespace: The user's globals.
        hidden: Names that exist before user code runs (``In``, ``exit``, ...), and their values.
    """
    found: list[dict[str, Any]] = []
    for name, value in list(namespace.items()):
        if not isinstance(name, str) or name.startswith("_") or hidden.get(name, found) is value:
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
    kind = type(value)
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
    if kind in _SCALARS or kind in (str, bytes):
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


def _numpy(value: Any, kind: type) -> str | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if kind is getattr(numpy, "ndarray", None):
        return f"shape {value.shape}, {value.dtype.name}"
    if module_of(kind) == "numpy" and issubclass(kind, numpy.generic) and not issubclass(kind, numpy.void):
        return str(_short.repr(value.item()))
    return None


def _pandas(value: Any, kind: type) -> str | None:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    if kind is getattr(pandas, "DataFrame", None):
        names = ", ".join(_short.repr(c) if type(c) is str else type(c).__name__ for c in list(value.columns)[:8])
        more = ", ..." if value.shape[1] > 8 else ""
        return f"{value.shape[0]} rows x {value.shape[1]} columns: {names}{more}"
    if kind is getattr(pandas, "Series", None):
        return f"{value.shape[0]} values, {value.dtype}"
    return None


def size(value: Any) -> int | None:
    """Return the bytes of the object itself without those it refers to, or None if that would run user code."""
    kind = type(value)
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and kind is getattr(numpy, "ndarray", None):
        return int(value.nbytes)
    if pandas is not None and kind in (getattr(pandas, "DataFrame", None), getattr(pandas, "Series", None)):
        used = value.memory_usage(deep=False)
        return int(used if kind is pandas.Series else used.sum())
    if module_of(kind) == "builtins":
        return sys.getsizeof(value)
    return None if "__sizeof__" in type.__dict__["__dict__"].__get__(kind) else object.__sizeof__(value)
