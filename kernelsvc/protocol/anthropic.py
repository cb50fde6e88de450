"""Anthropic's Messages with the tool ``code_execution``: a request, and an answer as blocks and events.

Written after the types of the package ``anthropic`` 2.15. Only the Python form of the tool exists here: one tool
``code_execution`` with ``code``, whose variables stay as long as the container lives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kernelsvc.model.answers.machine import AnswerEnded, InputComplete, ItemAdded, ItemDone, ItemGrew, Step
from kernelsvc.model.answers.values import CodeItem, FunctionItem, MessageItem, OutputItem, ReasoningItem, TokenUsage
from kernelsvc.model.cluster import ids
from kernelsvc.protocol.openai.requests import AnswerRequest, read_request, refused, unsupported

Json = dict[str, Any]
#: Versions of the tool whose input is Python code. ``code_execution_20250825`` is a shell and an editor of files.
PYTHON_TOOLS = {"code_execution_20250522", "code_execution_20260120", "code_execution_20260521"}
TOOL = "code_execution"
_SAME = {"model": "model", "max_tokens": "max_output_tokens", "temperature": "temperature", "top_p": "top_p",
         "stream": "stream", "stop_sequences": "stop"}  # fmt: skip
_READ = {*_SAME, "messages", "system", "tools", "tool_choice", "metadata", "container", "thinking", "output_config",
         "service_tier", "cache_control"}  # fmt: skip
#: The beginning of a call. The model itself made it, not its code.
_CALLED: Json = {"input": {}, "caller": {"type": "direct"}}
_REASONS = {"max_output_tokens": "max_tokens", "max_messages": "pause_turn"}


def tool_use_id(item: str) -> str:
    """Return the id of a call's block: that of the item, and so of the cell, with Anthropic's prefix."""
    return "srvtoolu_" + item.removeprefix("ci_")


# --- the request -------------------------------------------------------------------------


def read_messages_request(body: Any, new_id: Callable[[str], str]) -> AnswerRequest:
    """Read the body of ``POST /v1/messages``.

    Args:
        body: The decoded JSON.
        new_id: Makes ids of items.

    Raises:
        BadRequest: A field is not valid or not supported.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise refused("'messages' must be a list.", "messages")
    for name, value in body.items():
        if name not in _READ and value is not None:
            raise unsupported(name)
    if not isinstance(body.get("max_tokens"), int):
        raise refused("'max_tokens' is missing.", "max_tokens")
    given: Json = {to: body[name] for name, to in _SAME.items() if body.get(name) is not None}
    given |= {"store": False, "input": [], "tools": [_tool(each, body) for each in _list(body, "tools")]}
    if body.get("system") is not None:
        given["instructions"] = _texts(body["system"], "system")
    for number, message in enumerate(body["messages"]):
        given["input"] += _items(message, f"messages[{number}]")
    given |= _choice(body.get("tool_choice"))
    given |= _effort(body)
    if isinstance(body.get("metadata"), dict) and body["metadata"].get("user_id") is not None:
        given["user"] = body["metadata"]["user_id"]
    return read_request(given, new_id)


def _list(body: Json, name: str) -> list[Any]:
    value = body.get(name) or []
    if not isinstance(value, list):
        raise refused(f"'{name}' must be a list.", name)
    return value


def _texts(value: Any, where: str) -> str:
    """Return the text of a string, or of a list of text blocks."""
    if isinstance(value, str):
        return value
    blocks: list[Any] = value if isinstance(value, list) else [None]
    if not all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in blocks):
        raise refused(f"'{where}' must be a text or a list of text blocks.", where)
    return "\n".join(each["text"] for each in blocks)


def _tool(tool: Any, body: Json) -> Json:
    if not isinstance(tool, dict):
        raise refused("A tool must be an object.", "tools")
    kind = tool.get("type") or "custom"
    if kind == "custom":
        about = {"type": "function", "name": tool.get("name"), "parameters": tool.get("input_schema")}
        return about | ({"description": tool["description"]} if tool.get("description") else {})
    if kind not in PYTHON_TOOLS:
        message = f"This server does not have the tool '{str(kind)[:100]}'. For Python use 'code_execution_20260120'."
        raise refused(message, "tools")
    container = body.get("container")
    if isinstance(container, dict):
        if container.get("skills"):
            raise unsupported("container.skills")
        container = container.get("id")
    return {"type": "code_interpreter", "container": container or {"type": "auto"}}


def _choice(choice: Any) -> Json:
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, dict) else None
    names = {"auto": "auto", "any": "required", "none": "none"}
    found: Any = names.get(str(kind))
    if kind == "tool":
        name = choice.get("name")
        found = {"type": "code_interpreter"} if name == TOOL else {"type": "function", "name": name}
    if found is None:
        raise refused("'tool_choice' has the type 'auto', 'any', 'none' or 'tool'.", "tool_choice")
    return {"tool_choice": found, "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False)}


def _effort(body: Json) -> Json:
    """Return how much the model reasons. Without a wish, it is the model's own default."""
    thinking, output = body.get("thinking") or {}, body.get("output_config") or {}
    if not isinstance(thinking, dict) or not isinstance(output, dict):
        raise refused("'thinking' and 'output_config' must be objects.", "thinking")
    if any(name != "effort" for name in output):
        raise unsupported("output_config", " other than 'effort'")
    effort = "none" if thinking.get("type") == "disabled" else output.get("effort")
    return {"reasoning": {"effort": effort}} if effort is not None else {}


def _items(message: Any, where: str) -> list[Json]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise refused(f"'{where}' must have the role 'user' or 'assistant'.", where)
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not all(isinstance(each, dict) for each in blocks):
        raise refused(f"'{where}.content' must be a text or a list of blocks.", where)
    results = {each.get("tool_use_id"): each for each in blocks if each.get("type") == "code_execution_tool_result"}
    items: list[Json] = []
    parts: list[Json] = []
    for block in blocks:
        if role == "assistant":
            items += _assistant_item(block, results, where)
        elif block.get("type") == "tool_result":
            items.append(_function_result(block))
        else:
            parts.append(_part(block, where))
    return items + ([{"type": "message", "role": role, "content": parts}] if parts else [])


def _function_result(block: Json) -> Json:
    content = block.get("content")
    text = content if isinstance(content, str) else _texts(content or [], "tool_result")
    return {
        "type": "function_call_output",
        "call_id": block.get("tool_use_id"),
        "output": f"Error: {text}" if block.get("is_error") else text,
    }


def _part(block: Json, where: str) -> Json:
    match block.get("type"):
        case "text":
            return {"type": "input_text", "text": block.get("text")}
        case "image" if isinstance(block.get("source"), dict) and block["source"].get("type") == "base64":
            source = block["source"]
            return {"type": "input_image", "image_url": f"data:{source.get('media_type')};base64,{source.get('data')}"}
        case "container_upload":
            return {"type": "input_file", "file_id": block.get("file_id")}
        case kind:
            shown = str(kind)[:100]
            raise refused(f"This server does not read blocks of the type '{shown}' of a user.", where)


def _assistant_item(block: Json, results: Mapping[Any, Json], where: str) -> list[Json]:
    match block.get("type"):
        case "text":
            content = [{"type": "output_text", "text": block.get("text")}]
            return [{"type": "message", "role": "assistant", "content": content}]
        case "thinking":
            return [{"type": "reasoning", "content": [{"text": block.get("thinking", "")}]}]
        case "tool_use":
            about = {"call_id": block.get("id"), "name": block.get("name")}
            return [{"type": "function_call", **about, "arguments": json.dumps(block.get("input") or {})}]
        case "server_tool_use" if block.get("name") == TOOL:
            named, code = str(block.get("id")), block.get("input")
            logs = _result_text(results.get(block.get("id"), {}).get("content"))
            return [{
                "type": "code_interpreter_call", "id": "ci_" + named.removeprefix("srvtoolu_"),
                "code": code.get("code") if isinstance(code, dict) else "", "container_id": "",
                "outputs": [{"type": "logs", "logs": logs}],
            }]  # fmt: skip
        case "code_execution_tool_result":
            return []  # read with its call
        case kind:
            shown = str(kind)[:100]
            raise refused(f"This server does not read blocks of the type '{shown}' of an assistant.", where)


def _result_text(content: Any) -> str:
    about = content if isinstance(content, dict) else {}
    if about.get("type") != "code_execution_result":
        return f"Not run: {about.get('error_code', 'the result is missing')}"
    return f"{about.get('stdout', '')}{about.get('stderr', '')}" or "[no output]"


# --- the answer --------------------------------------------------------------------------


class CodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a cell.

    Attributes:
        stdout: The printed text, and the last value.
        stderr: The error output, and the traceback.
        failed: Whether it raised or did not end.
        files: Ids of the files that are new.
    """

    stdout: str
    stderr: str
    failed: bool
    files: list[str]


class MessageAnswer:
    """Maker of the blocks and events of one answer.

    Args:
        answer: The message's id.
        model: The name in the request.
        hides_reasoning: Whether clients see no reasoning.

    Attributes:
        content: The blocks so far.
        results: The results of cells, by the id of the item.
    """

    def __init__(self, answer: str, model: str, *, hides_reasoning: bool) -> None:
        self.content: list[Json] = []
        self.results: dict[str, CodeResult] = {}
        self._head: Json = {"id": answer, "type": "message", "role": "assistant", "model": model}
        self._hides = hides_reasoning
        # Place of an item's block, and the code that was sent of it.
        self._open: dict[int, int] = {}
        self._sent: dict[int, str] = {}

    def begin(self) -> Json:
        """Return the first event."""
        message = {**self._head, "content": [], "container": None, **_stop(None)}
        return {"type": "message_start", "message": {**message, "usage": _usage(TokenUsage())}}

    def of(self, step: Step, items: list[OutputItem]) -> list[Json]:
        """Return the events of a step."""
        if not isinstance(step, ItemAdded | ItemGrew | InputComplete | ItemDone):
            return []
        item = items[step.index]
        if isinstance(item, ReasoningItem) and self._hides:
            return []
        match step:
            case ItemAdded():
                return self._begin_block(step.index, item)
            case ItemGrew():
                return self._grow(step.index, item, step.text)
            case InputComplete():
                return self._end_block(step.index, item)
            case ItemDone():
                ended = self._end_block(step.index, item)
                return [*ended, *self._result(item)] if isinstance(item, CodeItem) else ended

    def _add(self, block: Json) -> Json:
        self.content.append(block)
        return {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}

    def _begin_block(self, index: int, item: OutputItem) -> list[Json]:
        match item:
            case MessageItem():
                block: Json = {"type": "text", "text": "", "citations": None}
            case ReasoningItem():
                block = {"type": "thinking", "thinking": "", "signature": ""}
            case CodeItem():
                block = {"type": "server_tool_use", "id": tool_use_id(item.id), "name": TOOL, **_CALLED}
            case FunctionItem():
                block = {"type": "tool_use", "id": item.call_id, "name": item.name, **_CALLED}
        started = self._add(block)
        self._open[index], self._sent[index] = len(self.content) - 1, ""
        # The pieces of the input together are JSON.
        return [started, self._json_piece(index, '{"code": "')] if isinstance(item, CodeItem) else [started]

    def _grow(self, index: int, item: OutputItem, text: str) -> list[Json]:
        if index not in self._open:
            return []
        self._sent[index] += text
        match item:
            case MessageItem():
                delta = {"type": "text_delta", "text": text}
            case ReasoningItem():
                delta = {"type": "thinking_delta", "thinking": text}
            case CodeItem():
                return [self._json_piece(index, json.dumps(text)[1:-1])]
            case FunctionItem():
                return [self._json_piece(index, text)]
        return [self._delta(index, delta)]

    def _delta(self, index: int, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._open[index], "delta": delta}

    def _json_piece(self, index: int, text: str) -> Json:
        return self._delta(index, {"type": "input_json_delta", "partial_json": text})

    def _end_block(self, index: int, item: OutputItem) -> list[Json]:
        if index not in self._open:
            return []
        found: list[Json] = []
        block = self.content[self._open[index]]
        match item:
            case MessageItem():
                block["text"] = item.text
            case ReasoningItem():
                block["thinking"] = item.text
            case CodeItem():
                # Code that is known only at the end of its arguments has not been sent in pieces.
                rest = item.code.removeprefix(self._sent[index]) if item.code.startswith(self._sent[index]) else ""
                found.append(self._json_piece(index, json.dumps(rest)[1:-1] + '"}'))
                block["input"] = {"code": item.code}
            case FunctionItem():
                block["input"] = _object(item.arguments)
        place = self._open.pop(index)
        return [*found, {"type": "content_block_stop", "index": place}]

    def _result(self, item: CodeItem) -> list[Json]:
        result = self.results.get(item.id)
        if result is None:
            code = "invalid_tool_input" if item.status == "failed" else "unavailable"
            content: Json = {"type": "code_execution_tool_result_error", "error_code": code}
        else:
            content = {
                "type": "code_execution_result", "stdout": result.stdout, "stderr": result.stderr,
                "return_code": int(result.failed),
                "content": [{"type": "code_execution_output", "file_id": each} for each in result.files],
            }  # fmt: skip
        block = {"type": "code_execution_tool_result", "tool_use_id": tool_use_id(item.id), "content": content}
        return [self._add(block), {"type": "content_block_stop", "index": len(self.content) - 1}]

    def end(self, ended: AnswerEnded, usage: TokenUsage, container: Json | None) -> list[Json]:
        """Return the last events."""
        if ended.fault is not None:
            return [{"type": "error", "error": error_json(ended.fault.http_status, ended.fault.message)}]
        delta = {**_stop(self.stop_reason(ended)), "container": container}
        return [{"type": "message_delta", "delta": delta, "usage": _usage(usage)}, {"type": "message_stop"}]

    def stop_reason(self, ended: AnswerEnded) -> str:
        """Return why the answer ended."""
        if ended.status == "incomplete":
            return _REASONS.get(ended.reason, "pause_turn")
        return "tool_use" if any(each["type"] == "tool_use" for each in self.content) else "end_turn"

    def whole(self, ended: AnswerEnded, usage: TokenUsage, container: Json | None) -> Json:
        """Return the message."""
        stop = _stop(self.stop_reason(ended))
        return {**self._head, "content": self.content, "container": container, **stop, "usage": _usage(usage)}


def _stop(reason: str | None) -> Json:
    return {"stop_reason": reason, "stop_sequence": None, "stop_details": None}


def _object(arguments: str) -> Json:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


#: Fields that Anthropic's types require, and that a model's server of an operator does not have.
_NO_USAGE = dict.fromkeys(("cache_creation", "inference_geo", "server_tool_use", "service_tier"))


def _usage(usage: TokenUsage) -> Json:
    # Anthropic's input tokens do not contain those that were read from the cache.
    return {
        "input_tokens": max(0, usage.input - usage.cached),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        **_NO_USAGE,
    }


_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    409: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def error_json(status: int, message: str) -> Json:
    """Return an error."""
    return {"type": _ERRORS.get(status, "api_error"), "message": message}


# --- files -------------------------------------------------------------------------------


def container_file_id(container: str, file: str) -> str:
    """Return one id for a file of a container: Anthropic's API has no container in a file's address."""
    return f"file_{container.removeprefix('cntr_')}_{file}"


def container_of_file(given: str) -> tuple[str, str] | None:
    """Return the container and the file that such an id names. None for another id."""
    container, _, file = given.removeprefix("file_").partition("_")
    if ids.session_of_container(given) is None or not file.startswith("cfile_"):
        return None
    return f"cntr_{container}", file


def file_json(named: str, filename: str, size: int, created: str) -> Json:
    """Return a file's description."""
    return {
        "id": named, "type": "file", "filename": filename, "mime_type": "application/octet-stream",
        "size_bytes": size, "created_at": created, "downloadable": True,
    }  # fmt: skip
