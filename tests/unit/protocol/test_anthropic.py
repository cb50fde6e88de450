"""Anthropic's Messages: requests and ids."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.values import CodeItem, FunctionItem, FunctionResult, InputMessage, MessageItem
from kernelsvc.protocol.anthropic import container_file_id, container_of_file, error_json, read_messages_request
from kernelsvc.protocol.openai.requests import AnswerRequest

CODE = {"type": "code_execution_20260120", "name": "code_execution"}
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}


def read(*messages: Any, **more: Any) -> AnswerRequest:
    numbers = itertools.count(1)
    said = list(messages) or [{"role": "user", "content": "hi"}]
    body = {"model": "m", "max_tokens": 100, "messages": said, **more}
    return read_messages_request(body, lambda prefix: f"{prefix}_{next(numbers)}")


def test_a_request_becomes_one_of_the_responses_api() -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    got = read(
        tools=[CODE, WEATHER], system=system, container={"id": "cntr_1"}, stop_sequences=["x"], temperature=0.5,
        tool_choice={"type": "tool", "name": "code_execution", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"}, thinking={"type": "disabled"},
    )  # fmt: skip
    assert (got.instructions, got.max_output_tokens, got.store, got.parallel) == ("Be brief.", 100, False, False)
    assert got.code is not None
    assert got.code.container == "cntr_1"
    assert got.functions == [
        {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    ]
    assert got.force == "python"
    assert got.passed == {"stop": ["x"], "temperature": 0.5, "reasoning_effort": "none"}
    assert read(tool_choice={"type": "any"}, tools=[WEATHER]).force == "required"
    assert read(tool_choice={"type": "none"}).may_call is False


def test_a_conversation_is_read_back() -> None:
    said = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "I run it."},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {"code": "6 * 7"}},
        {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {
            "type": "code_execution_result", "stdout": "42\n", "stderr": "", "return_code": 0, "content": []}},
        {"type": "tool_use", "id": "w", "name": "weather", "input": {"city": "Bern"}},
    ]  # fmt: skip
    results = [
        {"type": "tool_result", "tool_use_id": "w", "content": [{"type": "text", "text": "sun"}], "is_error": True},
        {"type": "text", "text": "And now?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
    ]
    entries = read({"role": "assistant", "content": said}, {"role": "user", "content": results}).input
    _, text, code, function, result, message = entries
    assert isinstance(text, MessageItem)
    assert isinstance(code, CodeItem)
    assert (code.id, code.code, code.result) == ("ci_1", "6 * 7", "42\n")
    assert isinstance(function, FunctionItem)
    assert function.arguments == '{"city": "Bern"}'
    assert isinstance(result, FunctionResult)
    assert (result.call_id, result.output) == ("w", "Error: sun")
    assert isinstance(message, InputMessage)
    assert message.pictures[0].url == "data:image/png;base64,AA=="


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "mcp_tool_use"}]}]}, "'mcp_tool_use'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]}, "'image'"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "code_execution_20260120"),
        ({"tools": [{"type": "web_search_20250305"}]}, "web_search"),
        ({"container": {"id": None, "skills": [1]}, "tools": [CODE]}, "skills"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"top_k": 5}, "top_k"),
        ({"output_config": {"format": {}}}, "output_config"),
    ],
)
def test_a_wrong_field_is_named(more: dict[str, Any], shown: str) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}], **more}
    with pytest.raises(BadRequest) as caught:
        read_messages_request(body, lambda prefix: prefix)
    assert shown in caught.value.message


def test_an_id_names_a_file_with_its_container() -> None:
    for container in ("cntr_0123456789abcdef", "cntr_a1b2c30123456789abcdef"):
        named = container_file_id(container, "cfile_pYQ")
        assert container_of_file(named) == (container, "cfile_pYQ")
    for other in ("file-" + "0" * 32, "file_x_cfile_p", "cfile_pYQ"):
        assert container_of_file(other) is None


def test_errors_have_anthropics_types() -> None:
    assert error_json(429, "m") == {"type": "rate_limit_error", "message": "m"}
    assert error_json(502, "m")["type"] == "api_error"
