"""The calls of one cell, built from its events, as the API and the notebook show them."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import msgspec

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event
from kernelsvc.model.objects import CallSummary, CellCalls

#: Calls of a cell that are shown one by one. The log has all of them.
SHOWN = 100
#: Largest arguments and results that the notebook has, as JSON, in bytes.
ARGUMENT_BYTES, VALUE_BYTES = 2048, 64 * 1024


class CallsFold:
    """The calls of one cell."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._shown: dict[str, CallSummary] = {}
        self._ends: dict[str, ev.ToolReturned] = {}
        self._tools: dict[str, str] = {}  # open calls
        self._pending: set[str] = set()
        self._writes: set[str] = set()
        self._decisions: Counter[tuple[str, str, str]] = Counter()

    def feed(self, event: Event) -> None:
        """Add one event about a call."""
        match event:
            case ev.ToolCalled():
                self._tools[event.call] = event.tool
                self._counts.setdefault(event.tool, Counter())["open"] += 1
                if event.approval == "pending":
                    self._pending.add(event.call)
                if event.effects == "write":
                    self._writes.add(event.tool)
                if len(self._shown) < SHOWN:
                    arguments = _short(event.arguments, event.bytes, ARGUMENT_BYTES)
                    self._shown[event.call] = CallSummary(call=event.call, tool=event.tool, arguments=arguments)
            case ev.ToolDecided():
                self._pending.discard(event.call)
                self._decisions[self._tools.get(event.call, ""), event.decision, event.by] += 1
                if event.call in self._shown:
                    self._shown[event.call].decided_by = event.by
            case ev.ToolReturned() if event.call in self._tools:
                tool = self._tools.pop(event.call)
                self._pending.discard(event.call)
                counts = self._counts[tool]
                counts[event.status] += 1
                counts["open"] -= 1
                if (shown := self._shown.get(event.call)) is not None:
                    shown.status, shown.ms, shown.bytes = event.status, event.ms, event.bytes
                    self._ends[event.call] = msgspec.structs.replace(
                        event, value=_short(event.value, event.bytes, VALUE_BYTES)
                    )
            case _:
                pass

    @property
    def waits_for(self) -> Literal["approval", "tool"] | None:
        """Cause of the cell's wait: ``approval``, ``tool`` or None."""
        return None if not self._tools else "approval" if self._pending else "tool"

    def summary(self) -> CellCalls:
        """Return the calls as the API's cell shows them."""
        counts = {tool: {status: n for status, n in found.items() if n} for tool, found in self._counts.items()}
        return CellCalls(counts=counts, first=[*self._shown.values()])

    def metadata(self) -> list[dict[str, Any]]:
        """Return the calls for the notebook's metadata, with results that are short enough to replay them."""
        found = []
        for call, shown in self._shown.items():
            entry: dict[str, Any] = msgspec.to_builtins(shown)
            end = self._ends.get(call)
            if end is not None:
                entry["value"], entry["form"] = end.value, end.form
                if end.error is not None:
                    entry["error"] = {name: str(end.error.get(name, ""))[:500] for name in ("type", "message")}
            found.append(entry)
        return found

    def note(self) -> str:
        """Return a sentence about the calls, or "" if all of them only read, succeeded, and needed no decision."""
        failed = any(set(+counts) - {"ok"} for counts in self._counts.values())
        if not (failed or self._writes or self._decisions):
            return ""
        parts = []
        for tool, counts in self._counts.items():
            total = counts.total()
            ends = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
            parts.append(f"{total} call{'s' if total != 1 else ''} of {tool} ({ends})")
        parts += [
            f"{tool} {decision} by {by}{f' {n} times' if n > 1 else ''}"
            for (tool, decision, by), n in self._decisions.items()
        ]
        return "; ".join(parts)


def _short(value: Any, size: int, most: int) -> Any:
    return value if size <= most else {"$bytes": size}
