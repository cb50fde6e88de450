"""``kernelsvc close``, ``interrupt``, ``hibernate``, ``purge``, ``upload`` and ``download``."""

from __future__ import annotations

import argparse
import sys

import msgspec

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
    refused: KernelsvcError | None = None
    async with client_of(args) as client:
        # The newest first, so a branch comes before its parent.
        ids = args.id or [each.id for each in await client.sessions(principal=args.principal)]
        for id in ids:
            try:
                terminal.line(msgspec.json.encode(await client.purge(id, force=args.force)).decode())
            except KernelsvcError as error:
                terminal.message(f"{id}: {error.message}", "red")
                refused = refused or error
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
    """Do the same with each session. A session that refuses does not stop the others.

    Raises:
        KernelsvcError: the first refusal, after all sessions were tried.
    """
    done: list[SessionInfo] = []
    refused: KernelsvcError | None = None
    async with client_of(args) as client:
        for id in args.id:
            try:
                session = await client.session(id)
                done.append(await getattr(session, action)())
            except KernelsvcError as error:
                refused = refused or error
                continue
            if not args.json:
                terminal.line(f"{done[-1].id} {done[-1].state}")
    if args.json:
        terminal.line(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
    if refused is not None:
        raise refused
    return 0
