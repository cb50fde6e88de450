"""Objects and events of the Responses API, in the order that OpenAI's server sends them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from kernelsvc.model.answers.machine import (
    AnswerEnded,
    AnswerStatus,
    InputComplete,
    ItemAdded,
    ItemDone,
    ItemGrew,
    Step,
)
from kernelsvc.model.answers.values import (
    Citation,
    CodeItem,
    Entry,
    FunctionItem,
    FunctionResult,
    InputMessage,
    MessageItem,
    ModelFault,
    OutputItem,
    ReasoningItem,
    TokenUsage,
)
from kernelsvc.protocol.openai.requests import AnswerRequest

Json = dict[str, Any]
#: ``sealed``: the item without its text, for a client that may only send it again.
ReasoningAs = Literal["text", "summary", "none", "sealed"]
#: Longest path that a file's id contains. The id of a longer one is a digest.
MAX_PATH = 48
#: More events than one turn can have, which a kill of the server may have cut.
RESUME_GAP = 10_000_000
_EMPTY: dict[type, dict[str, Any]] = {
    MessageItem: {"text": "", "citations": []},
    ReasoningItem: {"text": ""},
    CodeItem: {"code": ""},
    FunctionItem: {"arguments": ""},
}


# --- ids ---------------------------------------------------------------------------------


def container_id(session: str) -> str:
    """Return a session's id as that of a container: both have the same 16 digits."""
    return "cntr_" + session.removeprefix("s_")


def session_id(container: str) -> str:
    """Return the id of the session behind a container."""
    return "s_" + container.removeprefix("cntr_")


def file_id(path: bytes) -> str:
    """Return the id of a container's file: its path if that is short, else a digest."""
    if len(path) <= MAX_PATH:
        return "cfile_p" + base64.urlsafe_b64encode(path).rstrip(b"=").decode()
    return "cfile_h" + hashlib.sha256(path).hexdigest()[:32]


def path_of_file(given: str) -> bytes | None:
    """Return the path that a file's id contains. None if it contains none."""
    if not given.startswith("cfile_p"):
        return None
    text = given.removeprefix("cfile_p")
    try:
        path = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return path if file_id(path) == given else None


# --- items -------------------------------------------------------------------------------


def item_json(item: Entry, outputs: list[Json] | None, container: str, reasoning_as: ReasoningAs = "text") -> Json:
    """Return an item.

    Args:
        item: The item. A note has no form for clients.
        outputs: The outputs of a cell. None if the client did not ask for them.
        container: Id of the container of the answer's citations.
        reasoning_as: How clients see reasoning.
    """
    match item:
        case MessageItem():
            return {
                "id": item.id, "type": "message", "status": item.status, "role": "assistant",
                "content": [text_part(item, container)],
            }  # fmt: skip
        case ReasoningItem():
            texts = [item.text] if item.text else []
            found: Json = {"id": item.id, "type": "reasoning", "status": item.status, "summary": []}
            found |= {"encrypted_content": item.sealed} if item.sealed else {}
            if reasoning_as == "sealed":
                return found
            if reasoning_as == "summary":
                return found | {"summary": [{"type": "summary_text", "text": text} for text in texts]}
            return found | {"content": [{"type": "reasoning_text", "text": text} for text in texts]}
        case CodeItem():
            return {
                "id": item.id, "type": "code_interpreter_call", "status": item.status, "code": item.code,
                "container_id": item.container, "outputs": outputs,
            }  # fmt: skip
        case FunctionItem():
            return {
                "id": item.id, "type": "function_call", "status": item.status, "call_id": item.call_id,
                "name": item.name, "arguments": item.arguments,
            }  # fmt: skip
        case FunctionResult():
            return {
                "id": item.id, "type": "function_call_output", "status": "completed", "call_id": item.call_id,
                "output": item.output,
            }  # fmt: skip
        case InputMessage():
            parts: list[Json] = [{"type": "input_text", "text": item.text}]
            parts += [{"type": "input_image", "detail": "auto", "image_url": each.url} for each in item.pictures]
            return {"id": item.id, "type": "message", "status": "completed", "role": item.role, "content": parts}
        case _:
            raise TypeError("a note is not shown")


def text_part(item: MessageItem, container: str) -> Json:
    """Return the only part of a message."""
    notes = [annotation(each, container) for each in item.citations]
    return {"type": "output_text", "text": item.text, "annotations": notes, "logprobs": []}


def annotation(citation: Citation, container: str) -> Json:
    """Return the citation of a file."""
    return {
        "type": "container_file_citation",
        "container_id": container,
        "file_id": file_id(citation.path.encode("utf-8", "surrogateescape")),
        "filename": citation.path.rpartition("/")[2],
        "start_index": citation.start,
        "end_index": citation.end,
    }


def usage_json(usage: TokenUsage) -> Json:
    """Return the usage. The SDKs' types need each field."""
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def error_json(fault: ModelFault) -> Json:
    """Return the ``error`` of a response that failed."""
    return {"code": fault.code, "message": fault.message}


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a response that do not change.

    Attributes:
        id: The response's id.
        created: Seconds of Unix time.
    """

    id: str
    created: int
    request: AnswerRequest


def response_json(
    head: ResponseHead,
    status: AnswerStatus | Literal["queued"],
    output: Sequence[Json],
    usage: TokenUsage | None = None,
    ended: AnswerEnded | None = None,
    completed: int | None = None,
) -> Json:
    """Return the response object.

    Args:
        head: The fields that do not change.
        status: The present status.
        output: Its items.
        usage: Tokens of the whole answer, at its end.
        ended: How it ended.
        completed: When it ended, in seconds of Unix time.
    """
    asked = head.request
    reason = ended.reason if ended is not None and status == "incomplete" else ""
    plain: Json = {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "completed_at": completed,
        "status": status,
        "background": asked.background,
        "error": error_json(ended.fault) if ended is not None and ended.fault is not None else None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": asked.instructions or None,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "model": asked.model,
        "output": list(output),
        "parallel_tool_calls": asked.parallel,
        "previous_response_id": asked.previous,
        "conversation": None if asked.conversation is None else {"id": asked.conversation},
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.store,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "truncation": "disabled",
        "usage": None if usage is None else usage_json(usage),
        "user": None,
        "metadata": {},
        "prompt_cache_key": None,
        "safety_identifier": None,
    }
    return plain | asked.repeated


# --- events ------------------------------------------------------------------------------


class ResponseEvents:
    """Maker of the events of one response, which numbers them.

    Args:
        head: The fields of the response that do not change.
        reasoning_as: How clients see reasoning.
    """

    def __init__(self, head: ResponseHead, reasoning_as: ReasoningAs = "text") -> None:
        self._head, self._reasoning_as = head, reasoning_as
        self._number = 0
        self._places: dict[int, int] = {}

    def _event(self, kind: str, **fields: Any) -> Json:
        number, self._number = self._number, self._number + 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    def begin(self) -> list[Json]:
        """Return the first events."""
        kinds = ["queued"] if self._head.request.background else []
        events = [
            self._event("created", response=response_json(self._head, "queued" if kinds else "in_progress", [])),
        ]
        events += [self._event(kind, response=response_json(self._head, "queued", [])) for kind in kinds]
        return [*events, self._event("in_progress", response=response_json(self._head, "in_progress", []))]

    def restored(
        self, items: Sequence[OutputItem], outputs: Mapping[str, list[Json]] | None, container: str, number: int
    ) -> list[Json]:
        """Return the events of the items that were stored before a kill of the server, each item in one piece.

        Their numbers end at that of the last stored event, so that a client which has read to there gets none twice.
        Those of the events that follow are behind any number that the server may have sent before the kill.

        Args:
            items: The items.
            outputs: The outputs of cells by the id of the item. None if the client did not ask for them.
            container: Id of the answer's container, or "".
            number: Number of the event behind the last stored one.
        """
        first, found = self._number, []
        blank = [msgspec.structs.replace(each, status="in_progress", **_EMPTY[type(each)]) for each in items]
        for index, item in enumerate(items):
            text = item.arguments if isinstance(item, FunctionItem) else ""
            text = text or (item.code if isinstance(item, CodeItem) else getattr(item, "text", ""))
            found += self.of(ItemAdded(index), blank, None, container)
            found += self.of(ItemGrew(index, text), items, None, container)
            if isinstance(item, CodeItem):
                found += self.of(InputComplete(index), items, None, container)
            if item.status != "in_progress":
                mine = None if outputs is None else outputs.get(item.id, [])
                found += self.of(ItemDone(index), items, mine, container)
        ahead = max(0, number - first - len(found))
        for each in found:
            each["sequence_number"] += ahead
        self._number = max(number, first + len(found)) + RESUME_GAP
        return found

    def of(self, step: Step, items: Sequence[OutputItem], outputs: list[Json] | None, container: str) -> list[Json]:
        """Return the events of a step. Effects have none.

        Args:
            step: The step.
            items: The items of the answer.
            outputs: The outputs of the step's cell, or None.
            container: Id of the answer's container, or "".
        """
        if not isinstance(step, ItemAdded | ItemGrew | InputComplete | ItemDone):
            return []
        item = items[step.index]
        if isinstance(item, ReasoningItem) and (
            self._reasoning_as == "none" or (self._reasoning_as == "sealed" and isinstance(step, ItemGrew))
        ):
            return []
        # Hidden reasoning leaves no gap between the positions of the other items.
        place = self._places.setdefault(step.index, len(self._places))
        match step:
            case ItemAdded():
                return list(self._added(item, place))
            case ItemGrew():
                return [self._grew(item, place, step.text)]
            case InputComplete():
                about = {"output_index": place, "item_id": item.id}
                assert isinstance(item, CodeItem)
                return [
                    self._event("code_interpreter_call_code.done", **about, code=item.code),
                    self._event("code_interpreter_call.interpreting", **about),
                ]
            case ItemDone():
                return list(self._done(item, place, outputs, container))

    def _added(self, item: OutputItem, place: int) -> Iterable[Json]:
        shown = item_json(item, [], "", self._reasoning_as)
        about = {"output_index": place, "item_id": item.id}
        if isinstance(item, MessageItem):
            part = text_part(item, "")
            yield self._event("output_item.added", output_index=place, item=shown | {"content": []})
            yield self._event("content_part.added", **about, content_index=0, part=part)
            return
        yield self._event("output_item.added", output_index=place, item=shown)
        if isinstance(item, CodeItem):
            yield self._event("code_interpreter_call.in_progress", **about)
        elif isinstance(item, ReasoningItem) and self._reasoning_as == "summary":
            part = {"type": "summary_text", "text": ""}
            yield self._event("reasoning_summary_part.added", **about, summary_index=0, part=part)
        elif isinstance(item, ReasoningItem) and self._reasoning_as == "text":
            part = {"type": "reasoning_text", "text": ""}
            yield self._event("content_part.added", **about, content_index=0, part=part)

    def _grew(self, item: OutputItem, place: int, text: str) -> Json:
        about = {"output_index": place, "item_id": item.id}
        match item:
            case MessageItem():
                return self._event("output_text.delta", **about, content_index=0, delta=text, logprobs=[])
            case CodeItem():
                return self._event("code_interpreter_call_code.delta", **about, delta=text)
            case FunctionItem():
                return self._event("function_call_arguments.delta", **about, delta=text)
            case ReasoningItem():
                if self._reasoning_as == "summary":
                    return self._event("reasoning_summary_text.delta", **about, summary_index=0, delta=text)
                return self._event("reasoning_text.delta", **about, content_index=0, delta=text)

    def _done(self, item: OutputItem, place: int, outputs: list[Json] | None, container: str) -> Iterable[Json]:
        about = {"output_index": place, "item_id": item.id}
        match item:
            case MessageItem():
                part = text_part(item, container)
                for number, note in enumerate(part["annotations"]):
                    yield self._event(
                        "output_text.annotation.added", **about, content_index=0, annotation_index=number,
                        annotation=note,
                    )  # fmt: skip
                yield self._event("output_text.done", **about, content_index=0, text=item.text, logprobs=[])
                yield self._event("content_part.done", **about, content_index=0, part=part)
            case CodeItem() if item.status == "completed":
                yield self._event("code_interpreter_call.completed", **about)
            case FunctionItem() if item.status == "completed":
                yield self._event("function_call_arguments.done", **about, name=item.name, arguments=item.arguments)
            case ReasoningItem() if self._reasoning_as == "summary":
                part = {"type": "summary_text", "text": item.text}
                yield self._event("reasoning_summary_text.done", **about, summary_index=0, text=item.text)
                yield self._event("reasoning_summary_part.done", **about, summary_index=0, part=part)
            case ReasoningItem() if self._reasoning_as == "text":
                part = {"type": "reasoning_text", "text": item.text}
                yield self._event("reasoning_text.done", **about, content_index=0, text=item.text)
                yield self._event("content_part.done", **about, content_index=0, part=part)
            case _:
                pass
        shown = item_json(item, outputs, container, self._reasoning_as)
        yield self._event("output_item.done", output_index=place, item=shown)

    def end(self, response: Json, ended: AnswerEnded) -> list[Json]:
        """Return the last events."""
        found = []
        if ended.fault is not None:
            # Not an ``error`` object: the SDK would raise an error without the response's id.
            number, self._number = self._number, self._number + 1
            error = {**error_json(ended.fault), "param": None}
            found.append({"type": "error", "sequence_number": number, **error})
        # There is no event for a cancelled response. The status in the object says it.
        kind = "incomplete" if ended.status == "cancelled" else ended.status
        return [*found, self._event(kind, response=response)]
