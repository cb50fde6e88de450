"""``kernelsvc mcp`` serves MCP over standard input and output. ``kernelsvc tools`` prints the tools' definitions."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from kernelsvc import settings as conf
from kernelsvc.cli.server_locator import client_of, private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import AsyncClient, Unreachable
from kernelsvc.client.address import find
from kernelsvc.client.tool_backend import ClientToolBackend
from kernelsvc.client.values import new_id
from kernelsvc.errors import Conflict
from kernelsvc.tools import Toolbox, tool_definitions
from kernelsvc.tools.definitions import selected
from kernelsvc.tools.session_resolver import CallerState

#: Data directories for servers that ``kernelsvc mcp`` starts. One server at a time can use a directory.
MAX_DATA_DIRS = 64


def tools(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print the tools' definitions."""
    found = tool_definitions(args.format, args.tool or None)
    terminal.json(found)
    return 0


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Serve one MCP client until it closes standard input."""
    # Imported late: these imports take a second, and other commands do not need them.
    from mcp.server.stdio import stdio_server

    from kernelsvc.server.mcp.server import McpOptions, make_server

    selected(args.tools)
    async with _client(args, terminal) as client:
        backend = ClientToolBackend(client)
        toolbox = Toolbox(backend, CallerState(args.session or new_id("mcp"), "MCP"))
        options = McpOptions(facts=args.facts, tools=args.tools)
        server = make_server(lambda ctx: (toolbox, backend), options=lambda ctx: options)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
    return 0


@contextlib.asynccontextmanager
async def _client(args: argparse.Namespace, terminal: Terminal) -> AsyncIterator[AsyncClient]:
    """Yield a client of the named or running server, else of a new one that ends with this block."""
    try:
        address = None if args.private else find(args.url, args.token)
    except Unreachable:
        address = None
    if address is not None:
        async with client_of(args) as client:
            yield client
        return
    with _unused_data_dir(Path(args.data_dir) if args.data_dir else None) as directory:
        # MCP owns standard output. terminal.message and the server's log use standard error and a file.
        async with (
            private_server(terminal, data_dir=directory, token=_token(directory)) as own,
            AsyncClient(f"unix:{own.uds}", own.token) as client,
        ):
            terminal.message(f"kernelsvc mcp: started a server for this client only. Its notebooks stay in {directory}")
            yield client


def _token(directory: Path) -> str:
    """Return the token of this directory's servers. It stays the same, so that its principal owns earlier sessions."""
    path = directory / "mcp.token"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text("utf-8").strip() or secrets.token_urlsafe(24)


@contextlib.contextmanager
def _unused_data_dir(chosen: Path | None) -> Iterator[Path]:
    """Lock and yield a data directory that no other ``kernelsvc mcp`` uses.

    Raises:
        Conflict: all of them are in use.
    """
    root = conf.load(env=os.environ).data_path() / "mcp"
    candidates = [chosen] if chosen else [root / str(number) for number in range(1, MAX_DATA_DIRS + 1)]
    for directory in candidates:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (directory / "mcp.lock").open("w") as lock:
            # flock(2): Linux releases the lock when the process ends, also when it is killed.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield directory
            return
    raise Conflict(f"{candidates[0]} is in use by another 'kernelsvc mcp'. Give another --data-dir.")
