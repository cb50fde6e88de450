"""Tool calls of OpenAI's Chat Completions (``run``) and Responses API (``responses.run``), and of compatible APIs."""

from __future__ import annotations

import base64
from typing import Any

from kernelsvc.integrations.code_callers import openai_tools
from kernelsvc.integrations.tool_calls import Answered, RequestedCall, Vendor, field
from kernelsvc.tools import ImageContent


def _calls(reply: Any) -> list[RequestedCall]:
    """Return the calls in a completion, or in its message."""
    choices = field(reply, "choices", [])
    message = field(choices[0], "message") if choices else reply
    return [
        RequestedCall(id=field(call, "id"), name=field(field(call, "function"), "name"),
             arguments=field(field(call, "function"), "arguments"))
        for call in field(message, "tool_calls", [])
        if field(call, "type", "function") == "function"
    ]  # fmt: skip


def _answers(answered: Answered) -> list[dict[str, Any]]:
    """Return a tool message for each call. A tool message can't have images, so a user message after them has those."""
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": call.id, "content": result.text} for call, result in answered
    ]
    shown = [
        {"type": "image_url", "image_url": {"url": _url(picture)}}
        for _, result in answered
        for picture in result.pictures
    ]
    if shown:
        caption = {"type": "text", "text": "Images from the tool calls:"}
        messages.append({"role": "user", "content": [caption, *shown]})
    return messages


def _url(picture: ImageContent) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"


def _response_calls(reply: Any) -> list[RequestedCall]:
    return [
        RequestedCall(id=field(item, "call_id"), name=field(item, "name"), arguments=field(item, "arguments"))
        for item in field(reply, "output", [])
        if field(item, "type") == "function_call"
    ]


def _response_answers(answered: Answered) -> list[dict[str, Any]]:
    """Return an output item for each call, with its images."""
    items = []
    for call, result in answered:
        parts: list[dict[str, Any]] = [{"type": "input_text", "text": result.text}]
        parts += [{"type": "input_image", "image_url": _url(picture), "detail": "auto"} for picture in result.pictures]
        output: Any = parts if result.pictures else result.text
        items.append({"type": "function_call_output", "call_id": call.id, "output": output})
    return items


_CHAT = Vendor("openai", _calls, _answers, openai_tools)
tools, offers, run, arun = _CHAT.tools, _CHAT.offers, _CHAT.run, _CHAT.arun
#: The Responses API.
responses = Vendor("openai-responses", _response_calls, _response_answers, openai_tools)
