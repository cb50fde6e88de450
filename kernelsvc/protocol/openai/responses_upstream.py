"""A model's server that speaks the Responses API instead of chat completions: the request, and its events as chunks.

The answer's turn is the same for both: ``chat_stream`` folds the chunks.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]
#: Fields of a chat completion with another name or place in the Responses API.
_MOVED = ("messages", "tools", "max_tokens", "response_format", "reasoning_effort", "verbosity")
_TEXTS = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "content",
    "response.reasoning_text.delta": "reasoning_content",
    "response.reasoning_summary_text.delta": "reasoning_content",
}


def to_responses_body(body: Json) -> Json:
    """Return the request of a chat completion as one of the Responses API. Nothing is stored there.

    Args:
        body: As ``answer_run`` makes it.
    """
    found = {name: value for name, value in body.items() if name not in _MOVED and name != "stream_options"}
    instructions, items = _items(body["messages"])
    found |= {"input": items, "store": False}
    if instructions:
        found["instructions"] = instructions
    if body.get("tools"):
        found["tools"] = [{"strict": False, **each["function"], "type": "function"} for each in body["tools"]]
    if body.get("max_tokens") is not None:
        found["max_output_tokens"] = body["max_tokens"]
    form = dict(body.get("response_format") or {})
    text: Json = {"format": form.pop("json_schema", {}) | form} if form else {}
    if body.get("verbosity"):
        text["verbosity"] = body["verbosity"]
    if text:
        found["text"] = text
    if body.get("reasoning_effort"):
        found["reasoning"] = {"effort": body["reasoning_effort"]}
    return found


def _items(messages: list[Json]) -> tuple[str, list[Json]]:
    """Return the system's text, which is the first message only, and the items of the others."""
    instructions = ""
    items: list[Json] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "system":
            instructions = str(content)
            continue
        if role == "tool":
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": content})
            continue
        if message.get("reasoning_content"):
            thought = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
            # The field is required, and the server knows none of these ids: it stores nothing.
            items.append({"type": "reasoning", "id": f"rs_{len(items)}", "summary": [], "content": thought})
        if content:
            items.append({"type": "message", "role": role, "content": _parts(content, role)})
        for call in message.get("tool_calls") or []:
            items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return instructions, items


def _parts(content: Any, role: str) -> Any:
    if isinstance(content, str):
        return [{"type": "output_text", "text": content}] if role == "assistant" else content
    return [
        {"type": "input_image", "detail": "auto", "image_url": each["image_url"]["url"]}
        if each["type"] == "image_url"
        else {"type": "input_text", "text": each["text"]}
        for each in content
    ]


class ResponsesChunks:
    """Translator of one response's events into the chunks of a chat completion."""

    def __init__(self) -> None:
        # Places of the calls whose arguments have come in pieces.
        self._grown: set[Any] = set()

    def feed(self, data: str) -> list[str]:
        """Return the chunks of one event's data. Data that is no event is returned as it is."""
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeError):
            return [data]
        if not isinstance(event, dict):
            return [data]
        if event.get("object") == "response":  # a server without streams
            chunks = [each for number, item in enumerate(_list(event, "output")) for each in _whole_item(item, number)]
            return [msgspec.json.encode(each).decode() for each in [*chunks, *_end(event)]]
        return [msgspec.json.encode(each).decode() for each in self._chunks(event)]

    def _chunks(self, event: Json) -> list[Json]:
        kind, place = event.get("type"), event.get("output_index")
        if kind in _TEXTS:
            return [_delta({_TEXTS[kind]: event.get("delta")})]
        if kind == "response.function_call_arguments.delta":
            self._grown.add(place)
            return [_call(place, {"arguments": event.get("delta")})]
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = event.get("item")
            if not isinstance(item, dict) or item.get("type") != "function_call":
                return []
            if kind.endswith("added"):
                return [_call(place, {"name": item.get("name")}, item.get("call_id"))]
            # Some servers send the arguments only as a whole.
            return [] if place in self._grown else [_call(place, {"arguments": item.get("arguments")})]
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            response = event.get("response")
            return _end(response) if isinstance(response, dict) else []
        if kind == "error" or (kind is None and event.get("error")):
            return [{"error": event.get("error") or event}]
        return []


def _whole_item(item: Any, place: int) -> list[Json]:
    if not isinstance(item, dict):
        return []
    texts = "".join(str(each.get("text", "")) for each in _list(item, "content") if isinstance(each, dict))
    match item.get("type"):
        case "message":
            return [_delta({"content": texts})]
        case "reasoning":
            return [_delta({"reasoning_content": texts})]
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            return [_call(place, function, item.get("call_id"))]
        case _:
            return []


def _end(response: Json) -> list[Json]:
    """Return the chunks of a response's end: the reason, the tokens, or the error."""
    if response.get("error"):
        return [{"error": response["error"]}]
    reason = response.get("incomplete_details")
    cut = isinstance(reason, dict) and reason.get("reason") == "max_output_tokens"
    found = [_delta({}, "length" if cut else "stop")]
    usage = response.get("usage")
    if isinstance(usage, dict):
        about = {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
            "prompt_tokens_details": usage.get("input_tokens_details"),
            "completion_tokens_details": usage.get("output_tokens_details"),
        }
        found.append({"choices": [], "usage": about})
    return found


def _delta(fields: Json, finish: str | None = None) -> Json:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def _call(place: Any, function: Json, call_id: Any = None) -> Json:
    return _delta({"tool_calls": [{"index": place, "id": call_id, "function": function}]})


def _list(value: Json, name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []
