"""``kernelsvc sessions``, ``show`` and ``tree``: list and show sessions."""

from __future__ import annotations

import argparse
from collections import defaultdict
from datetime import UTC, datetime

import msgspec

from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import CellPrinter, Terminal
from kernelsvc.cli.terminal.filter import json_text, one_line, safe, seconds, size, still, table
from kernelsvc.client import AsyncSession, Cell
from kernelsvc.client.values import UnknownEvent
from kernelsvc.model import events as ev
from kernelsvc.model.objects import SessionInfo, SessionState

_ENVELOPE = ("session", "seq", "at", "type", "prev", "frame")
_STATE_STYLE = {"idle": "green", "busy": "cyan", "hibernated": "blue", "paused": "blue", "dead": "red", "closed": "dim"}


async def sessions(args: argparse.Namespace, terminal: Terminal) -> int:
    """List sessions, newest first."""
    async with client_of(args) as client:
        found = await client.sessions(state=args.state, label=args.label, limit=args.limit, principal=args.principal)
    if not args.all and not args.state:
        found = [one for one in found if one.state is not SessionState.CLOSED]
    if args.json:
        terminal.json(found)
    elif found:
        header = ["ID", "STATE", "TEMPLATE", "CELLS", "MEMORY", "ACTIVE", "NAME"]
        rows = [_row(one) for one in found]
        if args.principal:
            header.insert(1, "PRINCIPAL")
            for one, row in zip(found, rows, strict=True):
                row.insert(1, one_line(one.principal, 40))
        for number, line in enumerate(table(rows, header)):
            terminal.line(line, *(["bold"] if number == 0 else []))
    else:
        terminal.message("no sessions. 'kernelsvc repl' makes one" + ("" if args.all else ", --all lists closed ones"))
    return 0


def _row(one: SessionInfo) -> list[str]:
    memory = "" if one.usage.memory_bytes is None else size(one.usage.memory_bytes)
    name = one_line(one.name or "", 40)
    return [one.id, one.state, one.template, str(one.execution_count), memory, ago(one.last_activity_at), name]


def ago(at: str, now: datetime | None = None) -> str:
    """Return the time since a timestamp, in words. Return an empty text if it is not an ISO 8601 timestamp."""
    try:
        then = datetime.fromisoformat(at)
    except ValueError:
        return ""
    past = max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    if past < 60:
        return f"{past:.0f} s ago"
    for unit, length in (("min", 60), ("h", 3600), ("d", 86400)):
        if past < length * 100 or unit == "d":
            return f"{past // length:.0f} {unit} ago"
    raise AssertionError("unreachable")


async def show(args: argparse.Namespace, terminal: Terminal) -> int:
    """Show the cells of a session, or its log."""
    async with client_of(args) as client:
        session = await client.session(args.id)
        if args.events or (args.follow and args.json):
            return await _show_events(args, terminal, session)
        if args.follow:
            _head(session.details, terminal)
            return await _follow_cells(terminal, session)
        cells = await session.cells()
    if args.json:
        terminal.json({"session": session.details, "cells": cells})
        return 0
    _head(session.details, terminal)
    for cell in cells:
        _show_cell(cell, terminal)
    return 0


def _head(one: SessionInfo, terminal: Terminal) -> None:
    name = f" {still(one.name)!r}" if one.name else ""
    terminal.line(
        terminal.style(one.id, "bold") + name + " " + terminal.style(one.state, _STATE_STYLE.get(one.state, "bold"))
    )
    kernel = f"{one.kernel.kind} {one.kernel.language} {one.kernel.python}".strip() if one.kernel else "none"
    facts = [
        f"template {one.template}",
        f"kernel {kernel}",
        f"isolation {one.sandbox.isolation}",
        f"log {one.last_seq} events",
    ]
    facts += [f"created {ago(one.created_at)}"]
    if one.parent:
        facts.append(f"branch of {one.parent.get('session')}")
    # A kernelspec kernel reports its own language and version.
    terminal.line(still(", ".join(facts)), "dim")
    for checkpoint in one.checkpoints:
        name, place = checkpoint.name or checkpoint.id, checkpoint.after_cell or "the start"
        terminal.line(still(f"checkpoint {name} after {place}"), "dim")


def _show_code(code: str, count: int | None, terminal: Terminal) -> None:
    terminal.line()
    prompt = f"In [{count if count is not None else ' '}]: "
    code = still(code.rstrip()).replace("\n", "\n" + "...: ".rjust(len(prompt)))
    terminal.line(terminal.style(prompt, "prompt") + code)


def _show_cell(cell: Cell, terminal: Terminal) -> None:
    _show_code(cell.code, cell.execution_count, terminal)
    if cell.text:
        terminal.line(safe(cell.text.rstrip("\n"), colour=terminal.colour))
    for image in cell.images:
        terminal.line(f"[{still(image.mime)}, {size(len(image.data))}]", "dim")
    state = str(cell.reason or cell.state)
    message = f": {still(cell.message)}" if cell.message else ""
    terminal.line(f"{state} in {seconds(cell.usage.wall_ms / 1000)}{message}", "dim" if cell.ok else "red")


async def _follow_cells(terminal: Terminal, session: AsyncSession) -> int:
    """Show the cells so far, and new ones while they run, until the session is closed. Safe to cancel."""
    waiting: dict[object, str] = {}
    printer = CellPrinter(terminal, movement=False)
    async with session.events(follow=True) as events:
        async for event in events:
            match event:
                case ev.CellQueued(code=code):
                    waiting[event.cell] = code
                case ev.CellStarted(execution_count=count):
                    _show_code(waiting.pop(event.cell, ""), count, terminal)
                case ev.CellFinished(reason=reason, usage=usage):
                    waiting.pop(event.cell, None)
                    printer.show(event)
                    ok = reason is ev.Reason.OK
                    terminal.line(f"{reason} in {seconds(usage.wall_ms / 1000)}", "dim" if ok else "red")
                case ev.SessionClosed(reason=reason):
                    terminal.message(f"closed: {still(reason or 'closed')}")
                case _:
                    printer.show(event)
    return 0


async def _show_events(args: argparse.Namespace, terminal: Terminal, session: AsyncSession) -> int:
    async with session.events(follow=args.follow) as events:
        async for event in events:
            terminal.line(_event_line(event, terminal, as_json=args.json))
    return 0


def _event_line(event: ev.Event, terminal: Terminal, *, as_json: bool) -> str:
    data = event.data if isinstance(event, UnknownEvent) else msgspec.to_builtins(event)
    if as_json:
        return json_text(msgspec.json.encode(data))
    rest = {k: v for k, v in data.items() if k not in _ENVELOPE and v not in (None, "", [], {})}
    head = f"{data['seq']:>6}  {data['at'][11:23]}  {data['type']:<18} "
    return terminal.style(head, "dim") + one_line(
        msgspec.json.encode(rest).decode(), max(40, terminal.columns - len(head))
    )


async def tree(args: argparse.Namespace, terminal: Terminal) -> int:
    """Show sessions as a tree of branches."""
    async with client_of(args) as client:
        found = {one.id: one for one in await client.sessions()}
        if args.id and args.id not in found:
            one = (await client.session(args.id)).details
            found[one.id] = one
    children: dict[str | None, list[str]] = defaultdict(list)
    for one in sorted(found.values(), key=lambda one: one.created_at):
        parent = (one.parent or {}).get("session")
        children[parent if parent in found else None].append(one.id)
    roots = [_root(args.id, found)] if args.id else children[None]
    if args.json:
        terminal.json([_nested(root, children, found) for root in roots])
        return 0
    for root in roots:
        _draw(root, "", "", children, found, terminal)
    return 0


def _root(id: str, found: dict[str, SessionInfo]) -> str:
    seen = {id}
    while (parent := (found[id].parent or {}).get("session")) in found and parent not in seen:
        seen.add(parent)
        id = parent
    return id


def _nested(id: str, children: dict[str | None, list[str]], found: dict[str, SessionInfo]) -> dict[str, object]:
    return {"session": found[id], "branches": [_nested(child, children, found) for child in children[id]]}


def _draw(
    id: str,
    first: str,
    rest: str,
    children: dict[str | None, list[str]],
    found: dict[str, SessionInfo],
    terminal: Terminal,
) -> None:
    one = found[id]
    at = f" at {one.parent.get('seq')}" if one.parent else ""
    state = terminal.style(one.state, _STATE_STYLE.get(one.state, "bold"))
    name = f"  {one_line(one.name, 40)}" if one.name else ""
    terminal.line(f"{first}{id} {state}{at}, {one.execution_count} cells{name}")
    below = children[id]
    for number, child in enumerate(below, 1):
        last = number == len(below)
        _draw(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), children, found, terminal)
