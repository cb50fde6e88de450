"""``/v1/responses`` over plain HTTP, with a scripted model and fake kernels."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from http_server import ALICE
from waiting import wait_until

from kernelsvc.answers.scripted_model import call, delta, refusal, text, usage

OUTPUTS = "code_interpreter_call.outputs"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}


def weather(number: int = 0) -> list[Any]:
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    return [delta(tool_calls=[{"index": number, "id": f"w_{number}", "type": "function", "function": function}])]


async def test_one_request_runs_code_and_answers(lab: Any) -> None:
    got = await lab.create(include=[OUTPUTS])
    assert (got["status"], got["model"], got["usage"]["total_tokens"]) == ("completed", "qwen", 220)
    ran, said = got["output"]
    assert (ran["type"], ran["code"], ran["status"]) == ("code_interpreter_call", "6 * 7", "completed")
    assert ran["outputs"] == [{"type": "logs", "logs": "42\n"}]
    assert said["content"][0]["text"].strip() == "The result is: 42"
    session = "s_" + ran["container_id"].removeprefix("cntr_")
    [cell] = lab.server.service.cells(ALICE, session)[0]
    assert cell.id == ran["id"]
    assert cell.metadata["response"]["id"] == got["id"]


async def test_the_stream_has_the_order_of_the_recorded_one(lab: Any) -> None:
    events = await lab.stream(include=[OUTPUTS])
    kinds = [each["type"].removeprefix("response.") for each in events]
    squeezed = [kind for number, kind in enumerate(kinds) if number == 0 or kind != kinds[number - 1]]
    assert squeezed == [
        "created",
        "in_progress",
        "output_item.added",
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    pieces = [each["delta"] for each in events if each["type"].endswith("code.delta")]
    assert len(pieces) > 1
    assert "".join(pieces) == "6 * 7"
    assert events[-1]["response"]["output"][0]["outputs"] == [{"type": "logs", "logs": "42\n"}]


async def test_the_next_request_continues_in_the_same_container(lab: Any) -> None:
    first = await lab.create("python: x = 5")
    second = await lab.create("python: x + 1", previous_response_id=first["id"], include=[OUTPUTS])
    assert second["output"][0]["outputs"][0]["logs"] == "6\n"
    assert second["output"][0]["container_id"] == first["output"][0]["container_id"]
    roles = [each["role"] for each in lab.model.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]


async def test_items_that_the_client_sends_again_continue_too_also_without_outputs(lab: Any) -> None:
    first = await lab.create("python: x = 5\npython: x")
    again = [{"role": "user", "content": "hi"}, *first["output"], {"role": "user", "content": "python: x * 2"}]
    second = await lab.create(again, include=[OUTPUTS], store=False)
    assert second["output"][0]["outputs"][0]["logs"] == "10\n"
    results = [each["content"] for each in lab.model.requests[-1]["messages"] if each["role"] == "tool"]
    assert results[:2] == ["[no output]", "5\n"]


async def test_an_error_of_the_code_is_in_its_logs(lab: Any) -> None:
    got = await lab.create("python: print('before'); 1 / 0", include=[OUTPUTS])
    logs = got["output"][0]["outputs"][0]["logs"]
    assert logs.startswith("before\n")
    assert "ZeroDivisionError" in logs
    assert "ZeroDivisionError" in lab.model.requests[-1]["messages"][-1]["content"]


async def test_a_request_without_code_has_no_session(lab: Any) -> None:
    got = await lab.create("hello")
    assert [each["type"] for each in got["output"]] == ["message"]
    assert lab.server.service.list(ALICE)[0] == []
    assert (await lab.create("python: 1", tools=[]))["output"][0]["type"] == "message"
    assert "tools" not in lab.model.requests[-1]


async def test_the_clients_functions_go_to_the_client_after_the_code(make_lab: Any) -> None:
    first_turn = [*call("6 * 7"), *weather(1), delta("tool_calls")]
    lab = await make_lab([first_turn, text("Sunny, 42.")])
    first = await lab.create("both", tools=[CODE, WEATHER])
    assert [each["type"] for each in first["output"]] == ["code_interpreter_call", "function_call"]
    assert first["status"] == "completed"
    result = {"type": "function_call_output", "call_id": "w_1", "output": "sun"}
    second = await lab.create([result], previous_response_id=first["id"], tools=[CODE, WEATHER])
    assert second["output"][0]["content"][0]["text"] == "Sunny, 42."
    said = lab.model.requests[-1]["messages"]
    assert [each["role"] for each in said] == ["system", "user", "assistant", "tool", "tool"]
    assert [each["content"] for each in said[3:]] == ["42", "sun"]
    missing = {**result, "call_id": "nobody"}
    assert (await lab.create([missing], 400))["error"]["param"] == "input"


async def test_limits_of_calls_and_forced_calls(make_lab: Any) -> None:
    lab = await make_lab([call("1"), call("2"), text("Enough.")])
    got = await lab.create("go", max_tool_calls=1, tool_choice={"type": "code_interpreter"}, tools=[CODE, WEATHER])
    assert [each["type"] for each in got["output"]] == ["code_interpreter_call"]
    assert got["incomplete_details"] == {"reason": "max_messages"}
    first, second = lab.model.requests
    assert (first["tool_choice"], [each["function"]["name"] for each in first["tools"]]) == ("required", ["python"])
    assert second["tool_choice"] == "none"


async def test_a_model_without_tool_calls_writes_blocks(make_lab: Any) -> None:
    lab = await make_lab([text("I compute.\n```py", "thon\n6 * 7\n``", "`\nnever"), text("It is 42.")], tools="fence")
    got = await lab.create("go", include=[OUTPUTS])
    assert [each["type"] for each in got["output"]] == ["message", "code_interpreter_call", "message"]
    assert got["output"][1]["outputs"][0]["logs"] == "42\n"
    assert lab.model.requests[1]["messages"][-1] == {"role": "user", "content": "Result of the code:\n42"}
    assert "tools" not in lab.model.requests[0]


async def test_reasoning_is_an_item_and_goes_back_within_the_answer(make_lab: Any) -> None:
    lab = await make_lab([[delta(reasoning_content="hm"), *call("1")], *[text("<think>so</think>Done.")] * 2])
    got = await lab.create("go")
    assert [each["type"] for each in got["output"]] == ["reasoning", "code_interpreter_call", "reasoning", "message"]
    assert lab.model.requests[1]["messages"][2]["reasoning_content"] == "hm"
    got = await lab.create("go", reasoning={"summary": "auto"})
    assert got["output"][0]["summary"] == [{"type": "summary_text", "text": "so"}]


@pytest.mark.parametrize("shown", ["text", "none"])
async def test_encrypted_reasoning_goes_back_to_the_model_and_its_text_is_only_where_the_setting_says(
    make_lab: Any, shown: str
) -> None:
    turns = [
        [delta(reasoning_content="hm"), *text("Yes.")],
        [delta(reasoning_content="hm"), *text("Yes.")],
        text("No."),
    ]
    lab = await make_lab(turns, reasoning="keep", reasoning_as=shown)
    asked = {"include": ["reasoning.encrypted_content"], "store": False}
    got = await lab.create("go", **asked)
    assert (got["output"][0]["type"], "hm" in json.dumps(got)) == ("reasoning", shown == "text")
    done = [each["item"] for each in await lab.stream("go", **asked) if each["type"].endswith("item.done")]
    assert done[0]["encrypted_content"]
    again = [{"role": "user", "content": "go"}, *got["output"], {"role": "user", "content": "Sure?"}]
    again[1].pop("content", None)
    await lab.create(again, 400, token="bob-token", **asked)
    await lab.create(again, **asked)
    assert [each.get("reasoning_content") for each in lab.model.requests[-1]["messages"]][2] == "hm"


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (refusal(401, "bad key canary-key-of-the-upstream"), 502, "server_error"),
        (refusal(429, "slow down", Retry_After="7"), 429, "rate_limit_exceeded"),
        (refusal(400, "the maximum context length is 8"), 400, "context_length_exceeded"),
        (refusal(400, "echo canary-key-of-the-upstream"), 400, "invalid_prompt"),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n"], 502, "server_error"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fault_before_the_first_event_has_its_status(
    make_lab: Any, script: Any, status: int, code: str, streamed: bool
) -> None:
    lab = await make_lab(lambda body: script)
    body = {"model": "qwen", "input": "hi", "tools": [CODE], "stream": streamed}
    response = await lab.server.fetch("POST", "/v1/responses", body)
    assert response.code == status
    assert json.loads(response.body)["error"]["code"] == code
    assert b"canary" not in response.body
    if status == 429:
        assert response.headers["Retry-After"] == "7"


async def test_a_fault_in_the_stream_is_an_error_event_and_a_failed_response(make_lab: Any) -> None:
    lab = await make_lab([[delta(content="I "), {"error": {"message": "out of memory"}}]])
    events = await lab.stream("go")
    assert [each["type"] for each in events[-2:]] == ["error", "response.failed"]
    assert "error" not in events[-2]
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["message"]) == ("failed", "out of memory")
    assert failed["output"][0]["status"] == "incomplete"


async def test_a_server_that_is_down_is_asked_once_more(make_lab: Any) -> None:
    lab = await make_lab([refusal(503, "loading"), text("Now.")])
    assert (await lab.create("hi"))["output"][0]["content"][0]["text"] == "Now."
    await lab.model.stop()
    assert (await lab.create("hi", 502))["error"]["code"] == "server_error"


async def test_a_client_that_goes_ends_the_models_work_and_the_cell(lab: Any) -> None:
    code = "import asyncio; await asyncio.sleep(600)"
    body = {"model": "qwen", "input": f"python: {code}", "tools": [CODE], "stream": True}
    writer = await lab.send("/v1/responses", body)
    sessions = lab.server.service
    await wait_until(lambda: any(each.running for each in sessions.list(ALICE)[0]))
    writer.close()
    [session] = sessions.list(ALICE)[0]
    await wait_until(lambda: sessions.cells(ALICE, session.id)[0][0].reason == "interrupted")


async def test_a_client_that_goes_closes_the_connection_to_the_model(make_lab: Any) -> None:
    lab = await make_lab(lambda body: [delta(content="word ")] * 100_000)
    lab.model._delay = 0.01
    body = {"model": "qwen", "input": "hi", "stream": True}
    writer = await lab.send("/v1/responses", body)
    await wait_until(lambda: bool(lab.model.requests))
    writer.close()
    await wait_until(lambda: lab.model.closed == 1)


async def test_a_background_answer_continues_is_cancelled_and_replayed(make_lab: Any) -> None:
    lab = await make_lab([call("import asyncio; await asyncio.sleep(600)")])
    queued = await lab.create("go", background=True)
    assert queued["status"] == "in_progress"
    path = f"/v1/responses/{queued['id']}"
    sessions = lab.server.service
    await wait_until(lambda: any(each.running for each in sessions.list(ALICE)[0]))
    assert (await lab.read(path))["status"] == "in_progress"
    cancelled = await lab.server.json("POST", path + "/cancel", {}, 200)
    assert cancelled["status"] == "cancelled"
    events = [json.loads(each.partition("data: ")[2]) for each in await _frames(lab, path + "?stream=true")]
    assert [each["type"] for each in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    later = [
        json.loads(each.partition("data: ")[2]) for each in await _frames(lab, path + "?stream=true&starting_after=2")
    ]
    assert later == events[3:]
    assert (await lab.read(path))["output"][0]["status"] == "incomplete"


async def _frames(lab: Any, path: str) -> list[str]:
    body = (await lab.server.fetch("GET", path)).body.decode()
    return [each for each in body.split("\n\n") if each][:-1]


async def test_a_response_is_retrieved_and_erased(lab: Any, tmp_path: Path) -> None:
    made = await lab.create("canary-prompt\npython: 6 * 7")
    path = f"/v1/responses/{made['id']}"
    assert (await lab.read(path))["output"] == made["output"]
    with_outputs = await lab.read(f"{path}?include={OUTPUTS}")
    assert with_outputs["output"][0]["outputs"] == [{"type": "logs", "logs": "42\n"}]
    items = await lab.read(path + "/input_items")
    assert items["data"][0]["content"][0]["text"].startswith("canary-prompt")
    kept = lab.server.settings.data_path() / "responses"
    assert any(b"canary-prompt" in each.read_bytes() for each in kept.rglob("*.json"))
    await lab.read(path, 404, token="bob-token")
    assert (await lab.server.json("DELETE", path, status=200))["deleted"] is True
    await lab.read(path, 404)
    assert not any(b"canary-prompt" in each.read_bytes() for each in kept.rglob("*.json"))
    not_kept = await lab.create(store=False)
    await lab.read(f"/v1/responses/{not_kept['id']}", 404)


async def test_a_response_that_a_crash_cut_is_failed(lab: Any) -> None:
    made = await lab.create()
    [file] = (lab.server.settings.data_path() / "responses").rglob("resp_*.json")
    kept = json.loads(file.read_bytes())
    file.write_text(json.dumps({**kept, "ended": None}))
    got = await lab.read(f"/v1/responses/{made['id']}")
    assert (got["status"], got["error"]["code"]) == ("failed", "server_error")


async def test_an_ended_container_is_replaced_and_the_model_reads_it(make_lab: Any) -> None:
    lab = await make_lab()
    first = await lab.create("python: x = 5")
    container = first["output"][0]["container_id"]
    await lab.server.json("DELETE", f"/v1/containers/{container}", status=200)
    second = await lab.create("python: 1", previous_response_id=first["id"])
    assert second["output"][0]["container_id"] != container
    assert "its variables and imports are gone" in json.dumps(lab.model.requests[-2]["messages"])
    named = {"type": "code_interpreter", "container": container}
    refused = await lab.create("python: 1", 400, tools=[named])
    assert refused["error"]["message"] == "Container is expired."
    assert refused["error"]["type"] == "invalid_request_error"


async def test_an_ended_container_is_an_error_if_the_setting_says_so(make_lab: Any) -> None:
    lab = await make_lab(rules={"expired": "error"})
    first = await lab.create("python: x = 5")
    await lab.server.json("DELETE", f"/v1/containers/{first['output'][0]['container_id']}", status=200)
    got = await lab.create("python: x", 400, previous_response_id=first["id"])
    assert got["error"]["message"] == "Container is expired."


async def test_principals_have_their_own_models_containers_and_limits(make_lab: Any) -> None:
    lab = await make_lab(rules={"max_running_per_principal": 1})
    names = [each["id"] for each in (await lab.read("/v1/models"))["data"]]
    assert names == ["qwen", "qwen+python"]
    await lab.read("/v1/models/only-bob", 404)
    assert (await lab.create("hi", 404, model="only-bob"))["error"]["code"] == "model_not_found"
    made = await lab.create("python: 1")
    named = {"type": "code_interpreter", "container": made["output"][0]["container_id"]}
    body = {"model": "qwen", "input": "python: 1", "tools": [named]}
    assert (await lab.server.json("POST", "/v1/responses", body, 404, token="bob-token"))["error"]["message"]
    await lab.create("python: import asyncio; await asyncio.sleep(600)", background=True)
    assert (await lab.create("hi", 429))["error"]["code"] == "rate_limit_exceeded"


async def test_errors_have_the_vendors_format(lab: Any) -> None:
    for body, status, param in (
        ({"input": "x"}, 400, "model"),
        ({"model": "qwen", "input": "x", "prompt": {}}, 400, "prompt"),
        ({"model": "qwen", "input": "x", "previous_response_id": "resp_x"}, 404, "previous_response_id"),
    ):
        got = await lab.server.json("POST", "/v1/responses", body, status)
        assert got["error"]["param"] == param
        assert set(got["error"]) == {"message", "type", "param", "code"}
    await lab.server.json("POST", "/v1/responses/compact", {"model": "qwen"}, 404)
    got = await lab.server.json("POST", "/v1/responses", {}, 401, token="wrong")
    assert got["error"]["code"] == "invalid_api_key"
    assert (await lab.server.json("POST", "/v1/responses", b"{", 400))["error"]["message"] == "The body is not JSON."


async def test_keys_and_prompts_are_nowhere_but_where_they_belong(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await lab.create("canary-prompt\npython: print('canary-out' + 'put')", metadata={"a": "b"})
    assert lab.model.headers[0]["authorization"] == "Bearer canary-key-of-the-upstream"
    data = lab.server.settings.data_path()
    for file in [each for each in data.rglob("*") if each.is_file()]:
        content = file.read_bytes()
        assert b"canary-key" not in content, file
        assert b"canary-prompt" not in content or "responses" in file.parts, file
    metrics = (await lab.server.fetch("GET", "/metrics")).body
    for shown in (caplog.text, metrics.decode(), json.dumps(lab.server.service.info(), default=str)):
        assert "canary-key" not in shown
        assert "canary-prompt" not in shown


def test_a_server_without_models_imports_nothing_for_them() -> None:
    loaded = "[m for m in sys.modules if ('.answers' in m or 'openai' in m) and '.model.answers' not in m]"
    code = f"import sys, kernelsvc.cli.serve, kernelsvc.testing; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_without_models_there_are_no_routes(http_server: Any) -> None:
    assert (await http_server.fetch("POST", "/v1/responses", {})).code == 404
    assert (await http_server.fetch("GET", "/v1/models")).code == 404


async def test_usage_and_an_incomplete_answer(make_lab: Any) -> None:
    cut = [delta(content="half"), delta("length"), usage(5, 7)]
    lab = await make_lab([cut])
    got = await lab.create("go", max_output_tokens=7)
    assert (got["status"], got["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert got["usage"]["output_tokens"] == 7
    assert lab.model.requests[0]["max_tokens"] == 7
