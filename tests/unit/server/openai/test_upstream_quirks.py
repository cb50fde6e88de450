"""Servers of models with habits of their own, from the request of a client to its answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from model_quirks import ARGUMENTS, FENCES, QUIRKS, call

from kernelsvc.answers import answer_run, answers_share
from kernelsvc.answers.answers_share import AnswersShare
from kernelsvc.answers.kept import AnswerStore
from kernelsvc.answers.scripted_model import delta, refusal, text, usage

OUTPUTS = "code_interpreter_call.outputs"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("quirk", [*QUIRKS, *FENCES])
async def test_the_code_of_each_servers_call_runs(make_lab: Any, quirk: str) -> None:
    fences = quirk in FENCES
    turn = (QUIRKS | FENCES)[quirk]
    lab = await make_lab([[HEAD, turn], text("Done.")], tools="fence" if fences else "native")
    got = await lab.create("go", include=[OUTPUTS])
    [ran] = [each for each in got["output"] if each["type"] == "code_interpreter_call"]
    assert (ran["code"], ran["outputs"]) == ("6 * 7", [{"type": "logs", "logs": "42\n"}])
    assert got["output"][-1]["content"][0]["text"] == "Done."


#: Streams that have lost the name of the call, with and without a text before it.
LOST = {
    "the name is lost": [call(ARGUMENTS, index=0, id="a"), delta("tool_calls"), usage(10, 1)],
    "the call is lost": [delta(content="I run it. "), delta("tool_calls"), usage(10, 1)],
}


@pytest.mark.parametrize("lost", LOST)
async def test_a_turn_whose_call_was_lost_is_asked_again_as_a_whole(make_lab: Any, lost: str) -> None:
    calls = [{"id": "a", "function": {"name": "python", "arguments": ARGUMENTS}}]
    message = {"content": "I run it. ", "tool_calls": calls}
    whole = json.dumps({"choices": [{"message": message}], "usage": usage(10, 2)["usage"]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(whole)
    lab = await make_lab([LOST[lost], [head, whole], text("Done.")])
    got = await lab.create("go")
    assert [each["type"] for each in got["output"]] == ["message", "code_interpreter_call", "message"]
    assert got["output"][0]["content"][0]["text"] == "I run it. "
    assert [each["stream"] for each in lab.model.requests] == [True, False, True]
    assert got["usage"]["output_tokens"] == 3


async def test_a_call_that_stays_lost_is_a_fault(make_lab: Any) -> None:
    lab = await make_lab(lambda body: LOST["the name is lost"])
    assert (await lab.create("go", 502))["error"]["code"] == "model_error"
    assert len(lab.model.requests) == 2


@pytest.mark.parametrize(
    ("setting", "message", "sent"),
    [("drop", "Missing `reasoning_content` field", True), ("turn", "reasoning_content is not permitted", False)],
)
async def test_a_server_that_refuses_the_reasoning_is_asked_once_more(
    make_lab: Any, setting: str, message: str, sent: bool
) -> None:
    first = [delta(reasoning_content="hm"), call(ARGUMENTS, "python", index=0, id="a"), delta("tool_calls")]
    lab = await make_lab([first, refusal(400, message), text("Done."), first, text("Again.")], reasoning=setting)
    assert (await lab.create("go"))["status"] == "completed"
    asked = [any("reasoning_content" in each for each in body["messages"]) for body in lab.model.requests[1:]]
    assert asked == [not sent, sent]
    await lab.create("go")  # it is remembered
    assert any("reasoning_content" in each for each in lab.model.requests[-1]["messages"]) is sent


@pytest.mark.parametrize("truncation", ["auto", "disabled"])
async def test_a_context_that_is_smaller_than_its_setting(make_lab: Any, truncation: str) -> None:
    code = call(json.dumps({"code": "print('x' * 15000)"}), "python", index=0, id="a")
    other = call(ARGUMENTS, "python", index=0, id="b")
    full = refusal(400, "the maximum context length is 4096 tokens")
    lab = await make_lab([[code], [other], full, text("Done.")], context_tokens=8000)
    got = await lab.create("go", truncation=truncation)
    if truncation == "disabled":
        assert got["error"]["code"] == "context_length_exceeded"
        return
    assert (got["status"], got["metadata"]["x-kernelsvc-elided"]) == ("completed", "1")
    assert "is left out" in lab.model.requests[-1]["messages"][3]["content"]


async def test_a_server_with_the_responses_api(make_lab: Any) -> None:
    item = {"type": "function_call", "call_id": "a", "name": "python", "arguments": ARGUMENTS}
    first = [{"type": f"response.output_item.{kind}", "output_index": 0, "item": item} for kind in ("added", "done")]
    second = [{"type": "response.output_text.delta", "delta": "Done."}, {"type": "response.completed", "response": {}}]
    lab = await make_lab([first, second], api="responses")
    got = await lab.create("go", include=[OUTPUTS])
    assert got["output"][0]["outputs"] == [{"type": "logs", "logs": "42\n"}]
    assert got["output"][1]["content"][0]["text"] == "Done."
    assert lab.model.requests[0]["input"][0]["content"] == "go"
    assert [each["type"] for each in lab.model.requests[1]["input"]][1:] == ["function_call", "function_call_output"]


async def test_answers_of_one_principal_share_the_loops_time(make_lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[AnswersShare] = []
    wait = AnswersShare.wait

    async def waited(self: AnswersShare) -> None:
        shares.append(self)
        await wait(self)

    monkeypatch.setattr(AnswersShare, "wait", waited)
    lab = await make_lab(lambda body: text("Done."))
    body = {"model": "qwen", "input": "go"}
    tokens = ("alice-token", "alice-token", "bob-token")
    await asyncio.gather(*(lab.server.json("POST", "/v1/responses", body, 200, token=token) for token in tokens))
    assert len({id(each) for each in shares}) == 2


async def test_an_answer_is_stored_once_for_all_items_of_a_read(make_lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    put = AnswerStore.put_response

    def noted(self: AnswerStore, principal: str, response: Any) -> None:
        stored.append(len(response.transcript))
        put(self, principal, response)

    monkeypatch.setattr(AnswerStore, "put_response", noted)
    parts = [delta(**{name: "x"}) for _ in range(50) for name in ("reasoning_content", "content")]
    chunk = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in parts)
    lab = await make_lab([[HEAD, chunk], text("Done.")])
    await lab.create("go")
    assert len(stored) < 10
    assert stored[-1] == 100


async def test_an_answers_turns_have_a_limit_together(make_lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_run, "MAX_ANSWER", 100)
    lab = await make_lab(lambda body: [delta(content="x" * 60), call("{}", index=0, id="a"), delta("tool_calls")])
    got = await lab.create("go")
    assert got["status"] == "failed"
    assert len(lab.model.requests) == 2


async def test_the_running_answers_of_a_principal_hold_a_number_of_characters_together(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_share, "MAX_HELD", 10_000)
    lab = await make_lab(lambda body: text("x", "y"))
    lab.model._delay = 60.0
    prompt = "x" * 4000
    first = await lab.create(prompt, background=True)
    assert (await lab.create(prompt, 429, background=True))["error"]["code"] == "rate_limit_exceeded"
    body = {"model": "qwen", "input": prompt, "background": True}
    await lab.server.json("POST", "/v1/responses", body, 200, token="bob-token")
    await lab.server.json("POST", f"/v1/responses/{first['id']}/cancel", {}, 200)
    second = await lab.create("x" * 50_000, background=True)  # one alone may begin with more
    await lab.server.json("POST", f"/v1/responses/{second['id']}/cancel", {}, 200)


async def test_outputs_for_which_there_is_no_room_are_left_out(make_lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_share, "MAX_HELD", 10_000)
    lab = await make_lab()
    got = await lab.create("python: print('x' * 4000)\npython: print('y' * 9000)", include=[OUTPUTS])
    first, second = [each["outputs"] for each in got["output"] if each["type"] == "code_interpreter_call"]
    assert first == [{"type": "logs", "logs": "x" * 4000 + "\n"}]
    assert "in the notebook" in second[0]["logs"]
    assert "y" * 100 in got["output"][-1]["content"][0]["text"]  # the model has read it
