"""A conversation as the messages of a chat completion.

The messages of one conversation only grow, and equal entries give equal bytes, so that the prefix cache of the model's
server holds. The exception is the elision of old results, in large steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from kernelsvc.model.answers.values import (
    CodeItem,
    Entry,
    FunctionItem,
    FunctionResult,
    InputMessage,
    ItemReference,
    MessageItem,
    ReasoningItem,
    ServerNote,
)
from kernelsvc.protocol.openai.chat_stream import TOOL_NAME

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Run Python code in a Jupyter session that keeps its variables and files. Returns the printed "
        "text, the value of the last expression, the error, and the new files.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python code, as in a Jupyter cell."}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
}
_FILES = (
    "Files are in the current directory. To give the user a file, link it in your answer: "
    "[NAME](sandbox:/mnt/data/NAME)."
)
_NATIVE = f"You can run Python code with the tool {TOOL_NAME}. {_FILES}"
_FENCE = (
    "You can run Python code. Write one block that begins with a line ```python and ends with a line ```, and stop. "
    f"It is run in a Jupyter session that keeps its variables, and you get the result. {_FILES}"
)
#: Characters of one token, for an estimate. Code and figures have fewer than English has.
CHARS_PER_TOKEN = 3
#: Shares of the context: above the first one, old results are left out until the second one is reached.
ELIDE_ABOVE, ELIDE_TO = 0.8, 0.5
ELIDED = "[The result of this earlier call is left out. %history shows the code.]"


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How a model reads a conversation. The fields are those of ``model_settings.ModelSettings``."""

    fences: bool = False
    vision: bool = False
    reasoning: Literal["keep", "turn", "drop"] = "turn"
    context_tokens: int = 131_072
    code: bool = True


def to_messages(
    earlier: Sequence[Entry],
    present: Sequence[Entry],
    instructions: str,
    dialect: Dialect,
    pictures: Mapping[str, Sequence[str]],
) -> tuple[list[dict[str, Any]], int]:
    """Return the messages of a conversation, and the number of omitted results.

    Args:
        earlier: Entries before this answer, its input included.
        present: Entries of this answer.
        instructions: Of the client.
        dialect: How the model reads it.
        pictures: Data URIs of the pictures of a cell, by its id.
    """
    entries = [*earlier, *present]
    # Templates refuse a second system message, and one that is not the first.
    system = [instructions] if instructions else []
    system += [each.text for each in entries if isinstance(each, InputMessage) and each.role == "system"]
    if dialect.code:
        system.append(_FENCE if dialect.fences else _NATIVE)
    rest = [each for each in entries if not (isinstance(each, InputMessage) and each.role == "system")]
    elided = _elided(rest, dialect, sum(map(len, system)))
    results = {each.call_id: each.output for each in rest if isinstance(each, FunctionResult)}
    writer = _MessageWriter(dialect, pictures, elided, set(map(id, present)), results)
    for each in rest:
        writer.add(each)
    head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return head + writer.finish(), len(elided)


def _elided(entries: Sequence[Entry], dialect: Dialect, size: int) -> set[int]:
    """Return the identities of the items whose results to omit, the oldest ones."""
    room = dialect.context_tokens * CHARS_PER_TOKEN
    size += sum(_size(each) for each in entries)
    found: set[int] = set()
    if size <= room * ELIDE_ABOVE:
        return found
    # The last result is why the model is asked again.
    results = [each for each in entries if isinstance(each, CodeItem)][:-1]
    for each in [each for each in results if len(each.result) > len(ELIDED)]:
        if size <= room * ELIDE_TO:
            break
        size -= len(each.result) - len(ELIDED)
        found.add(id(each))
    return found


def _size(entry: Entry) -> int:
    match entry:
        case CodeItem():
            return len(entry.arguments or entry.code) + len(entry.result)
        case FunctionItem():
            return len(entry.arguments)
        case FunctionResult():
            return len(entry.output)
        case ItemReference():
            return 0
        case _:
            return len(entry.text)


class _MessageWriter:
    """Collects the parts of one assistant message, and the results that follow it."""

    def __init__(
        self,
        dialect: Dialect,
        pictures: Mapping[str, Sequence[str]],
        elided: set[int],
        present: set[int],
        results: Mapping[str, str],
    ) -> None:
        self._dialect, self._pictures, self._elided, self._present = dialect, pictures, elided, present
        self._results = results
        self._messages: list[dict[str, Any]] = []
        self._text = self._reasoning = ""
        self._calls: list[CodeItem | FunctionItem] = []
        self._turn: int | None = None

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        match entry:
            case FunctionResult() | ItemReference():
                # It stands behind the message with the call, also if code ran in the same turn: templates demand it.
                pass
            case InputMessage():
                self.finish()
                self._messages.append({"role": entry.role, "content": self._content(entry)})
            case ServerNote():
                self.finish()
                last = self._messages[-1] if self._messages else {}
                if last.get("role") == "user" and isinstance(last["content"], str):
                    # Templates refuse two messages of the user in a row.
                    last["content"] += f"\n\n[{entry.text}]"
                else:
                    self._messages.append({"role": "user", "content": entry.text})
            case _:
                self._add_output(entry)

    def _content(self, entry: InputMessage) -> Any:
        if not entry.pictures or not self._dialect.vision:
            return entry.text + "".join("\n[picture]" for _ in entry.pictures)
        parts: list[dict[str, Any]] = [{"type": "text", "text": entry.text}] if entry.text else []
        return parts + [{"type": "image_url", "image_url": {"url": each.url}} for each in entry.pictures]

    def _add_output(self, entry: ReasoningItem | MessageItem | CodeItem | FunctionItem) -> None:
        # A client that sends items of an earlier answer sends no turn. There a call closes the message before it.
        known = entry.turn != self._turn
        follows = bool(self._calls) and not isinstance(entry, CodeItem | FunctionItem)
        if known or follows or (self._dialect.fences and self._calls):
            self.finish()
        self._turn = entry.turn
        match entry:
            case ReasoningItem():
                keep = self._dialect.reasoning
                if keep == "keep" or (keep == "turn" and id(entry) in self._present):
                    self._reasoning += entry.text
            case MessageItem():
                self._text += entry.text
            case CodeItem() | FunctionItem():
                self._calls.append(entry)

    def finish(self) -> list[dict[str, Any]]:
        """Write what was collected, and return all messages."""
        if self._text or self._calls:
            self._write(self._calls)
        self._text = self._reasoning = ""
        self._calls, self._turn = [], None
        return self._messages

    def _write(self, calls: list[CodeItem | FunctionItem]) -> None:
        native = [each for each in calls if isinstance(each, FunctionItem) or not self._dialect.fences]
        fenced = [each for each in calls if isinstance(each, CodeItem) and self._dialect.fences]
        blocks = "".join(f"\n```python\n{each.code}\n```" for each in fenced)
        message: dict[str, Any] = {"role": "assistant", "content": (self._text + blocks).lstrip("\n") or None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if native:
            message["tool_calls"] = [_call(each) for each in native]
        self._messages.append(message)
        for call in native:
            text = self._result(call) if isinstance(call, CodeItem) else self._results.get(call.call_id, "")
            self._messages.append({"role": "tool", "tool_call_id": call.call_id or call.id, "content": text})
        for call in fenced:
            self._messages.append({"role": "user", "content": f"Result of the code:\n{self._result(call)}"})
        self._show([each for each in calls if isinstance(each, CodeItem)])

    def _result(self, call: CodeItem) -> str:
        return ELIDED if id(call) in self._elided else call.result or "[no output]"

    def _show(self, calls: list[CodeItem]) -> None:
        """Add the pictures in a user message. Servers refuse them in a tool's message."""
        urls = [url for each in calls for url in self._pictures.get(each.id, ())] if self._dialect.vision else []
        if urls:
            parts: list[dict[str, Any]] = [{"type": "text", "text": "Pictures that the code made:"}]
            parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            self._messages.append({"role": "user", "content": parts})


def _call(item: CodeItem | FunctionItem) -> dict[str, Any]:
    if isinstance(item, CodeItem):
        # Servers parse earlier arguments, so that those that were no JSON can't be sent again.
        arguments = item.arguments if _is_object(item.arguments) else json.dumps({"code": item.code})
        name = TOOL_NAME
    else:
        name, arguments = item.name, item.arguments if _is_object(item.arguments) else "{}"
    return {"id": item.call_id or item.id, "type": "function", "function": {"name": name, "arguments": arguments}}


class _Object(msgspec.Struct):
    """Any JSON object. Its fields are read and not built: a client may send 60 MiB of them."""


_objects = msgspec.json.Decoder(_Object)


def _is_object(text: str) -> bool:
    try:
        _objects.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
