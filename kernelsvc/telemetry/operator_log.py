"""The operator's log: one line for each session that starts or ends, and for each thing that went wrong in one.

The lines follow from the events of the sessions' journals. They hold ids, names and reasons, never code or output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kernelsvc.model import events as ev
from kernelsvc.model.events import Event

log = logging.getLogger(__name__)

#: The level, the message and the fields of a line.
Line = tuple[int, str, dict[str, Any]]

#: Events that end or start a session. They are as rare as sessions, so the limit of records does not count them.
_WITHOUT_LIMIT = (ev.SessionStarted, ev.SessionClosed)


def record(event: Event) -> None:
    """Write the line of an event that was appended to a journal. Its type is in ``LINES``."""
    level, message, fields = LINES[type(event)](event)
    if log.isEnabledFor(level):
        fields |= {"session": event.session, "action": event.__struct_config__.tag}
        fields["without_limit"] = isinstance(event, _WITHOUT_LIMIT)
        log.log(level, "session %s: %s", event.session, message, extra=fields)


def _started(event: Any) -> Line:
    parent = (event.parent or {}).get("session")
    origin = f" as a branch of {parent}" if parent else ""
    fields = {"principal": event.principal, "template": event.template, "parent": parent}
    return logging.INFO, f"started by {event.principal} from {event.template}{origin}", fields


def _closed(event: Any) -> Line:
    return logging.INFO, f"closed: {event.reason}", {"reason": event.reason}


def _adopted(event: Any) -> Line:
    return logging.INFO, "adopted from an earlier server", {"pid": event.kernel.pid}


def _died(event: Any) -> Line:
    fields = {"cause": event.cause, "signal": event.signal, "exit_code": event.exit_code}
    return logging.WARNING, f"its kernel died ({event.cause or 'unknown cause'}): {_one_line(event.message)}", fields


def _limited(event: Any) -> Line:
    fields = {"limit": event.limit, "value": event.value, "bound": event.bound, "enforced_by": event.enforced_by}
    return logging.WARNING, f"reached its limit {event.limit}: {_one_line(event.message)}", fields


def _restored(event: Any) -> Line:
    return logging.INFO, f"continues from checkpoint {event.checkpoint}", {"checkpoint": event.checkpoint}


def _restarted(event: Any) -> Line:
    return logging.INFO, f"has a new kernel with empty variables: {event.why}", {"reason": event.why}


def _hibernated(event: Any) -> Line:
    return logging.INFO, f"hibernated, {event.bytes} bytes saved", {"bytes": event.bytes}


#: How the line of an event is written, by its type. Other events have none.
LINES: dict[type[Event], Callable[[Any], Line]] = {
    ev.SessionStarted: _started,
    ev.SessionClosed: _closed,
    ev.SessionAdopted: _adopted,
    ev.KernelDied: _died,
    ev.KernelRestored: _restored,
    ev.KernelRestarted: _restarted,
    ev.LimitReached: _limited,
    ev.Hibernated: _hibernated,
}


def _one_line(text: str, characters: int = 300) -> str:
    # A kernel can choose parts of a message. A line break in it would begin a line of its own.
    return " ".join(text.split())[:characters]
