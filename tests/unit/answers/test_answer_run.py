"""The result of a cell, for the model and for clients. Whole answers are in tests/unit/server/openai."""

from __future__ import annotations

import base64

from kernelsvc.answers.answer_run import outputs_of, result_text
from kernelsvc.model.events import Reason
from kernelsvc.model.limit_causes import kept
from kernelsvc.model.objects import CellInfo, CellState, SeqRange

PNG = base64.b64encode(b"\x89PNG").decode()


def cell(text: str = "", reason: Reason = Reason.OK, picture: bool = False, **more: object) -> CellInfo:
    outputs = [{"output_type": "display_data", "data": {"image/png": PNG}}] if picture else []
    return CellInfo(
        id="ci_1", session="s_1", code="1", state=CellState.FINISHED, reason=reason, text=text, outputs=outputs,
        seq=SeqRange(first=1, last=2), **more,
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_model_reads_text_files_and_the_cause_of_an_end() -> None:
    assert result_text(cell("42\n"), 1000, [], vision=False) == "42"
    assert result_text(cell(), 1000, [], vision=False) == "[no output]"
    assert result_text(cell("1\n"), 1000, ["a.csv"], vision=False) == "1\n[new files: a.csv]"
    died = result_text(cell(reason=Reason.KERNEL_DIED, variables_kept=True, message="SIGSEGV"), 1000, [], vision=False)
    assert died == "[The Python process ended. The variables from before it are kept. SIGSEGV]"
    partly = result_text(
        cell(reason=Reason.KERNEL_DIED, variables_kept=True, message=f"Died; {kept(['c_1'])}."), 1000, [], vision=False
    )
    assert "are kept" not in partly
    assert "c_1" in partly
    assert len(result_text(cell("x" * 10_000), 1000, [], vision=False)) < 1200


def test_pictures_are_named_to_a_model_that_does_not_see() -> None:
    assert result_text(cell(picture=True), 1000, [], vision=False) == "[1 pictures, which the user sees]"
    assert result_text(cell(picture=True), 1000, [], vision=True) == "[no output]"


def test_clients_get_logs_and_pictures() -> None:
    assert outputs_of(cell("42\n", picture=True)) == [
        {"type": "logs", "logs": "42\n"},
        {"type": "image", "url": f"data:image/png;base64,{PNG}"},
    ]
    assert outputs_of(cell()) == []
