"""Parse cells from files: Python with ``# %%`` lines, a notebook or a journal. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model.notebook import fold

_JOURNAL = '{"type":"'
_MARK = re.compile(r"^# ?%%.*$", re.MULTILINE)


def cells_of(text: str, name: str) -> list[str]:
    """Return the code cells of a file, without empty ones.

    Raises:
        BadRequest: a file named ``.ipynb`` is not a notebook.
    """
    if name.endswith(".ipynb"):
        return [source_of(cell) for cell in code_cells(text, name)]
    pieces = [piece.strip("\n") for piece in _MARK.split(text)]
    return [piece + "\n" for piece in pieces if piece.strip()]


def code_cells(text: str, name: str) -> list[dict[str, Any]]:
    """Return the code cells of a notebook or of a session's journal, without empty ones.

    Raises:
        BadRequest: the text is neither.
    """
    try:
        notebook = fold_journal(text) if text.startswith(_JOURNAL) else json.loads(text)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and source_of(cell).strip()]
        for cell in cells:
            source_of(cell).encode()  # half of a surrogate pair (RFC 3629), which no request can hold
            if not isinstance(cell.get("metadata", {}), dict) or not _are_objects(cell.get("outputs", [])):
                raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest(f"{name} is not a notebook (nbformat 4). Export it again, or give a .py file.") from None
    return cells


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, dict) for each in values)


def events_of_journal(text: str) -> list[ev.Event]:
    """Return the events of a session's journal, or nothing for any other text.

    Raises:
        ValueError: a line is not an event.
    """
    # A line without a line end is still being written, or was cut by a crash.
    lines = text.encode().split(b"\n")[:-1] if text.startswith(_JOURNAL) else []
    try:
        return [ev.decode(line) for line in lines]
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def fold_journal(text: str) -> dict[str, Any]:
    """Return the notebook of a session's journal.

    Raises:
        ValueError: a line is not an event.
    """
    return fold(events_of_journal(text))


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's code. In nbformat it is a string or a list of lines."""
    source = cell["source"]
    return "".join(source) if isinstance(source, list) else str(source)


def _network_of(value: str) -> Any:
    """Return ``limits.network``: a word, rules as JSON, or rules as a list of hosts with commas."""
    if value in ("none", "host"):
        return value
    if not value.startswith("{"):
        return {"allow": [host for host in value.split(",") if host]}
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRequest(f"--limit network={value[:200]!r} is not JSON: {error}.") from None


def limits_of(pairs: list[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` arguments as the limits of a session.

    Raises:
        BadRequest: an argument has no ``=``, or its value is not a number.
    """
    limits: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            if name != "network" or not equals:
                raise BadRequest(
                    f"--limit {pair!r} is not valid. Write NAME=NUMBER, such as memory_bytes=1e9."
                ) from None
            limits[name] = _network_of(value)
        else:
            limits[name] = int(number) if number.is_integer() else number
    return limits
