"""A cell as a model wants it."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from kernelsvc.errors import CannotFork
from kernelsvc.model import limit_causes
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellError, CellInfo, CellState, CellView, SeqRange, ViewPicture
from kernelsvc.tools.result import MAX_PICTURES, MAX_SIDE, cell_result, error_result, shortened, smaller, view_pictures


def cell(**changes: Any) -> CellInfo:
    more = {"state": CellState.FINISHED, "reason": Reason.OK, **changes}
    return CellInfo(id="c1", session="s1", code="", seq=SeqRange(first=1, last=2), **more)


def view(text: str = "x\n[1]", pictures: list[bytes] | None = None) -> CellView:
    found = [
        ViewPicture(number=number, mime="image/png", data=base64.b64encode(data).decode())
        for number, data in enumerate(pictures or [], 1)
    ]
    return CellView(session="s1", cell="c1", number=1, state=CellState.FINISHED, text=text, pictures=found)


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "PNG")
    return out.getvalue()


def test_a_good_cell():
    made = cell_result(cell(text="42\n", execution_count=3), view("42\n[1]"), "A note.")
    assert made.text == "[A note.]\n42\n[1]"
    assert made.facts == {
        "session": "s1", "cell": "c1", "number": 1, "state": "finished", "reason": "ok", "text": "42\n",
        "execution_count": 3, "note": "A note.",
    }  # fmt: skip
    assert not made.failed


def test_a_cell_that_still_runs_is_no_failure_and_says_how_to_go_on():
    made = cell_result(cell(state=CellState.RUNNING, reason=None, text="half"), view())
    assert not made.failed
    assert "call wait" in made.facts["next"]


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.OK])
def test_every_bad_end_is_a_failure(reason):
    made = cell_result(cell(reason=reason, error=CellError(ename="E", evalue="v", traceback=[])), view())
    assert made.failed
    assert made.facts["error"] == {"ename": "E", "evalue": "v"}
    assert reason is Reason.ERROR or made.facts["next"]


def test_a_crash_says_whether_the_variables_are_kept():
    kept = cell_result(cell(reason=Reason.KERNEL_DIED, variables_kept=True), view())
    lost = cell_result(cell(reason=Reason.KERNEL_DIED, variables_kept=False), view())
    message = f"died; {limit_causes.kept(['c_1'])}."
    partly = cell_result(cell(reason=Reason.KERNEL_DIED, variables_kept=True, message=message), view())
    assert "are kept" not in partly.facts["next"]
    assert "an earlier state" in partly.facts["next"]
    assert "are kept" in kept.facts["next"]
    assert "Run again" in lost.facts["next"]


def test_a_long_text_keeps_its_head_and_tail():
    text, cut = shortened("a" * 500 + "z" * 500, 300, "read_output")
    assert cut
    assert text.startswith("a" * 200 + "\n[… 700 characters left out; read_output …]\n")
    assert text.endswith("z" * 100)
    assert cell_result(cell(text="x" * 30_000), view()).facts["truncated"]


def test_pictures_are_limited_in_number_and_size():
    found, missing = view_pictures(view(pictures=[png(10, 10)] * MAX_PICTURES + [png(10, 10)]))
    assert (len(found), missing) == (MAX_PICTURES, 1)
    (large, broken), _ = view_pictures(view(pictures=[png(2400, 1200), b"no picture"]))
    assert Image.open(io.BytesIO(large.data)).size == (MAX_SIDE, MAX_SIDE // 2)
    assert broken.data == b"no picture"
    small = png(1000, 10)
    assert smaller("image/png", small).data == small


def test_an_error_result_has_the_reasons():
    made = error_result(CannotFork("No.", reasons=["a thread runs"]))
    assert made.failed
    assert made.facts is None
    assert made.text == "cannot_fork: No.\n- a thread runs"
