"""Shorten the dump that Python's faulthandler writes when a process crashes.

The dump has all frames of all threads with the paths of the machine, then the names of all extension modules. Only the
first line, the innermost frame and the frames of the cell explain the crash. The log keeps the whole dump.
"""

from __future__ import annotations

import re

_START = "Fatal Python error: "
_FRAME = re.compile(r'  File "([^"]*)", line (\d+|\?\?\?) in (.*)')
_LIBRARY = re.compile(r"\A(?:.*/(?:site|dist)-packages/|.*/lib/python3\.\d+/)")
_REST = re.compile(
    r"$|(?:Current t|T)hread 0x|Current thread's C stack|Extension modules: |"
    r"  (?:Garbage-collecting|<|\.\.\.$|Binary file )"
)
#: Frames of the cell that are shown.
_MOST = 5


def shortened(text: str) -> str:
    """Return a text in which each dump of faulthandler has its first line, its innermost frame and those of the cell.

    Args:
        text: what a process wrote to stderr.
    """
    if _START not in text:
        return text
    found: list[str] = []
    frames: list[tuple[str, str]] | None = None
    for line in text.split("\n"):
        if frames is None:
            found.append(line)
            if line.startswith(_START):
                frames = []
            continue
        match = _FRAME.fullmatch(line)
        if match is not None:
            frames.append((match[1], f"line {match[2]} in {match[3]}"))
        elif not _REST.match(line):
            found += [*_shown(frames), line]
            frames = None
    if frames is not None:
        found += [*_shown(frames), ""]
    return "\n".join(found)


def _shown(frames: list[tuple[str, str]]) -> list[str]:
    """Return the lines of the frames that are shown, the innermost first."""
    kept = [f"  {_LIBRARY.sub('', file)}, {rest}" for file, rest in frames[:1] if not _is_cell(file)]
    cells = [f"  Cell, {rest}" for file, rest in frames if _is_cell(file)]
    kept += cells[:_MOST]
    left_out = len(frames) - len(kept)
    return [*kept, f"  [{left_out} frames are left out]"] if left_out else kept


def _is_cell(file: str) -> bool:
    return "/ipykernel_" in file
