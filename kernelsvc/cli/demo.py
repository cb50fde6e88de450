"""``kernelsvc demo``: run an analysis of real data in a session, and show it live."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import TerminalFormatter  # type: ignore[import-untyped]
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

from kernelsvc.cli.demo_cells import BRANCH_CELLS, CELLS, LAST_CELL, DemoCell
from kernelsvc.cli.run_cell import run_cell
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.sessions.record import write_notebook
from kernelsvc.cli.terminal import CellPrinter, Terminal
from kernelsvc.cli.terminal.filter import seconds
from kernelsvc.client import AsyncClient, AsyncSession, Image
from kernelsvc.errors import CannotFork, NotSupported
from kernelsvc.linux.output_file import output_file
from kernelsvc.model import events as ev

_NAME = "penguins"


class Demo:
    """One run of the demo, with the counts for its summary."""

    def __init__(self, terminal: Terminal, out: Path) -> None:
        self.terminal = terminal
        self.out = out
        self.cells = 0
        self.events = 0
        self.seconds = 0.0
        self.key = ""
        self.pictures: list[Path] = []
        self.unexpected: list[str] = []

    async def run(self, client: AsyncClient) -> None:
        """Run the whole analysis: create a session, run the cells, export the notebook."""
        self.key = (await client.info())["public_key"]
        began = time.perf_counter()
        async with await client.create_session(name=_NAME) as session:
            took = seconds(time.perf_counter() - began)
            self.message(
                f"session {session.id} is ready after {took}, numpy, pandas and pyplot imported; "
                f"isolation: {session.details.sandbox.isolation}"
            )
            # Also in the output directory, so that the exported notebook finds its data there.
            data = (files("kernelsvc") / "data" / "penguins.csv").read_bytes()
            with output_file(self.out / "penguins.csv") as file:
                file.write(data)
            await session.upload(data, "penguins.csv")
            for cell in CELLS:
                await self.run_cell(session, cell, fails=cell is CELLS[4])
            await self.run_branches(session)
            await self.run_cell(session, LAST_CELL)
            await session.close()
            for suffix in (".ipynb", ".html", ".jsonl"):
                await write_notebook(session, self.out / f"{_NAME}{suffix}", self.terminal)

    async def run_branches(self, session: AsyncSession) -> None:
        """Branch the live session in two, and try another approach in each."""
        began = time.perf_counter()
        try:
            branches = await session.branch(count=len(BRANCH_CELLS), labels={"demo": "branch"})
        except (NotSupported, CannotFork) as error:
            self.message(f"this machine can't branch the session: {error.message}")
            return
        took = seconds(time.perf_counter() - began)
        self.message(
            f"two approaches in parallel: {len(branches)} branches of the live session in {took}, with every variable"
        )
        for branch, cell in zip(branches, BRANCH_CELLS, strict=True):
            async with branch:
                await self.run_cell(branch, cell, where=f"branch {branch.id}")

    async def run_cell(self, session: AsyncSession, cell: DemoCell, *, where: str = "", fails: bool = False) -> None:
        """Run one cell. Show its thought, its code, its output and its duration."""
        self.cells += 1
        terminal = self.terminal
        terminal.line()
        terminal.line(f"{self.cells:>2}  {cell.thought}" + (f"  [{where}]" if where else ""), "bold")
        terminal.line(self._code(cell.code))
        view = CellPrinter(terminal, short_errors=True)

        def show(event: ev.Event) -> None:
            self.events += 1
            view.show(event)

        end = await run_cell(session, cell.source, show, terminal, on_error="continue")
        self._save_images(view.images)
        self.seconds += end.usage.wall_ms / 1000
        terminal.line(f"    {end.reason}, {seconds(end.usage.wall_ms / 1000)}", "red" if fails else "dim")
        if (end.reason is not ev.Reason.OK) != fails:
            self.unexpected.append(f"cell {self.cells} ended with {end.reason}")

    def _code(self, code: str) -> str:
        if self.terminal.colour:
            code = str(highlight(code, PythonLexer(), TerminalFormatter()))
        return "\n".join(f"    {line}" for line in code.rstrip().splitlines())

    def _save_images(self, images: list[Image]) -> None:
        for image in images:
            path = self.out / f"{_NAME}-{len(self.pictures) + 1}{image.suffix}"
            with output_file(path) as file:
                file.write(image.data)
            self.pictures.append(path)
            self.terminal.line(f"    saved as {path}", "dim")

    def message(self, text: str) -> None:
        """Show a line about the demo itself."""
        self.terminal.line()
        self.terminal.line(f"--  {text}", "cyan")


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the demo. Return 1 if a cell ended in an unexpected way."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything else runs on the loop
    demo = Demo(terminal, out)
    began = time.perf_counter()
    async with _server(terminal) as client:
        ready = time.perf_counter()
        demo.message(f"a server listens on {client.address.shown}, ready after {seconds(ready - began)}")
        await demo.run(client)
    _show_summary(demo, time.perf_counter() - ready)
    return 1 if demo.unexpected else 0


@contextlib.asynccontextmanager
async def _server(terminal: Terminal) -> AsyncIterator[AsyncClient]:
    async with private_server(terminal, tcp=True) as address, AsyncClient(address.base, address.token) as client:
        yield client


def _show_summary(demo: Demo, took: float) -> None:
    terminal, out = demo.terminal, demo.out
    demo.message(
        f"{demo.cells} cells in {seconds(took)}, {seconds(demo.seconds)} of it in the kernel; "
        f"{demo.events} events over one WebSocket"
    )
    terminal.line()
    terminal.line(f"The session's notebook: {out / _NAME}.ipynb", "bold")
    terminal.line(f"  to read it:     {out / _NAME}.html, or open the .ipynb in Jupyter")
    terminal.line(
        f"  to verify it:   kernelsvc verify {out / _NAME}.ipynb --journal {out / _NAME}.jsonl --key {demo.key}"
    )
    terminal.line(f"  to repeat it:   kernelsvc replay {out / _NAME}.ipynb --upload {out / _NAME}.csv")
    terminal.line("  your own:       kernelsvc repl")
    for problem in demo.unexpected:
        terminal.message(f"unexpected: {problem}", "red")
