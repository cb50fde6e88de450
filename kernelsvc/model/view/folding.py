"""Lines of a stream that say the same: repeated warnings, repeated lines, long runs of lines of one shape."""

from __future__ import annotations

import re
from collections import Counter

from msgspec import Struct

from kernelsvc.model.view.estimate import estimate

#: Characters of a line that make its shape.
_SHAPE_LENGTH = 200
_MASKED = re.compile(r"0x[0-9a-fA-F]+|'[^']*'|\"[^\"]*\"|[-+]?\d[\d.,:eE+-]*|[.=#█▏▎▍▌▋▊▉]{2,}")
_WARNING = re.compile(r"(\S[^\n]{0,400}?):(\d{1,9}): (\w{0,80}Warning): (.*)", re.DOTALL)
_PACKAGES = re.compile(r"\A(?:.*/(?:site|dist)-packages/|.*/lib/python3\.\d+/)")
_CELL_FILE = re.compile(r"<ipython-input-\d+-\w+>|<string>")
#: Shortest repetition within a line that is folded, and longest text that it repeats, in characters.
MIN_REPEATED, MAX_PERIOD = 400, 40
#: Lines of one warning: its own and those that follow it.
_WARNING_LINES = 12
#: Parts of words of lines that matter more than others.
_LOUD = (
    *("error", "exception", "fail", "refused", "mismatch", "fatal", "critical", "denied", "warn", "traceback"),
    *("corrupt", " nan", "best ", "best:", "total ", "total:"),
)
#: Most lines that are searched for them, and most characters of one.
SEARCHED, LINE_SEARCHED = 40_000, 1000
#: Lines that are searched for them at once.
_TOGETHER = 100
MIN_SAME, MIN_GROUPS, LONGEST_GROUP = 4, 3, 4
#: A run has this many lines of one shape, and more than this many tokens. It is thinned to ``RUN_KEPT`` tokens.
MIN_RUN, RUN_TOKENS, RUN_KEPT = 24, 800, 400


class Item(Struct):
    """One line of the view, or one that is not shown.

    Attributes:
        text: what is shown. None if other items show the same.
        first: number of the first line that it stands for.
        last: number of the last one.
        continues: whether its line is continued from the line before.
        kept: whether it is shown. What is not is a gap.
    """

    text: str | None
    first: int
    last: int
    continues: bool = False
    kept: bool = True

    @property
    def cost(self) -> float:
        """Tokens."""
        return estimate(self.text) + 0.4 if self.text is not None else 0.0


def shape(line: str) -> str:
    """Return a line without its numbers, quoted text and addresses."""
    return _MASKED.sub("#", line[:_SHAPE_LENGTH])


def is_loud(line: str) -> bool:
    """Return whether a line has a word such as "error"."""
    return _has_loud(line[:LINE_SEARCHED])


def loud_places(lines: list[str]) -> set[int]:
    """Return the indexes of the lines with such a word."""
    found: set[int] = set()
    for start in range(0, len(lines), _TOGETHER):
        part = lines[start : start + _TOGETHER]
        # Most parts have none, and one search of a part costs less than one of each line.
        if _has_loud("\n".join([line[:LINE_SEARCHED] for line in part])):
            found.update(start + at for at, line in enumerate(part) if is_loud(line))
    return found


def _has_loud(text: str) -> bool:
    # Searches for single words are many times faster than a regular expression of them.
    text = text.lower()
    return any(word in text for word in _LOUD)


def fold_stream(items: list[Item]) -> list[Item]:
    """Fold what repeats in a stream. The items' ranges of lines cover the same lines as before."""
    return thin_runs(fold_repeats(fold_warnings(fold_inside(items))))


def fold_inside(items: list[Item]) -> list[Item]:
    """Show once what repeats within a long line, such as the rules of a page without line breaks."""
    for item in items:
        if item.text is not None and len(item.text) >= 2 * MIN_REPEATED:
            item.text = _once(item.text)
    return items


def _once(text: str) -> str:
    # A regular expression with a back reference takes seconds for a megabyte. This compares at one place in a hundred
    # characters, so that no repetition of the shortest length lies between two places.
    compared, parts, done, at = 2 * MAX_PERIOD, [], 0, 0
    while at + MIN_REPEATED // 2 < len(text):
        period = text.find(text[at : at + compared], at + 1, at + compared + MAX_PERIOD) - at
        if period <= 0:
            at += MIN_REPEATED // 4
            continue
        start, end = at, at + compared + period
        while start > done and text[start - 1] == text[start - 1 + period]:
            start -= 1
        whole = text[end - compared // period * period : end]
        while text.startswith(whole, end):
            end += len(whole)
        while end < len(text) and text[end] == text[end - period]:
            end += 1
        times = (end - start) // period
        if end - start >= MIN_REPEATED:
            parts += [text[done:start], f"{text[start : start + period]}[this text x{times}]"]
            done = start + times * period
        at = end
    return "".join([*parts, text[done:]])


def fold_warnings(items: list[Item]) -> list[Item]:
    """Show one warning of each category and shape, with how often it came, without the line of source."""
    groups: dict[tuple[str, str], list[int]] = {}
    skip = 0
    for index, item in enumerate(items):
        found = _WARNING.fullmatch(item.text) if item.text and "Warning: " in item.text else None
        if found is None or index < skip:
            continue
        where, line, category, message = found.groups()
        key = (category, shape(message))
        same = groups.setdefault(key, [])
        same.append(index)
        if len(same) == 1:
            item.text = f"{_short(where)}:{line}: {category}: {message}"
            _hide_source(items, index)
        else:
            skip = _hide_again(items, same[0], index)
    for indexes in groups.values():
        if len(indexes) > 1:
            items[indexes[0]].text = f"{items[indexes[0]].text} {_count(items, indexes)}"
    for indexes in groups.values():
        for index in indexes[1:]:
            items[index].text = None
    return items


def _count(items: list[Item], indexes: list[int]) -> str:
    def message(index: int) -> str:
        return (items[index].text or "").partition("Warning: ")[2]

    first = message(indexes[0])
    others: list[str] = []
    for index in indexes[1:200]:
        if (text := message(index)) != first and text not in others and len(others) < 3:
            others.append(text)
    also = f"; also: {'; '.join(text[:120] for text in others)}" if others else ""
    return f"[x{len(indexes)} in all{also}]"


def _short(where: str) -> str:
    if _CELL_FILE.fullmatch(where):
        return "Cell"
    return _PACKAGES.sub("", where)


def _hide_source(items: list[Item], index: int) -> None:
    following = items[index + 1].text if index + 1 < len(items) else None
    if following is not None and following.startswith("  ") and "Warning" not in following[:2]:
        items[index + 1].text = None


def _hide_again(items: list[Item], first: int, index: int) -> int:
    """Hide the lines behind a repeated warning that also stand behind the first one. Return where they end."""
    end = index + 1
    while end < len(items) and end - index < _WARNING_LINES:
        model = items[first + end - index] if first + end - index < index else None
        text = items[end].text
        source = text is not None and end == index + 1 and text.startswith("  ")
        if text is None or "Warning: " in text or not (source or (model is not None and model.text == text)):
            break
        items[end].text = None
        end += 1
    return end


def fold_repeats(items: list[Item]) -> list[Item]:
    """Show a line that comes ``MIN_SAME`` times in a row once, and so for groups of lines."""
    folded: list[Item] = []
    at, end = 0, len(items)
    while at < end:
        size, times = _repeat_at(items, at)
        group = items[at : at + size]
        if times > 1:
            what = "this line" if size == 1 else f"these {size} lines"
            stop = items[at + size * times - 1].last
            group[-1] = Item(f"{group[-1].text} [{what} x{times}]", group[-1].first, stop, group[-1].continues)
        folded += group
        at += size * max(1, times)
    return folded


def _repeat_at(items: list[Item], at: int) -> tuple[int, int]:
    """Return the size of the group of lines here, and how often it comes in a row."""
    if items[at].text is None or items[at].continues:
        return 1, 1
    for size in range(1, LONGEST_GROUP + 1):
        following = at + size
        if following >= len(items) or items[following].text != items[at].text:
            continue
        texts = [item.text for item in items[at:following]]
        if None in texts or not any(texts) or any(item.continues for item in items[at:following]):
            continue
        times = 1
        while [item.text for item in items[following : following + size]] == texts:
            following += size
            times += 1
        if times >= (MIN_SAME if size == 1 else MIN_GROUPS):
            return size, times
    return 1, 1


def thin_runs(items: list[Item]) -> list[Item]:
    """Drop most lines of a long run of lines of one shape: some of its start, of its middle and of its end stay."""
    if len(items) < MIN_RUN:
        return items
    shapes = [shape(item.text) if item.text is not None else "" for item in items]
    start = 0
    for index in range(1, len(items) + 1):
        if index < len(items) and shapes[index] == shapes[start]:
            continue
        if index - start >= MIN_RUN and shapes[start]:
            _thin(items[start:index])
        start = index
    return items


def _thin(run: list[Item]) -> None:
    # A sample is enough for lines of one shape.
    each = max(1.0, sum(item.cost for item in run[:20]) / len(run[:20]))
    if each * len(run) <= RUN_TOKENS:
        return
    third = max(2, int(RUN_KEPT / each / 3))
    if 3 * third >= len(run):
        return
    inner = len(run) - 2 * third
    # Each line of the middle has a gap beside it, which costs about as much.
    lifted = {third + (2 * k + 1) * inner // (2 * max(1, third // 3)) for k in range(max(1, third // 3))}
    for index in range(third, len(run) - third):
        run[index].kept = index in lifted


def thin_all(items: list[Item]) -> bool:
    """Thin a stream of very many lines, if nearly all have one shape by a sample. Return whether they have."""
    step = max(1, len(items) // 1000)
    (common, count), *_ = Counter(shape(item.text or "") for item in items[::step]).most_common(1)
    if count < 0.95 * len(items[::step]) or not common:
        return False
    _thin(items)
    lifted = 0
    for place in sorted(loud_places([item.text or "" for item in items[:SEARCHED]])):
        item = items[place]
        if not item.kept and lifted < 8 and shape(item.text or "") != common:
            item.kept, lifted = True, lifted + 1
    return True


def rare_shapes(lines: list[str]) -> set[str]:
    """Return the shapes that at most three of the lines have, if the lines have few shapes. Else none."""
    counts = Counter(shape(line) for line in lines)
    return {each for each, count in counts.items() if count <= 3} if len(counts) <= max(8, len(lines) // 20) else set()
