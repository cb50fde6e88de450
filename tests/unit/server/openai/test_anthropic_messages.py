"""``/v1/messages`` with a scripted model and fake kernels."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelsvc.answers.scripted_model import call, delta, refusal, text, usage
from kernelsvc.protocol.anthropic import container_file_id
from kernelsvc.protocol.openai.responses import file_id

CODE = {"type": "code_execution_20260120", "name": "code_execution"}
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}
HEADERS = {"X-Api-Key": "alice-token", "Anthropic-Version": "2023-06-01"}


async def send(lab: Any, prompt: Any = "python: 6 * 7", status: int = 200, **more: Any) -> Any:
    """One message. A list is the whole conversation."""
    said = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    body = {"model": "qwen", "max_tokens": 1000, "messages": said, "tools": [CODE], **more}
    got = await lab.server.fetch("POST", "/v1/messages", body, token=None, headers=HEADERS)
    assert got.code == status, got.body
    return json.loads(got.body) if not more.get("stream") else got.body.decode()


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names must be their types."""
    found = []
    for frame in stream.split("\n\n")[:-1]:
        kind, _, data = frame.partition("\ndata: ")
        found.append(json.loads(data))
        assert kind == f"event: {found[-1]['type']}"
    return found


def folded(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of the events."""
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
            case "content_block_delta":
                change = event["delta"]
                kind = change["type"].removesuffix("_delta")
                if kind == "input_json":
                    inputs[event["index"]] = inputs.get(event["index"], "") + change["partial_json"]
                else:
                    blocks[event["index"]][kind] += change[kind]
            case "content_block_stop" if event["index"] in inputs:
                blocks[event["index"]]["input"] = json.loads(inputs[event["index"]])
    return blocks


async def test_code_runs_and_the_next_message_has_its_variables(lab: Any) -> None:
    first = await send(lab, "python: x = 5; print('é\"'); x")
    assert [each["type"] for each in first["content"]] == ["server_tool_use", "code_execution_tool_result", "text"]
    called, result, _ = first["content"]
    assert (called["name"], called["input"]) == ("code_execution", {"code": "x = 5; print('é\"'); x"})
    assert result["tool_use_id"] == called["id"]
    assert result["content"] == {
        "type": "code_execution_result", "stdout": 'é"\n5\n', "stderr": "", "return_code": 0, "content": []
    }  # fmt: skip
    assert (first["stop_reason"], first["usage"]["output_tokens"]) == ("end_turn", 20)
    again = [
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": "python: x + 1; 1 / 0"},
    ]
    second = await send(lab, again, container=first["container"]["id"])
    failed = second["content"][1]["content"]
    assert (failed["return_code"], "ZeroDivisionError" in failed["stderr"]) == (1, True)
    assert second["container"]["id"] == first["container"]["id"]
    messages = lab.model.requests[-1]["messages"]
    assert [each["role"] for each in messages[:5]] == ["system", "user", "assistant", "tool", "assistant"]


async def test_the_stream_gives_the_same_blocks(make_lab: Any) -> None:
    weather = {"index": 1, "id": "w", "type": "function", "function": {"name": "weather", "arguments": '{"city": "B"}'}}
    said = [delta(reasoning_content="hm"), delta(content="I run it.")]
    turn = [*said, *call('print("é\\n")\n'), delta(tool_calls=[weather])]
    lab = await make_lab(lambda body: [*turn, delta("tool_calls"), usage(5, 7)])
    whole = await send(lab, "go", tools=[CODE, WEATHER])
    assert whole["stop_reason"] == "tool_use"
    events = events_of(await send(lab, "go", tools=[CODE, WEATHER], stream=True))
    blocks = folded(events)
    for each in (*whole["content"], *blocks):
        each.pop("id", None)
        each.pop("tool_use_id", None)
    assert sorted(map(json.dumps, blocks)) == sorted(map(json.dumps, whole["content"]))
    assert [each["type"] for each in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[-2]["usage"]["output_tokens"] == 7
    assert events[-2]["delta"]["container"]["id"].startswith("cntr_")


@pytest.mark.parametrize("arguments", ["```python\n6 * 7\n```", '"6 * 7"', "6 * 7", '{"code": "6 * 7"}'])
async def test_the_input_is_json_however_the_model_wrote_it(make_lab: Any, arguments: str) -> None:
    function = {"name": "python", "arguments": arguments}
    lab = await make_lab([[delta(tool_calls=[{"index": 0, "id": "a", "function": function}])], text("Done.")])
    blocks = folded(events_of(await send(lab, "go", stream=True)))
    assert blocks[0]["input"] == {"code": "6 * 7"}


async def test_a_file_that_code_made_is_read_by_its_id(lab: Any) -> None:
    container = (await send(lab, "python: 1"))["container"]["id"]
    (lab.server.files(container.replace("cntr_", "s_")) / "a.csv").write_text("1,2")
    path = f"/v1/files/{container_file_id(container, file_id(b'a.csv'))}"
    about = json.loads((await lab.server.fetch("GET", path, headers=HEADERS, token=None)).body)
    assert (about["type"], about["filename"], about["size_bytes"]) == ("file", "a.csv", 3)
    assert (await lab.server.fetch("GET", path + "/content", headers=HEADERS, token=None)).body == b"1,2"
    assert (await lab.server.fetch("GET", path + "/content", token="bob-token")).code == 404


async def test_budgets_and_faults_have_anthropics_forms(make_lab: Any) -> None:
    lab = await make_lab([call("1"), call("2")], max_turns=1)
    assert (await send(lab, "go"))["stop_reason"] == "pause_turn"
    lab = await make_lab([[delta(content="half"), delta("length")]])
    assert (await send(lab, "go"))["stop_reason"] == "max_tokens"
    lab = await make_lab([refusal(429, "slow", Retry_After="7"), [delta(content="I "), {"error": {"message": "oom"}}]])
    refused = await send(lab, "go", 429)
    assert (refused["type"], refused["error"]["type"]) == ("error", "rate_limit_error")
    failed = events_of(await send(lab, "go", stream=True))
    assert failed[-1] == {"type": "error", "error": {"type": "api_error", "message": "oom"}}
    wrong = await send(lab, "go", 400, top_k=4)
    assert wrong["error"]["type"] == "invalid_request_error"
    got = await lab.server.fetch("POST", "/v1/messages", {}, token=None, headers={**HEADERS, "X-Api-Key": "wrong"})
    assert (got.code, json.loads(got.body)["error"]["type"]) == (401, "authentication_error")
