"""Calls of functions for ``kernelsvc replay``: their results come from the record, and nothing is carried out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from kernelsvc.client.offered import OfferedFunction, ReadyAnswer, offered
from kernelsvc.model import events as ev
from kernelsvc.model.tool_calls.reuse import call_key

#: How a call ended -> the exception that code gets again. Others raise what their functions raised.
_ERRORS = {
    "denied": "ToolDenied",
    "expired": "ToolDenied",
    "timeout": "ToolTimeout",
    "cancelled": "ToolCancelled",
    "unavailable": "ToolUnavailable",
    "lost": "ToolLost",
    "too_large": "ToolTooLarge",
    "limit": "ToolLimit",
    "refused": "ToolRefused",
}


class RecordedCalls:
    """The calls of a record: the n-th call of a function with certain arguments gets the n-th recorded result.

    Args:
        calls: as in a notebook's metadata, ``{tool, arguments, status, value, form, error}``.

    Attributes:
        missing: calls without a recorded result since the last ``take_missing``.
    """

    def __init__(self, calls: Iterable[Mapping[str, Any]]) -> None:
        self.missing: list[str] = []
        self._results: dict[bytes, deque[ReadyAnswer | str]] = {}
        self._names: dict[str, dict[str, dict[str, Any]]] = {}
        for call in calls:
            tool, arguments = str(call.get("tool")), call.get("arguments")
            properties = self._names.setdefault(tool, {})
            if isinstance(arguments, dict):
                # The record has no schema. The order of the arguments is that of the calls.
                properties.update({name: {} for name in arguments if name != "$bytes"})
            key = call_key(tool, arguments)
            self._results.setdefault(key, deque()).append(_result(call))

    def functions(self) -> list[OfferedFunction]:
        """Return the functions of the record, which read it only."""
        found = []
        for tool, properties in self._names.items():
            schema = {"type": "object", "properties": properties}
            found.append(
                offered(self._answerer(tool), name=tool, parameters=schema, effects="read", max_in_flight=1000)
            )
        return found

    def _answerer(self, tool: str) -> Any:
        async def answer(**arguments: Any) -> ReadyAnswer:
            left = self._results.get(call_key(tool, arguments))
            result: ReadyAnswer | str = left.popleft() if left else "the record has no such call"
            if isinstance(result, ReadyAnswer):
                return result
            text = f"no recorded result of {tool}: {result}"
            self.missing.append(text)
            return ReadyAnswer(error={"type": "LookupError", "message": f"There is {text}. Replay with --tools live."})

        return answer

    def take_missing(self) -> list[str]:
        """Return the calls without a recorded result since the last time."""
        missing, self.missing = self.missing, []
        return missing


def _result(call: Mapping[str, Any]) -> ReadyAnswer | str:
    """Return the recorded result of a call, or why there is none."""
    status, value, error = call.get("status"), call.get("value"), call.get("error")
    if status is None:
        return "it had not ended when the record was made"
    if status == "ok":
        if isinstance(value, dict) and value.keys() == {"$bytes"}:
            return f"it has {value['$bytes']} bytes, which the notebook leaves out. Give the session's journal"
        if isinstance(value, dict) and value.keys() == {"$redacted"}:
            return "no log may contain it"
        return ReadyAnswer(content=value) if call.get("form") == "content" else ReadyAnswer(value=value)
    facts = error if isinstance(error, dict) else {}
    kind = _ERRORS.get(str(status)) or str(facts.get("type", ""))
    return ReadyAnswer(error={"type": kind, "message": str(facts.get("message", ""))})


def calls_of_cells(cells: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the calls in the metadata of a notebook's cells, in order."""
    calls = [_own(cell).get("calls") for cell in cells]
    return [each for found in calls if isinstance(found, list) for each in found if isinstance(each, dict)]


def _own(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of this service, if a cell of a notebook has it in its form."""
    own = cell.get("metadata", {}).get("kernelsvc")
    return own if isinstance(own, dict) else {}


def calls_of_events(events: Iterable[ev.Event], cells: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the calls in a log that these cells of its notebook made, in order, with all arguments and results."""
    ids = [_own(cell).get("cell") for cell in cells]
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, ev.ToolCalled) and event.cell in ids:
            found[event.call] = {"tool": event.tool, "arguments": event.arguments}
        elif isinstance(event, ev.ToolReturned) and event.call in found:
            end = {"status": event.status, "value": event.value, "form": event.form, "error": event.error}
            found[event.call].update(end)
    return [*found.values()]
