"""An exception as a model needs it: its own frames, the failing part of each line, and the values in it.

::

    Traceback (most recent call last):
      Cell [21], line 4
        orders["total"] = orders.apply(total, axis=1)
        here: orders.apply(total, axis=1)
      … 4 frames in pandas
      Cell [21], line 3, in total
        return int(row["qty"]) * float(row["price"])
        here: float(row["price"])
        where row = Series of 2 values, object
    ValueError: could not convert string to float: 'x'

Frames of libraries are counted. Code of an exception class runs only for its ``__str__``, which every traceback calls.
"""

from __future__ import annotations

import itertools
import linecache
import os
import re
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kernelsvc.guest.model_view import texts, where

#: Most characters of an exception's message, and of a line of source code.
MAX_MESSAGE, MAX_LINE = 1200, 300
#: Most characters of all lines together.
MAX_TEXT = 16_000
#: Most frames of one traceback that are read, and that are shown.
MAX_WALK, MAX_SHOWN = 100_000, 24
#: Most exceptions of a chain, most members of a group that are shown, and the depth of nested groups.
MAX_CHAIN, MAX_MEMBERS, MAX_DEPTH = 8, 5, 3
#: Longest sequence of frames whose repetition is found: functions that call each other.
_MAX_PERIOD = 4
_GUEST = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Modules whose functions stand between user code and the standard library, such as IPython's ``open``.
_WRAPPERS = frozenset(("IPython.core.interactiveshell",))
_REMOTE = frozenset((("multiprocessing.pool", "RemoteTraceback"), ("concurrent.futures.process", "_RemoteTraceback")))
_REMOTE_FRAME = re.compile(r'^  File "([^"\n]+)", line (\d+), in ([^\n]+)(?:\n    ([^\n]*))?', re.MULTILINE)


class Places:
    """The files whose frames are the user's: cells, and modules in the working directory.

    Args:
        cells: number of the cell of a file name that IPython gave to its code, or None.
        directory: the working directory.
    """

    def __init__(self, cells: Callable[[str], int | None], directory: str) -> None:
        self._cells = cells
        self._directory = directory.rstrip("/") + "/"

    def name_of(self, file: str) -> str | None:
        """Return how a file of the user is called in a traceback, or None for a file of a library."""
        number = self._cells(file)
        if number is not None:
            return f"Cell [{number}]"
        if file.startswith(self._directory) and "/site-packages/" not in file:
            return file[len(self._directory) :]
        return None


class TracebackEntry(NamedTuple):
    """One entry of a traceback. ``place`` is None for a frame of a library."""

    place: str | None
    code: types.CodeType
    line: int
    last: int
    frame: types.FrameType

    @property
    def key(self) -> tuple[int, int]:
        """Equal for two frames that are at the same line of the same function."""
        return id(self.code), self.line


def lines_of(error: BaseException, places: Places, left_out: int = 0) -> list[str]:
    """Return the lines about an exception, its causes and its members.

    Args:
        error: with its traceback.
        places: the files of the user.
        left_out: the frames that were removed from the middle of its traceback.
    """
    try:
        found = _chain(error, places, 0, left_out)
    except Exception as failure:  # A damaged exception must not replace the report of it.
        found = [_headline(error), f"[the traceback could not be read: {type(failure).__name__}]"]
    return _bounded(found)


def _bounded(lines: list[str]) -> list[str]:
    room = MAX_TEXT
    head: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            return [*head, f"[… {len(lines) - len(head) - 1} more lines …]", lines[-1][:MAX_MESSAGE]]
        head.append(line)
    return head


def _chain(error: BaseException, places: Places, depth: int, left_out: int = 0) -> list[str]:
    if isinstance(error, SystemExit):
        return _last_lines(error)
    links = _links(error)
    frames = [_frames(one.__traceback__, places, outermost=one is error and not depth) for one, _ in links]
    found: list[str] = []
    for at, (one, relation) in enumerate(links):
        remote = _remote_lines(one, places)
        if remote is not None:
            found += remote
            continue
        last = at == len(links) - 1
        if last or _has_more(frames[at], frames[at + 1]):
            found += _one(one, frames[at], places, depth, left_out if last else 0)
        elif _message(one).strip("'\"") not in _message(links[at + 1][0]):  # A KeyError quotes its key.
            found.append(_headline(one))
        else:
            continue
        if not last:
            found.append(relation)
    return found


def _links(error: BaseException) -> list[tuple[BaseException, str]]:
    """Return the exceptions of a chain, the oldest first, each with its relation to the next."""
    found: list[tuple[BaseException, str]] = [(error, "")]
    seen = {id(error)}
    while len(found) < MAX_CHAIN:
        newest = found[-1][0]
        older, relation = newest.__cause__, "which was the cause of:"
        if older is None and not newest.__suppress_context__:
            older, relation = newest.__context__, "and while that was handled:"
        if older is None or id(older) in seen:
            break
        seen.add(id(older))
        found.append((older, relation))
    return found[::-1]


def _has_more(frames: Sequence[TracebackEntry], others: Sequence[TracebackEntry]) -> bool:
    """Whether there is a frame of the user's that the others lack."""
    known = {each.key for each in others}
    return any(each.place is not None and each.key not in known for each in frames)


def _one(
    error: BaseException, frames: Sequence[TracebackEntry], places: Places, depth: int, left_out: int
) -> list[str]:
    shown = list(_frame_lines(frames, left_out))
    if isinstance(error, SyntaxError):
        shown += _syntax_lines(error, places)
    found = ["Traceback (most recent call last):", *shown] if shown else []
    found += _last_lines(error)
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        members = BaseExceptionGroup.exceptions.__get__(error)
        for number, member in enumerate(members[:MAX_MEMBERS], 1):
            found.append(f"  {number} of {len(members)}:")
            found += [f"    {line}" for line in _chain(member, places, depth + 1)]
        if len(members) > MAX_MEMBERS:
            found.append(f"  [… {len(members) - MAX_MEMBERS} more …]")
    return found


# --- the message ------------------------------------------------------------------------


def _name(error: BaseException) -> str:
    return str(type.__dict__["__name__"].__get__(type(error)))


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # As in the traceback module: the message can't be had.
        text = "<the exception's str() failed>"
    return texts.without_prefixes(texts.mask_addresses(texts.cut(text, MAX_MESSAGE)))


def _headline(error: BaseException) -> str:
    message = _message(error)
    return f"{_name(error)}: {message}" if message else _name(error)


def _last_lines(error: BaseException) -> list[str]:
    if isinstance(error, SystemExit):
        code = error.code
        shown = "" if code is None else f": {code}" if type(code) is int else f": {_message(error)}"
        return [f"SystemExit{shown} (the cell ended here; the session and its variables go on)"]
    if isinstance(error, SyntaxError):
        message = error.msg if type(error.msg) is str else _message(error)
        return [f"{_name(error)}: {texts.cut(message, MAX_MESSAGE)}", *_notes(error)]
    lines = _headline(error).split("\n")
    suggestion = _suggestion(error)
    if suggestion and "Did you mean" not in lines[-1]:
        lines[-1] += suggestion
    return [*lines, *_notes(error)]


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)  # PEP 678
    return [texts.cut(each, MAX_MESSAGE) for each in notes[:8] if type(each) is str] if type(notes) is list else []


def _suggestion(error: BaseException) -> str:
    """Return Python's "Did you mean", which it computes only when it formats a traceback."""
    if not isinstance(error, NameError | AttributeError | ImportError) or type(error.__traceback__) is None:
        return ""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    made = traceback.TracebackException(type(error), error, step, limit=0, lookup_lines=False, compact=True)
    text = "".join(made.format_exception_only()).rstrip()
    at = text.rfind(". Did you mean")
    return texts.cut(text[at:], 200) if at >= 0 else ""


def _syntax_lines(error: SyntaxError, places: Places) -> Iterator[str]:
    file, line, text, offset = error.filename, error.lineno, error.text, error.offset
    if type(file) is not str or type(line) is not int:
        return
    yield f"  {places.name_of(file) or texts.without_prefixes(file)}, line {line}"
    if type(text) is str and text.strip():
        yield f"    {text.strip()[:MAX_LINE]}"
        column = offset - 1 - (len(text) - len(text.lstrip())) if type(offset) is int else -1
        if 0 <= column < MAX_LINE:
            yield "    " + " " * column + "^"


# --- frames -----------------------------------------------------------------------------


def _frames(step: types.TracebackType | None, places: Places, *, outermost: bool) -> list[TracebackEntry]:
    """Return the entries of a traceback, without those of the kernel itself."""
    found: list[TracebackEntry] = []
    for _ in range(MAX_WALK):
        if step is None:
            break
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(_GUEST) and (not found or _module(step.tb_frame) not in _WRAPPERS):
            place = places.name_of(code.co_filename)
            if place is None and code.co_filename.startswith("<") and _module(step.tb_frame) == "__main__":
                place = code.co_filename
            found.append(TracebackEntry(place, code, step.tb_lineno, step.tb_lasti, step.tb_frame))
        step = step.tb_next
    if outermost:  # It starts in IPython, which called the cell.
        first = next((at for at, each in enumerate(found) if each.place is not None), 0)
        found = found[first:]
        if found and found[0].place is None:
            found = [each for each in found if _module(each.frame).split(".")[0] not in ("IPython", "ipykernel")]
    return found


def _module(frame: types.FrameType) -> str:
    name = dict.get(frame.f_globals, "__name__") if isinstance(frame.f_globals, dict) else None
    return name if type(name) is str else ""


def _frame_lines(frames: Sequence[TracebackEntry], left_out: int) -> Iterator[str]:
    blocks = list(_folded(frames))
    if left_out:
        repeated = next((at for at, (part, count) in enumerate(blocks) if count > 2), None)
        if repeated is None:
            blocks.insert(len(blocks) // 2, ([], left_out))
        else:
            part, count = blocks[repeated]
            blocks[repeated] = part, count + left_out // len(part)
    if len(blocks) > MAX_SHOWN:
        half = MAX_SHOWN // 2
        hidden = sum(max(1, len(part)) * count for part, count in blocks[half:-half])
        blocks = [*blocks[:half], ([], hidden), *blocks[-half:]]
    innermost = next((each for each in reversed(frames) if each.place is not None), None)
    for part, count in blocks:
        if not part:
            yield f"  [… {count} more frames …]"
            continue
        for is_library, some in itertools.groupby(part, lambda each: each.place is None):
            if is_library:
                yield _library_line(list(some), ends=part is blocks[-1][0] and part[-1].place is None)
            else:
                for each in some:
                    yield from _user_lines(each, explain=each is innermost)
        if count > 1:
            what = "frame above repeats" if len(part) == 1 else f"{len(part)} frames above repeat"
            yield f"  [the {what} {count - 1} more times]"


def _folded(frames: Sequence[TracebackEntry]) -> Iterator[tuple[list[TracebackEntry], int]]:
    """Yield sequences of frames and how often each repeats. Frames that do not repeat are joined by kind."""
    keys = [each.key for each in frames]
    at = 0
    while at < len(frames):
        for period in range(1, _MAX_PERIOD + 1):
            part, count = keys[at : at + period], 1
            while keys[at + count * period : at + (count + 1) * period] == part:
                count += 1
            if count > 2:
                # The last repetition is shown, since the frames above the innermost one have its values.
                yield list(frames[at + (count - 1) * period : at + count * period]), count
                at += count * period
                break
        else:
            end = at + 1
            while frames[at].place is None and end < len(frames) and frames[end].place is None:
                end += 1
            yield list(frames[at:end]), 1
            at = end


def _library_line(frames: Sequence[TracebackEntry], *, ends: bool) -> str:
    packages = list(dict.fromkeys(_module(each.frame).split(".")[0] or "a library" for each in frames))
    names = ", ".join(packages[:3]) + (", …" if len(packages) > 3 else "")
    line = f"  … {len(frames)} frame{'s' * (len(frames) > 1)} in {names}"
    if not ends:
        return line
    last = frames[-1]
    return f"{line}, the last one {_library_path(last)}:{last.line} in {last.code.co_name}"


def _library_path(frame: TracebackEntry) -> str:
    file = texts.without_prefixes(frame.code.co_filename)
    return "/".join(file.split("/")[-3:]) if file.startswith("/") else file


def _user_lines(each: TracebackEntry, *, explain: bool) -> Iterator[str]:
    name = each.code.co_name
    yield f"  {each.place}, line {each.line}" + ("" if name.startswith("<module") else f", in {name}")
    source = linecache.getline(each.code.co_filename, each.line)
    text = source.strip()
    if not text:
        return
    yield f"    {texts.cut(text, MAX_LINE)}"
    part = _failing_part(each, source)
    if part and len(part) < 0.75 * len(text):
        yield f"    here: {texts.cut(part, MAX_LINE)}"
    if explain:
        values = where.values(part or text, each.frame)
        if values:
            yield f"    where {values}"


def _failing_part(each: TracebackEntry, source: str) -> str:
    """Return the part of the line that was being evaluated (PEP 657), or "" if it goes over several lines."""
    positions = next(itertools.islice(each.code.co_positions(), max(0, each.last) // 2, None), None)
    if positions is None:
        return ""
    first, last, start, end = positions
    if first != each.line or last != first or start is None or end is None:
        return ""
    return source.encode()[start:end].decode(errors="replace").strip()


def _remote_lines(error: BaseException, places: Places) -> list[str] | None:
    """Return the user's frames in another process, if the exception is the text of a traceback from there."""
    kind = type(error)
    if (kind.__module__, kind.__name__) not in _REMOTE:
        return None
    text = vars(error).get("tb")
    if type(text) is not str:
        return []
    found = ["In the worker process:"]
    for file, line, name, source in _REMOTE_FRAME.findall(text[:200_000]):
        place = places.name_of(file)
        if place is not None:
            found.append(f"  {place}, line {line}, in {name}")
            found += [f"    {texts.cut(source.strip(), MAX_LINE)}"] if source.strip() else []
    return [*found[: 2 * MAX_SHOWN], "which was the cause of:"] if len(found) > 1 else []


def shell_places(shell: Any, directory: str) -> Places:
    """Return the places of an IPython shell."""
    known = getattr(shell.compile, "_filename_map", {})
    return Places(lambda file: known.get(file), directory)
