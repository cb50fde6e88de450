"""A model's server with the Responses API: its request, and its events as chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelsvc.model.answers.values import CallEnded, ModelPiece, ReasoningPiece, TextPiece, TokenUsage
from kernelsvc.protocol.openai.chat_stream import ChatTurn
from kernelsvc.protocol.openai.responses_upstream import ResponsesChunks, to_responses_body

CALL = {"type": "function_call", "call_id": "a", "name": "python", "arguments": '{"code": "6 * 7"}'}
USAGE = {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}}
DONE = {"type": "response.completed", "response": {"status": "completed", "usage": USAGE}}


def item(kind: str, place: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": f"response.output_item.{kind}", "output_index": place, "item": item}


def grew(kind: str, delta: str, place: int = 0) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": place, "delta": delta}


def fold(*events: Any) -> tuple[list[ModelPiece], ChatTurn]:
    turn, chunks = ChatTurn(1, (), code=True, fences=False), ResponsesChunks()
    found = [piece for event in events for data in chunks.feed(json.dumps(event)) for piece in turn.feed(data)]
    return found + turn.end(), turn


BEGUN = {**CALL, "arguments": ""}
#: Streams with the same call.
STREAMS: dict[str, list[Any]] = {
    "in pieces": [
        item("added", 1, BEGUN),
        grew("function_call_arguments", CALL["arguments"][:9], 1),
        grew("function_call_arguments", CALL["arguments"][9:], 1),
        item("done", 1, CALL),
        DONE,
    ],
    "as a whole at the end": [item("added", 1, BEGUN), item("done", 1, CALL), DONE],
    "without a stream": [{"object": "response", "output": [CALL], "usage": USAGE}],
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_call_is_the_same_in_each_form(stream: str) -> None:
    pieces, turn = fold(*STREAMS[stream])
    assert [each.code for each in pieces if isinstance(each, CallEnded)] == ["6 * 7"]
    assert turn.usage == TokenUsage(input=5, output=2, cached=3)
    assert not turn.cut


def test_texts_reasoning_and_ends() -> None:
    pieces, turn = fold(
        {"type": "response.created", "response": {}},
        grew("reasoning_text", "h"), grew("reasoning_summary_text", "m"), grew("output_text", "Yes."),
        {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}},
    )  # fmt: skip
    assert pieces == [ReasoningPiece("h"), ReasoningPiece("m"), TextPiece("Yes.")]
    assert turn.cut
    whole = {
        "object": "response",
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]},
        ],
    }
    assert fold(whole)[0] == [ReasoningPiece("hm"), TextPiece("Yes.")]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "message": "out of memory"},
        {"type": "response.failed", "response": {"error": {"message": "out of memory"}}},
        {"error": {"message": "out of memory"}},
    ],
)
def test_an_error_is_a_fault(event: dict[str, Any]) -> None:
    fault = fold(event)[1].fault
    assert fault is not None
    assert fault.message == "out of memory"


@pytest.mark.parametrize("event", [5, {"type": "response.completed"}, item("added", 0, {}), {"object": "response"}])
def test_a_wrong_event_does_no_harm(event: Any) -> None:
    pieces, turn = fold(event)
    assert (pieces, turn.fault) == ([], None)


def test_the_request_has_the_same_conversation() -> None:
    function = {"name": "python", "parameters": {"type": "object"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    calls = [{"id": "a", "type": "function", "function": {"name": "python", "arguments": "{}"}}]
    body = to_responses_body({
        "model": "m", "temperature": 0.5, "max_tokens": 9, "tool_choice": "required", "reasoning_effort": "low",
        "tools": [{"type": "function", "function": function}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "See"}, picture]},
            {"role": "assistant", "content": "I run it.", "reasoning_content": "hm", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "42"},
        ],
    })  # fmt: skip
    assert {name: value for name, value in body.items() if name != "input"} == {
        "model": "m", "temperature": 0.5, "max_output_tokens": 9, "tool_choice": "required", "store": False,
        "instructions": "Be brief.", "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        "tools": [{"type": "function", "strict": False, **function}],
    }  # fmt: skip
    assert [each["type"] for each in body["input"]] == [
        "message", "reasoning", "message", "function_call", "function_call_output",
    ]  # fmt: skip
    assert body["input"][0]["content"][1]["type"] == "input_image"
    assert body["input"][3] == {"type": "function_call", "call_id": "a", "name": "python", "arguments": "{}"}
