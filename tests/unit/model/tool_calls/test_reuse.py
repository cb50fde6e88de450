"""Recorded results for a cell that repeats the calls of another one."""

from __future__ import annotations

from typing import Any

from kernelsvc.model import events as ev
from kernelsvc.model.tool_calls.reuse import call_key, recorded_ends


def _call(call: str, n: Any, status: str | None = "ok", **fields: Any) -> list[ev.Event]:
    began = ev.ToolCalled(call=call, tool="t", arguments={"n": n}, **{"cell": "a", **fields})
    if status is None:
        return [began]
    return [began, ev.ToolReturned(call=call, status=status, value=call, cell=began.cell)]  # type: ignore[arg-type]


def _left(*calls: list[ev.Event]) -> dict[bytes, list[str]]:
    events = [event for call in calls for event in call]
    return {key: [end.call for end in ends] for key, ends in recorded_ends(events, "a", "b").items()}


def test_results_are_found_by_function_and_arguments_in_any_order_of_names() -> None:
    assert call_key("t", {"a": 1, "b": 2}) == call_key("t", {"b": 2, "a": 1})
    assert call_key("t", {"a": 1}) != call_key("u", {"a": 1})
    one, two = call_key("t", {"n": 1}), call_key("t", {"n": 2})
    assert _left(_call("k.1", 1), _call("k.2", 2), _call("k.3", 1, "error")) == {one: ["k.1", "k.3"], two: ["k.2"]}


def test_results_that_the_log_lacks_or_that_other_cells_got_are_left_out() -> None:
    assert not _left(
        _call("k.1", 1, "denied"),
        _call("k.2", 1, "lost"),
        _call("k.3", 1, None),
        _call("k.4", 1, redacted=["/n"]),
        _call("k.5", 1, redact_result=True),
        _call("k.6", 1, cell="c"),
    )


def test_what_was_used_before_a_restart_is_not_used_again() -> None:
    one = call_key("t", {"n": 1})
    assert _left(_call("k.1", 1), _call("k.2", 1), _call("q.1", 1, cell="b", reused="k.1")) == {one: ["k.2"]}
