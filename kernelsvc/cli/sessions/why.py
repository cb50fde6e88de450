"""``kernelsvc why``: what became of a session, from its log."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from kernelsvc.cli.cell_source import events_of_journal
from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import safe
from kernelsvc.errors import BadRequest
from kernelsvc.model import events as ev
from kernelsvc.model.events import Event

#: The reasons of the server itself, in a sentence.
_REASONS = {
    "idle": "It was not used for longer than its limit idle_seconds.",
    "lifetime": "It reached its limit lifetime_seconds.",
    "lease": "The time that its owner had set was over.",
    "closed": "Its owner closed it.",
    "server stopped": "The server was stopped with Ctrl-C, or with SIGTERM and the setting on_stop = end.",
    "executed": "It was made for one call, which is done.",
}


async def why(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print what ended a session, or that it is open, and what went wrong in it before.

    Raises:
        BadRequest: the file is not a session's log.
    """
    found: list[Event]
    if _is_file(args.id):
        found = _events_of(args.id)
        id = found[0].session
    else:
        async with client_of(args) as client:
            session = await client.session(args.id)
            id = session.id
            async with session.events(follow=False) as events:
                found = [event async for event in events if isinstance(event, _TELLING)]
    for line in explain(id, found):
        terminal.line(safe(line))
    return 0


def _is_file(given: str) -> bool:
    return "/" in given or given.endswith((".jsonl", ".gz")) or Path(given).is_file()


def _events_of(path: str) -> list[Event]:
    """Return the events of a log that lies in a file: that of a backup, or of a server that does not run."""
    from kernelsvc.cli.run import read_source

    try:
        found = events_of_journal(read_source(path))
    except ValueError as error:
        raise BadRequest(f"{path} is not a session's log: {error}. 'kernelsvc verify' names the entry.") from None
    if not found:
        raise BadRequest(f"{path} is not a session's log. It is journal.jsonl in the session's directory.")
    return found


def explain(session: str, events: Iterable[Event]) -> list[str]:
    """Return the end of a session and the causes before it, the last ones first. Pure.

    Args:
        session: the session's id.
        events: the events of its log. Those that explain nothing are passed over.
    """
    end = f"{session} is open."
    before: list[str] = []
    for event in events:
        if isinstance(event, ev.SessionClosed):
            sentence = _REASONS.get(event.reason)
            end = f"{session} was closed at {event.at}: {event.reason}." + (f" {sentence}" if sentence else "")
        elif text := _cause(event):
            before.append(f"  {event.at}  {text}")
    return [end, *reversed(before)][: 1 + MAX_CAUSES]


#: Causes that are printed.
MAX_CAUSES = 20

_TELLING = (
    ev.SessionClosed,
    ev.KernelDied,
    ev.KernelRestored,
    ev.KernelRestarted,
    ev.LimitReached,
    ev.CellFinished,
    ev.Interrupted,
    ev.Hibernated,
    ev.SessionAdopted,
)


def _cause(event: Event) -> str:
    match event:
        case ev.KernelDied():
            return f"the kernel died ({event.cause or 'unknown cause'}): {event.message}"
        case ev.KernelRestored():
            return f"the session went on from checkpoint {event.checkpoint}"
        case ev.KernelRestarted():
            return f"a new kernel with empty variables: {event.why}"
        case ev.LimitReached():
            return f"limit {event.limit}: {event.message or f'{event.value} of {event.bound}'}"
        case ev.CellFinished() if event.message and event.reason is not ev.Reason.OK:
            return f"cell {event.cell} ended as {event.reason}: {event.message}"
        case ev.Interrupted():
            return f"cell {event.cell} was interrupted{f' by {event.by}' if event.by else ''}"
        case ev.Hibernated():
            return "hibernated: its variables went to disk"
        case ev.SessionAdopted():
            return "a new server took it over"
    return ""
