"""Tool calls of Google's Gemini API (``google-genai``)."""

from __future__ import annotations

import base64
from typing import Any

from kernelsvc.integrations.tool_calls import Answered, RequestedCall, Vendor, field


def _calls(reply: Any) -> list[RequestedCall]:
    """Return the calls in a response, or in its content."""
    candidates = field(reply, "candidates", [])
    content = field(candidates[0], "content") if candidates else reply
    found = [_first_field(part, "function_call", "functionCall") for part in field(content, "parts", [])]
    return [
        RequestedCall(id=field(call, "id", ""), name=field(call, "name"), arguments=field(call, "args"))
        for call in found
        if call is not None
    ]


def _first_field(part: Any, *names: str) -> Any:
    return next((found for name in names if (found := field(part, name)) is not None), None)


def _answers(answered: Answered) -> list[dict[str, Any]]:
    """Return one content with a response for each call, and the images after them."""
    parts: list[dict[str, Any]] = []
    for call, result in answered:
        response = {"error" if result.failed else "output": result.text}
        answer: dict[str, Any] = {"name": call.name, "response": response}
        if call.id:
            answer["id"] = call.id
        parts.append({"functionResponse": answer})
    for _, result in answered:
        for picture in result.pictures:
            data = base64.b64encode(picture.data).decode()
            parts.append({"inlineData": {"mimeType": picture.mime, "data": data}})
    return [{"role": "user", "parts": parts}] if parts else []


_VENDOR = Vendor("gemini", _calls, _answers)
tools, run, arun = _VENDOR.tools, _VENDOR.run, _VENDOR.arun
