"""``kernelsvc export``, ``verify`` and ``replay``: a session's record."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.cli.cell_source import code_cells, events_of_journal, source_of
from kernelsvc.cli.output_diff import difference
from kernelsvc.cli.run_cell import interrupt_on_sigint
from kernelsvc.cli.server_locator import client_of, client_or_own_server
from kernelsvc.cli.sessions.recorded_calls import RecordedCalls, calls_of_cells, calls_of_events
from kernelsvc.cli.terminal import Terminal
from kernelsvc.cli.terminal.filter import one_line, safe, seconds, size, still
from kernelsvc.client import AsyncClient, AsyncSession
from kernelsvc.errors import BadRequest
from kernelsvc.linux.output_file import is_stream, output_file

#: Reasons of recorded cells that replay skips: they did not run, or would end or stop the session again.
_NOT_REPLAYED = ("cancelled", "session_closed", "kernel_died", "memory", "timeout", "interrupted")

#: Exit code, words and colour of each result of ``verify``.
_VERDICTS = {
    "verified": (0, "verified", "green"),
    "not_as_written": (1, "NOT AS WRITTEN", "red"),
    "not_proven": (3, "NOT PROVEN", "yellow"),
}


async def export(args: argparse.Namespace, terminal: Terminal) -> int:
    """Write a session's notebook, log or code."""
    target = args.output or f"{args.id}.ipynb"
    async with client_of(args) as client:
        if target == "-":
            sys.stdout.buffer.write(await client.notebook(args.id))
            sys.stdout.flush()
        else:
            await write_notebook(_ArchivedSession(client, args.id), Path(target), terminal)
    return 0


class _ArchivedSession:
    """A session that perhaps only the archive has, so that the server can't describe it."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self.notebook = functools.partial(client.notebook, id)
        self.journal = functools.partial(client.journal, id)


async def write_notebook(session: AsyncSession | _ArchivedSession, path: Path, terminal: Terminal) -> None:
    """Write a session in the format of the path's suffix, see ``output_file``.

    Raises:
        BadRequest: the suffix is unknown, or the file can't be written. An older file is unchanged.
    """
    with output_file(path) as file:
        data = await _document(session, path)
        file.write(data)
    terminal.message(f"wrote {path} ({size(len(data))})")


async def _document(session: AsyncSession | _ArchivedSession, path: Path) -> bytes:
    # A pipe has no suffix to choose a format by.
    match ".ipynb" if is_stream(path) and not path.suffix else path.suffix:
        case ".ipynb":
            return await session.notebook("ipynb")
        case ".html":
            return await session.notebook("html")
        case ".py":
            return await session.notebook("py")
        case ".jsonl":
            return await session.journal()
    raise BadRequest(f"Unknown format {path.suffix!r} of {path.name}. Use .ipynb, .html, .py or .jsonl.")


def verify(args: argparse.Namespace, terminal: Terminal) -> int:
    """Verify a log or a notebook, without a server."""
    # Imported late: cryptography is slow to import, and no other command needs it.
    from kernelsvc.store.verify import verify as check

    journal = Path(args.journal) if args.journal else None
    try:
        verdict = check(Path(args.file), public_key=args.key, journal=journal)
    except OSError as error:
        raise BadRequest(f"Can't read {error.filename or args.file}: {error.strerror}.") from None
    code, words, colour = _VERDICTS[verdict.result]
    if args.json:
        terminal.json(verdict, indent=0)
    else:
        mark = terminal.style(words, colour)
        terminal.line(f"{mark}: {verdict.what} of session {still(verdict.session)}. {still(verdict.message)}")
    return code


async def replay(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run a notebook's cells again and compare their outputs."""
    from kernelsvc.cli.run import read_source, session_of

    text = read_source(args.file)
    cells = code_cells(text, args.file)
    events = events_of_journal(text)
    again = [cell for cell in cells if not _skip_reason(cell)]
    record = RecordedCalls(calls_of_events(events, again) if events else calls_of_cells(again))
    verdicts: list[dict[str, Any]] = []
    async with client_or_own_server(args, terminal) as client, session_of(args, client) as session:
        if args.tools == "recorded" and (functions := record.functions()):
            await session.offer(*functions)
        for number, cell in enumerate(cells, 1):
            terminal.progress(f"cell {number} of {len(cells)}: {one_line(source_of(cell), 60)}")
            verdict = {"cell": number, "id": cell.get("id"), **await _replay_cell(session, cell, terminal, args.tools)}
            if missing := record.take_missing():
                verdict.update(outcome="different", why=missing[0])
            verdicts.append(verdict)
            terminal.progress("")
            terminal.line(
                msgspec.json.encode(verdict).decode() if args.json else _verdict_line(verdict, cell, terminal)
            )
        if args.save:
            await write_notebook(session, Path(args.save), terminal)
    counts = {word: sum(v["outcome"] == word for v in verdicts) for word in ("same", "different", "skipped")}
    if not args.json:
        terminal.line(f"{counts['same']} of {len(verdicts)} cells had the same output, {counts['different']} differed, "
                      f"{counts['skipped']} were skipped.", "bold")  # fmt: skip
    return 1 if counts["different"] else 0


async def _replay_cell(session: AsyncSession, cell: dict[str, Any], terminal: Terminal, tools: str) -> dict[str, Any]:
    if reason := _skip_reason(cell):
        return {"outcome": "skipped", "why": reason}
    with interrupt_on_sigint(session, terminal):
        now = await session.run(source_of(cell), on_error="continue", tools=False if tools == "none" else None)
    found = difference(cell.get("outputs", []), now.outputs)
    took = round(now.usage.wall_ms / 1000, 4)
    return {"outcome": "same" if found is None else "different", "why": found, "seconds": took}


def _skip_reason(cell: dict[str, Any]) -> str | None:
    metadata = cell.get("metadata", {})
    reason = metadata.get("kernelsvc", {}).get("reason")
    if "undone" in metadata.get("tags", []):
        return "it was undone"
    return f"it ended with {reason}" if reason in _NOT_REPLAYED else None


def _verdict_line(verdict: dict[str, Any], cell: dict[str, Any], terminal: Terminal) -> str:
    style = {"same": "green", "different": "red", "skipped": "yellow"}[verdict["outcome"]]
    took = seconds(verdict["seconds"]) if "seconds" in verdict else ""
    head = f"{verdict['cell']:>4}  {terminal.style(verdict['outcome'].ljust(9), style)}  {took:>9}  "
    why = f"\n      {safe(verdict['why'])}" if verdict["why"] else ""
    return head + one_line(source_of(cell), max(20, terminal.columns - 30)) + why
