"""The operator's log: one line for each start and end of a session and of the server, each failure, each refusal.

The lines of sessions follow from the events of their journals. All hold ids, names and reasons, never code or output.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from kernelsvc import __version__
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event

log = logging.getLogger(__name__)

#: The level, the message and the fields of a line.
Line = tuple[int, str, dict[str, Any]]

#: Events that end or start a session. They are as rare as sessions, so the limit of records does not count them.
_WITHOUT_LIMIT = (ev.SessionStarted, ev.SessionClosed)


#: Codes of errors that say what this server or a caller's token does not allow. The others are mistakes of a request.
REFUSALS = frozenset({"at_capacity", "forbidden", "limit_too_high", "quota_exceeded", "sandbox_unavailable"})


def record(event: Event, principal: str, batch: Sequence[Event] = ()) -> None:
    """Write the line of an event that was appended to a journal. Its type is in ``LINES``.

    Args:
        event: the event.
        principal: the session's owner.
        batch: the events that were appended with it. The cell that ended with a kernel is there.
    """
    level, message, fields = LINES[type(event)](event)
    if log.isEnabledFor(level):
        cells = (each.cell for each in (event, *batch) if each is event or isinstance(each, ev.CellFinished))
        fields |= {"session": event.session, "action": event.__struct_config__.tag, "principal": principal}
        fields["cell"] = next((cell for cell in cells if cell is not UNSET), None)
        fields["without_limit"] = isinstance(event, _WITHOUT_LIMIT)
        log.log(level, "session %s: %s", event.session, message, extra=fields)


def refused(code: str, method: str, principal: str | None, session: str | None = None) -> None:
    """Write the line of a request that was answered with an error, if its code is one of ``REFUSALS``.

    Args:
        code: the error's code.
        method: the method, or the route.
        principal: the caller, if the token was good.
        session: the session, if the request named one.
    """
    if code in REFUSALS:
        fields = {"action": "refused", "code": code, "method": method, "principal": principal, "session": session}
        log.warning("refused %s of %s: %s", method, principal or "an unknown caller", code, extra=fields)


def server_started(addresses: Sequence[str]) -> None:
    """Write that the server accepts requests at these addresses."""
    fields = {"action": "server_started", "addresses": list(addresses), "version": __version__, "pid": os.getpid()}
    log.info("kernelsvc %s listens on %s", __version__, " and ".join(addresses), extra=fields)


def server_stopped(sessions: str) -> None:
    """Write that the server stops, and with which consequence for its sessions (``end``, ``hibernate``, ``keep``)."""
    fields = {"action": "server_stopped", "on_stop": sessions, "pid": os.getpid()}
    log.info("the server stops, sessions: %s", sessions, extra=fields)


def _started(event: Any) -> Line:
    parent = (event.parent or {}).get("session")
    origin = f" as a branch of {parent}" if parent else ""
    fields = {"template": event.template, "parent": parent}
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
