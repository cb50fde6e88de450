"""Find lines by a pattern, in a time that a hostile pattern or text can't extend."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator

from kernelsvc.errors import BadRequest

#: Longest pattern, in characters, most repetitions in it, and most choices: an optional part, or one of two in a group.
MAX_PATTERN, MAX_REPEATS, MAX_CHOICES = 200, 3, 10
#: Seconds of one search.
SECONDS = 0.3
#: Most characters of a line that are searched.
MAX_SEARCHED = 4000
#: Most steps in one line, about 0.2 s. The engine tries each combination of lengths and choices, and nothing can
#: interrupt it: each repetition multiplies the steps by the line's length, each choice by two.
_STEPS = 2_000_000
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^:)]?|[()*+{}?|]|\{\d*,?\d*\}|[^\\()*+?{}|\[]+|.", re.DOTALL)


def compile_pattern(pattern: str) -> tuple[re.Pattern[str], int]:
    """Compile a regular expression, without regard to case. Text that is none is searched as it is.

    Returns:
        the expression, and how many characters of a line it may search.

    Raises:
        BadRequest: it has nested or many repetitions or choices, a reference or a look-around.
    """
    if len(pattern) > MAX_PATTERN:
        raise BadRequest(f"'find' has more than {MAX_PATTERN} characters. Search for a shorter text.")
    try:
        found = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError):
        return re.compile(re.escape(pattern), re.IGNORECASE), MAX_SEARCHED
    repeats = choices = depth = 0
    before = ""
    for token in _TOKEN.findall(pattern):
        if (token.startswith("(?") and token != "(?:") or re.fullmatch(r"\\[1-9]", token):
            raise _refused("has a reference or a look-around")
        if token in ("*", "+") or (token == "{" and before != "\\"):
            if before == ")":
                raise _refused("repeats a group")
            repeats += 1
        depth += (token == "(") - (token == ")")
        choices += token == "?" or (token == "|" and depth > 0)
        before = token
    if repeats > MAX_REPEATS:
        raise _refused(f"has more than {MAX_REPEATS} repetitions")
    if choices > MAX_CHOICES:
        raise _refused(f"has more than {MAX_CHOICES} choices ('?', or '|' in a group)")
    # Repetitions share the line: of n of them, the lengths have length ** n / n! combinations.
    combinations = _STEPS * math.factorial(repeats + 1) / 2**choices
    return found, min(MAX_SEARCHED, int(combinations ** (1 / (repeats + 1))))


def _refused(why: str) -> BadRequest:
    return BadRequest(
        f"The pattern in 'find' {why}, which could take too long. Use a simpler one, such as 'error|warn'."
    )


def matching_lines(
    lines: Iterable[str], pattern: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[int, str] | None]:
    """Yield the number and text of each line with a match. None at the end if the time was over before it.

    Raises:
        BadRequest: see ``compile_pattern``.
    """
    found, length = compile_pattern(pattern)
    until = clock() + SECONDS
    for number, line in enumerate(lines, 1):
        if found.search(line, 0, length) is not None:
            yield number, line
        if clock() > until:
            yield None
            return
