"""A conversation as messages for a model's server."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from kernelsvc.model.answers.values import (
    CodeItem,
    Entry,
    FunctionItem,
    FunctionResult,
    InputMessage,
    MessageItem,
    Picture,
    ReasoningItem,
    ServerNote,
)
from kernelsvc.protocol.openai.messages import ELIDED, Dialect, to_messages


def code(number: int, turn: int = 1, result: str = "42") -> CodeItem:
    name = f"ci_{number}"
    return CodeItem(id=name, call_id=f"call_{number}", turn=turn, code=f"x{number}", result=result, status="completed")


def messages(
    earlier: list[Entry],
    present: list[Entry] | None = None,
    pictures: dict[str, list[str]] | None = None,
    **dialect: Any,
) -> list[dict[str, Any]]:
    return to_messages(earlier, present or [], "", Dialect(**dialect), pictures or {})[0]


USER = InputMessage(role="user", text="hi")


def test_a_turn_is_one_message_with_its_results_behind_it() -> None:
    own = FunctionItem(id="fc", call_id="f", name="weather", turn=1, arguments='{"a": 1}')
    said = messages(
        [USER, MessageItem(id="m", turn=1, text="I look."), code(1), own, FunctionResult(call_id="f", output="rain")]
    )
    assert [each["role"] for each in said] == ["system", "user", "assistant", "tool", "tool"]
    assert said[2]["content"] == "I look."
    assert [each["id"] for each in said[2]["tool_calls"]] == ["call_1", "f"]
    assert [each["content"] for each in said[3:]] == ["42", "rain"]


def test_turns_are_messages_of_their_own_and_the_prefix_stays() -> None:
    first = messages([USER], [code(1)])
    second = messages([USER], [code(1), code(2, turn=2), ServerNote(text="now")])
    assert [each["role"] for each in second[1:]] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert second[: len(first)] == first


def test_there_is_one_system_message_and_it_is_the_first() -> None:
    entries: list[Entry] = [USER, InputMessage(role="system", text="Be brief.")]
    said, _ = to_messages(entries, [], "Speak French.", Dialect(), {})
    assert [each["role"] for each in said] == ["system", "user"]
    assert said[0]["content"].startswith("Speak French.\n\nBe brief.\n\nYou can run Python")
    assert to_messages([USER], [], "", Dialect(code=False), {})[0] == [{"role": "user", "content": "hi"}]


def test_reasoning_goes_back_as_the_setting_says() -> None:
    earlier: list[Entry] = [USER, ReasoningItem(id="r", turn=1, text="old"), code(1)]
    present: list[Entry] = [ReasoningItem(id="r2", turn=1, text="new"), code(2)]
    for setting, expected in (("keep", ["old", "new"]), ("turn", [None, "new"]), ("drop", [None, None])):
        said = messages([*earlier, USER], present, reasoning=setting)
        assert [each.get("reasoning_content") for each in said if each["role"] == "assistant"] == expected


def test_pictures_follow_the_tool_messages_for_models_that_see() -> None:
    pictures = {"ci_1": ["data:image/png;base64,AA"]}
    blind = messages([USER], [code(1), code(2)], pictures)
    seeing = messages([USER], [code(1), code(2)], pictures, vision=True)
    assert seeing[: len(blind)] == blind
    [shown] = seeing[len(blind) :]
    assert shown["role"] == "user"
    assert shown["content"][1]["image_url"]["url"] == pictures["ci_1"][0]
    given = InputMessage(role="user", text="see", pictures=[Picture("data:image/png;base64,BB")])
    assert messages([given], vision=True)[1]["content"][1]["type"] == "image_url"
    assert messages([given])[1]["content"] == "see\n[picture]"


def test_a_model_without_tool_calls_reads_blocks_and_results() -> None:
    said = messages([USER], [MessageItem(id="m", turn=1, text="See:"), code(1)], fences=True)
    assert said[2] == {"role": "assistant", "content": "See:\n```python\nx1\n```"}
    assert said[3] == {"role": "user", "content": "Result of the code:\n42"}


def test_arguments_that_were_no_json_are_sent_as_json() -> None:
    bad = CodeItem(id="ci_1", call_id="a", turn=1, code="x", arguments="x", result="1")
    own = FunctionItem(id="fc", call_id="f", name="weather", turn=1, arguments="{")
    called = messages([USER], [bad, own])[2]["tool_calls"]
    assert [each["function"]["arguments"] for each in called] == ['{"code": "x"}', "{}"]


def test_old_results_are_left_out_in_large_steps_but_never_the_last() -> None:
    items: list[Entry] = [code(number, turn=number, result="r" * 1000) for number in range(1, 11)]
    said, count = to_messages([USER], items, "", Dialect(context_tokens=3500), {})
    texts = [each["content"] for each in said if each["role"] == "tool"]
    assert count > 2
    assert texts[:count] == [ELIDED] * count
    assert texts[-1] == "r" * 1000
    assert to_messages([USER], items[:1], "", Dialect(context_tokens=1000), {})[1] == 0


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"a": [1]}', True),
        (' {"a": "\\ud83d\\ude00"} ', True),
        ("[]", False),
        ('{"a": 1', False),
        ('{"a": 1}x', False),
        ("", False),
    ],
)
def test_arguments_that_are_no_object_are_not_sent_again(arguments: str, sent: bool) -> None:
    call = FunctionItem(id="fc_1", call_id="a", name="f", arguments=arguments)
    assert messages([call])[1]["tool_calls"][0]["function"]["arguments"] == (arguments if sent else "{}")


def test_the_values_of_long_arguments_are_not_built() -> None:
    call = FunctionItem(id="fc_1", call_id="a", name="f", arguments='{"a": [' + "[]," * (1 << 20) + "1]}")
    tracemalloc.start()
    try:
        to_messages([call], [], "", Dialect(), {})
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
