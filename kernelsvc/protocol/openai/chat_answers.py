"""``POST /v1/chat/completions``: a request with a conversation as messages, and an answer as content.

Chat programs show content and send it back as it is. So code and results are blocks of the content, and the next
request has them as text of the assistant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.machine import AnswerEnded, InputComplete, ItemAdded, ItemDone, ItemGrew, Step
from kernelsvc.model.answers.values import (
    CodeItem,
    FunctionItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    TokenUsage,
)
from kernelsvc.protocol.openai.requests import AnswerRequest, read_request, refused

Json = dict[str, Any]
#: Most characters of one result in the content.
MAX_SHOWN = 4000
_NAMES = {"max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens"}
_SAME = {
    "model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "parallel_tool_calls",
    "metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier",
}  # fmt: skip
#: Fields whose value asks for nothing more than an answer without them.
_NEUTRAL: dict[str, Any] = {"n": 1, "logprobs": False, "store": False}


def read_chat_request(body: Any, new_id: Callable[[str], str], *, code: bool) -> AnswerRequest:
    """Read the body of a chat completion.

    Args:
        body: The decoded JSON.
        new_id: Makes ids of items.
        code: Whether the model has the code interpreter also without the tool in the request.

    Raises:
        BadRequest: A field is not valid or not supported.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise refused("'messages' must be a list.", "messages", "missing_required_parameter")
    given: Json = {"input": _items(body["messages"]), "store": False, "truncation": "auto"}
    for name, value in body.items():
        if value is None or name in ("messages", "stream_options"):
            continue
        if name in _SAME or name == "stream":
            given[name] = value
        elif name in _NAMES:
            given[_NAMES[name]] = value
        elif name == "tools":
            given["tools"] = [_tool(each) for each in value] if isinstance(value, list) else value
        elif name == "tool_choice":
            given["tool_choice"] = _choice(value)
        elif name == "response_format":
            given["text"] = {"format": _format(value)}
        elif name == "reasoning_effort":
            given["reasoning"] = {"effort": value}
        elif name not in _NEUTRAL or value != _NEUTRAL[name]:
            given[name] = value  # refused below, by its name
    tools = given.setdefault("tools", [])
    if code and isinstance(tools, list) and not any(each.get("type") == "code_interpreter" for each in tools):
        tools.insert(0, {"type": "code_interpreter"})
    return read_request(given, new_id)


def _tool(tool: Any) -> Any:
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return {**tool["function"], "type": "function"}
    return tool if isinstance(tool, dict) else {"type": str(tool)}


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        return {"type": "function", "name": choice["function"].get("name")}
    return choice


def _format(form: Any) -> Any:
    schema = form.get("json_schema") if isinstance(form, dict) else None
    return {**schema, "type": "json_schema"} if isinstance(schema, dict) else form


def _items(messages: list[Any]) -> list[Json]:
    items: list[Json] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise refused(f"'messages[{number}]' must be an object.", f"messages[{number}]")
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            text = content if isinstance(content, str) else json.dumps(content)
            items.append({"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": text})
            continue
        if content:
            items.append({"type": "message", "role": role, "content": _parts(content)})
        calls = message.get("tool_calls") or []
        for each in calls if isinstance(calls, list) else []:
            function = each.get("function") if isinstance(each, dict) else None
            if not isinstance(function, dict):
                raise BadRequest("A tool call has no function.", param=f"messages[{number}]")
            about = {"name": function.get("name"), "arguments": function.get("arguments") or "{}"}
            items.append({"type": "function_call", "call_id": each.get("id"), **about})
    return items


def _parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    found: list[Any] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image_url":
            url = part.get("image_url")
            found.append({"type": "input_image", "image_url": url.get("url") if isinstance(url, dict) else url})
        else:
            found.append(part)
    return found


class ChatAnswer:
    """Maker of the chunks of one answer, and of the whole completion.

    Args:
        answer: The completion's id.
        created: Seconds of Unix time.
        model: The name in the request.

    Attributes:
        content: The content so far.
    """

    def __init__(self, answer: str, created: int, model: str) -> None:
        self.content = ""
        self._reasoning = ""
        self._calls: list[Json] = []
        self._head = {"id": answer, "created": created, "model": model}

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _write(self, text: str) -> list[Json]:
        self.content += text
        return [self._chunk({"content": text})] if text else []

    def begin(self) -> Json:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def of(self, step: Step, items: list[OutputItem]) -> list[Json]:
        """Return the chunks of a step."""
        if not isinstance(step, ItemAdded | ItemGrew | InputComplete | ItemDone):
            return []
        item = items[step.index]
        match step, item:
            case ItemAdded(), CodeItem():
                return self._write(("\n\n" if self.content else "") + "```python\n")
            case ItemGrew(), CodeItem() | MessageItem():
                return self._write(step.text)
            case ItemGrew(), ReasoningItem():
                self._reasoning += step.text
                return [self._chunk({"reasoning_content": step.text})]
            case InputComplete(), CodeItem():
                return self._write("\n```\n")
            case ItemDone(), CodeItem():
                text = item.result if len(item.result) <= MAX_SHOWN else item.result[:MAX_SHOWN] + "\n..."
                # A longer fence: the result may have one of three.
                return self._write(f"\n````output\n{text}\n````\n\n")
            case ItemDone(), FunctionItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                self._calls.append(call)
                return [self._chunk({"tool_calls": [{"index": len(self._calls) - 1, **call}]})]
            case _:
                return []

    def finish_reason(self, ended: AnswerEnded) -> str:
        """Return why the answer ended."""
        if self._calls:
            return "tool_calls"
        return "length" if ended.status == "incomplete" else "stop"

    def end(self, ended: AnswerEnded, usage: TokenUsage) -> list[Json]:
        """Return the last chunks."""
        if ended.fault is not None:
            return [{"error": {"message": ended.fault.message, "type": "server_error", "code": ended.fault.code}}]
        last = self._chunk({}, self.finish_reason(ended))
        return [last, {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": chat_usage(usage)}]

    def whole(self, ended: AnswerEnded, usage: TokenUsage) -> Json:
        """Return the completion."""
        message: Json = {"role": "assistant", "content": self.content or None, "refusal": None, "annotations": []}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason(ended)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": chat_usage(usage)}


def chat_usage(usage: TokenUsage) -> Json:
    """Return the usage of a completion."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
