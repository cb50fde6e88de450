"""Reasoning and code blocks in text, however it is cut into pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.protocol.openai.text_split import TextSplitter


def split(text: str, cuts: list[int], *, fences: bool = True) -> list[tuple[str, str]]:
    """The parts, with neighbours of one kind joined."""
    splitter = TextSplitter(fences=fences)
    parts = []
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += splitter.feed(text[a:b])
    joined: list[tuple[str, str]] = []
    for kind, piece in [*parts, *splitter.end()]:
        if joined and joined[-1][0] == kind:
            piece = joined.pop()[1] + piece
        joined.append((kind, piece))
    return [part for part in joined if part[1] or part[0].startswith("code_")]


CASES = {
    "<think>\nhm</think>\n\nHello": [("reasoning", "hm"), ("text", "Hello")],
    "<think>no end": [("reasoning", "no end")],
    "see <think> here": [("text", "see <think> here")],
    "First:\n```python\nx = 1\nprint(x)\n```\nignored": [
        ("text", "First:\n"),
        ("code_begins", ""),
        ("code", "x = 1\nprint(x)"),
        ("code_ends", ""),
    ],
    "```py\n1": [("code_begins", ""), ("code", "1"), ("code_ends", "")],
    "```py\n1\n```": [("code_begins", ""), ("code", "1"), ("code_ends", "")],
    "```bash\nls\n```": [("text", "```bash\nls\n```")],
    "in a line ```python\n": [("text", "in a line ```python\n")],
    "``": [("text", "``")],
    "   ": [("text", "   ")],
}


@pytest.mark.parametrize("text", CASES)
def test_a_text_is_split_the_same_at_each_cut(text: str) -> None:
    for at in range(len(text) + 1):
        assert split(text, [at]) == CASES[text], at
    assert split(text, list(range(len(text)))) == CASES[text]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="<think>/`py\n x"), st.data())
def test_cuts_never_change_the_parts(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert split(text, cuts) == split(text, [])


def test_without_fences_a_block_is_text() -> None:
    text = "```python\n1\n```"
    assert split(text, [4], fences=False) == [("text", text)]


@pytest.mark.parametrize("pieces", [["\n" * 1_000_000], ["x" + "\n" * 1_000_000 + "```pyt"], [" " * 50] * 20_000])
def test_the_time_is_proportional_to_the_length(pieces: list[str]) -> None:
    began = time.process_time()
    splitter = TextSplitter(fences=True)
    assert "".join(text for piece in pieces for _, text in splitter.feed(piece)) == "".join(pieces).removesuffix(
        "```pyt"
    )
    assert time.process_time() - began < 2
