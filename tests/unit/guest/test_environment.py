"""Environment and directory, changed and put back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from opentelemetry.trace import get_current_span

from kernelsvc.guest import environment as surroundings


def test_a_change_can_be_undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("FRESH", raising=False)
    monkeypatch.chdir(tmp_path)
    reply = surroundings.change({"KEPT": "after", "FRESH": 'it\'s "new"\n'})
    assert (os.environ["KEPT"], os.environ["FRESH"]) == ("after", 'it\'s "new"\n')
    assert reply == {"status": "ok", "before": {"KEPT": "before", "FRESH": None}, "directory": str(tmp_path)}
    surroundings.change(reply["before"])
    assert os.environ["KEPT"] == "before"
    assert "FRESH" not in os.environ


def test_a_directory_that_is_not_there_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert surroundings.change({}, "here")["directory"] == str(tmp_path / "here")
    reply = surroundings.change({"NEVER": "x"}, "/nowhere")
    assert reply["status"] == "error"
    assert "No such file" in reply["evalue"]
    assert "NEVER" not in os.environ


def test_variables_of_one_cell_end_with_it_and_its_own_values_stay(monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "before")
    with surroundings.during({"TRACEPARENT": "cell", "TRACESTATE": "a=b"}):
        assert (os.environ["TRACEPARENT"], os.environ["TRACESTATE"]) == ("cell", "a=b")
        os.environ["TRACESTATE"] = "own"
    assert (os.environ["TRACEPARENT"], os.environ["TRACESTATE"]) == ("before", "own")
    monkeypatch.delenv("TRACESTATE")


def test_spans_of_a_cells_code_get_the_parent_of_the_trace():
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with surroundings.during({"TRACEPARENT": f"00-{trace}-{span}-01"}):
        context = get_current_span().get_span_context()
        assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (trace, span)
    assert not get_current_span().get_span_context().is_valid


def test_a_cells_own_opentelemetry_that_fails_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", object())
    with surroundings.during({"TRACEPARENT": "x"}):
        assert os.environ["TRACEPARENT"] == "x"
