"""Calls in the metadata of a notebook, which anyone may have written."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.cli.sessions.recorded_calls import calls_of_cells, calls_of_events

CALL = {"tool": "t", "arguments": {"a": 1}, "status": "ok", "value": 2}


def cell(own: Any) -> dict[str, Any]:
    return {"metadata": {"kernelsvc": own}}


@pytest.mark.parametrize(
    "own", [None, 5, [], {"calls": 5, "cell": [1]}, {"calls": None}, {"calls": [1, None]}], ids=str
)
def test_metadata_of_another_form_has_no_calls(own: Any) -> None:
    cells = [cell(own), cell({"calls": [CALL]}), {}]
    assert calls_of_cells(cells) == [CALL]
    assert calls_of_events([], cells) == []
