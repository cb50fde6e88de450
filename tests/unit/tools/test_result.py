"""A cell as a model wants it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kernelsvc.errors import CannotFork
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellError, CellInfo, CellState, SeqRange
from kernelsvc.tools.result import MAX_PICTURES, cell_result, error_result, pictures_of, shortened


def cell(**changes: Any) -> CellInfo:
    more = {"state": CellState.FINISHED, "reason": Reason.OK, **changes}
    return CellInfo(id="c1", session="s1", code="", seq=SeqRange(first=1, last=2), **more)


def shown(mime: str, data: bytes) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {mime: base64.b64encode(data).decode()}, "metadata": {}}


def test_a_good_cell():
    made = cell_result(cell(text="42\n", execution_count=3), 1000)
    assert made.text == "42\n[cell c1 ended: ok, session s1]"
    assert made.facts == {
        "session": "s1", "cell": "c1", "state": "finished", "reason": "ok", "text": "42\n", "execution_count": 3,
    }  # fmt: skip
    assert not made.failed


def test_a_cell_that_still_runs_is_no_failure_and_says_how_to_go_on():
    made = cell_result(cell(state=CellState.RUNNING, reason=None, text="half"), 1000)
    assert not made.failed
    assert "wait_for_cell" in made.facts["next"]
    assert "wait_for_cell" in made.text


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.OK])
def test_every_bad_end_is_a_failure(reason):
    made = cell_result(cell(reason=reason, error=CellError(ename="E", evalue="v", traceback=[])), 1000)
    assert made.failed
    assert made.facts["error"] == {"ename": "E", "evalue": "v"}
    assert reason is Reason.ERROR or made.facts["next"]


def test_a_crash_says_whether_the_variables_are_kept():
    kept = cell_result(cell(reason=Reason.KERNEL_DIED, variables_kept=True), 1000)
    lost = cell_result(cell(reason=Reason.KERNEL_DIED, variables_kept=False), 1000)
    assert "are kept" in kept.facts["next"]
    assert "Run again" in lost.facts["next"]


def test_a_long_text_keeps_its_head_and_tail():
    text, cut = shortened("a" * 500 + "z" * 500, 300, "read_output")
    assert cut
    assert text.startswith("a" * 200 + "\n[… 700 characters left out; read_output …]\n")
    assert text.endswith("z" * 100)
    assert cell_result(cell(text="x" * 1000), 300).facts["truncated"]


def test_images_are_limited_and_invalid_ones_ignored():
    outputs = [shown("image/png", b"p")] * (MAX_PICTURES + 2) + [
        {"data": {"image/png": 7}},
        {"data": {"image/png": "é"}},
    ]
    found, dropped = pictures_of(cell(outputs=outputs))
    assert (len(found), dropped) == (MAX_PICTURES, 2)
    assert found[0].data == b"p"
    assert "2 more pictures" in cell_result(cell(outputs=outputs), 1000).text


def test_an_error_result_has_the_reasons():
    made = error_result(CannotFork("No.", reasons=["a thread runs"]))
    assert made.failed
    assert made.facts is None
    assert made.text == "cannot_fork: No.\n- a thread runs"
