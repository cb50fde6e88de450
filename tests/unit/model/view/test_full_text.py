"""The full text of a cell's outputs."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.model.view.full_text import _without_cell_files, full_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('x /tmp/ipykernel_12/3.py:4 "/a/b/ipykernel_1/22.py"', 'x Cell:4 "Cell"'),
        ("ipykernel_1/2.py and ipykernel_1/x.py", "ipykernel_1/2.py and ipykernel_1/x.py"),
        # Each of these takes hours if every slash starts a search to the end of the text.
        ("/" * 1_000_000 + "ipykernel_", "/" * 1_000_000 + "ipykernel_"),
        ("/ipykernel_" * 90_000, "/ipykernel_" * 90_000),
        ("/a/ipykernel_1/1.py " * 20_000, "Cell " * 20_000),
    ],
)
def test_files_of_cells_have_no_path(text: str, shown: str) -> None:
    assert _without_cell_files(text) == shown


OWN = '  File "/opt/guest/kernelsvc/guest/ipython.py", line 591, in interrupted\n'
CHILD = f'Traceback (most recent call last):\n  File "Cell", line 2, in work\n{OWN}KeyboardInterrupt\n'
LINES = ["Traceback (most recent call last):", '  File "Cell", line 2, in work', "KeyboardInterrupt"]


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "stream", "name": "stderr", "text": CHILD},
        {"output_type": "display_data", "data": {"text/plain": CHILD}, "metadata": {}},
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": CHILD.splitlines()},
    ],
)
def test_frames_of_the_service_are_left_out(output: dict[str, Any]) -> None:
    assert list(full_text([output]).lines()) == LINES


def test_a_description_of_a_function_has_no_name_of_a_file() -> None:
    data = {"text/plain": "Docstring: Doc.\nFile:      /tmp/ipykernel_2/149.py\nType:      function"}
    lines = list(full_text([{"output_type": "display_data", "data": data, "metadata": {}}]).lines())
    assert lines[1] == "File:      Cell"


def test_a_warning_has_no_place_in_the_service() -> None:
    text = "/opt/guest/kernelsvc/guest/model_view/changes.py:80: RuntimeWarning: coroutine 'f' was never awaited\n"
    output = {"output_type": "stream", "name": "stderr", "text": text}
    assert list(full_text([output]).lines()) == ["RuntimeWarning: coroutine 'f' was never awaited"]
