"""Fenced blocks of Markdown pages, and what a comment above one says of it. Values only.

``<!-- not run: REASON -->`` above a block keeps it from being run, ``<!-- prints
-->`` makes a ``text`` block the expected output of the block before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: What is run unless it says why not.
RUN = ("python", "bash", "console")
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL
)  # fmt: skip
NOTE = re.compile(r"<!-- *(not run|prints) *(?:: *(.*?))? *-->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file it stands in.
        line: of its first line of text, from 1.
        language: its info string's first word.
        text: between the fences.
        not_run: why it isn't, if it isn't.
        prints: what it must print, if the page says so; ``...`` stands for anything.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    prints: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.language in RUN and self.not_run is None

    @property
    def where(self) -> str:
        """For a message."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a comment belongs to no block, or a reason is missing.
    """
    text = page.read_text("utf-8") if text is None else text
    found: list[Block] = []
    for match in FENCE.finditer(text):
        before, line = text[: match.start()], text.count("\n", 0, match.start()) + 2
        note = NOTE.search(before)
        word, reason = (note[1], note[2]) if note else (None, None)
        if word == "not run" and not reason:
            raise ValueError(f"{page.name}:{line - 1}: 'not run' wants a reason")
        if word == "prints":
            if not found or found[-1].prints is not None:
                raise ValueError(f"{page.name}:{line - 1}: 'prints' follows no block")
            found[-1] = Block(**{**vars(found[-1]), "prints": match["text"]})
            continue
        found.append(Block(page, line, match["language"], match["text"], not_run=reason))
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a ``console`` block (lines that begin with ``$``), each with the output shown below it."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line}", "")
        elif found:
            command, output = found[-1]
            found[-1] = (command, f"{output}{line}\n")
    return found


def agrees(expected: str, actual: str) -> bool:
    """Whether an output is as a page shows it; ``...`` stands for anything, ends of lines for any white space."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    pattern = r"\s*" + r".*".join(parts).replace(r"\ ", r"\s+") + r"\s*"
    return re.fullmatch(pattern, " ".join(actual.split()), re.DOTALL) is not None
