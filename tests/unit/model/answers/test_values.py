"""Values of answers."""

from __future__ import annotations

from kernelsvc.model.answers.values import (
    CodeItem,
    FunctionResult,
    InputMessage,
    MessageItem,
    ServerNote,
    TokenUsage,
    is_shown,
)


def test_the_output_holds_no_notes_inputs_or_refused_attempts() -> None:
    assert is_shown(MessageItem(id="m"))
    assert is_shown(CodeItem(id="c"))
    hidden = [CodeItem(id="c", shown=False), ServerNote(text="x"), InputMessage(role="user", text="x")]
    assert not any(map(is_shown, [*hidden, FunctionResult(call_id="a", output="b")]))


def test_usage_is_added_field_by_field() -> None:
    one = TokenUsage(input=1, output=2, cached=3, reasoning=4)
    assert one.plus(one) == TokenUsage(input=2, output=4, cached=6, reasoning=8)
