"""``kernelsvc run``: run a file or standard input, cell by cell."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from kernelsvc.cli.cell_source import cells_of, limits_of
from kernelsvc.cli.run_cell import run_cell, stdin_prompt
from kernelsvc.cli.server_locator import client_or_own_server
from kernelsvc.cli.sessions.record import write_notebook
from kernelsvc.cli.terminal import CellPrinter, Terminal
from kernelsvc.client import AsyncClient, AsyncSession, Image
from kernelsvc.client.values import UnknownEvent
from kernelsvc.errors import BadRequest
from kernelsvc.linux.output_file import output_file
from kernelsvc.model import events as ev

#: First bytes of a gzip file (RFC 1952, section 2.3.1), such as the journal of an archived session.
GZIP = b"\x1f\x8b"


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the cells until one fails."""
    cells = cells_of(read_source(args.file), args.file.removesuffix(".gz"))
    async with client_or_own_server(args, terminal) as client, session_of(args, client) as session:
        try:
            return await _run(args, terminal, session, cells)
        finally:
            if args.save:
                await write_notebook(session, Path(args.save), terminal)


async def _run(args: argparse.Namespace, terminal: Terminal, session: AsyncSession, cells: list[str]) -> int:
    # Code that came by standard input has consumed it: there is no terminal to answer input().
    ask = stdin_prompt() if sys.stdin.isatty() and args.file != "-" and not args.json else None
    view = CellPrinter(terminal)
    show = functools.partial(_print_json, terminal) if args.json else view.show
    for code in cells:
        end = await run_cell(session, code, show, terminal, ask=ask, timeout=args.timeout)
        if end.reason is not ev.Reason.OK:
            break
    _keep_images(args.images, view.images, terminal)
    return 0 if not cells or end.reason is ev.Reason.OK else 1


def _print_json(terminal: Terminal, event: ev.Event) -> None:
    data = event.data if isinstance(event, UnknownEvent) else event
    terminal.json(data, indent=0)


def _keep_images(directory: str | None, images: list[Image], terminal: Terminal) -> None:
    if not directory or not images:
        return
    home = Path(directory)
    home.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, 1):
        path = home / f"{number:03}{image.suffix}"
        with output_file(path) as file:
            file.write(image.data)
        terminal.message(f"wrote {path}")


def read_source(name: str) -> str:
    """Return the text of a file, compressed or not. ``-`` reads standard input.

    Raises:
        BadRequest: the file can't be read, or is not UTF-8.
    """
    try:
        if name == "-":
            return sys.stdin.read()
        data = Path(name).read_bytes()
        return (gzip.decompress(data) if data.startswith(GZIP) else data).decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise BadRequest(f"Can't read {name}: {why}.") from None


@contextlib.asynccontextmanager
async def session_of(args: argparse.Namespace, client: AsyncClient) -> AsyncIterator[AsyncSession]:
    """Yield the session of the options, or a new one that ends with this block."""
    if args.session:
        session = await client.session(args.session)
    else:
        session = await client.create_session(
            template=args.template,
            name=args.name,
            limits=limits_of(args.limit),
            mounts=args.mount,
            workspace=args.workspace,
            keep=args.keep,
        )
    async with session:
        for name in args.upload:
            await session.upload(name)
        yield session
