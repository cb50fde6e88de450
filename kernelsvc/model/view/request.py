"""Which part of a cell a reader wants."""

from __future__ import annotations

from msgspec import Struct


class ViewRequest(Struct, frozen=True, kw_only=True):
    """Which part of a cell to read.

    Attributes:
        budget: about how many tokens.
        from_line: first line to read by number. None for the view of the cell.
        lines: most lines from there.
        find: pattern of lines to read.
        picture: number of one picture to read.
        after_line: only what comes after this line, which the reader has.
    """

    budget: int = 3000
    from_line: int | None = None
    lines: int | None = None
    find: str | None = None
    picture: int | None = None
    after_line: int = 0
