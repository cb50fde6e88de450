"""``/v1/conversations``, and references to items of earlier responses."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from http_server import ALICE
from waiting import wait_until

from kernelsvc.answers import answers, conversations
from kernelsvc.answers.kept import AnswerStore, KeptResponse
from kernelsvc.answers.scripted_model import call, delta, text
from kernelsvc.model import events as ev
from kernelsvc.model.answers.values import CodeItem, InputMessage

OUTPUTS = "code_interpreter_call.outputs"
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}


async def test_responses_continue_a_conversation_and_its_container(lab: Any) -> None:
    first = [{"role": "user", "content": "canary-prompt"}]
    body = {"metadata": {"topic": "sums"}, "items": first}
    made = await lab.server.json("POST", "/v1/conversations", body, 200)
    assert (made["object"], made["metadata"]) == ("conversation", {"topic": "sums"})
    path = f"/v1/conversations/{made['id']}"
    one = await lab.create("python: x = 5", conversation=made["id"])
    assert one["conversation"] == {"id": made["id"]}
    two = await lab.create("python: x + 1", conversation={"id": made["id"]}, include=[OUTPUTS])
    assert two["output"][0]["outputs"][0]["logs"] == "6\n"
    roles = [each["role"] for each in lab.model.requests[-1]["messages"]]
    assert roles == ["system", "user", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    listed = await lab.read(f"{path}/items?order=asc&include={OUTPUTS}")
    kinds = [each["type"] for each in listed["data"]]
    assert kinds == ["message", "message", "code_interpreter_call", "message", *kinds[1:4]]
    assert listed["data"][5]["outputs"] == [{"type": "logs", "logs": "6\n"}]
    assert (await lab.read(f"{path}/items/{two['output'][0]['id']}"))["code"] == "x + 1"
    await lab.read(path, 404, token="bob-token")
    # An erased item is neither stored nor read by the model any more.
    erased = await lab.server.json("DELETE", f"{path}/items/{listed['data'][0]['id']}", status=200)
    assert erased["id"] == made["id"]
    await lab.create("bye", conversation=made["id"])
    assert "canary-prompt" not in json.dumps(lab.model.requests[-1])
    added = await lab.server.json("POST", f"{path}/items", {"items": first * 2}, 200)
    assert (len(added["data"]), added["has_more"]) == (2, False)
    assert (await lab.server.json("POST", path, {"metadata": {}}, 200))["metadata"] == {}
    assert (await lab.server.json("DELETE", path, status=200))["object"] == "conversation.deleted"
    await lab.create("hi", 404, conversation=made["id"])


async def test_one_response_at_a_time_continues_a_conversation(make_lab: Any) -> None:
    lab = await make_lab([call("import asyncio; await asyncio.sleep(600)"), text("Next.")])
    made = await lab.server.json("POST", "/v1/conversations", b"", 200)
    running = await lab.create("go", conversation=made["id"], background=True)
    sessions = lab.server.service
    await wait_until(lambda: any(each.running for each in sessions.list(ALICE)[0]))
    assert (await lab.create("hi", 409, conversation=made["id"]))["error"]["code"] == "conversation_locked"
    both = await lab.create("hi", 400, conversation=made["id"], previous_response_id=running["id"])
    assert both["error"]["param"] == "conversation"
    await lab.server.json("POST", f"/v1/responses/{running['id']}/cancel", {}, 200)
    await lab.create("hi", conversation=made["id"])
    items = (await lab.read(f"/v1/conversations/{made['id']}/items?order=asc"))["data"]
    assert [each["type"] for each in items] == ["message", "code_interpreter_call", "message", "message"]


async def test_a_request_that_is_refused_or_fails_at_its_start_leaves_the_conversation_as_it_was(lab: Any) -> None:
    made = await lab.server.json("POST", "/v1/conversations", {}, 200)
    await lab.create("hi", 404, conversation=made["id"], model="none")
    await lab.model.stop()
    await lab.create("hi", 502, conversation=made["id"])
    assert (await lab.read(f"/v1/conversations/{made['id']}/items"))["data"] == []


async def test_a_response_that_a_crash_cut_is_in_its_conversation(lab: Any) -> None:
    made = await lab.server.json("POST", "/v1/conversations", {}, 200)
    done = await lab.create("python: 6 * 7", conversation=made["id"])
    [file] = (lab.server.settings.data_path() / "responses").rglob("conv_*.json")
    before = {"id": made["id"], "created": 1, "pending": done["id"]}
    file.write_text(json.dumps(before))
    items = (await lab.read(f"/v1/conversations/{made['id']}/items?order=asc"))["data"]
    assert [each["type"] for each in items] == ["message", "code_interpreter_call", "message"]


@pytest.fixture
def showing(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that showed an item, one for each item."""
    threads: list[threading.Thread] = []
    for module in (answers, conversations):
        show = module.item_json

        def noted(*given: Any, show: Any = show) -> Any:
            threads.append(threading.current_thread())
            return show(*given)

        monkeypatch.setattr(module, "item_json", noted)
    return threads


async def test_a_thread_reads_the_items_up_to_the_end_of_the_page(
    lab: Any, showing: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of 60 MB kept all clients waiting for half a second."""
    made = await lab.server.json("POST", "/v1/conversations", {}, 200)
    store = AnswerStore(lab.server.settings.data_path() / "responses", 30)
    kept = store.conversation("alice", made["id"])
    kept.entries = [InputMessage(role="user", text=f"t{n}", id=f"msg_{n}") for n in range(1000)]
    kept.entries.append(CodeItem(id="ci_hidden", shown=False))
    store.put_conversation("alice", kept)

    def refuse(*_: Any) -> None:
        raise AssertionError("all entries were decoded in one call")

    monkeypatch.setattr(AnswerStore, "conversation", refuse)
    path = f"/v1/conversations/{made['id']}"
    assert (await lab.read(path))["id"] == made["id"]
    first = await lab.read(f"{path}/items?limit=5")
    assert [each["id"] for each in first["data"]] == [f"msg_{n}" for n in range(999, 994, -1)]
    assert first["has_more"] is True
    assert len(showing) == 6
    after = await lab.read(f"{path}/items?order=asc&limit=5&after=msg_997")
    assert ([each["id"] for each in after["data"]], after["has_more"]) == (["msg_998", "msg_999"], False)
    assert (await lab.read(f"{path}/items/msg_7"))["content"][0]["text"] == "t7"
    await lab.read(f"{path}/items/ci_hidden", 404)
    await lab.read(f"{path}/items?after=msg_1000", 400)
    assert threading.main_thread() not in showing


async def test_a_thread_reads_the_input_of_a_response(lab: Any, showing: list[threading.Thread]) -> None:
    made = await lab.create([{"role": "user", "content": f"t{n}"} for n in range(50)])
    showing.clear()
    found = await lab.read(f"/v1/responses/{made['id']}/input_items?order=asc&limit=5")
    assert [each["content"][0]["text"] for each in found["data"]] == [f"t{n}" for n in range(5)]
    assert found["has_more"] is True
    assert len(showing) == 6
    assert threading.main_thread() not in showing


async def test_a_reference_is_the_item_of_an_earlier_response(make_lab: Any) -> None:
    weather = {"index": 0, "id": "w", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [[*call("x = 5"), delta("tool_calls")], [delta(tool_calls=[weather])], text("Sunny.")]
    lab = await make_lab(turns)
    tools = [CODE, {"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    first = await lab.create("both", tools=tools)
    references = [{"type": "item_reference", "id": each["id"]} for each in first["output"]]
    result = {"type": "function_call_output", "call_id": "w", "output": "sun"}
    second = await lab.create([{"role": "user", "content": "both"}, *references, result], tools=tools)
    assert second["output"][0]["content"][0]["text"] == "Sunny."
    said = lab.model.requests[-1]["messages"]
    assert [each["role"] for each in said] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert said[-1]["content"] == "sun"
    stored = await lab.read(f"/v1/responses/{second['id']}/input_items?order=asc")
    assert [each["type"] for each in stored["data"]][1:3] == ["code_interpreter_call", "function_call"]
    missing = [{"type": "item_reference", "id": "msg_" + "0" * 32}]
    assert "not found" in (await lab.create(missing, 404))["error"]["message"]


async def test_the_log_has_usage_and_digests_and_no_text(lab: Any) -> None:
    made = await lab.create("canary-prompt\npython: 6 * 7")
    session = "s_" + made["output"][0]["container_id"].removeprefix("cntr_")
    events = [ev.decode(line) for line in lab.server.service.events(ALICE, session)]
    [answered] = [each for each in events if isinstance(each, ev.ModelAnswered)]
    assert (answered.response, answered.status, answered.turns, answered.calls) == (made["id"], "completed", 2, 1)
    assert (answered.input_tokens, answered.output_tokens) == (200, 20)
    assert len(answered.input_sha256) == len(answered.output_sha256) == 64
    assert not any(b"canary-prompt" in line for line in lab.server.service.events(ALICE, session))


async def test_earlier_answers_have_a_limit_of_bytes(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await lab.server.json("POST", "/v1/conversations", {"items": [{"role": "user", "content": "x" * 9000}]}, 200)
    first = await lab.create("x" * 5000)
    second = await lab.create("x" * 5000, previous_response_id=first["id"])
    item = second["output"][0]["id"]
    monkeypatch.setattr(answers, "MAX_HISTORY", 8000)
    monkeypatch.setattr(conversations, "MAX_BYTES", 8000)
    monkeypatch.setattr(answers, "MAX_REFERENCES", 2)
    reference = {"type": "item_reference", "id": item}
    for body in (
        {"previous_response_id": second["id"]},
        {"conversation": made["id"]},
        {"prompt": [reference] * 2},
        {"prompt": [reference] * 3},
    ):
        refused = await lab.create(body.pop("prompt", "more"), 400, **body)
        assert refused["error"]["param"] in ("previous_response_id", "conversation", "input")
    path = f"/v1/conversations/{made['id']}"
    await lab.server.json("POST", path + "/items", {"items": [{"role": "user", "content": "y"}]}, 400)
    assert (await lab.create("more", previous_response_id=first["id"]))["status"] == "completed"


@pytest.mark.parametrize("background", [False, True])
async def test_readers_of_an_answer_that_can_not_be_kept_do_not_wait_forever(
    lab: Any, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    put = AnswerStore.put_response

    def fail(store: AnswerStore, principal: str, response: KeptResponse) -> None:
        if response.transcript:
            raise ValueError("not text")
        put(store, principal, response)

    monkeypatch.setattr(AnswerStore, "put_response", fail)
    body = {"model": "qwen", "input": "python: 1", "tools": [CODE], "stream": True, "background": background}
    await asyncio.wait_for(lab.server.fetch("POST", "/v1/responses", body), 20)
