"""``kernelsvc branch``, ``checkpoint`` and ``rollback``."""

from __future__ import annotations

import argparse

from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import safe, still
from kernelsvc.errors import BadRequest


async def branch(args: argparse.Namespace, terminal: Terminal) -> int:
    """Make new sessions from a session's live state, and print their ids, one a line."""
    async with client_of(args) as client:
        session = await client.session(args.id)
        labels = labels_of(args.label)
        branches = await session.branch(
            at=args.at, count=args.count, labels=labels, force=args.force, isolate=args.isolate
        )
    if args.json:
        terminal.json([one.details for one in branches])
        return 0
    for one in branches:
        terminal.line(one.id)
    for warning in (branches[0].details.parent or {}).get("warnings", []):
        terminal.message(safe(str(warning)))
    return 0


async def checkpoint(args: argparse.Namespace, terminal: Terminal) -> int:
    """Save a session's present state."""
    async with client_of(args) as client:
        made = await (await client.session(args.id)).checkpoint(args.name)
    if args.json:
        terminal.json(made)
    else:
        terminal.line(f"{made.id}" + (f"  {still(made.name)}" if made.name else ""))
    return 0


async def rollback(args: argparse.Namespace, terminal: Terminal) -> int:
    """Restore a session's variables to an earlier state."""
    async with client_of(args) as client:
        info = await (await client.session(args.id)).rollback(args.to, replay=not args.no_replay)
    if args.json:
        terminal.json(info)
    else:
        terminal.line(f"{info.id} {info.state}")
    return 0


def labels_of(arguments: list[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` arguments as labels.

    Raises:
        BadRequest: an argument has no name or no ``=``.
    """
    pairs = [word.partition("=") for word in arguments]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise BadRequest(f"--label {name!r} is not valid. Write NAME=VALUE.")
    return {name: value for name, _, value in pairs}
