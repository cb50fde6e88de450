"""Chunks of chat completions, with the habits of different servers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kernelsvc.errors import TooLarge
from kernelsvc.model.answers.values import (
    ArgumentsPiece,
    CallBegan,
    CallEnded,
    ModelPiece,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
)
from kernelsvc.protocol.openai import chat_stream
from kernelsvc.protocol.openai.chat_stream import ChatTurn, fault_of

CODE = json.dumps({"code": "print(1)"})


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def call(
    arguments: Any = None, name: str | None = None, index: int | None = 0, id: str | None = None
) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    made: dict[str, Any] = {"function": function}
    return made | ({"index": index} if index is not None else {}) | ({"id": id} if id else {})


def fold(*chunks: dict[str, Any], fences: bool = False, functions: tuple[str, ...] = ("weather",)) -> list[ModelPiece]:
    turn = ChatTurn(1, functions, code=True, fences=fences)
    found = [piece for chunk in chunks for piece in turn.feed(json.dumps(chunk))]
    return found + turn.end()


def codes(pieces: list[ModelPiece]) -> list[str | None]:
    return [piece.code for piece in pieces if isinstance(piece, CallEnded)]


#: A habit of a server, and the codes that its chunks hold.
HABITS: dict[str, list[dict[str, Any]]] = {
    "llama.cpp: name and first arguments together": [
        delta(tool_calls=[call('{"code', "python", id="a")]), delta(tool_calls=[call('": "print(1)"}')])
    ],
    "vLLM: pieces, then no more": [
        delta(tool_calls=[call("", "python", id="a")]), *[delta(tool_calls=[call(each)]) for each in CODE]
    ],
    "Ollama: no index, arguments as an object": [delta(tool_calls=[call({"code": "print(1)"}, "python", None)])],
    "the id in each piece": [
        delta(tool_calls=[call('{"code": "pri', "python", id="a")]),
        delta(tool_calls=[call('nt(1)"}', "python", id="a")]),
    ],
    "gpt-oss: the code itself": [delta(tool_calls=[call("print", "python")]), delta(tool_calls=[call("(1)")])],
    "an alias": [delta(tool_calls=[call(CODE, "code_interpreter", id="a")])],
    "a whole message": [{"choices": [{"message": {"tool_calls": [call(CODE, "python", id="a")]}}]}],
    "the wrong finish_reason": [
        delta(tool_calls=[call(CODE, "python", id="a")]), {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    ],
}  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_each_servers_calls_give_the_same_code(habit: str) -> None:
    pieces = fold(*HABITS[habit])
    assert codes(pieces) == ["print(1)"]
    assert sum(isinstance(piece, CallBegan) for piece in pieces) == 1
    assert "".join(piece.text for piece in pieces if isinstance(piece, ArgumentsPiece)) in ("print(1)", "")


@pytest.mark.parametrize(
    "second",
    [
        call('{"code": "2"}', "python", 0, "b"),  # index always 0
        call('{"code": "2"}', "python", None, None),  # neither index nor id
        call('{"code": "2"}', "python", 1, "b"),
    ],
)
def test_a_new_id_or_name_at_a_used_index_is_another_call(second: dict[str, Any]) -> None:
    pieces = fold(delta(tool_calls=[call('{"code": "1"}', "python", 0, "a")]), delta(tool_calls=[second]))
    assert codes(pieces) == ["1", "2"]


def test_several_whole_calls_in_one_chunk() -> None:
    whole = [call({"code": str(number)}, "python", None) for number in range(3)]
    assert codes(fold(delta(tool_calls=whole))) == ["0", "1", "2"]


def test_a_call_ends_when_its_json_closes() -> None:
    turn = ChatTurn(1, (), code=True, fences=False)
    pieces = turn.feed(json.dumps(delta(tool_calls=[call(CODE, "python", id="a")])))
    assert isinstance(pieces[-1], CallEnded)
    assert turn.end() == []


def test_reasoning_has_two_names_and_a_tag() -> None:
    pieces = fold(
        delta(reasoning_content="a"), delta(reasoning="b"), delta(content="<th"), delta(content="ink>c</think>d")
    )
    assert pieces == [ReasoningPiece("a"), ReasoningPiece("b"), ReasoningPiece("c"), TextPiece("d")]


def test_usage_comes_in_a_chunk_without_choices() -> None:
    turn = ChatTurn(1, (), code=True, fences=False)
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 1}}
    turn.feed(json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, **details}}))
    assert turn.usage == TokenUsage(input=5, output=2, cached=3, reasoning=1)
    turn.feed(json.dumps({"choices": None, "usage": {"prompt_tokens": "x", "prompt_tokens_details": 4}}))
    assert turn.usage == TokenUsage()


def test_the_clients_own_function_keeps_its_arguments_and_its_name() -> None:
    pieces = fold(delta(tool_calls=[call('{"city": ', "weather", id="a")]), delta(tool_calls=[call('"Bern"}')]))
    assert pieces[0] == CallBegan(key=0, call_id="a", name="weather", runs_code=False)
    assert pieces[-1] == CallEnded(key=0, arguments='{"city": "Bern"}')
    own = fold(delta(tool_calls=[call("{}", "python", id="a")]), functions=("python",))
    assert isinstance(own[0], CallBegan)
    assert not own[0].runs_code


def test_a_fenced_block_in_one_chunk_is_a_call() -> None:
    pieces = fold(delta(content="See:\n```python\nprint(1)\n```\n"), fences=True)
    assert pieces[0] == TextPiece("See:\n")
    assert codes(pieces) == ["print(1)"]


def test_a_call_that_a_limit_has_cut_stays_open() -> None:
    pieces = fold(
        delta(tool_calls=[call('{"code": "pri', "python", id="a")]),
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
    )
    assert codes(pieces) == []


@pytest.mark.parametrize("data", ["{", "[1]", "5", '{"choices": 4}', '{"choices": [4]}', '{"choices": [{"delta": 4}]}'])
def test_a_wrong_event_does_no_harm(data: str) -> None:
    turn = ChatTurn(1, (), code=True, fences=False)
    assert turn.feed(data) + turn.end() == []
    assert (turn.fault is not None) == (data == "{")


def test_an_error_in_the_stream_is_a_fault() -> None:
    turn = ChatTurn(1, (), code=True, fences=False)
    assert turn.feed('{"error": {"message": "out of memory", "code": 500}}') == []
    assert turn.fault is not None
    assert "out of memory" in turn.fault.message


def test_calls_and_arguments_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "MAX_ARGUMENTS", 20)
    with pytest.raises(TooLarge):
        fold(delta(tool_calls=[call("x" * 21, "python", id="a")]))
    with pytest.raises(TooLarge):
        fold(*[delta(tool_calls=[call("1", "python", id=str(n))]) for n in range(chat_stream.MAX_CALLS + 1)])


@pytest.mark.parametrize(
    ("status", "error", "code", "http"),
    [
        (401, {"message": "bad key sk-canary"}, "server_error", 502),
        (404, {"message": "no model"}, "model_not_found", 404),
        (429, {"message": "slow down"}, "rate_limit_exceeded", 429),
        (400, {"message": "maximum context length is 8192"}, "context_length_exceeded", 400),
        (400, {"message": "temperature must be positive"}, "invalid_prompt", 400),
        (503, "busy", "server_error", 502),
    ],
)
def test_faults_have_the_vendors_codes(status: int, error: Any, code: str, http: int) -> None:
    fault = fault_of(error, status)
    assert (fault.code, fault.http_status) == (code, http)
    assert "canary" not in fault.message


def test_half_of_a_surrogate_pair_is_no_fault() -> None:
    turn = ChatTurn(1, (), code=True, fences=False)
    data = '{"choices": [{"delta": {"content": "\\ud83d"}}]}'
    assert turn.feed(data) == [TextPiece("?")]
    assert turn.fault is None


@pytest.mark.parametrize(
    "event",
    ['{"choices": [' + "[]," * 300_000 + "[]]}", '{"a": ' + "[" * 70_000 + "]" * 70_000 + "}"],
    ids=["many values", "deep"],
)
def test_an_event_whose_decoding_costs_more_than_its_text_is_refused(event: str) -> None:
    turn = ChatTurn(1, [], code=True, fences=False)
    turn.feed(event)
    assert turn.fault is not None
    assert turn.fault.code == "model_error"


def test_a_turn_has_a_limit_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "MAX_TURN", 1000)
    turn = ChatTurn(1, [], code=True, fences=False)
    event = json.dumps({"padding": "x" * 2000, "choices": [{"delta": {"content": "y" * 400}}]})
    turn.feed(event)
    turn.feed(event)
    with pytest.raises(TooLarge, match="1000"):
        turn.feed(event)


def test_a_turn_has_a_limit_of_changes_between_text_and_reasoning() -> None:
    # Each is an item, with which the whole answer is stored.
    some = [delta(reasoning_content="a"), delta(content="b")]
    assert len(fold(*some * (chat_stream.MAX_CHANGES // 2))) == chat_stream.MAX_CHANGES
    with pytest.raises(TooLarge):
        fold(*some * chat_stream.MAX_CHANGES)


def test_arguments_of_a_server_that_repeats_the_name_are_parsed_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "MAX_PARSED", 5_000_000)
    began = time.process_time()
    pieces = [call('{"code": "' + "\\n" * 1_000_000, "python"), *[call("}", "python")] * 1000]
    assert len(codes(fold(*[delta(tool_calls=[each]) for each in pieces]))) == 1
    assert time.process_time() - began < 2
