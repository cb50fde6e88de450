"""``kernelsvc workspace``: folders that outlive sessions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kernelsvc.cli.server_locator import client_of
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import still
from kernelsvc.client import AsyncClient
from kernelsvc.errors import BadRequest
from kernelsvc.model.storage.workspaces import WorkspaceInfo


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out the action of the first argument."""
    if args.action != "list" and not args.name:
        raise BadRequest(f"Name the workspace: kernelsvc workspace {args.action} NAME.")
    if args.action in ("upload", "download") and not args.file:
        raise BadRequest(f"Name the file: kernelsvc workspace {args.action} NAME FILE.")
    async with client_of(args) as client:
        if args.action == "list":
            _print(args, terminal, await client.workspaces())
        elif args.action == "show":
            _print(args, terminal, [await client.workspace(args.name)])
        elif args.action == "set":
            made = await client.set_workspace(args.name, shared_with=args.share, max_bytes=args.max_bytes)
            _print(args, terminal, [made])
        elif args.action == "remove":
            await client.remove_workspace(args.name)
        else:
            await _files(args, terminal, client)
    return 0


async def _files(args: argparse.Namespace, terminal: Terminal, client: AsyncClient) -> None:
    if args.action == "files":
        for file in await client.workspace_files(args.name, args.file or "", recursive=True):
            terminal.line(still(file.path))
    elif args.action == "upload":
        terminal.line(await client.upload_to(args.name, args.file))
    else:
        data = await client.download_from(args.name, args.file)
        if args.output == "-":
            sys.stdout.buffer.write(data)
            return
        terminal.line(_write(args.output or PurePosixPath(args.file).name, data))


def _write(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def _print(args: argparse.Namespace, terminal: Terminal, found: Sequence[WorkspaceInfo]) -> None:
    if args.json:
        terminal.json(found)
        return
    for each in found:
        shared = f", shared with {', '.join(each.shared_with)}" if each.shared_with else ""
        size = f", {each.used_bytes} bytes" if isinstance(each.used_bytes, int) else ""
        terminal.line(f"{each.workspace}  {each.sessions} sessions{size}{shared}")
