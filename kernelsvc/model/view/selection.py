"""The lines of a block that fit its share of the budget: head, tail, and lines that differ from the others."""

from __future__ import annotations

from itertools import islice

from kernelsvc.model.view.estimate import estimate
from kernelsvc.model.view.folding import SEARCHED, Item, loud_places, rare_shapes, shape

HEAD, TAIL = 0.5, 0.3
#: Tokens of the mark of a gap.
GAP = 10.0


def total_cost(items: list[Item], enough: float) -> float:
    """Return the tokens of the items. Stops counting above ``enough``."""
    total = 0.0
    gap = False
    for item in items:
        total += item.cost if item.kept else 0.0 if gap else GAP
        gap = not item.kept
        if total > enough:
            break
    return total


def fit(items: list[Item], share: float) -> list[Item]:
    """Mark the items that do not fit as not kept. A line that is too long is cut inside.

    Args:
        items: one block's.
        share: tokens.
    """
    if total_cost(items, share) <= share:
        return items
    room = share - GAP
    head = _take(items, 0, len(items), 1, room * HEAD)
    tail = _take(items, len(items) - 1, head - 1, -1, room * TAIL)
    odd = _odd(items, head, tail + 1, room * (1 - HEAD - TAIL)) if head <= tail else set()
    for index in range(head, tail + 1):
        items[index].kept = index in odd
    if head == 0 and items[0].text is not None:
        items[0].text = _shortened(items[0], room * HEAD)
        items[0].kept = True
    if tail == len(items) - 1 and tail > 0 and items[-1].text is not None:
        items[-1].text = _shortened(items[-1], room * TAIL)
        items[-1].kept = True
    return items


def _take(items: list[Item], at: int, end: int, step: int, room: float) -> int:
    """Return the index of the first item in this direction that does not fit."""
    gap = False
    while at != end:
        item = items[at]
        room -= item.cost if item.kept else 0.0 if gap else GAP
        gap = not item.kept
        if room < 0:
            return at
        at += step
    return at


def _odd(items: list[Item], start: int, end: int, room: float) -> set[int]:
    """Return the indexes of lines that differ from the others: loud ones first."""
    searched = range(start, min(end, start + SEARCHED))
    texts = [items[index].text or "" for index in islice(searched, 20_000)]
    rare = rare_shapes(texts)
    loud_ones = loud_places([items[index].text or "" for index in searched])
    seen: dict[str, int] = {}
    loud: list[int] = []
    quiet: list[int] = []
    for index in searched:
        text = items[index].text
        if not text:
            continue
        loudly = index - start in loud_ones
        if not loudly and not rare:
            continue
        form = shape(text)
        if not loudly and form not in rare:
            continue
        seen[form] = seen.get(form, 0) + 1
        if seen[form] <= 3:
            (loud if loudly else quiet).append(index)
    found: set[int] = set()
    for index in [*loud, *quiet]:
        cost = items[index].cost + GAP
        if cost <= room:
            room -= cost
            found.add(index)
        if room < 2 * GAP:
            break
    return found


def _shortened(item: Item, room: float) -> str:
    """Return a line's start and end, with a mark for the characters between."""
    text = item.text or ""
    mark = f"… [… {len(text)} characters in line {item.first} …] …"
    each = estimate(text) / max(1, len(text))
    length = int(max(0.0, room - estimate(mark)) / max(each, 0.05))
    if length >= len(text):
        return text
    head = length * 2 // 3
    tail = length - head
    left_out = len(text) - head - tail
    return f"{text[:head]}… [… {left_out} characters in line {item.first} …] …{text[len(text) - tail :]}"
