"""One cell as a language model reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from kernelsvc.model.cell_fold import CellFold
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellState, CellView, ViewPicture
from kernelsvc.model.view.estimate import estimate
from kernelsvc.model.view.folding import Item, fold_stream, thin_all
from kernelsvc.model.view.full_text import Block, FullText, full_text
from kernelsvc.model.view.line_search import matching_lines
from kernelsvc.model.view.request import ViewRequest
from kernelsvc.model.view.selection import fit, total_cost

#: Most pictures in one view. The others are had by number.
MAX_PICTURES = 4
#: Lines of a stream at its start and at its end in which repetitions are folded.
FOLDED_LINES = 10_000
#: Most lines of a view that are compared one by one. A block's lines above its part are a gap in its middle, because
#: 20 million of them would take 2 GB. A block has a part of 20 lines at least.
LISTED, _LEAST_LISTED = 200_000, 20
#: Tokens that a block gets at least. More blocks than that are cut as one.
_MIN_SHARE = 60.0
#: Tokens that are kept for the marks at the end.
_FOOT = 70.0
_MAX_CHANGES = 6


def view_cell(fold: CellFold, number: int, session: str, request: ViewRequest) -> CellView:
    """Return the part of a cell that a request asks for.

    Args:
        fold: the cell, with all of its output.
        number: its place among the session's cells, from 1.
        session: the session's id.
        request: what to read.

    Raises:
        BadRequest: the pattern can't be searched.
    """
    full = full_text(fold.render(), fold.error_lines)
    if request.picture is not None:
        text, pictures = _one_picture(full, number, request.picture)
    elif request.find is not None:
        text, pictures = _found(full, number, request.find, request.budget, request.from_line or 1), []
    elif request.from_line is not None:
        text, pictures = _page(full, number, request), []
    else:
        text = _whole(fold, full, number, request)
        pictures = [
            ViewPicture(number=each.number, mime=each.mime, data=each.data)
            for each in full.pictures[:MAX_PICTURES]
            if not request.after_line
        ]
    open_line = 1 if fold.state is not CellState.FINISHED and full.count else 0
    return CellView(
        session=session,
        cell=fold.id,
        number=number,
        state=fold.state,
        reason=fold.finished.reason if fold.finished else None,
        text=text,
        lines=full.count,
        next_line=full.count - open_line,
        pictures=pictures,
    )


# --- reading by number -----------------------------------------------------------------------------


def _one_picture(full: FullText, number: int, wanted: int) -> tuple[str, list[ViewPicture]]:
    found = [each for each in full.pictures if each.number == wanted]
    if not found:
        return f"[{number} has {len(full.pictures)} pictures, none with number {wanted}]", []
    picture = found[0]
    shown = ViewPicture(number=picture.number, mime=picture.mime, data=picture.data)
    return f"[{number} picture {wanted} of {len(full.pictures)}]", [shown]


def _page(full: FullText, number: int, request: ViewRequest) -> str:
    start = max(1, request.from_line or 1)
    count = full.count
    if start > count:
        return f"[{number} has {count} lines]"
    room = float(request.budget)
    shown: list[str] = []
    for line in islice(full.lines(), start - 1, start - 1 + (request.lines or count)):
        room -= estimate(line) + 0.4
        if shown and room < 0:
            break
        shown.append(line)
    end = start + len(shown) - 1
    rest = f"; the next is from_line={end + 1}" if end < count else ""
    return "\n".join([*shown, f"[{number} lines {start}–{end} of {count}{rest}]"])


def _found(full: FullText, number: int, pattern: str, budget: int, start: int) -> str:
    room, matches, over, at = float(budget), 0, 0, 0
    shown: list[str] = []
    for match in matching_lines(islice(full.lines(), start - 1, None), pattern):
        if match is None:
            over = at + start
            break
        at, matches = match[0], matches + 1
        line = f"{match[0] + start - 1}: {match[1]}"
        if room > 0 or not shown:
            room -= estimate(line) + 0.4
            if room > 0 or not shown:
                shown.append(line)
    left = f", {len(shown)} shown" if len(shown) < matches else ""
    stopped = f"; the search was stopped, from_line={over} continues it" if over else ""
    return "\n".join([*shown, f"[{number} {matches} of {full.count} lines match{left}{stopped}]"])


# --- the view --------------------------------------------------------------------------------------


def _whole(fold: CellFold, full: FullText, number: int, request: ViewRequest) -> str:
    blocks = [block for each in full.blocks if (block := _after(each, request.after_line)) is not None]
    parts = _fitted(blocks, max(60.0, request.budget - _FOOT))
    items = [item for part in parts for item in part]
    shown = _rendered(items)
    cut = any(not item.kept for item in items) or "characters in line" in shown
    lines = [shown] if shown else []
    lines += [f"[{line}]" for line in fold.denied]
    lines += _changes(fold, quiet=not shown)
    lines += [
        f"[picture {each.number}, not sent: read_output with cell={number} and picture={each.number}]"
        for each in full.pictures[MAX_PICTURES : MAX_PICTURES + 20]
        if not request.after_line
    ]
    if cut:
        lines.append(f"[cut: read_output with cell={number} and from_line or find reads any of the {full.count} lines]")
    return "\n".join([*lines, status_line(fold, number, empty=not shown, repeated=request.after_line > 0)])


def _after(block: Block, line: int) -> Block | None:
    """Return the part of a block after a line. None if there is nothing."""
    if block.last <= line:
        return None
    skip = max(0, line + 1 - block.first)
    return Block(block.kind, block.first + skip, block.lines[skip:], block.continued[skip:]) if skip else block


def _fitted(blocks: list[Block], room: float) -> list[list[Item]]:
    """Return the items of each block, those that do not fit marked."""
    few = sum(len(block.lines) for block in blocks) <= LISTED
    most = LISTED if few else max(_LEAST_LISTED, LISTED // len(blocks))
    kinds, parts = [block.kind for block in blocks], [_items(block, most) for block in blocks]
    costs = [total_cost(part, room + 1) for part in parts]
    if sum(costs) <= room:
        return parts
    if len(blocks) * _MIN_SHARE > room:
        # Too many for a share each: all but a last error are cut as one.
        split = len(parts) - (kinds[-1] == "error")
        parts = [[item for part in parts[:split] for item in part], *parts[split:]]
        kinds = ["value", *kinds[split:]]
        costs = [total_cost(part, room + 1) for part in parts]
    for part, share in zip(parts, shares(kinds, costs, room), strict=True):
        fit(part, share)
    return parts


def shares(kinds: Sequence[str], costs: list[float], room: float) -> list[float]:
    """Return the tokens of each block.

    Errors get half at most, values two thirds of the rest, streams what is left and at least a quarter of the rest. No
    kind gets more than it needs, and what one does not need the others get.
    """
    need = {
        kind: sum(c for k, c in zip(kinds, costs, strict=True) if k == kind) for kind in ("error", "value", "stream")
    }
    error = min(need["error"], max(room * 0.5, room - need["value"] - need["stream"]))
    left = room - error
    value = min(need["value"], max(left * 2 / 3, left - need["stream"]))
    stream = min(need["stream"], max(left * 0.25, left - value))
    value = min(value, left - stream)
    given = {"error": error, "value": value, "stream": stream}
    found = [0.0] * len(kinds)
    for kind, amount in given.items():
        indexes = sorted((i for i, each in enumerate(kinds) if each == kind), key=lambda i: costs[i])
        for place, index in enumerate(indexes):
            found[index] = min(costs[index], amount / (len(indexes) - place))
            amount -= found[index]
    return found


def _items(block: Block, most: int) -> list[Item]:
    items = _listed(block, most)
    if block.kind != "stream":
        return items
    if len(items) <= 2 * FOLDED_LINES:
        return fold_stream(items)
    if thin_all(items):
        return items
    head, tail = items[:FOLDED_LINES], items[-FOLDED_LINES:]
    return [*fold_stream(head), *items[FOLDED_LINES:-FOLDED_LINES], *fold_stream(tail)]


def _listed(block: Block, most: int) -> list[Item]:
    """Return an item for each line. If there are more than ``most`` lines, one is a gap in the middle."""
    numbers = range(block.first, block.last + 1)
    if len(numbers) <= most:
        return list(map(Item, block.lines, numbers, numbers, block.continued))
    head, tail = slice(0, most // 2), slice(-(most // 2), None)
    gap = Item(None, numbers[head][-1] + 1, numbers[tail][0] - 1, kept=False)
    start, end = (
        list(map(Item, block.lines[at], numbers[at], numbers[at], block.continued[at])) for at in (head, tail)
    )
    return [*start, gap, *end]


def _rendered(items: list[Item]) -> str:
    parts: list[str] = []
    at, glue = 0, False
    while at < len(items):
        item = items[at]
        if item.kept:
            if item.text is not None:
                parts += [item.text] if (item.continues or glue) else ["\n", item.text] if parts else [item.text]
                glue = False
            at += 1
            continue
        end = at
        while end < len(items) and (not items[end].kept or items[end].text is None):
            end += 1
        mark = _gap(item.first, items[end - 1].last)
        inside = item.continues and bool(parts)
        glue = end < len(items) and items[end].continues
        parts += [f" … {mark}"] if inside else ["\n", mark] if parts else [mark]
        parts += [" … "] if glue else []
        at = end
    return "".join(parts)


def _gap(first: int, last: int) -> str:
    return f"[… line {first} …]" if first == last else f"[… lines {first}–{last} …]"


def _changes(fold: CellFold, *, quiet: bool) -> Iterable[str]:
    changes = (fold.finished.changes if fold.finished else None) or {}
    if quiet:
        named = [
            f"{kind}: {', '.join(found[:_MAX_CHANGES])}{', …' if len(found) > _MAX_CHANGES else ''}"
            for kind in ("new", "changed", "gone")
            if (found := changes.get(kind))
        ]
        if named:
            yield f"[{' | '.join(named)}]"
    if files := changes.get("files"):
        yield f"[files: {', '.join(files[:12])}{', …' if len(files) > 12 else ''}]"


_NEXT = {
    Reason.CANCELLED: "did not run, because a cell before it failed",
    Reason.SESSION_CLOSED: "the session has ended",
}


def status_line(fold: CellFold, number: int, *, empty: bool, repeated: bool = False) -> str:
    """Return the last line of a view: the cell's number, and how it ended if that was not well."""
    end = fold.finished
    nothing = " nothing new" if repeated and empty else " no output" if empty else ""
    if end is None and fold.held:
        return f"[{number} waits until a person approves or refuses it: wait returns what comes next]"
    if end is None:
        what = "waits for another cell" if fold.state is CellState.QUEUED else "runs"
        return f"[{number} {what}{',' + nothing if nothing else ''}: wait returns what comes next, interrupt stops it]"
    if end.reason is Reason.OK:
        return f"[{number}{nothing}]"
    if end.reason is Reason.ERROR:
        return f"[{number} error]" if not end.message else f"[{number} error: {end.message}]"
    said = end.message or _NEXT.get(end.reason, "")
    if end.variables_kept is not None and "variables" not in said:
        said = f"{said}{' ' if said else ''}{'Variables kept.' if end.variables_kept else 'The variables are lost.'}"
    return f"[{number} {end.reason}: {said}]" if said else f"[{number} {end.reason}]"
