"""What a cell's traceback shows of us: nothing."""

from __future__ import annotations

import ast
import asyncio
import traceback

import pytest

from kernelsvc.guest import import_policy, tracebacks
from kernelsvc.guest.forking import state_pickle
from kernelsvc.protocol.function_call import function_cell


def test_our_frames_are_taken_out_and_the_others_stay() -> None:
    lost = state_pickle.LostVariable("pool", "a thread pool with work in it")

    def use() -> None:
        lost.submit(len)

    with pytest.raises(RuntimeError) as caught:
        use()
    whole = caught.value.__traceback__
    assert any(import_policy.__file__.rpartition("/")[0] in frame.filename for frame in traceback.extract_tb(whole))
    shown = traceback.extract_tb(tracebacks.without_own_frames(whole))
    assert [frame.name for frame in shown][-1] == "use"
    assert all(frame.filename == __file__ for frame in shown)


def test_so_are_those_of_what_led_to_it() -> None:
    lost = state_pickle.LostVariable("pool", "a thread pool with work in it")

    def use() -> None:
        try:
            lost.submit(len)
        except RuntimeError as error:
            raise ValueError("no pool") from error

    with pytest.raises(ValueError, match="no pool") as caught:
        use()
    tracebacks.clean(caught.value)
    cause = caught.value.__cause__
    assert cause is not None
    assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)] == ["use"]
    assert tracebacks.without_own_frames(None) is None


def test_the_cell_around_a_called_function_is_not_shown() -> None:
    space: dict[str, object] = {}
    source = "def broken(x):\n    return x / 0"
    code = compile(function_cell(source, [1], {}), "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with pytest.raises(ZeroDivisionError) as caught:
        asyncio.run(eval(code, space))
    tracebacks.clean(caught.value)
    frames = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if "asyncio" not in frame.filename]
    assert [(frame.filename, frame.name, frame.line) for frame in frames[-1:]] == [
        ("<function>", "broken", "return x / 0")
    ]
    assert "<cell>" not in [frame.filename for frame in frames]
