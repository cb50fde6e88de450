"""Cells as language models write them, in groups, each with the facts that its answer must have.

A group runs in one session, in order. A fact is a regular expression that a reader needs for its next step. It was
chosen by a look at the whole output, not at the view. ``benchmarks.model_corpus`` runs all groups with the packages
that they need. The tests run the part that needs no other packages than theirs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

GROUPS = ("tables", "progress", "warned", "failing", "drawn", "dumped", "consulted", "surroundings")
#: Paths of the server, routes and control sequences: none may be in an answer.
LEAK = re.compile(
    r"/\.venv/|\.pyenv|/guest/kernelsvc|/kernelsvc/guest/|/ipykernel_\d+/|GET /v1/|\x1b\[|kernelsvc-tests/"
)


@dataclass(frozen=True)
class CorpusCell:
    """One cell.

    Attributes:
        name: short and unique.
        code: what runs.
        facts: regular expressions that the answer must match.
        pictures: how many pictures must be had, in the answer or by number.
        needs: packages without which it can't run.
        seconds: the time limit that the model asks for.
        setup: prepares data, and does not count.
        slow: takes more than about a second, and no later cell needs it.
    """

    name: str
    code: str
    facts: Sequence[str] = ()
    pictures: int = 0
    needs: Sequence[str] = ()
    seconds: float | None = None
    setup: bool = False
    slow: bool = False

    def missing(self, answer: str, pictures: int) -> list[str]:
        """Return the facts that an answer lacks."""
        lacks = [fact for fact in self.facts if not re.search(fact, answer)]
        return [*lacks, *(["pictures"] if pictures < self.pictures else [])]

    @property
    def fact_count(self) -> int:
        """How many facts it has. All pictures of a cell are one."""
        return len(self.facts) + (self.pictures > 0)


def group(name: str) -> list[CorpusCell]:
    """Return the cells of a group."""
    found: list[CorpusCell] = import_module(f"benchmarks.corpus.{name}").CELLS
    return found


def quick(cells: Sequence[CorpusCell]) -> Iterator[CorpusCell]:
    """Return the cells that run in well under a second with the packages that this environment has."""
    for cell in cells:
        if not cell.slow and all(importlib.util.find_spec(name) for name in cell.needs):
            yield cell
