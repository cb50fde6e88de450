"""A cell's events as lines of E2B's ``/execute``."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernelsvc.model import events as ev
from kernelsvc.model.events import Reason
from kernelsvc.protocol import e2b_results as results


def lines(*events: ev.Event) -> list[dict[str, Any]]:
    made = results.ResultLines("c")
    out: list[dict[str, Any]] = []
    for event in events:
        event.cell = "c" if event.cell is msgspec.UNSET else event.cell
        out += made.of(event)
    return out + made.rest()


def kinds(*events: ev.Event) -> list[str]:
    return [line["type"] for line in lines(*events)]


def test_a_cell_is_what_e2bs_server_would_have_sent() -> None:
    said = lines(
        ev.CellStarted(execution_count=3), ev.Stream(text="a\n"), ev.Stream(name="stderr", text="b\n"),
        ev.Result(data={"text/plain": "1"}), ev.CellFinished(),
    )  # fmt: skip
    assert [line.get("execution_count") or line.get("text") for line in said] == [3, "a\n", "b\n", "1", None]
    assert said[3]["is_main_result"] is True
    assert said[-1] == {"type": "end_of_execution"}


def test_every_format_has_e2bs_name() -> None:
    data = {mime: {"x": 1} if name in ("json", "data", "chart") else name for mime, name in results.FORMATS.items()}
    line = results.result(data | {"application/x-mine": 1}, main=False)
    wanted = {"text", "html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "json", "javascript", "data", "chart"}
    assert wanted <= set(line)
    assert line["extra"] == {"application/x-mine": 1}
    assert results.result({"text/html": {"not": "text"}}, main=True).get("html") is None


@pytest.mark.parametrize(("text", "shown"), [("'a'", "a"), ('"a"', "a"), ("'", "'"), ("'a\"", "'a\""), (None, None)])
def test_a_text_is_shown_without_its_quotes(text: str | None, shown: str | None) -> None:
    assert results.unquoted(text) == shown


def test_the_end_of_a_line_joins_its_beginning() -> None:
    texts = [line["text"] for line in lines(ev.Stream(text="a"), ev.Stream(text="\n"), ev.Stream(text="b\nc"))]
    assert texts == ["a\n", "b\nc"]
    said = lines(ev.Stream(text="a"), ev.Stream(name="stderr", text="b"), ev.Display(data={}), ev.Stream(text="c"))
    assert [(line["type"], line["text"]) for line in said] == [
        ("stdout", "a"), ("stderr", "b"), ("result", None), ("stdout", "c"),
    ]  # fmt: skip
    held = results.ResultLines("c")
    assert held.of(ev.Stream(cell="c", text="x" * 5000))
    assert held.of(ev.Stream(cell="c", text="x")) == []
    assert held.unfinished


@pytest.mark.parametrize(
    ("reason", "message", "name"),
    [
        (Reason.TIMEOUT, "cell_seconds: 1 s reached", "CellTimeout"),
        (Reason.MEMORY, "memory: 512 MiB reached", "CellOutOfMemory"),
        (Reason.KERNEL_DIED, "SIGSEGV", "KernelDied"),
        (Reason.SESSION_CLOSED, None, "SandboxEnded"),
    ],
)
def test_an_end_that_was_no_exception_tells_its_cause(reason: Reason, message: str | None, name: str) -> None:
    struck = ev.Error(ename="KeyboardInterrupt", evalue="", traceback=["here"])
    *_, error, end = lines(struck, ev.CellFinished(reason=reason, message=message))
    assert (error["name"], error["traceback"], end["type"]) == (name, "here", "end_of_execution")
    assert error["value"] == (message or "The cell ended: session_closed.")


def test_an_exception_is_told_once() -> None:
    raised = ev.Error(ename="ValueError", evalue="x", traceback=["a", "b"])
    assert kinds(raised, ev.CellFinished(reason=Reason.ERROR)) == ["error", "end_of_execution"]
    assert kinds(ev.CellFinished(reason=Reason.ERROR)) == ["error", "end_of_execution"]
    stopped = ev.Error(ename="KeyboardInterrupt", evalue="", traceback=[])
    assert kinds(stopped, ev.CellFinished(reason=Reason.INTERRUPTED)) == ["error", "end_of_execution"]


def test_what_e2b_drops_goes_by_names_of_our_own() -> None:
    shown = ev.DisplayUpdated(data={"text/plain": "50%"}, display_id="d")
    said = lines(shown, ev.OutputCleared(wait=True), ev.OutputTruncated(kept=1, dropped=2))
    assert [line["type"] for line in said] == ["display_update", "clear_output", "output_truncated"]
    assert said[0]["display_id"] == "d"


def test_other_cells_and_what_comes_after_the_end_are_left_out() -> None:
    assert kinds(ev.Stream(cell="other", text="x"), ev.CellFinished(), ev.Stream(text="late")) == ["end_of_execution"]
    assert kinds(ev.InputRequested(prompt="?"), ev.CheckpointSkipped(why=[])) == []


def test_a_line_is_json_and_a_newline() -> None:
    assert results.encode(results.first("s", "c")) == b'{"type":"cell","session":"s","id":"c"}\n'
