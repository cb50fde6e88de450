"""The code in a call's arguments, however they are cut into pieces."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.protocol.openai.code_text import CodeText


def read(pieces: list[str]) -> tuple[str, str | None, str]:
    """The code that was streamed, the code at the end, and the problem."""
    reader = CodeText()
    streamed = "".join(reader.feed(piece) for piece in pieces)
    return streamed, *reader.end()


@settings(max_examples=60, deadline=None)
@given(st.text(), st.booleans(), st.data())
def test_any_code_cut_anywhere_is_streamed_as_it_is(code: str, plain: bool, data: st.DataObject) -> None:
    raw = json.dumps({"code": code}, ensure_ascii=plain)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    reader = CodeText()
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(reader.feed(piece) for piece in pieces) == code
    assert reader.complete
    if not code.strip().startswith("```"):
        assert reader.end() == (code, "")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("print(1)\nx = 2", "print(1)\nx = 2"),
        ('"print(1)"', "print(1)"),
        ("```python\nprint(1)\n```", "print(1)"),
        ('{"code": "```python\\nprint(1)\\n```"}', "print(1)"),
        ('{"input": "1"}', "1"),
        ('{"note": "x", "code": "1"}', "1"),
        ('{"code": "a\nb"}', "a\nb"),
        ('{"code": "\\ud83d\\ude00"}', "\U0001f600"),
        ('"""doc"""\nx = 1', '"""doc"""\nx = 1'),
    ],
)
def test_other_forms_of_the_code_are_read(raw: str, code: str) -> None:
    for size in (1, 3, 1000):
        streamed, found, problem = read([raw[at : at + size] for at in range(0, len(raw), size)])
        assert (found, problem) == (code, "")
        # Code that was streamed with its fence: its end has the code without it.
        assert streamed in (code, "", f"```python\n{code}\n```")


@pytest.mark.parametrize("raw", ['{"code": "print("hi")"}', '{"code": "print(1)', "{}", '{"code": 5}', ""])
def test_arguments_without_code_have_a_reason(raw: str) -> None:
    _, code, problem = read([raw])
    assert code is None
    assert '{"code": "..."}' in problem


def test_half_of_a_surrogate_pair_becomes_a_replacement_character() -> None:
    streamed, code, _ = read(['{"code": "a\\ud83d', 'b\\udc00c"}'])
    assert streamed == "a\ufffdb\ufffdc"
    assert code is not None
    code.encode()


@pytest.mark.parametrize(
    "pieces",
    [
        ['{"code":"' + "a\\n" * 400_000],  # each escape searched the rest for a quote
        ['{"code":"' + "\\n" * 1_000_000, *["a"] * 20_000],  # each piece copied all earlier ones
        ['{"code":"1"', *[" " * 50] * 20_000],  # each piece looked at all spaces again
        [" " * 50] * 20_000,
        ['{"code":"1"} x', *["y" * 50] * 20_000],
    ],
    ids=["escapes", "pieces", "spaces behind", "spaces before", "more behind"],
)
def test_the_time_is_proportional_to_the_length(pieces: list[str]) -> None:
    began = time.process_time()
    read(pieces)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("escape", ["\\u00zz", "\\u-123", "\\u 12 ", "\\u", "\\udc00", "\\ud800\\u-c00"])
def test_an_escape_that_is_no_character_can_be_encoded(escape: str) -> None:
    streamed, _, _ = read(['{"code": "' + escape + '"}'])
    assert "\ufffd" in streamed
    streamed.encode()
