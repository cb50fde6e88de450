"""Each habit of a model's server, its stream cut at every byte."""

from __future__ import annotations

import pytest
from model_quirks import CODE, FENCES, QUIRKS

from kernelsvc.model.answers.values import CallBegan, CallEnded, ModelPiece, ReasoningPiece
from kernelsvc.protocol.openai.chat_stream import ChatTurn, learned_reasoning
from kernelsvc.protocol.openai.sse_decoder import SseDecoder


def read(*pieces: bytes, fences: bool) -> tuple[str | None, int, str]:
    """The code of the turn's calls, the number of calls, and the reasoning."""
    decoder, turn = SseDecoder(), ChatTurn(1, (), code=True, fences=fences)
    found: list[ModelPiece] = []
    for data in [*(each for piece in pieces for each in decoder.feed(piece)), *decoder.end()]:
        found += turn.feed(data)
        if turn.fenced:
            break
    found += turn.end()
    assert turn.fault is None
    assert not turn.broken
    [ended] = [each for each in found if isinstance(each, CallEnded)]
    reasoning = "".join(each.text for each in found if isinstance(each, ReasoningPiece))
    return ended.code, sum(isinstance(each, CallBegan) for each in found), reasoning


@pytest.mark.parametrize("quirk", [*QUIRKS, *FENCES])
def test_a_stream_cut_at_any_byte_gives_the_same_call(quirk: str) -> None:
    data, fences = (QUIRKS | FENCES)[quirk], quirk in FENCES
    whole = read(data, fences=fences)
    assert whole[:2] == (CODE, 1)
    assert whole[2] == ("hm é" if "hm" in data.decode() else "x" if "<think>" in data.decode() else "")
    for at in range(len(data)):
        assert read(data[:at], data[at:], fences=fences) == whole, at
    assert read(*[data[at : at + 1] for at in range(len(data))], fences=fences) == whole


@pytest.mark.parametrize(
    ("present", "message", "learned"),
    [
        ("turn", "Missing `reasoning_content` field in the assistant message", "keep"),
        ("drop", "The reasoning_content in the thinking mode must be passed back to the API.", "keep"),
        ("keep", "reasoning_content is missing", None),
        ("turn", "reasoning_content: extra inputs are not permitted", "drop"),
        ("drop", "reasoning_content is not supported", None),
        ("turn", "temperature is not supported", None),
    ],
)
def test_a_refusal_says_which_reasoning_goes_back(present: str, message: str, learned: str | None) -> None:
    assert learned_reasoning(present, message) == learned
