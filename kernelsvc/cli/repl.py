"""``kernelsvc repl``: an interactive session, as in IPython.

prompt_toolkit edits the input, as in IPython's own terminal. Variables, completions and help come from the live kernel.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import platformdirs
from IPython.core.inputtransformer2 import TransformerManager
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import ColorDepth
from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]

from kernelsvc.cli.run import session_of
from kernelsvc.cli.run_cell import run_cell, stdin_prompt
from kernelsvc.cli.server_locator import client_or_own_server
from kernelsvc.cli.sessions.record import write_notebook
from kernelsvc.cli.terminal import CellPrinter, Terminal
from kernelsvc.cli.terminal.filter import one_line, safe, seconds, size, table
from kernelsvc.client import AsyncClient, AsyncSession
from kernelsvc.errors import BadRequest, KernelsvcError

_HELP_MARK = re.compile(r"^\s*(\?{1,2})?\s*([\w.\[\]'\"]+)\s*(\?{1,2})?\s*$")
#: The duration of a longer cell is shown.
_SHOW_DURATION_SECONDS = 1.0

_transformer = TransformerManager()


def is_whole(code: str) -> bool:
    """Whether Enter runs this code instead of starting a new line: IPython's rule. A blank line ends a block."""
    if code.startswith(":"):
        return True
    status, _ = _transformer.check_complete(code + "\n" if code.endswith("\n") else code)
    return status != "incomplete" or code.endswith("\n\n")


def indent_after(code: str) -> str:
    """Return the indentation of the next line of an unfinished block."""
    _, indent = _transformer.check_complete(code)
    return " " * (indent or 0)


def help_wanted(code: str) -> tuple[str, int] | None:
    """Parse ``name?`` and ``name??`` as a name and a level of detail, 0 or 1. Return None for other code."""
    match = _HELP_MARK.match(code)
    marks = match and (match[1] or match[3])
    return (match[2], len(marks) - 1) if match and marks else None


class KernelCompleter(Completer):
    """Completions from the live kernel. A busy or dead kernel has none."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        """Return none: prompt_toolkit calls the asynchronous method."""
        return []

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Yield the kernel's completions at the cursor, or the commands after ``:``."""
        if document.text.startswith(":"):
            prefix = document.text[1:]
            for name in COMMANDS:
                if name.startswith(prefix):
                    yield Completion(name, -len(prefix), display_meta=summary_of(name))
            return
        try:
            found = await self.session.complete(document.text, document.cursor_position)
        except KernelsvcError:
            # Completion must not disturb the input. A busy or dead kernel has none.
            return
        start = int(found.get("cursor_start", document.cursor_position)) - document.cursor_position
        types = found.get("metadata", {}).get("_jupyter_types_experimental", [])
        kinds = {one.get("text"): one.get("type", "") for one in types if isinstance(one, dict)}
        for match in found.get("matches", []):
            text = safe(str(match))
            yield Completion(text, start, display_meta=str(kinds.get(match, "")).replace("<unknown>", ""))


class Repl:
    """The read and run loop of one session, with its prompt and its ``:`` commands."""

    def __init__(self, client: AsyncClient, session: AsyncSession, terminal: Terminal) -> None:
        self.client = client
        self.session = session
        self.terminal = terminal
        self.count = session.details.execution_count
        self.leaving = False
        self._ask = stdin_prompt()
        self._completer = KernelCompleter(session)
        self._prompt: PromptSession[str] = PromptSession(
            message=self._message,
            prompt_continuation=self._continuation,
            multiline=True,
            lexer=PygmentsLexer(PythonLexer),
            completer=self._completer,
            complete_while_typing=False,
            history=_history(),
            enable_open_in_editor=True,
            key_bindings=_keys(),
            color_depth=None if terminal.colour else ColorDepth.DEPTH_1_BIT,
        )

    def _message(self) -> ANSI:
        return ANSI(self.terminal.style(f"In [{self.count + 1}]: ", "prompt"))

    def _continuation(self, width: int, line: int, wrapped: int) -> ANSI:
        return ANSI(self.terminal.style("...: ".rjust(width), "prompt"))

    async def run(self) -> None:
        """Read and run input until the user exits."""
        while not self.leaving:
            try:
                text = await self._prompt.prompt_async()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                await self.handle(text)
            except KernelsvcError as error:
                self.terminal.message(error.message, "red")
                for reason in error.details.get("reasons", []):
                    self.terminal.message(f"  {reason}", "red")
            except KeyboardInterrupt:
                self.terminal.message(
                    "the cell is still running. ':interrupt' interrupts it, ':restart' starts a new kernel", "yellow"
                )

    async def handle(self, text: str) -> None:
        """Handle one input: a cell, a request for help (``name?``) or a ``:`` command."""
        code = text.strip("\n")
        if not code.strip():
            return
        if code.strip() in ("exit", "quit", "exit()", "quit()"):
            self.leaving = True
        elif code.startswith(":"):
            await self.command(code[1:])
        elif (wanted := help_wanted(code)) is not None:
            await self._help(*wanted)
        else:
            await self._run(code)

    async def _run(self, code: str) -> None:
        view = CellPrinter(self.terminal, prompts=True)
        end = await run_cell(self.session, code, view.show, self.terminal, ask=self._ask)
        self.count = end.execution_count if end.execution_count is not None else self.count
        took = end.usage.wall_ms / 1000
        if took >= _SHOW_DURATION_SECONDS:
            self.terminal.message(f"{seconds(took)}", "dim")
        self.terminal.line()

    async def _help(self, name: str, level: int) -> None:
        found = await self.session.inspect(name, len(name), level)
        if not found.get("found"):
            self.terminal.message(f"this session has no {name!r}")
            return
        text = str(found.get("data", {}).get("text/plain", ""))
        self.terminal.line(safe(text, colour=self.terminal.colour))

    async def command(self, text: str) -> None:
        """Run one ``:`` command.

        Raises:
            BadRequest: the command is unknown.
        """
        name, _, argument = text.strip().partition(" ")
        chosen = COMMANDS.get(name)
        if chosen is None:
            raise BadRequest(f"Unknown command ':{name}'. ':help' lists the commands.")
        await chosen(self, argument.strip())

    def switch_to(self, session: AsyncSession) -> None:
        """Continue in another session."""
        self.session = self._completer.session = session
        self.count = session.details.execution_count


def _history() -> History:
    try:
        home = Path(platformdirs.user_state_dir("kernelsvc"))
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created before prompt_toolkit does, with its default mode: code may have secrets.
        (home / "history").touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(home / "history"))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_state = None
        elif buffer.document.is_cursor_at_the_end and is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n" + indent_after(buffer.document.text_before_cursor))

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.document.current_line_before_cursor.strip():
            buffer.insert_text("    ")
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(insert_common_part=True)

    return keys


# --- commands -----------------------------------------------------------------------------


async def _commands(repl: Repl, argument: str) -> None:
    """List the commands."""
    for name in COMMANDS:
        repl.terminal.line(f"  :{name:<12} {summary_of(name)}")


async def _interrupt(repl: Repl, argument: str) -> None:
    """Interrupt the running cell."""
    await repl.session.interrupt()


async def _restart(repl: Repl, argument: str) -> None:
    """Start a new kernel with empty variables."""
    await repl.session.restart()
    repl.count = 0
    repl.terminal.message("started a new kernel. The log continues")


async def _undo(repl: Repl, argument: str) -> None:
    """Restore the variables from before the last cell, or those of a checkpoint."""
    details = await repl.session.rollback(argument or None)
    repl.count = details.execution_count
    repl.terminal.message(
        f"back to {argument or 'before the last cell'}. The log and the notebook keep the undone cells"
    )


async def _checkpoint(repl: Repl, argument: str) -> None:
    """Save the present state under a name."""
    made = await repl.session.checkpoint(argument or None)
    repl.terminal.message(f"checkpoint {made.name or made.id}, {made.cost_ms:.1f} ms")


async def _branch(repl: Repl, argument: str) -> None:
    """Continue in a branch of this session, which itself stays as it is."""
    before = repl.session.id
    [branch] = await repl.session.branch()
    repl.switch_to(branch)
    repl.terminal.message(f"now in {branch.id}. ':switch {before}' returns")


async def _switch(repl: Repl, argument: str) -> None:
    """Continue in another session, by its id."""
    repl.switch_to(await repl.client.session(argument))
    repl.terminal.message(f"now in {repl.session.id}")


async def _variables(repl: Repl, argument: str) -> None:
    """List the session's variables."""
    found = await repl.session.variables()
    rows = [
        [safe(v.name), safe(v.type), "" if v.size_bytes is None else size(v.size_bytes), one_line(v.summary, 60)]
        for v in found
    ]
    for line in table(rows, ["NAME", "TYPE", "SIZE", "VALUE"]):
        repl.terminal.line(line)


async def _upload(repl: Repl, argument: str) -> None:
    """Upload a file of this machine to the working directory."""
    name = await repl.session.upload(os.path.expanduser(argument))  # noqa: ASYNC240 - reads no file
    repl.terminal.message(f"uploaded {name}")


async def _download(repl: Repl, argument: str) -> None:
    """Download a file of the session to this directory."""
    repl.terminal.message(f"wrote {await repl.session.save(argument)}")


async def _files(repl: Repl, argument: str) -> None:
    """List the working directory."""
    for info in await repl.session.files():
        repl.terminal.line(f"{size(info.size):>10}  {safe(info.path)}")


async def _save(repl: Repl, argument: str) -> None:
    """Write the notebook: F.ipynb, F.html or F.py."""
    await write_notebook(repl.session, Path(argument or f"{repl.session.id}.ipynb"), repl.terminal)


async def _quit(repl: Repl, argument: str) -> None:
    """Exit."""
    repl.leaving = True


COMMANDS: dict[str, Callable[[Repl, str], Awaitable[None]]] = {
    "help": _commands,
    "interrupt": _interrupt,
    "restart": _restart,
    "undo": _undo,
    "checkpoint": _checkpoint,
    "branch": _branch,
    "switch": _switch,
    "vars": _variables,
    "files": _files,
    "upload": _upload,
    "download": _download,
    "save": _save,
    "quit": _quit,
}


def summary_of(name: str) -> str:
    """Return a command's description, in one line."""
    return (COMMANDS[name].__doc__ or "").partition(".")[0]


async def main(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run the loop until the user exits."""
    async with client_or_own_server(args, terminal) as client, session_of(args, client) as session:
        details = session.details
        kernel = details.kernel
        language = f"{kernel.language} {kernel.python}".strip() if kernel else details.template
        terminal.message(
            f"session {session.id}: {language}, isolation {details.sandbox.isolation}. ':help' lists commands.", "dim"
        )
        await Repl(client, session, terminal).run()
        if args.keep or args.session:
            terminal.message(f"the session stays open: kernelsvc repl --session {session.id}")
    return 0
