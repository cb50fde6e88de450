"""The request for a response: each field is used, repeated, or refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.values import (
    CodeItem,
    FunctionItem,
    FunctionResult,
    InputMessage,
    MessageItem,
    ReasoningItem,
)
from kernelsvc.protocol.openai.requests import GiB, read_request

CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def read(**body: Any) -> Any:
    numbers = itertools.count(1)
    return read_request({"model": "m", "input": "hi", **body}, lambda prefix: f"{prefix}_{next(numbers)}")


def test_a_text_is_a_message_of_the_user() -> None:
    assert read().input == [InputMessage(role="user", text="hi", id="msg_1")]


def test_each_kind_of_item_is_read() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "see"}, image]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "code_interpreter_call", "id": "ci_1", "code": "1", "container_id": "cntr_1", "outputs": None},
        {"type": "function_call", "call_id": "f", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "f", "output": [{"type": "input_text", "text": "rain"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "yes", "annotations": []}],
        },
    ]
    kinds = [type(each) for each in read(input=items).input]
    assert kinds == [
        InputMessage, InputMessage, ReasoningItem, CodeItem, FunctionItem, FunctionResult, MessageItem
    ]  # fmt: skip
    assert read(input=items).input[0].role == "system"


def test_tools_and_choices_are_read() -> None:
    tool = {**CODE, "container": {"type": "auto", "memory_limit": "1g", "network_policy": {"type": "disabled"}}}
    got = read(tools=[tool, WEATHER], tool_choice={"type": "code_interpreter"}, max_tool_calls=3, truncation="auto")
    assert (got.code.memory_bytes, got.code.no_network, got.force) == (GiB, True, "python")
    assert (got.functions[0]["function"]["name"], got.max_tool_calls, got.elide) == ("weather", 3, True)
    assert read(tools=[CODE], tool_choice="none").may_call is False
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    got = read(tools=[CODE, WEATHER], tool_choice=allowed)
    assert (got.force, got.allowed) == ("required", ["weather"])
    assert read(tools=[{**CODE, "container": "cntr_1"}]).code.container == "cntr_1"


def test_a_file_in_the_input_goes_to_the_container() -> None:
    items = [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]
    assert read(input=items, tools=[CODE]).code.file_ids == ["file-1"]
    with pytest.raises(BadRequest, match="code_interpreter"):
        read(input=items)


def test_fields_of_the_model_are_passed_and_others_repeated() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    got = read(temperature=0.5, text={"format": schema}, reasoning={"effort": "low"}, metadata={"a": "b"}, user="u")
    assert got.passed["temperature"] == 0.5
    assert got.passed["response_format"]["json_schema"] == {"name": "n", "schema": {"type": "object"}}
    assert got.passed["reasoning_effort"] == "low"
    assert (got.repeated["metadata"], got.repeated["user"]) == ({"a": "b"}, "u")
    function = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    assert read(tools=[CODE, function]).repeated["tools"] == [CODE, {**function, "description": None, "strict": True}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "image_url"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{**CODE, "container": {"type": "auto", "memory_limit": "3g"}}]}, "memory_limit"),
        (
            {"tools": [{**CODE, "container": {"type": "auto", "network_policy": {"type": "allowlist"}}}]},
            "network_policy",
        ),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"conversation": {}}, "conversation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"background": True, "store": False}, "background"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**body)
    assert param in caught.value.details["param"]
