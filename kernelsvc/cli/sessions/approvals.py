"""``kernelsvc approvals``, ``approve`` and ``deny``: calls of code that wait for a person."""

from __future__ import annotations

import argparse

import msgspec

from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import one_line, still
from kernelsvc.model.objects import ToolCallInfo

#: Most characters of a call's arguments that are shown.
_SHOWN = 500


async def approvals(args: argparse.Namespace, terminal: Terminal) -> int:
    """List the calls of a session that wait for approval."""
    async with client_of(args) as client:
        session = await client.session(args.id)
        _show([call.info for call in await session.calls(state="pending")], args, terminal)
    return 0


async def approve(args: argparse.Namespace, terminal: Terminal) -> int:
    """Let calls be carried out."""
    return await _decide(args, terminal)


async def deny(args: argparse.Namespace, terminal: Terminal) -> int:
    """Refuse calls."""
    return await _decide(args, terminal)


async def _decide(args: argparse.Namespace, terminal: Terminal) -> int:
    async with client_of(args) as client:
        session = await client.session(args.id)
        wanted = args.call or [call.info.call for call in await session.calls(state="pending")]
        calls = [await session.call(id) for id in wanted]
        decided = [
            await call.approve() if args.command == "approve" else await call.deny(args.reason) for call in calls
        ]
        _show(decided, args, terminal)
    return 0


def _show(calls: list[ToolCallInfo], args: argparse.Namespace, terminal: Terminal) -> None:
    if args.json:
        terminal.json(calls)
        return
    for call in calls:
        arguments = msgspec.json.encode(call.arguments).decode()
        terminal.line(f"{call.call} {call.status or call.state} {one_line(call.tool)} {still(arguments[:_SHOWN])}")
