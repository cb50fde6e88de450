"""A function call as a cell: the cell is run by IPython itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from kernelsvc.model.objects import CellInfo, CellState, SeqRange
from kernelsvc.protocol.function_call import function_cell, value_of


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    # publish_display_data speaks to the one instance of the process.
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


def cell(outputs: list[dict[str, Any]]) -> CellInfo:
    return CellInfo(
        id="c", session="s", code="", state=CellState.FINISHED, seq=SeqRange(first=1, last=2), outputs=outputs
    )  # fmt: skip


def called(shell: InteractiveShell, source: str, *args: Any, **kwargs: Any) -> Any:
    """What the cell published, as it would stand in a finished cell."""
    with capture_output() as captured:
        result = shell.run_cell(function_cell(source, list(args), kwargs))
    result.raise_error()
    outputs = [{"output_type": "display_data", "data": output.data} for output in captured.outputs]
    return value_of(cell(outputs))


@pytest.mark.parametrize(
    ("source", "args", "value"),
    [
        ("lambda x: sum(x) if isinstance(x, list) else 0", ([1, 2, 3],), 6),
        ("lambda x: sum(x) if isinstance(x, list) else 0", ("no list",), 0),
        ("lambda: None", (), None),
        ("def double(x):\n    return x * 2", (21,), 42),
        ("import math\ndef root(x):\n    return math.sqrt(x)", (9,), 3.0),
        ("async def later(x):\n    return x", ("done",), "done"),
        ("sorted", ([3, 1, 2],), [1, 2, 3]),
        ("lambda: {3, 1, 2}", (), [1, 2, 3]),
        ("import numpy as np\nlambda n: np.arange(n)", (3,), [0, 1, 2]),
        ("lambda text: text", ("{braces} 'quotes' \"both\" \\n é",), "{braces} 'quotes' \"both\" \\n é"),
    ],
)
def test_a_function_is_called_and_its_value_comes_back(
    shell: InteractiveShell, source: str, args: tuple[Any, ...], value: Any
) -> None:
    assert called(shell, source, *args) == value


def test_arguments_can_be_named(shell: InteractiveShell) -> None:
    assert called(shell, "lambda a, *, b=1: a - b", 10, b=4) == 6


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("x = 1", TypeError, "give a lambda"),
        ("", TypeError, "give a lambda"),
        ("lambda:", SyntaxError, "invalid syntax"),
        ("lambda: object()", TypeError, "object, which JSON can't hold"),
        ("lambda: float('nan')", ValueError, "JSON"),
        ("lambda: 1 / 0", ZeroDivisionError, "division"),
    ],
)
def test_what_cannot_be_called_or_told_is_an_error_of_the_cell(
    shell: InteractiveShell, source: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        called(shell, source)


def test_a_cell_without_a_value_has_none() -> None:
    outputs = [{"output_type": "stream", "text": "x"}, {"output_type": "display_data", "data": "no object"}]
    assert value_of(cell(outputs)) is None
