"""Tool calls of Anthropic's Messages API."""

from __future__ import annotations

import base64
from typing import Any

from kernelsvc.integrations.code_callers import anthropic_tools
from kernelsvc.integrations.tool_calls import Answered, RequestedCall, Vendor, field
from kernelsvc.tools import ToolResult


def _calls(reply: Any) -> list[RequestedCall]:
    return [
        RequestedCall(id=field(block, "id"), name=field(block, "name"), arguments=field(block, "input"))
        for block in field(reply, "content", [])
        if field(block, "type") == "tool_use"
    ]


def _content(result: ToolResult) -> list[dict[str, Any]]:
    # The API refuses an empty text block.
    blocks: list[dict[str, Any]] = [{"type": "text", "text": result.text}] if result.text.strip() else []
    for picture in result.pictures:
        source = {"type": "base64", "media_type": picture.mime, "data": base64.b64encode(picture.data).decode()}
        blocks.append({"type": "image", "source": source})
    return blocks


def _answers(answered: Answered) -> list[dict[str, Any]]:
    """Return one user message with a result for each call."""
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": _content(result), "is_error": result.failed}
        for call, result in answered
    ]
    return [{"role": "user", "content": results}] if results else []


_VENDOR = Vendor("anthropic", _calls, _answers, anthropic_tools)
tools, offers, run, arun = _VENDOR.tools, _VENDOR.offers, _VENDOR.run, _VENDOR.arun
