"""``kernelsvc close``, ``interrupt``, ``hibernate``, ``purge``, ``upload`` and ``download``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence

from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.errors import BadRequest, KernelsvcError
from kernelsvc.model.objects import SessionInfo


async def close(args: argparse.Namespace, terminal: Terminal) -> int:
    """End sessions. Their logs and notebooks stay."""
    return await _act_on_all("close", args, terminal)


async def interrupt(args: argparse.Namespace, terminal: Terminal) -> int:
    """Interrupt the running cells of sessions."""
    return await _act_on_all("interrupt", args, terminal)


async def hibernate(args: argparse.Namespace, terminal: Terminal) -> int:
    """Save the variables of idle sessions to disk, and end their kernels."""
    return await _act_on_all("hibernate", args, terminal)


async def purge(args: argparse.Namespace, terminal: Terminal) -> int:
    """Delete sessions for good."""
    if bool(args.id) == bool(args.principal):
        raise BadRequest("Give the ids of sessions, or --principal NAME.")
    async with client_of(args) as client:

        async def delete(id: str) -> None:
            terminal.json(await client.purge(id, force=args.force), indent=0)

        # The newest first, so a branch comes before its parent.
        ids = args.id or [each.id for each in await client.sessions(principal=args.principal)]
        refused = await _each(ids, delete, terminal)
    if refused is not None:
        raise refused
    return 0


async def upload(args: argparse.Namespace, terminal: Terminal) -> int:
    """Copy files of this machine into a session's working directory."""
    if args.to is not None and len(args.file) > 1:
        raise BadRequest("--to names one file. Upload several files without it.")
    async with client_of(args) as client:
        session = await client.session(args.id)
        for path in args.file:
            terminal.line(await session.upload(path, args.to))
    return 0


async def download(args: argparse.Namespace, terminal: Terminal) -> int:
    """Copy a file of a session's working directory to this machine, or to standard output."""
    async with client_of(args) as client:
        session = await client.session(args.id)
        if args.output == "-":
            # As bytes: a file need not be text.
            sys.stdout.buffer.write(await session.download(args.file))
        else:
            terminal.line(str(await session.save(args.file, args.output or ".")))
    return 0


async def _act_on_all(action: str, args: argparse.Namespace, terminal: Terminal) -> int:
    done: list[SessionInfo] = []
    async with client_of(args) as client:

        async def act(id: str) -> None:
            session = await client.session(id)
            done.append(await getattr(session, action)())
            if not args.json:
                terminal.line(f"{done[-1].id} {done[-1].state}")

        refused = await _each(args.id, act, terminal)
    if args.json:
        terminal.json(done)
    if refused is not None:
        raise refused
    return 0


async def _each(ids: Sequence[str], act: Callable[[str], Awaitable[None]], terminal: Terminal) -> KernelsvcError | None:
    """Call ``act`` with each id. A session that refuses does not stop the others.

    Returns:
        The last refusal. The caller raises it, and ``cli.main`` prints it. The earlier ones are printed here.
    """
    refused: KernelsvcError | None = None
    for id in ids:
        try:
            await act(id)
        except KernelsvcError as error:
            if refused is not None:
                terminal.message(f"kernelsvc: {refused.message}", "red")
            if id not in error.message:
                error.message = f"{id}: {error.message}"
            refused = error
    return refused
