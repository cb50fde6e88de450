"""Outputs of a cell in nbformat 4.5, within a budget.

Theory of operation
-------------------
Above its budget a cell keeps its head and its tail. The head takes outputs until half of the budget is used. All later
output goes to the tail, whose oldest part is dropped to stay within the budget. Text is cut at characters, so the
result does not depend on the size of the kernel's writes. An image or a table stays as a whole, reduced (its largest
forms are dropped, its text remains) or dropped. The journal still has all of it, and a marker between head and tail
says how much is missing and where it is.

Memory stays within about twice the budget for any kernel. Bundles become valid nbformat when they arrive: no data of a
kernel is trusted.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from kernelsvc.model import events as ev
from kernelsvc.model.view import crash_dump
from kernelsvc.model.view.plain_form import MODEL_MIME, text_form, without_hidden

#: Most separate outputs of one cell, each in head and tail.
MAX_PARTS = 5000

_JSON_TYPE = re.compile(r"application/(.*\+)?json")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: HTML without anything to see.
_UNSEEN = re.compile(r"(?:\s|<[^<>]*>)*+")
#: Longest HTML that is searched for something to see. Plotting libraries load themselves with 5 MB.
_SEARCHED = 8 << 20
#: Number of small pieces of text that are joined into one.
_JOIN = 256
#: Most outputs with one display id that an update changes, the latest ones.
SAME_ID = 64
#: Most forms (MIME types) of one output. Real ones have fewer than 20. The log keeps all.
MAX_FORMS = 100
#: Longest display id, in characters. A longer one is ignored.
ID_LENGTH = 256
#: Largest metadata of an output, in characters. Larger ones are dropped.
METADATA_LENGTH = 64 * 1024
#: Longest string of an error after a cut, in characters.
_ERROR_FIELD = 2000

Output = dict[str, Any]


def strip_ansi(text: str) -> str:
    """Return text without terminal escape sequences (ECMA-48) and without a single ESC.

    A removed sequence can join the characters around it to a new one, so no ESC may stay. To search again until
    nothing changes would take time in the square of a hostile text's length.
    """
    return _ANSI.sub("", text).replace("\x1b", "") if "\x1b" in text else text


def clean_bundle(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a MIME bundle that nbformat accepts: text for every type except JSON types, at most ``MAX_FORMS``."""
    return {
        str(mime): value if isinstance(value, str) else _clean_value(str(mime), value)
        for mime, value in _few_forms(data).items()
    }


def _few_forms(data: Mapping[Any, Any]) -> Mapping[Any, Any]:
    if len(data) <= MAX_FORMS:
        return data
    plain = {"text/plain": data["text/plain"]} if "text/plain" in data else {}
    return dict(islice(data.items(), MAX_FORMS - len(plain))) | plain


def _clean_value(mime: str, value: Any) -> Any:
    if _JSON_TYPE.fullmatch(mime):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "".join(value)
    return json.dumps(value, default=str)


def clean_count(value: object) -> int | None:
    """Return an execution count that nbformat accepts, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def size_of(output: Output) -> int:
    """Return the characters of the budget that an output uses."""
    if output["output_type"] == "error":
        return len(output["ename"]) + len(output["evalue"]) + sum(map(len, output["traceback"]))
    size = 0
    for mime, value in output["data"].items():
        size += len(mime) + length_of(value)
    return size + (len(str(output["metadata"])) if output.get("metadata") else 0)


def length_of(value: Any) -> int:
    """Return the characters of a form of an output. JSON is encoded, which is 20 times as fast as ``str``."""
    if isinstance(value, str):
        return len(value)
    try:
        return len(ev.encode(value))
    except (ValueError, TypeError, OverflowError, RecursionError):  # what JSON can't hold, which the log cleans
        return len(str(value))


def clean_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an output's metadata, or {} if it is too large."""
    return dict(metadata) if metadata and length_of(metadata) <= METADATA_LENGTH else {}


def clean_id(display_id: str | None) -> str | None:
    """Return a display id, or None if it is too long."""
    return display_id if display_id and len(display_id) <= ID_LENGTH else None


def slim(output: Output, room: int) -> Output:
    """Reduce an output until it fits: its largest forms are dropped, and its text keeps head and tail.

    A note names the dropped forms, unless another form than text is left.
    """
    if size_of(output) <= room:
        return output
    if output["output_type"] == "error":
        return {**output, **_slim_error(output)}
    data, dropped = dict(output["data"]), []
    plain = data.pop("text/plain", None)
    text = cut_middle(plain, room // 2) if isinstance(plain, str) else ""
    # Once for each form: a bundle can have 100,000 of them, or two million numbers in one.
    sizes = {mime: length_of(value) for mime, value in data.items()}
    left = sum(sizes.values())
    for mime in sorted(data, key=lambda mime: -sizes[mime]):
        if left <= room - len(text):
            break
        dropped.append(f"{mime} ({sizes[mime]:,} characters)")
        left -= sizes[mime]
        del data[mime]
    if dropped and not data:
        note = f"[left out, over the output budget: {', '.join(dropped)[:500]}]"
        text = f"{text}\n{note}" if text else note
    return {**output, "data": {**data, "text/plain": text} if text else data}


def cut_middle(text: str, length: int) -> str:
    """Return a text with at most this many characters of its head and tail, and a note on the rest between them."""
    half = length // 2
    if len(text) <= length:
        return text
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[len(text) - half :]}"


def _characters_lost(before: Output, after: Output) -> int:
    """Return the characters that a reduced output lacks, or 0 if a form other than text still shows all of it."""
    if after["output_type"] != "error" and set(after["data"]) - {"text/plain"}:
        return 0
    return max(0, size_of(before) - size_of(after))


def _shows_nothing(output: Output) -> bool:
    """Whether an output has only scripts and styles, as a plotting library loads itself before its first figure."""
    if output["output_type"] != "display_data" or set(output["data"]) - {MODEL_MIME} != {"text/html"}:
        return False
    source = str(output["data"]["text/html"])
    return len(source) <= _SEARCHED and _UNSEEN.fullmatch(without_hidden(source)) is not None


def _slim_error(output: Output) -> Output:
    def cut(text: str) -> str:
        half = _ERROR_FIELD // 2
        return (
            text if len(text) <= _ERROR_FIELD else f"{text[:half]} … {len(text) - 2 * half:,} left out … {text[-half:]}"
        )

    lines = output["traceback"]
    short = lines if len(lines) <= 20 else [*lines[:10], f"… {len(lines) - 20:,} frames left out …", *lines[-10:]]
    return {"ename": cut(output["ename"]), "evalue": cut(output["evalue"]), "traceback": [cut(line) for line in short]}


class _Text:
    """Text of one stream in pieces. It grows at the end and is cut at the start."""

    __slots__ = ("_blocks", "_small", "name", "size")
    display_id = None
    in_head = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self._blocks: deque[str] = deque()
        self._small: list[str] = []

    def add(self, text: str) -> None:
        self.size += len(text)
        self._small.append(text)
        if len(self._small) >= _JOIN:
            self._blocks.append("".join(self._small))
            self._small.clear()

    def cut_start(self, count: int) -> None:
        self.size -= count
        if self._small:
            self._blocks.append("".join(self._small))
            self._small.clear()
        while count:
            block = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft(block[count:])
            count -= min(count, len(block))

    def output(self) -> Output:
        return {"output_type": "stream", "name": self.name, "text": "".join([*self._blocks, *self._small])}


class _Rich:
    """A display, a result or an error."""

    __slots__ = ("_output", "display_id", "in_head", "size")

    def __init__(self, output: Output, display_id: str | None = None) -> None:
        self.in_head = False
        self._output = output
        self.display_id = display_id
        self.size = size_of(output)

    def replace(self, output: Output) -> None:
        self._output = output
        self.size = size_of(output)

    def output(self) -> Output:
        return self._output


class DisplayUpdate:
    """New content of displays, for all of them.

    One update may change ``SAME_ID`` outputs of each of many cells. So the content is cleaned and measured once for all
    of them, and only if there is such a display.

    Args:
        event: The kernel's message.
    """

    def __init__(self, event: ev.DisplayUpdated) -> None:
        self._event = event
        self._content: dict[int | None, Output] = {}

    @property
    def display_id(self) -> str:
        """The id of the displays. Empty if there is none."""
        return self._event.display_id or ""

    def content(self, budget: int | None) -> Output:
        """Return data and metadata, reduced to a cell's budget of characters. They are not to be changed."""
        if budget not in self._content:
            whole = self._content.get(None) or {
                "output_type": "display_data",
                "data": clean_bundle(self._event.data),
                "metadata": clean_metadata(self._event.metadata),
            }
            self._content[None] = whole
            self._content[budget] = whole if budget is None else slim(whole, budget)
        return self._content[budget]


class Outputs:
    """A cell's outputs. ``budget`` is in characters. None keeps all.

    Attributes:
        cut: Characters that were dropped.
    """

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._reset()

    def _reset(self) -> None:
        self._head: list[_Text | _Rich] = []
        self._tail: deque[_Text | _Rich] = deque()
        self._by_id: dict[str, deque[_Rich]] = {}
        self._head_size = self._tail_size = self.cut = 0
        self._head_open = True
        self._clear_next = False

    @property
    def size(self) -> int:
        """Characters of the outputs, as the budget counts them."""
        return self._head_size + self._tail_size

    def clear(self, *, wait: bool) -> None:
        """Clear the outputs (``clear_output``): now, or when the next output comes."""
        if wait:
            self._clear_next = True
        else:
            self._reset()

    def feed(self, event: ev.Event) -> None:
        """Add one output event. Other events are ignored."""
        rule = _RULES.get(type(event))
        if rule is not None:
            rule(self, event)

    def _feed_stream(self, event: ev.Event) -> None:
        assert isinstance(event, ev.Stream)
        self.write(event.name, event.text)

    def _feed_display(self, event: ev.Event) -> None:
        assert isinstance(event, ev.Display)
        self._show(_bundle("display_data", event), clean_id(event.display_id))

    def _feed_result(self, event: ev.Event) -> None:
        assert isinstance(event, ev.Result)
        result = {**_bundle("execute_result", event), "execution_count": clean_count(event.execution_count)}
        self._show(result, clean_id(event.display_id))

    def _feed_update(self, event: ev.Event) -> None:
        assert isinstance(event, ev.DisplayUpdated)
        self.update(DisplayUpdate(event))

    def _feed_clear(self, event: ev.Event) -> None:
        assert isinstance(event, ev.OutputCleared)
        self.clear(wait=event.wait)

    def _feed_error(self, event: ev.Event) -> None:
        assert isinstance(event, ev.Error)
        self._show(error_output(event))

    def write(self, name: Literal["stdout", "stderr"], text: str) -> None:
        """Add text of a stream. Adjacent text of one stream is one output."""
        self._begin()
        room = self._head_room()
        if self._head_open and (room is None or len(text) <= room):
            self._head_size += len(text)
            self._write_to(self._head, name, text)
            return
        if self._head_open and room:
            self._head_size += room
            self._write_to(self._head, name, text[:room])
            text = text[room:]
        self._head_open = False
        self._tail_size += len(text)
        self._write_to(self._tail, name, text)
        self._trim(slack=True)

    @staticmethod
    def _write_to(parts: list[_Text | _Rich] | deque[_Text | _Rich], name: str, text: str) -> None:
        if not text:
            return
        last = parts[-1] if parts else None
        if not isinstance(last, _Text) or last.name != name:
            last = _Text(name)
            parts.append(last)
        last.add(text)

    def _show(self, output: Output, display_id: str | None = None) -> None:
        self._put(_Rich(output, display_id))

    def _put(self, part: _Rich) -> None:
        self._begin()
        if self._budget is not None and part.size > self._budget // 2:
            before = part.output()
            if _shows_nothing(before):
                return
            part.replace(slim(before, self._budget // 2))
            self.cut += _characters_lost(before, part.output())
        if part.display_id is not None:
            self._by_id.setdefault(part.display_id, deque(maxlen=SAME_ID)).append(part)
        room = self._head_room()
        if self._head_open and (room is None or part.size <= room):
            part.in_head = True
            self._head.append(part)
            self._head_size += part.size
            return
        self._head_open = False
        self._tail.append(part)
        self._tail_size += part.size
        self._trim(slack=True)

    def _begin(self) -> None:
        if self._clear_next:
            self._reset()

    def _head_room(self) -> int | None:
        """Return the characters that the head still takes, or None for no limit."""
        if len(self._head) >= MAX_PARTS:
            return 0
        return None if self._budget is None else max(0, self._budget // 2 - self._head_size)

    def _trim(self, *, slack: bool = False) -> None:
        """Drop the oldest part of the tail. With ``slack``, only if much is over, so that it costs little."""
        if self._budget is None:
            while len(self._tail) > MAX_PARTS:
                self._drop_oldest()
            return
        bound = max(0, self._budget - self._head_size)
        if slack and self._tail_size <= 2 * bound + 4096 and len(self._tail) <= 2 * MAX_PARTS:
            return
        while len(self._tail) > MAX_PARTS:
            self._drop_oldest()
        while self._tail_size > bound:
            over, first = self._tail_size - bound, self._tail[0]
            if isinstance(first, _Text) and first.size > over:
                first.cut_start(over)
                self._tail_size -= over
                self.cut += over
            else:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        part = self._tail.popleft()
        self._tail_size -= part.size
        self.cut += part.size
        if part.display_id is not None:
            same = self._by_id[part.display_id]
            # ``maxlen`` may have removed it already.
            if same[0] is part:
                same.popleft()
            if not same:
                del self._by_id[part.display_id]

    def update(self, update: DisplayUpdate) -> bool:
        """Give all outputs with this display id new content. Return whether there were any."""
        parts = self._by_id.get(update.display_id, ())
        for part in parts:
            before = part.size
            content = update.content(self._budget)
            output = {**part.output(), "data": content["data"], "metadata": content["metadata"]}
            if self._budget is not None:
                output = slim(output, max(before, self._budget - self._head_size - self._tail_size))
            part.replace(output)
            if part.in_head:
                self._head_size += part.size - before
            else:
                self._tail_size += part.size - before
        return bool(parts)

    def display_ids(self) -> Iterator[tuple[str, int]]:
        """Yield each display id and the index of its output in ``render()``."""
        self._trim()
        skip = len(self._head) + bool(self.cut)
        for place, part in [*enumerate(self._head), *enumerate(self._tail, skip)]:
            if part.display_id is not None:
                yield part.display_id, place

    def render(self, where: str = "") -> list[Output]:
        """Return the outputs. ``where`` completes the marker's sentence about the location of the rest."""
        self._trim()
        head, tail = [p.output() for p in self._head], [p.output() for p in self._tail]
        return [*head, cut_marker(self.cut, where), *tail] if self.cut else [*head, *tail]


def cut_marker(cut: int, where: str) -> Output:
    """Return the output that stands for the dropped ones."""
    text = f"[… {cut:,} characters of output left out here{where} …]"
    return {"output_type": "display_data", "data": {"text/plain": text}, "metadata": {"kernelsvc": {"cut": cut}}}


def _bundle(kind: str, event: ev.Display | ev.Result) -> Output:
    data, metadata = clean_bundle(event.data), clean_metadata(event.metadata)
    return {"output_type": kind, "data": data, "metadata": metadata}


#: Rules by event type. All other events are no output.
_RULES: dict[type[ev.Event], Callable[[Outputs, ev.Event], None]] = {
    ev.Stream: Outputs._feed_stream,
    ev.Display: Outputs._feed_display,
    ev.Result: Outputs._feed_result,
    ev.DisplayUpdated: Outputs._feed_update,
    ev.OutputCleared: Outputs._feed_clear,
    ev.Error: Outputs._feed_error,
}


def error_output(event: ev.Error) -> Output:
    """Return an error event as an nbformat output."""
    return {
        "output_type": "error",
        "ename": event.ename,
        "evalue": event.evalue,
        "traceback": [str(line) for line in event.traceback],
    }


def text_of(outputs: list[Output]) -> str:
    """Return the outputs as text for a model: in order, without escape sequences."""
    text = ""
    for output in outputs:
        piece = strip_ansi(_text_of_one(output))
        if output["output_type"] != "stream":
            text += "" if not text or text.endswith("\n") else "\n"
            piece += "" if not piece or piece.endswith("\n") else "\n"
        text += piece
    return text


def _text_of_one(output: Output) -> str:
    kind = output["output_type"]
    if kind == "stream":
        return crash_dump.shortened(str(output["text"]))
    if kind == "error":
        return "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
    plain = output["data"].get("text/plain")
    # A placeholder begins with this. Other text needs no second look.
    return plain if isinstance(plain, str) and not plain.lstrip().startswith("<") else text_form(output["data"])
