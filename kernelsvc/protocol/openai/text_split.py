"""Reasoning and code that a model writes into its text: ``<think>`` at the start, and a fenced block of Python.

A tag may be split over pieces, or be one of several in a piece. Text that may still become a tag is kept back.
"""

from __future__ import annotations

import re
from typing import Literal

Part = tuple[Literal["text", "reasoning", "code", "code_begins", "code_ends"], str]

_THINK, _THINK_END = "<think>", "</think>"
_FENCES = ("```python\n", "```py\n", "```python3\n")
_FENCE = re.compile("^(?:" + "|".join(_FENCES) + ")", re.MULTILINE)
#: Characters of white space before which a tag may still begin the text.
_MAX_SPACE = 4096
_FENCE_END = "\n```"


class TextSplitter:
    """Splitter of one turn's text.

    Args:
        fences: Whether a fenced block of Python is code to run.
    """

    def __init__(self, *, fences: bool) -> None:
        self._fences = fences
        self._kept = ""
        self._state: Literal["start", "text", "reasoning", "code", "after"] = "start"
        self._line_start = True
        # Line ends next to a tag belong to the tag.
        self._after_tag = False

    def feed(self, piece: str) -> list[Part]:
        """Take more text. Return its parts. After the first block of code the rest is dropped: it awaits the result."""
        if self._state == "text" and not self._fences and not self._after_tag:
            return [("text", piece)] if piece else []  # nearly every token of an answer
        self._kept += piece
        found: list[Part] = []
        while self._step(found):
            pass
        return [part for part in found if part[1] or part[0].startswith("code_")]

    def end(self) -> list[Part]:
        """Return the held parts. A block without an end is complete at the end."""
        kept, self._kept = self._kept, ""
        if self._state == "code":
            # The closing fence may lack its line end, and a server that stops at it leaves it out.
            body = kept.removesuffix("```").removesuffix("\n")
            self._state = "after"
            found: list[Part] = [("code", body)] if body else []
            return [*found, ("code_ends", "")]
        if self._state == "after" or not kept:
            return []
        return [("reasoning" if self._state == "reasoning" else "text", kept)]

    def _step(self, found: list[Part]) -> bool:
        """Move on by one state, if enough has arrived."""
        if self._state == "after":
            self._kept = ""
            return False
        if self._after_tag:
            self._kept = self._kept.lstrip("\n")
            self._after_tag = not self._kept
        if self._state == "start":
            return self._start()
        if self._state == "reasoning":
            return self._until(_THINK_END, "reasoning", "text", found)
        if self._state == "code":
            if self._until(_FENCE_END, "code", "after", found):
                found.append(("code_ends", ""))
                return True
            return False
        return self._text(found)

    def _start(self) -> bool:
        start = self._kept.lstrip()
        if start.startswith(_THINK):
            self._state, self._kept = "reasoning", start[len(_THINK) :]
            self._after_tag = True
            return True
        if _THINK.startswith(start) and len(self._kept) < _MAX_SPACE:  # also for nothing but spaces
            return False
        self._state = "text"
        return True

    def _until(
        self, tag: str, kind: Literal["reasoning", "code"], then: Literal["text", "after"], out: list[Part]
    ) -> bool:
        at = self._kept.find(tag)
        if at >= 0:
            out.append((kind, self._kept[:at]))
            self._kept, self._state = self._kept[at + len(tag) :], then
            self._after_tag = then == "text"
            return True
        safe = len(self._kept) - _overlap(self._kept, tag)
        out.append((kind, self._kept[:safe]))
        self._kept = self._kept[safe:]
        return False

    def _text(self, found: list[Part]) -> bool:
        if not self._fences:
            found.append(("text", self._kept))
            self._kept = ""
            return False
        first = 0 if self._line_start else self._kept.find("\n") + 1
        if (first or self._line_start) and (fence := _FENCE.search(self._kept, first)):
            found += [("text", self._kept[: fence.start()]), ("code_begins", "")]
            # The line end before a closing fence is a part of it, also if the block is empty.
            self._kept, self._state = self._kept[fence.end() :], "code"
            return True
        at, last = len(self._kept), self._kept.rfind("\n") + 1
        line = self._kept[last : last + len(max(_FENCES, key=len))]
        if (last or self._line_start) and line and any(fence.startswith(line) for fence in _FENCES):
            at, self._line_start = last, True  # the line may still become a fence
        elif at:
            self._line_start = last == at
        found.append(("text", self._kept[:at]))
        self._kept = self._kept[at:]
        return False


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
