"""The calls of a cell in the API and in the notebook."""

from __future__ import annotations

from kernelsvc.model import events as ev
from kernelsvc.model.cell_fold import CellFold
from kernelsvc.model.notebook import NotebookFold

CELL = "c1"


def events(*more: ev.Event) -> list[ev.Event]:
    found = [ev.SessionStarted(), ev.CellQueued(cell=CELL, code="x"), ev.CellStarted(cell=CELL), *more]
    found.append(ev.CellFinished(cell=CELL))
    for seq, event in enumerate(found, 1):
        event.seq = seq
    return found


def call(number: int, tool: str = "f", status: str = "ok", size: int = 5, **more: object) -> list[ev.Event]:
    called = ev.ToolCalled(cell=CELL, call=f"k.{number}", tool=tool, arguments={"n": number}, bytes=7, **more)
    return [called, ev.ToolReturned(cell=CELL, call=f"k.{number}", status=status, value=number, bytes=size, ms=2.5)]


def notebook(*more: ev.Event) -> list[dict]:
    fold = NotebookFold()
    for event in events(*more):
        fold.feed(event)
    return fold.rest()


def test_the_cell_shows_its_first_calls_and_counts_all() -> None:
    fold = CellFold()
    for event in events(*(each for n in range(150) for each in call(n)), *call(200, status="error")[:1]):
        fold.feed(event)
    cell = fold.cell("s")
    assert cell.calls.counts == {"f": {"ok": 150, "open": 1}}
    assert len(cell.calls) == 100
    assert next((c.tool, c.status, c.ms) for c in cell.calls) == ("f", "ok", 2.5)
    assert cell.waits_for == "tool"


def test_a_cell_without_calls_has_no_field_for_them() -> None:
    import msgspec

    fold = CellFold()
    for event in events():
        fold.feed(event)
    assert not {"calls", "waits_for"} & msgspec.to_builtins(fold.cell("s")).keys()
    assert "calls" not in notebook()[0]["metadata"]["kernelsvc"]


def test_reads_that_succeed_leave_no_note() -> None:
    cells = notebook(*call(1, effects="read"))
    assert len(cells) == 1
    assert cells[0]["metadata"]["kernelsvc"]["calls"][0]["value"] == 1


def test_a_note_names_failures_writes_and_decisions() -> None:
    decided = ev.ToolDecided(cell=CELL, call="k.3", decision="approved", by="ada")
    send = call(3, "send_mail", approval="pending", effects="write")
    cells = notebook(*call(1), *call(2, status="error"), send[0], decided, send[1])
    text = "2 calls of f (1 ok, 1 error); 1 call of send\\_mail (1 ok); send\\_mail approved by ada."
    assert cells[1]["source"] == f"> **kernelsvc:** {text}"


def test_long_values_are_named_by_their_size() -> None:
    (entry,) = notebook(*call(1, size=70_000))[0]["metadata"]["kernelsvc"]["calls"]
    assert entry["value"] == {"$bytes": 70_000}
