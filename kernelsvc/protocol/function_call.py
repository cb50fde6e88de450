"""A function call as a cell, and its value. Pure.

``POST /v1/execute`` takes a function's source with JSON arguments. The cell that
runs it is ordinary code and is logged like any other cell.
"""

from __future__ import annotations

import json
from typing import Any

from kernelsvc.model.objects import CellInfo

#: MIME type under which the cell publishes the function's value.
VALUE_MIME = "application/vnd.kernelsvc.value+json"

_CELL = """\
import ast as _ast, json as _json, linecache as _lines
from IPython.display import publish_display_data as _publish
_kernelsvc_call = _json.loads({payload!r})
_source = _kernelsvc_call["function"].strip()
_lines.cache["<function>"] = (len(_source), None, _source.splitlines(keepends=True), "<function>")
_tree = _ast.parse(_source, "<function>")
_last = _tree.body.pop() if _tree.body else None
if isinstance(_last, _ast.Expr):
    exec(compile(_tree, "<function>", "exec"), globals())
    _function = eval(compile(_ast.Expression(_last.value), "<function>", "eval"), globals())
elif isinstance(_last, (_ast.FunctionDef, _ast.AsyncFunctionDef)):
    _tree.body.append(_last)
    exec(compile(_tree, "<function>", "exec"), globals())
    _function = globals()[_last.name]
else:
    raise TypeError("give a lambda, a def, or an expression that is callable")
_value = _function(*_kernelsvc_call["args"], **_kernelsvc_call["kwargs"])
if hasattr(_value, "__await__"):
    _value = await _value
def _plain(v):
    for name in ("tolist", "to_dict", "item", "isoformat"):
        if hasattr(v, name):
            return getattr(v, name)()
    if isinstance(v, (set, frozenset)):
        return sorted(v)
    kind = type(v).__name__
    raise TypeError(f"the function returned a {{kind}}, which JSON can't hold; return numbers, text, lists or dicts")
_value = _json.loads(_json.dumps(_value, default=_plain, allow_nan=False))
_publish({{{mime!r}: {{"value": _value}}}})
"""


def function_cell(source: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Return the code of a cell that calls ``source`` with these JSON arguments."""
    payload = json.dumps({"function": source, "args": args, "kwargs": kwargs})
    return _CELL.format(payload=payload, mime=VALUE_MIME)


def value_of(cell: CellInfo) -> Any:
    """Return the value that a ``function_cell`` published. None if it published none."""
    for output in reversed(cell.outputs):
        data = output.get("data")
        found = data.get(VALUE_MIME) if isinstance(data, dict) else None
        if isinstance(found, dict):
            return found.get("value")
    return None
