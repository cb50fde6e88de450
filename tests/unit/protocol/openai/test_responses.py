"""Objects and events of the Responses API."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kernelsvc.model.answers.machine import AnswerEnded, AnswerLimits, AnswerMachine, ItemDone, RunCell
from kernelsvc.model.answers.values import (
    ArgumentsPiece,
    CallBegan,
    CallEnded,
    CellOutcome,
    Citation,
    CodeItem,
    MessageItem,
    ModelFault,
    ReasoningItem,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
)
from kernelsvc.protocol.openai.requests import AnswerRequest
from kernelsvc.protocol.openai.responses import (
    RESUME_GAP,
    ReasoningAs,
    ResponseEvents,
    ResponseHead,
    container_id,
    file_id,
    path_of_file,
    response_json,
    session_id,
)

HEAD = ResponseHead(id="resp_1", created=1, request=AnswerRequest(model="m", input=[]))
#: The order in which OpenAI's own server sends the events of one call and an answer.
RECORDED = [
    "created",
    "in_progress",
    "output_item.added",
    "content_part.added",
    "reasoning_text.delta",
    "reasoning_text.done",
    "content_part.done",
    "output_item.done",
    "output_item.added",
    "code_interpreter_call.in_progress",
    "code_interpreter_call_code.delta",
    "code_interpreter_call_code.delta",
    "code_interpreter_call_code.done",
    "code_interpreter_call.interpreting",
    "code_interpreter_call.completed",
    "output_item.done",
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.delta",
    "output_text.annotation.added",
    "output_text.done",
    "content_part.done",
    "output_item.done",
    "completed",
]


def events(reasoning_as: ReasoningAs = "text") -> list[dict[str, Any]]:
    numbers = itertools.count(1)
    machine = AnswerMachine(AnswerLimits(), lambda prefix: f"{prefix}_{next(numbers)}")
    maker = ResponseEvents(HEAD, reasoning_as)
    found = maker.begin()
    usage = TokenUsage(input=1, output=1)
    inputs: list[Any] = [
        ReasoningPiece("hm"), CallBegan(key=0, call_id="c", name="python", runs_code=True), ArgumentsPiece(0, "1"),
        ArgumentsPiece(0, "+1"), CallEnded(key=0, arguments="", code="1+1"), "turn", TextPiece("See "),
        TextPiece("[a](sandbox:/mnt/data/a)"), "turn",
    ]  # fmt: skip
    machine.begin()
    for each in inputs:
        steps = machine.on_turn_ended(usage, cut=False) if each == "turn" else machine.on_piece(each)
        for step in list(steps):
            if isinstance(step, RunCell):
                steps += machine.on_cell_ended(step.index, CellOutcome(status="completed", text="2"))
        for step in steps:
            last = machine.items[-1]
            if isinstance(last, MessageItem) and last.status == "completed":
                last.citations = [Citation(path="a", start=8, end=27)]
            found += maker.of(step, machine.items, [{"type": "logs", "logs": "2"}], "cntr_1")
            if isinstance(step, AnswerEnded):
                found += maker.end(response_json(HEAD, step.status, []), step)
    return found


def test_events_have_the_recorded_order_and_numbers_without_a_gap() -> None:
    found = events()
    assert [each["type"].removeprefix("response.") for each in found] == RECORDED
    assert [each["sequence_number"] for each in found] == list(range(len(found)))


def test_events_of_stored_items_end_at_the_number_of_the_last_stored_one() -> None:
    maker = ResponseEvents(HEAD)
    assert len(maker.begin()) == 2
    items = [ReasoningItem(id="rs_1", text="hm", status="completed"), CodeItem(id="ci_1", code="1+1", arguments="1+1")]
    found = maker.restored(items, {}, "", 40)
    kinds = [each["type"].removeprefix("response.") for each in found]
    # Each text in one piece, and the call without its end: its cell runs.
    assert kinds == RECORDED[2:11] + RECORDED[12:14]
    assert [each["sequence_number"] for each in found] == list(range(40 - len(found), 40))
    assert found[0]["item"]["content"] == []
    after = maker.of(ItemDone(1), items, None, "")
    assert after[0]["sequence_number"] == 40 + RESUME_GAP
    with_few = ResponseEvents(HEAD).restored(items, {}, "", 3)
    assert [each["sequence_number"] for each in with_few] == list(range(len(found)))


def test_a_call_is_complete_with_its_code_and_outputs() -> None:
    [done] = [each["item"] for each in events() if each["type"].endswith("item.done") and "code" in each["item"]]
    assert done["code"] == "1+1"
    assert done["outputs"] == [{"type": "logs", "logs": "2"}]
    [note] = [each["annotation"] for each in events() if "annotation" in each]
    assert note["file_id"] == file_id(b"a")
    assert (note["start_index"], note["end_index"], note["filename"]) == (8, 27, "a")


def test_reasoning_can_be_a_summary_or_hidden() -> None:
    assert "response.reasoning_summary_text.delta" in {each["type"] for each in events("summary")}
    hidden = events("none")
    assert "hm" not in str(hidden)
    assert [each["output_index"] for each in hidden if each["type"].endswith("item.added")] == [0, 1]


def test_a_failure_is_an_error_event_and_a_failed_response() -> None:
    ended = AnswerEnded("failed", fault=ModelFault(code="server_error", message="no"))
    response = response_json(HEAD, "failed", [], ended=ended)
    error, failed = ResponseEvents(HEAD).end(response, ended)
    assert error == {"type": "error", "sequence_number": 0, "code": "server_error", "message": "no", "param": None}
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "no"}
    cut = response_json(HEAD, "incomplete", [], ended=AnswerEnded("incomplete", "max_output_tokens"))
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_container_and_its_session_have_the_same_digits() -> None:
    assert container_id("s_0123456789abcdef") == "cntr_0123456789abcdef"
    assert session_id("cntr_0123456789abcdef") == "s_0123456789abcdef"


@pytest.mark.parametrize("path", [b"a.csv", b"d/\xff name", b""])
def test_a_short_path_is_in_its_files_id(path: bytes) -> None:
    assert path_of_file(file_id(path)) == path


@pytest.mark.parametrize("given", [file_id(b"x" * 100), "cfile_p!", "cfile_pQ", "file-1", "cfile_p" + "QQ" * 100])
def test_another_id_has_no_path(given: str) -> None:
    assert path_of_file(given) is None
