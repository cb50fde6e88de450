"""Pages of calls, and calls by id, from a log with large calls."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import pytest

from kernelsvc.errors import NotFound
from kernelsvc.model import events as ev
from kernelsvc.model.tool_calls.ledger import OpenCall
from kernelsvc.session import call_records
from kernelsvc.session.call_records import CallReader, calls_without_values
from kernelsvc.session.ports import Log


class _Log:
    """A log of events in memory."""

    def __init__(self, *events: ev.Event) -> None:
        for seq, event in enumerate(events, 1):
            event.seq = seq
        self._lines = [msgspec.json.encode(event) for event in events]

    def lines(self, first: int, last: int) -> Iterable[bytes]:
        return self._lines[first - 1 : last]

    def reader(self, *open_calls: OpenCall) -> CallReader:
        entries = array("Q", range(1, len(self._lines) + 1))
        return CallReader("s", cast("Log", self), entries, {call.id: call for call in open_calls})


def _called(number: int, arguments: Any = None, cell: str = "a", size: int = 2) -> ev.ToolCalled:
    return ev.ToolCalled(call=f"k.{number}", tool="t", arguments=arguments or {}, bytes=size, cell=cell)


def _returned(number: int, value: Any = 1) -> ev.ToolReturned:
    return ev.ToolReturned(call=f"k.{number}", value=value, bytes=1, ms=2.0)


def _open(number: int, seq: int, *, pending: bool = False) -> OpenCall:
    unused: dict[str, Any] = dict.fromkeys(("timeout_seconds", "approval_seconds", "called_at", "sent_at"), 0.0)
    unused |= dict.fromkeys(("idempotent", "redacted", "redact_result"), False)
    return OpenCall(
        f"k.{number}", "t", "a", seq, "", pending=pending, effects="", approval="", decided_by="ann", **unused
    )


def _ids(found: tuple[list[Any], int]) -> tuple[list[str], int]:
    return [each.call for each in found[0]], found[1]


def test_pages_of_calls_by_cell_and_state() -> None:
    log = _Log(
        _called(1), ev.Stream(text="x"), _returned(1), _called(2, cell="b"), _called(3), ev.ToolDecided(call="k.3"),
        _called(4),
    )  # fmt: skip
    reader = log.reader(_open(2, 4), _open(3, 5), _open(4, 7, pending=True))
    every: dict[str, Any] = {"cell": None, "state": None, "offset": 0, "limit": 10}
    assert _ids(reader.page(**every)) == (["k.1", "k.2", "k.3", "k.4"], 4)
    assert _ids(reader.page(**{**every, "offset": 1, "limit": 2})) == (["k.2", "k.3"], 4)
    assert _ids(reader.page(**{**every, "offset": 4})) == ([], 4)
    assert _ids(reader.page(**{**every, "cell": "b"})) == (["k.2"], 1)
    assert _ids(reader.page(**{**every, "state": "pending"})) == (["k.4"], 1)
    assert _ids(reader.page(**{**every, "state": "running"})) == (["k.2", "k.3"], 2)
    assert _ids(reader.page(**{**every, "state": "ended"})) == (["k.1"], 1)
    first, *_, last = reader.page(**every)[0]
    assert (first.state, first.status, first.value, first.ms, last.state) == ("ended", "ok", None, 2.0, "pending")


def test_only_the_entries_that_are_shown_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _Log(*(event for n in range(1, 101) for event in (_called(n, {"l": [[]] * 100}), _returned(n))))
    decoded: list[bytes] = []
    decode = ev.decode
    monkeypatch.setattr(call_records.ev, "decode", lambda line: decoded.append(line) or decode(line))
    (found,) = log.reader().find(["k.7"])
    assert (found.value, found.arguments, len(decoded)) == (1, {"l": [[]] * 100}, 2)
    decoded.clear()
    assert _ids(log.reader().page(cell=None, state=None, offset=90, limit=5))[1] == 100
    assert len(decoded) == 10


def test_a_page_ends_when_its_arguments_are_large() -> None:
    log = _Log(*(_called(n, {"n": n}, size=1 << 20) for n in range(1, 51)))
    reader = log.reader()
    seen: list[str] = []
    while True:
        ids, total = _ids(reader.page(cell=None, state=None, offset=len(seen), limit=1000))
        if not ids:
            break
        assert len(ids) <= 5
        seen += ids
    assert seen == [f"k.{n}" for n in range(1, 51)]
    assert total == 50


def test_calls_of_a_decision_have_no_large_arguments() -> None:
    log = _Log(*(_called(n, {"n": n}, size=1 << 20) for n in range(1, 9)), _returned(8))
    found = log.reader().find([f"k.{n}" for n in (8, 7, 6, 5, 4, 3, 2, 1)], with_values=False)
    assert [each.arguments for each in found] == [*[{"$bytes": 1 << 20}] * 4, *({"n": n} for n in (4, 3, 2, 1))]
    assert [(each.state, each.value) for each in found[:2]] == [("ended", None), ("running", None)]


def test_a_call_that_the_log_does_not_have() -> None:
    with pytest.raises(NotFound, match="no call"):
        _Log(_called(1)).reader().find(["k.1", "k.2"])


def test_ends_are_read_without_their_results() -> None:
    log = _Log(_called(1), _returned(1, [[]] * 100), ev.Stream(text="x"), ev.ToolDecided(call="k.2"), _called(2))
    found = [*calls_without_values(cast("Log", log), [1, 2, 4, 5])]
    assert [(type(each).__name__, each.seq) for each in found] == [
        ("ToolCalled", 1), ("ToolReturned", 2), ("ToolCalled", 5),
    ]  # fmt: skip
    assert cast("ev.ToolReturned", found[1]).value is None
