"""Compare the outputs of two runs of a cell. Pure.

Compared are printed text, results, images, and the type and message of an error. Ignored are differences between runs
that mean nothing: execution counts, memory addresses, tracebacks, the order of stdout and stderr, the split of text
into messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Output = Mapping[str, Any]

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
#: Richest first. The first type that both outputs have is compared.
_MIMES = (
    "image/png",
    "image/jpeg",
    "image/svg+xml",
    "text/html",
    "text/latex",
    "text/markdown",
    "application/json",
    "text/plain",
)


def difference(before: Iterable[Output], now: Iterable[Output]) -> str | None:
    """Describe the first difference. Return None if there is none."""
    old, new = _digest(before), _digest(now)
    for name in ("stdout", "stderr"):
        if old[name] != new[name]:
            return f"{name}: {_first_line(old[name], new[name])}"
    if old["error"] != new["error"]:
        return f"error: {old['error'] or 'none'} before, {new['error'] or 'none'} now"
    if len(old["shown"]) != len(new["shown"]):
        return f"{len(old['shown'])} results and displays before, {len(new['shown'])} now"
    for old_data, new_data in zip(old["shown"], new["shown"], strict=True):
        if (found := _bundle_difference(old_data, new_data)) is not None:
            return found
    return None


def _digest(outputs: Iterable[Output]) -> dict[str, Any]:
    found: dict[str, Any] = {"stdout": "", "stderr": "", "error": "", "shown": []}
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":
            name = "stderr" if output.get("name") == "stderr" else "stdout"
            found[name] += _plain(output.get("text", ""))
        elif kind == "error":
            found["error"] = _plain(f"{output.get('ename')}: {output.get('evalue')}")
        elif kind in ("display_data", "execute_result"):
            data = output.get("data")
            found["shown"].append(data if isinstance(data, dict) else {})
    return found


def _plain(value: Any) -> str:
    text = "".join(map(str, value)) if isinstance(value, list) else str(value)
    return _ADDRESS.sub("0x…", _ANSI.sub("", text))


def _bundle_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    mime = next((mime for mime in _MIMES if mime in old and mime in new), None)
    if mime is None:
        return (
            None if set(old) == set(new) else f"{', '.join(old) or 'nothing'} before, {', '.join(new) or 'nothing'} now"
        )
    before, now = _plain(old[mime]), _plain(new[mime])
    if mime.startswith("image/"):
        return None if "".join(before.split()) == "".join(now.split()) else f"{mime}: another image"
    return None if before.rstrip() == now.rstrip() else f"{mime}: {_first_line(before, now)}"


def _first_line(before: str, now: str) -> str:
    old, new = before.splitlines(), now.splitlines()
    for number in range(max(len(old), len(new))):
        old_line = old[number] if number < len(old) else "nothing"
        new_line = new[number] if number < len(new) else "nothing"
        if old_line != new_line:
            return f"line {number + 1}: {_short(old_line)} before, {_short(new_line)} now"
    return "line ends differ"


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:59] + "…") if line != "nothing" else line
