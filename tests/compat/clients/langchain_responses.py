"""LangChain's ``ChatOpenAI`` over the Responses API, unmodified: ``langchain_responses.py URL TOKEN``."""

from __future__ import annotations

import sys

from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(model="qwen", base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], use_responses_api=True)
model = chat.bind_tools([{"type": "code_interpreter", "container": {"type": "auto"}}])

first = model.invoke("python: x = 6 * 7\npython: x")
assert "42" in first.text, first
kinds = [block["type"] for block in first.content]
assert kinds == ["code_interpreter_call", "code_interpreter_call", "text"], kinds
assert first.usage_metadata["output_tokens"] == 30, first.usage_metadata

second = model.invoke("python: x + 1", previous_response_id=first.response_metadata["id"])
assert "43" in second.text, second

whole: AIMessageChunk | None = None
for chunk in model.stream([("user", "hi"), first, ("user", "python: x + 2")]):
    whole = chunk if whole is None else whole + chunk
assert whole is not None
assert "44" in whole.text, whole
print("ok")
