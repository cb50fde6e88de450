"""Output to the terminal: its capabilities, and the view of a cell's events."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import msgspec

from kernelsvc.cli.terminal import image as terminal_image
from kernelsvc.cli.terminal.filter import EscapeFilter, json_text, safe, still
from kernelsvc.client.values import Image, images_of
from kernelsvc.model import events as ev

_STYLES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36",
    "prompt": "32;1", "out": "31;1",
}  # fmt: skip


class Terminal:
    """Standard output and standard error, with their capabilities.

    Attributes:
        out: stream of results.
        err: stream of messages about them.
        tty: whether ``out`` is a terminal.
        colour: whether ``out`` shows colour. ``NO_COLOR`` (no-color.org) and ``FORCE_COLOR`` override the default.
        image_protocol: how ``out`` shows images.
    """

    def __init__(
        self, out: TextIO | None = None, err: TextIO | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        env = os.environ if env is None else env
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.tty = self.out.isatty()
        plain = bool(env.get("NO_COLOR")) or env.get("TERM") == "dumb"
        self.colour = bool(env.get("FORCE_COLOR")) or (self.tty and not plain)
        self.image_protocol = terminal_image.protocol_of(env, tty=self.tty, colour=self.colour)

    @property
    def columns(self) -> int:
        """Width of the terminal, in characters."""
        return shutil.get_terminal_size((100, 24)).columns

    def style(self, text: str, *names: str) -> str:
        """Return the text in colour, if the terminal shows colour."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(_STYLES[name] for name in names)}m{text}\x1b[0m"

    def write(self, text: str) -> None:
        """Write text to ``out`` and flush it. Adds no line end."""
        self.out.write(text)
        self.out.flush()

    def line(self, text: str = "", *styles: str) -> None:
        """Write a line to ``out``. Of control sequences in the text only colours pass: names may be an attacker's."""
        shown = safe(text, colour=self.colour)
        self.write((self.style(shown, *styles) if styles else shown) + "\n")

    def json(self, value: object, *, indent: int = 2) -> None:
        """Write a value as JSON to ``out``, without characters that a terminal obeys.

        Args:
            value: Anything that msgspec encodes.
            indent: Spaces of each level. 0: one line.
        """
        encoded = msgspec.json.encode(value)
        self.write(json_text(msgspec.json.format(encoded, indent=indent) if indent else encoded) + "\n")

    def message(self, text: str, *styles: str) -> None:
        """Write a line to ``err``. No control sequence in the text passes."""
        text = still(text)
        shown = self.style(text, *styles) if styles and self.err.isatty() else text
        self.err.write(shown + "\n")
        self.err.flush()

    def progress(self, text: str) -> None:
        """Write a line to ``err`` that the next one replaces. Write nothing if ``err`` is not a terminal."""
        if self.err.isatty():
            self.err.write(f"\r\x1b[K{text[: self.columns - 1]}")
            self.err.flush()


class CellPrinter:
    """A live view of one cell's events.

    Args:
        terminal: shows the events.
        prompts: mark results with ``Out[n]:``, like IPython.
        short_errors: show only the message of an error, on ``out``, without its traceback.
        movement: let output move the cursor in its line, as progress bars do.

    Attributes:
        images: images that the cell displayed.
    """

    def __init__(
        self, terminal: Terminal, *, prompts: bool = False, short_errors: bool = False, movement: bool = True
    ) -> None:
        self.images: list[Image] = []
        self._terminal = terminal
        self._prompts = prompts
        self._short_errors = short_errors
        self._filters = {name: EscapeFilter(colour=terminal.colour, movement=movement) for name in ("stdout", "stderr")}
        self._at_start = True
        self._clear = False

    def show(self, event: ev.Event) -> None:
        """Show one event. Events without output show nothing."""
        match event:
            case ev.Stream(name=name, text=text):
                self._text(name, text)
            case ev.Display(data=data) | ev.DisplayUpdated(data=data):
                self._bundle(data, "")
            case ev.Result(data=data, execution_count=count):
                self._bundle(data, f"Out[{count}]: " if self._prompts else "")
            case ev.Error():
                self._error(event)
            case ev.OutputCleared(wait=wait):
                self._clear = True
                if not wait:
                    self._apply_clear()
            case ev.OutputTruncated(dropped=dropped) if dropped:
                self._note(f"the output exceeds its limit. {dropped:,} characters of it are only in the log")
            case ev.LimitReached() | ev.KernelDied() | ev.EgressDenied():
                self._note(event.message)
            case ev.KernelRestored():
                self._note("the kernel was restored from a checkpoint, with the variables from before this cell")
            case ev.CellFinished():
                self._finished(event)
            case _:
                pass

    def _text(self, name: str, text: str) -> None:
        # clear_output(wait=True) takes effect with the next output.
        self._apply_clear()
        shown = self._filters[name].feed(text)
        if not shown:
            return
        stream = self._terminal.err if name == "stderr" else self._terminal.out
        stream.write(shown)
        stream.flush()
        self._at_start = shown.endswith("\n")

    def _bundle(self, data: dict[str, Any], prompt: str) -> None:
        self._apply_clear()
        self._start_line()
        images = images_of(data)
        if images:
            self.images.append(images[0])
            self._terminal.write(terminal_image.rendered(images[0], self._terminal.image_protocol) + "\n")
            return
        text = _text_of(data)
        if prompt:
            self._terminal.write(self._terminal.style(prompt, "out"))
            text = "\n" + text if "\n" in text else text
        self._terminal.line(safe(text, colour=self._terminal.colour))

    def _error(self, event: ev.Error) -> None:
        self._apply_clear()
        self._start_line()
        if self._short_errors:
            self._terminal.line(safe(f"{event.ename}: {event.evalue}"), "red")
            return
        text = "\n".join(event.traceback) or f"{event.ename}: {event.evalue}"
        self._terminal.err.write(safe(text, colour=self._terminal.colour) + "\n")
        self._terminal.err.flush()

    def _finished(self, event: ev.CellFinished) -> None:
        for escape_filter in self._filters.values():
            self._terminal.write(escape_filter.flush())
        self._start_line()
        if event.reason not in (ev.Reason.OK, ev.Reason.ERROR):
            kept = {True: " Variables were kept.", False: " Variables were lost.", None: ""}[event.variables_kept]
            said = (event.message or "The cell ended early.").rstrip(".")
            if "variables" in said:  # most messages end with it
                kept = ""
            self._note(f"{event.reason}: {said}.{kept}")

    def _note(self, text: str) -> None:
        self._start_line()
        self._terminal.message(safe(text), "yellow")

    def _apply_clear(self) -> None:
        """Obey ``clear_output`` as far as a terminal can: erase the unfinished line."""
        if not self._clear:
            return
        self._clear = False
        if self._terminal.tty and not self._at_start:
            self._terminal.write("\r\x1b[K")
            self._at_start = True

    def _start_line(self) -> None:
        if not self._at_start:
            self._terminal.write("\n")
            self._at_start = True


def _text_of(data: dict[str, Any]) -> str:
    for mime in ("text/plain", "text/markdown", "text/latex", "text/html", "application/json"):
        value = data.get(mime)
        if isinstance(value, list):
            value = "".join(str(part) for part in value)
        if value is not None:
            return str(value)
    return f"[{', '.join(data) or 'an empty display'}]"
