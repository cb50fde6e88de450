"""``/v1/chat/completions`` over plain HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from http_server import ALICE

from kernelsvc.answers.scripted_model import call, delta, refusal, text, usage

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


async def chat(lab: Any, prompt: str, status: int = 200, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": "qwen+python", "messages": [{"role": "user", "content": prompt}], **more}
    return await lab.server.json("POST", "/v1/chat/completions", body, status, headers=headers or {})


async def test_code_and_results_are_blocks_of_the_content(make_lab: Any) -> None:
    lab = await make_lab([[delta(content="I compute."), *call("6 * 7"), usage()], [*text("It is 42."), usage()]])
    got = await chat(lab, "go")
    [choice] = got["choices"]
    expected = "I compute.\n\n```python\n6 * 7\n```\n\n````output\n42\n````\n\nIt is 42."
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    assert got["usage"]["total_tokens"] == 220
    assert lab.model.requests[0]["model"] == "qwen"
    assert lab.model.requests[0]["tools"][0]["function"]["name"] == "python"


async def test_the_stream_has_the_same_content(make_lab: Any) -> None:
    lab = await make_lab([[delta(reasoning_content="hm"), *call("6 * 7"), usage()], [*text("It is 42."), usage()]])
    body = {
        "model": "qwen", "messages": [{"role": "user", "content": "go"}], "stream": True,
        "stream_options": {"include_usage": True}, "tools": [{"type": "code_interpreter"}],
    }  # fmt: skip
    data = (await lab.server.fetch("POST", "/v1/chat/completions", body)).body.decode()
    frames = [each.removeprefix("data: ") for each in data.split("\n\n") if each]
    assert frames[-1] == "[DONE]"
    chunks = [json.loads(each) for each in frames[:-1]]
    deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"]]
    content = "".join(each.get("content") or "" for each in deltas)
    assert content == "```python\n6 * 7\n```\n\n````output\n42\n````\n\nIt is 42."
    assert "".join(each.get("reasoning_content") or "" for each in deltas) == "hm"
    assert chunks[-1]["usage"]["prompt_tokens"] == 200


async def test_a_conversation_with_a_name_keeps_its_container(lab: Any) -> None:
    for number, headers in enumerate([{"X-OpenWebUI-Chat-Id": "a"}, {"X-OpenWebUI-Chat-Id": "a"}, {}, {}], 1):
        await chat(lab, f"python: {number}", headers=headers)
    sessions = lab.server.service.list(ALICE)[0]
    assert sorted(lab.server.service.cells(ALICE, each.id)[1] for each in sessions) == [1, 1, 2]


async def test_a_named_container_that_has_ended_is_replaced_and_the_model_reads_it(lab: Any) -> None:
    named = {"X-Conversation-Id": "c"}
    for code, shown in (("x = 5", "[no output]"), ("x", "its variables and imports are gone")):
        body = {"model": "qwen+python", "messages": [{"role": "user", "content": f"python: {code}"}]}
        got = await lab.server.json("POST", "/v1/chat/completions", body, 200, headers=named)
        assert shown in got["choices"][0]["message"]["content"]
        [container] = [each for each in (await lab.read("/v1/containers"))["data"] if each["status"] == "running"]
        await lab.server.json("DELETE", f"/v1/containers/{container['id']}", status=200)
    assert len({each["id"] for each in (await lab.read("/v1/containers"))["data"]}) == 2


async def test_without_the_tool_it_is_the_model_alone(lab: Any) -> None:
    got = await chat(lab, "python: 6 * 7", model="qwen")
    assert got["choices"][0]["message"]["content"].strip() == "I have no code to run."
    assert "tools" not in lab.model.requests[0]


async def test_the_clients_functions_are_its_own(make_lab: Any) -> None:
    function = {"name": "weather", "arguments": "{}"}
    asks = [delta(tool_calls=[{"index": 0, "id": "w", "type": "function", "function": function}])]
    lab = await make_lab([asks, text("Sun.")])
    got = await chat(lab, "go", tools=[WEATHER])
    [choice] = got["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [{"id": "w", "type": "function", "function": function}]
    again = [
        {"role": "user", "content": "go"}, choice["message"], {"role": "tool", "tool_call_id": "w", "content": "sun"}
    ]  # fmt: skip
    got = await chat(lab, "", tools=[WEATHER], messages=again)
    assert got["choices"][0]["message"]["content"] == "Sun."
    assert [each["role"] for each in lab.model.requests[1]["messages"]] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fault_has_its_status(make_lab: Any, streamed: bool) -> None:
    lab = await make_lab(lambda body: refusal(429, "slow"))
    assert (await chat(lab, "go", 429, stream=streamed))["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("more", [{"n": 2}, {"messages": "x"}, {"messages": [1]}, {"functions": []}, {"audio": {}}])
async def test_wrong_fields_are_refused(lab: Any, more: dict[str, Any]) -> None:
    assert (await chat(lab, "go", 400, **more))["error"]["param"]
