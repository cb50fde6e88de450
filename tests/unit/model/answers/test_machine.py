"""The state machine of an answer."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.model.answers import machine as m
from kernelsvc.model.answers.values import (
    ArgumentsPiece,
    CallBegan,
    CallEnded,
    CellOutcome,
    CodeItem,
    FunctionItem,
    MessageItem,
    ModelFault,
    ReasoningPiece,
    ServerNote,
    TextPiece,
    TokenUsage,
)

USAGE = TokenUsage(input=10, output=5)


def made(**limits: Any) -> m.AnswerMachine:
    numbers = itertools.count(1)
    return m.AnswerMachine(m.AnswerLimits(**limits), lambda prefix: f"{prefix}_{next(numbers)}")


def run_call(machine: m.AnswerMachine, code: str = "1", key: int = 0, result: str = "1") -> list[m.Step]:
    """One call of the interpreter, with its cell."""
    steps = machine.on_piece(CallBegan(key=key, call_id=f"call_{key}", name="python", runs_code=True))
    steps += machine.on_piece(ArgumentsPiece(key, code))
    steps += machine.on_piece(CallEnded(key=key, arguments=code, code=code))
    for step in [each for each in steps if isinstance(each, m.RunCell)]:
        steps += machine.on_cell_ended(step.index, CellOutcome(status="completed", text=result))
    return steps


def ends(steps: list[m.Step]) -> list[tuple[str, str]]:
    return [(each.status, each.reason) for each in steps if isinstance(each, m.AnswerEnded)]


def asks(steps: list[m.Step]) -> list[m.AskModel]:
    return [each for each in steps if isinstance(each, m.AskModel)]


def test_code_then_an_answer() -> None:
    machine = made()
    assert machine.begin() == [m.AskModel(turn=1, tools=True, force=None, max_tokens=None)]
    machine.on_piece(ReasoningPiece("hm"))
    steps = run_call(machine)
    assert steps == [
        m.ItemDone(0), m.ItemAdded(1), m.ItemGrew(1, "1"), m.InputComplete(1), m.RunCell(1), m.ItemDone(1)
    ]  # fmt: skip
    assert asks(machine.on_turn_ended(USAGE, cut=False))[0].turn == 2
    assert machine.on_piece(TextPiece("One.")) == [m.ItemAdded(2), m.ItemGrew(2, "One.")]
    assert machine.on_turn_ended(USAGE, cut=False) == [m.ItemDone(2), m.AnswerEnded("completed")]
    assert machine.usage.output == 10
    assert machine.on_piece(TextPiece("late")) == []


def test_the_model_is_asked_again_after_the_last_cell() -> None:
    machine = made()
    machine.begin()
    for key in (0, 1):
        machine.on_piece(CallBegan(key=key, call_id=str(key), name="python", runs_code=True))
        assert m.RunCell(key) in machine.on_piece(CallEnded(key=key, arguments="", code="1"))
    assert machine.on_turn_ended(USAGE, cut=False) == []
    outcome = CellOutcome(status="completed", text="1")
    assert asks(machine.on_cell_ended(0, outcome)) == []
    assert asks(machine.on_cell_ended(1, outcome)) != []


def test_the_clients_function_ends_the_answer_after_the_code() -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="f", name="weather", runs_code=False))
    machine.on_piece(ArgumentsPiece(0, "{}"))
    assert machine.on_piece(CallEnded(key=0, arguments="{}")) == [m.ItemDone(0)]
    run_call(machine, key=1)
    assert ends(machine.on_turn_ended(USAGE, cut=False)) == [("completed", "")]
    assert isinstance(machine.items[0], FunctionItem)
    assert machine.items[0].arguments == "{}"


def test_attempts_above_the_limit_are_answered_and_are_no_items() -> None:
    machine = made(max_tool_calls=1)
    machine.begin()
    run_call(machine)
    assert run_call(machine, "2", key=1) == []
    [ask] = asks(machine.on_turn_ended(USAGE, cut=False))
    assert not ask.tools
    assert len(machine.items) == 1
    hidden = [each for each in machine.transcript if isinstance(each, CodeItem) and not each.shown]
    assert [each.result for each in hidden] == [m.OVER_LIMIT]
    assert ServerNote(text=m.NO_MORE) in machine.transcript
    run_call(machine, "3")
    assert ends(machine.on_turn_ended(USAGE, cut=False)) == [("incomplete", "max_messages")]


def test_without_parallel_calls_the_second_one_is_refused() -> None:
    machine = made(parallel=False)
    machine.begin()
    run_call(machine)
    assert run_call(machine, "2", key=1) == []
    assert asks(machine.on_turn_ended(USAGE, cut=False))[0].tools


def test_a_forced_call_is_forced_once() -> None:
    machine = made(force="python")
    assert asks(machine.begin())[0].force == "python"
    run_call(machine)
    assert asks(machine.on_turn_ended(USAGE, cut=False))[0].force is None


def test_turns_and_tokens_are_limited() -> None:
    machine = made(max_turns=3)
    machine.begin()
    run_call(machine, "1")
    assert asks(machine.on_turn_ended(USAGE, cut=False))[0].tools
    run_call(machine, "2")
    assert not asks(machine.on_turn_ended(USAGE, cut=False))[0].tools
    spent = made(max_output_tokens=5)
    assert asks(spent.begin())[0].max_tokens == 5
    run_call(spent)
    assert ends(spent.on_turn_ended(USAGE, cut=False)) == [("incomplete", "max_output_tokens")]
    cut = made()
    cut.begin()
    cut.on_piece(TextPiece("half"))
    assert ends(cut.on_turn_ended(USAGE, cut=True)) == [("incomplete", "max_output_tokens")]
    assert cut.items[0].status == "incomplete"


def test_a_cut_call_does_not_run() -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="a", name="python", runs_code=True))
    machine.on_piece(ArgumentsPiece(0, "open('x', 'w"))
    steps = machine.on_turn_ended(USAGE, cut=True)
    assert not any(isinstance(each, m.RunCell) for each in steps)
    assert machine.items[0].status == "incomplete"


def test_the_same_result_again_and_again_gets_a_hint_and_then_an_end() -> None:
    machine = made()
    machine.begin()
    hints, tools = [], []
    for _ in range(m.REPEATS_END):
        run_call(machine, "same")
        item = machine.items[-1]
        assert isinstance(item, CodeItem)
        hints.append("same result" in item.result)
        tools.append(asks(machine.on_turn_ended(USAGE, cut=False))[0].tools)
    assert hints == [False, False, True, True, True]
    assert tools == [True, True, True, True, False]


def test_wrong_arguments_are_answered_with_the_problem() -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="a", name="python", runs_code=True))
    machine.on_piece(CallEnded(key=0, arguments="{", problem="not JSON"))
    item = machine.items[0]
    assert isinstance(item, CodeItem)
    assert (item.status, item.result) == ("failed", "Not run: not JSON")
    assert asks(machine.on_turn_ended(USAGE, cut=False)) != []


def test_a_cell_that_an_end_interrupts_has_run_and_one_without_its_input_has_not() -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="a", name="python", runs_code=True))
    machine.on_piece(CallEnded(key=0, arguments="1", code="1"))
    machine.on_piece(CallBegan(key=1, call_id="b", name="python", runs_code=True))
    machine.on_cancel()
    ran, not_run = machine.items
    assert isinstance(ran, CodeItem)
    assert isinstance(not_run, CodeItem)
    assert (ran.ran, ran.result, not_run.ran) == (True, "", False)
    assert not_run.result.startswith("Not run")


@pytest.mark.parametrize("how", ["on_cancel", "on_timeout", "on_fault"])
def test_an_end_from_outside_closes_everything(how: str) -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="a", name="python", runs_code=True))
    machine.on_piece(CallEnded(key=0, arguments="", code="1"))
    machine.on_piece(TextPiece("and"))
    fault = ModelFault(code="server_error", message="x")
    steps = machine.on_fault(fault) if how == "on_fault" else getattr(machine, how)()
    assert steps[:2] == [m.CloseModel(), m.InterruptCells()]
    status = {"on_cancel": "cancelled", "on_timeout": "incomplete", "on_fault": "failed"}[how]
    assert [each[0] for each in ends(steps)] == [status]
    assert [each.status for each in machine.items] == ["incomplete", "incomplete"]
    assert machine.on_cell_ended(0, CellOutcome(status="completed", text="late")) == []
    assert machine.on_cancel() == []


PIECES = st.one_of(
    st.builds(TextPiece, st.text(min_size=1, max_size=3)),
    st.builds(ReasoningPiece, st.text(min_size=1, max_size=3)),
    st.builds(CallBegan, key=st.integers(0, 3), call_id=st.just("c"), name=st.just("python"), runs_code=st.booleans()),
    st.builds(ArgumentsPiece, st.integers(0, 3), st.just("x")),
    st.builds(CallEnded, key=st.integers(0, 3), arguments=st.just("x"), code=st.sampled_from(["x", None])),
    st.sampled_from(["turn", "cut", "cell", "cancel", "timeout"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=30), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 3)), st.booleans())
def test_in_any_order_each_call_ends_once_before_the_model_is_asked(
    inputs: list[Any], turns: int, calls: int | None, parallel: bool
) -> None:
    machine = made(max_turns=turns, max_tool_calls=calls, parallel=parallel)
    running: list[int] = []
    steps = machine.begin()
    done: list[int] = []
    for each in [*inputs, "cancel"]:
        match each:
            case "turn" | "cut":
                new = machine.on_turn_ended(USAGE, cut=each == "cut")
            case "cell":
                new = (
                    machine.on_cell_ended(running.pop(0), CellOutcome(status="completed", text="1")) if running else []
                )
            case "cancel":
                new = machine.on_cancel()
            case "timeout":
                new = machine.on_timeout()
            case _:
                new = machine.on_piece(each)
        for step in new:
            if isinstance(step, m.RunCell):
                running.append(step.index)
            if isinstance(step, m.ItemDone):
                done.append(step.index)
            if isinstance(step, m.AskModel):
                assert not running
                assert all(item.status != "in_progress" for item in machine.items)
                assert all(item.result for item in machine.transcript if isinstance(item, CodeItem))
        steps += new
    assert len(ends(steps)) == 1
    assert isinstance(steps[-1], m.AnswerEnded)
    assert sorted(done) == list(range(len(machine.items)))
    assert len(asks(steps)) <= turns
    if calls is not None:
        assert sum(isinstance(each, m.RunCell) for each in steps) <= calls


def _item(status: str, **more: Any) -> CodeItem:
    return CodeItem(id="ci_1", status=status, code="1", turn=2, **more)  # type: ignore[arg-type]


#: What was stored of an answer when its server was killed, its items that stay, and what follows.
CUT: dict[str, tuple[list[Any], int, type]] = {
    "nothing": ([], 0, m.AskModel),
    "a cell runs": ([_item("in_progress", arguments="1")], 1, m.RunCell),
    "a call is half written": ([_item("in_progress")], 0, m.AskModel),
    "a cell has ended": ([_item("completed", arguments="1", result="1")], 1, m.AskModel),
    "a text is half written": ([MessageItem(id="msg_1", text="He", turn=2)], 0, m.AskModel),
    "a text is complete": ([MessageItem(id="msg_1", text="He", turn=2, status="completed")], 1, m.AskModel),
    "the client's function": (
        [FunctionItem(id="fc_1", call_id="c", name="f", turn=2, status="completed")], 1, m.AnswerEnded
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", CUT)
def test_an_answer_that_was_cut_continues_with_its_complete_items(cut: str) -> None:
    transcript, kept, follows = CUT[cut]
    machine = made(force="required", max_tool_calls=1)
    steps = machine.resume(transcript, USAGE)
    assert [type(each) for each in steps] == [follows]
    assert len(machine.items) == kept
    assert machine.usage == USAGE
    if follows is m.RunCell:
        steps = machine.on_cell_ended(0, CellOutcome(status="completed", text="1"))
        assert isinstance(steps[-1], m.AskModel)
    if follows is not m.AnswerEnded:
        [asked] = asks(steps)
        # The limit of calls counts those before the kill, and a call is forced once.
        calls = any(isinstance(each, CodeItem) for each in machine.items)
        assert (asked.tools, asked.force) == (not calls, None if kept else "required")


def test_a_long_text_grows_in_proportion_to_its_length() -> None:
    machine = made()
    machine.begin()
    machine.on_piece(CallBegan(key=0, call_id="1", name="python", runs_code=True))
    machine.on_piece(CallBegan(key=1, call_id="2", name="f", runs_code=False))
    began = time.process_time()
    for _ in range(40_000):
        for piece in (TextPiece("x" * 100), ArgumentsPiece(0, "x" * 100), ArgumentsPiece(1, "x" * 100)):
            machine.on_piece(piece)
    assert time.process_time() - began < 3
    code, function, message = machine.items
    assert code.code == function.arguments == message.text == "x" * 4_000_000


def test_a_piece_grows_only_what_is_open() -> None:
    machine = made()
    machine.begin()
    assert not machine.grows(TextPiece("a"))
    machine.on_piece(TextPiece("a"))
    assert machine.grows(TextPiece("b"))
    assert not machine.grows(ReasoningPiece("c"))
    machine.on_piece(ReasoningPiece("c"))
    assert machine.grows(ReasoningPiece("d"))
    assert not machine.grows(TextPiece("e"))
    assert not machine.grows(CallBegan(key=0, call_id="1", name="python", runs_code=True))
