"""Results of earlier calls for a cell that repeats them: after a crash of the kernel, or in a replay. Pure.

The n-th call of a function with certain arguments gets the n-th recorded result of the same call, in whatever order
parallel calls are made. Calls without a recorded result are carried out.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from kernelsvc.model import events as ev

_key = msgspec.json.Encoder(order="deterministic").encode


def call_key(tool: str, arguments: Any) -> bytes:
    """Return a digest that two equal calls have in common."""
    return hashlib.sha256(_key([tool, arguments])).digest()


def recorded_ends(events: Iterable[ev.Event], source: str, user: str | None) -> dict[bytes, deque[ev.ToolReturned]]:
    """Return the ends of a cell's calls by ``call_key``, oldest first.

    Calls that did not return or raise are missing: their functions may not have run. Calls with secret
    arguments or results are missing, because the log does not have them.

    Args:
        events: the events about calls of both cells, in order. Their ends need no values.
        source: the cell whose calls are repeated.
        user: the cell that repeats them. What it has used already, before a restart of the server, is left out.
    """
    called: dict[str, bytes] = {}
    used: set[str] = set()
    found: dict[bytes, deque[ev.ToolReturned]] = {}
    ends: dict[str, ev.ToolReturned] = {}
    for event in events:
        if isinstance(event, ev.ToolCalled) and event.cell == source and not event.redacted and not event.redact_result:
            called[event.call] = call_key(event.tool, event.arguments)
        elif isinstance(event, ev.ToolCalled) and event.cell == user and isinstance(event.reused, str):
            used.add(event.reused)
        elif isinstance(event, ev.ToolReturned) and event.call in called and event.status in ("ok", "error"):
            ends[event.call] = event
    for call, key in called.items():
        if call in ends and call not in used:
            found.setdefault(key, deque()).append(ends[call])
    return found
