"""A cell's whole output as numbered lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from kernelsvc.model.view import crash_dump
from kernelsvc.model.view.plain_form import MODEL_MIME, is_placeholder, text_form
from kernelsvc.model.view.terminal import screen_text

#: Longest line, in characters. A longer one is several numbered lines.
LINE = 2000
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,16}\b")
_PLOT_VALUE = re.compile(r"<matplotlib\.|<Axes|<BarContainer|Text\(")
#: The name that ipykernel gives to a cell's code, with the process id and a hash of the code.
_CELL_FILE = re.compile(r"ipykernel_\d{1,9}/\d{1,20}\.py")
#: In the output of the cell's processes: a line of a traceback, as when an interrupt ends a child, and the place of a
#: warning.
_OWN_FRAME = re.compile(
    r'^(?: *File "/[^"\n]{0,300}/kernelsvc/guest/[^"\n]{0,100}", line \d{1,6}, in .{0,100}\n?'
    r"|/[^\s:]{0,300}/kernelsvc/guest/[^\s:]{1,100}:\d{1,6}: )",
    re.MULTILINE,
)
_OWN_MARK = re.compile(r"\[picture(?: \d+)?:?\s*(.*?)\]?", re.DOTALL)

Kind = Literal["stream", "value", "error"]
Output = dict[str, Any]


class Block(Struct, frozen=True):
    """Lines of one kind.

    Attributes:
        first: number of its first line, from 1.
        continued: by line, whether it continues the line before it.
    """

    kind: Kind
    first: int
    lines: list[str]
    continued: list[bool]

    @property
    def last(self) -> int:
        """Number of its last line."""
        return self.first + len(self.lines) - 1


class NumberedPicture(Struct, frozen=True):
    """One picture of a cell.

    Attributes:
        number: from 1, in the order of the outputs.
        data: base64 text, as in the output.
    """

    number: int
    mime: str
    data: str


class FullText(Struct, frozen=True):
    """All lines of a cell, and its pictures."""

    blocks: list[Block]
    pictures: list[NumberedPicture]

    @property
    def count(self) -> int:
        """How many lines there are."""
        return self.blocks[-1].last if self.blocks else 0

    def lines(self) -> Iterator[str]:
        """Return all lines, the first one first."""
        for block in self.blocks:
            yield from block.lines


def full_text(outputs: Sequence[Output], error_lines: Sequence[str] | None = None) -> FullText:
    """Return the lines of a cell's outputs.

    Args:
        outputs: in nbformat's form.
        error_lines: the last error's form for language models, if the kernel made one.
    """
    blocks: list[Block] = []
    pictures: list[NumberedPicture] = []
    stream: list[str] = []
    last_error = max((i for i, each in enumerate(outputs) if each["output_type"] == "error"), default=-1)
    drawn = any(_picture(each.get("data") or {}) for each in outputs)
    for index, output in enumerate(outputs):
        if output["output_type"] == "stream":
            # One terminal shows both streams.
            stream.append(_text(output["text"]))
            continue
        _add(blocks, "stream", _stream_text(stream))
        stream.clear()
        if output["output_type"] == "error":
            given = error_lines if index == last_error else None
            _add(blocks, "error", screen_text("\n".join(given or _traceback(output))))
        else:
            _add(blocks, "value", _value(output, pictures, drawn=drawn))
    _add(blocks, "stream", _stream_text(stream))
    return FullText(blocks, pictures)


def _stream_text(pieces: list[str]) -> str:
    return crash_dump.shortened(screen_text("".join(pieces)))


def _without_paths(text: str) -> str:
    """Take out what only this service put into a text: names of cells' files, frames of its own in tracebacks."""
    if "/ipykernel_" in text:
        text = _without_cell_files(text)
    return _OWN_FRAME.sub("", text) if "/kernelsvc/guest/" in text else text


def _without_cell_files(text: str) -> str:
    """Write ``Cell`` for the paths of cells' files, in linear time: a kernel may print a million slashes."""
    pieces, done = [], 0
    for found in _CELL_FILE.finditer(text):
        before = text[max(done, found.start() - 1024) : found.start()]
        directory = _last_directory(before)
        if directory:
            pieces += [text[done : found.start() - len(directory)], "Cell"]
            done = found.end()
    return "".join([*pieces, text[done:]])


def _last_directory(before: str) -> str:
    """Return the directory at the end of some text, with its last slash, or nothing."""
    word = re.split(r"[\s\"':]", before)[-1]
    return word[word.index("/") :] if word.endswith("/") else ""


def _text(value: Any) -> str:
    # nbformat allows a list of lines.
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _traceback(output: Output) -> Sequence[str]:
    return output["traceback"] or [f"{output['ename']}: {output['evalue']}"]


def _value(output: Output, pictures: list[NumberedPicture], *, drawn: bool) -> str:
    data = output["data"]
    model = data.get(MODEL_MIME)
    found = _picture(data)
    if found is not None:
        picture = NumberedPicture(len(pictures) + 1, *found)
        pictures.append(picture)
        return _picture_line(picture.number, data)
    if isinstance(model, str):
        return screen_text(model)
    text = _ADDRESS.sub(" at 0x…", screen_text(text_form(data)))
    # The value of a plot call repeats that there is a picture.
    return "" if drawn and output["output_type"] == "execute_result" and _PLOT_VALUE.search(text) else text


def _picture(data: dict[str, Any]) -> tuple[str, str] | None:
    if isinstance(data.get("text/latex"), str):
        # A picture of a formula (sympy) says less than its text.
        return None
    for mime in _PICTURES:
        value = data.get(mime)
        if value:
            return mime, _text(value)
    return None


def _picture_line(number: int, data: dict[str, Any]) -> str:
    model, plain = data.get(MODEL_MIME), data.get("text/plain")
    if isinstance(model, str):
        own = _OWN_MARK.fullmatch(model.strip())
        about = own[1] if own else model.strip()
        return f"[picture {number}: {about}]" if about else f"[picture {number}]"
    if isinstance(plain, str) and plain and not is_placeholder(plain) and not plain.startswith(("<Figure", "<PIL.")):
        return f"{screen_text(plain)}\n[picture {number}]"
    return f"[picture {number}]"


def _add(blocks: list[Block], kind: Kind, text: str) -> None:
    if not (text := _without_paths(text)):
        return
    lines = text.removesuffix("\n").split("\n")
    continued = [False] * len(lines)
    if max(map(len, lines)) > LINE:  # few outputs have such a line, and this loop is slow for many lines
        whole, lines, continued = lines, [], []
        for line in whole:
            for start in range(0, max(1, len(line)), LINE):
                lines.append(line[start : start + LINE])
                continued.append(start > 0)
    first = blocks[-1].last + 1 if blocks else 1
    blocks.append(Block(kind, first, lines, continued))
